"""relayd: a high-throughput SMTP relay and smarthost that loses nothing it answered 250 to."""

__version__ = "0.1.0"
