"""Attention edits, one file a method: how the attention that rows pay is changed."""
