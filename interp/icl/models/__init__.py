"""Small transformers that read such prompts: their parts, constructed weights, training, and what weights compute."""
