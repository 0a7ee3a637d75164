"""Algorithms with the call of a model, `alg(X, y, xq)`: gradient descent and its relatives, closed forms, optima."""
