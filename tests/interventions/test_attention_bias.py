from interp import AttentionBias
EXAMPLES = [
    AttentionBias(keys=(1, 3), bias=2.0),
    AttentionBias(keys=(0, 11), bias=-3.0, queries=(4, 8, 11)),
    AttentionBias(keys=(0, 2), bias=1.5, mode="set"),
]
