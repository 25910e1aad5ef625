"""Configuration: the schema (one home for each option) and how a file and the environment become it."""
