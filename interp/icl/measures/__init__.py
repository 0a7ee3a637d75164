"""How close two learners are: alignment, similarity of errors, steps that match, copying, roll-outs."""
