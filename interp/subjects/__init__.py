"""Models and texts to study that need no model hub."""
