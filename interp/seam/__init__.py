"""Where interp meets a model's attention: the function and masks that take the model's place during a Lens call, hook
points, and the `AttentionEvent` that probes, policies and edits see of a layer.
"""
