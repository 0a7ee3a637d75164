"""Attention's linear algebra without the attention matrix.

With A = softmax(scale * Q K^T + mask) of one head, the operations are A @ V (`attention_apply`), A^T @ Y
(`attention_transpose_apply`) and A^T A @ X (`attention_gram_apply`); `channel_energy` is the mean square of
each channel. None of them keeps an N x S array: memory is O(N * block). `attention_pattern` is A itself.
`packed_decode` is attention over a compressed cache.

Depends on torch and on nothing else. Each operation is one folder with a readable `reference.py` and a
blocked `cpu.py`; `use` overrides which of them runs. Nothing here records gradients.
"""

from .attention_apply import Attended, attention_apply
from .attention_gram_apply import attention_gram_apply
from .attention_pattern import attention_pattern
from .attention_transpose_apply import attention_transpose_apply
from .channel_energy import channel_energy
from .decode_step import Evicted, Merge, Merged, Stepped, decode_step
from .dispatch import use
from .facts import MaskFacts
from .nearest_merge import Nearest, merge_tokens, nearest_key
from .packed_decode import Decoded, KeySegment, packed_decode
from .packed_decode.channels import cut, unpacked
from .residual_census import ResidualCensus, residual_census

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
    "Stepped",
    "attention_apply",
    "attention_gram_apply",
    "attention_pattern",
    "attention_transpose_apply",
    "channel_energy",
    "cut",
    "decode_step",
    "merge_tokens",
    "nearest_key",
    "packed_decode",
    "residual_census",
    "unpacked",
    "use",
]
