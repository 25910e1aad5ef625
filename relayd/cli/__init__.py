"""The commands. Each is a thin reader of arguments and printer of results; what they do is done in rooms below."""
