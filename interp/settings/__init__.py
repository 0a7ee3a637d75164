"""Settings of frozen dataclasses: checked against the types of their fields, and read from text."""
