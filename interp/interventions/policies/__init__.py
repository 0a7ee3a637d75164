"""Cache policies, one file a method: what a full-attention layer keeps of its keys and values."""
