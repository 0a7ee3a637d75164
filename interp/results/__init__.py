"""Results: described datasets with named dimensions, on disk, of many texts or models, and where they come from."""
