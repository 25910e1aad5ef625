"""The operators' window: metrics and health over HTTP. Knows a `Backend`, never the service behind it."""
