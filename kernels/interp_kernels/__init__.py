"""Attention's linear algebra without the attention matrix.

With A = softmax(scale * Q K^T + mask) of one head, the operations are A @ V (`attention_apply`), A^T @ Y
(`attention_transpose_apply`) and A^T A @ X (`attention_gram_apply`); `group_reweighted_attention` is A @ V with
A's mass moved between groups of keys. Only the references keep an N x S array: elsewhere memory is O(N *
block). `attention_pattern` is A itself.

For caches: `channel_energy` and `channel_gram` judge channels, `think_pack` cuts them out,
`packed_decode` attends over what is left; `nearest_key` and `merge_tokens` recall what is evicted,
`decode_step` attends, keeps account and evicts at once. `residual_census` finds what stands out in the residual
stream.

Depends on torch, and on triton where it is installed. Each operation is one folder with a readable
`reference.py`, a blocked `cpu.py` and a `triton.py`; `use` overrides which of them runs. Only
`group_reweighted_attention` records gradients.
"""

from .attention_apply import Attended, attention_apply
from .attention_gram_apply import attention_gram_apply
from .attention_pattern import attention_pattern
from .attention_transpose_apply import attention_transpose_apply
from .channel_energy import channel_energy
from .channel_gram import channel_gram
from .decode_step import Evicted, Merge, Merged, Stepped, decode_step
from .dispatch import use
from .facts import MaskFacts
from .group_reweighted_attention import (
    Reweighted,
    group_reweighted_attention,
    knock_out,
    visual_redistribution,
)
from .nearest_merge import Nearest, merge_tokens, nearest_key
from .packed_decode import Decoded, KeySegment, packed_decode
from .packed_decode.channels import cut, unpacked
from .residual_census import ResidualCensus, residual_census
from .think_pack import think_pack

__all__ = [
    "Attended",
    "Decoded",
    "Evicted",
    "KeySegment",
    "MaskFacts",
    "Merge",
    "Merged",
    "Nearest",
    "ResidualCensus",
    "Reweighted",
    "Stepped",
    "attention_apply",
    "attention_gram_apply",
    "attention_pattern",
    "attention_transpose_apply",
    "channel_energy",
    "channel_gram",
    "cut",
    "decode_step",
    "group_reweighted_attention",
    "knock_out",
    "merge_tokens",
    "nearest_key",
    "packed_decode",
    "residual_census",
    "think_pack",
    "unpacked",
    "use",
    "visual_redistribution",
]
