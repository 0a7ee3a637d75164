"""Images for models that see: how they are read, and where their tokens lie."""
