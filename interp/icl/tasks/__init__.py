"""Prompts of labelled points to learn from in context: linear regression, its shifts, other classes of functions."""
