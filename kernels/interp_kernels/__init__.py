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
`reference.py`, a blocked `cpu.py` and a `triton.py`, found by being there (`operations`); `use` overrides which of them
runs. Only `group_reweighted_attention` records gradients.
"""

from typing import TYPE_CHECKING

from . import operations
from .attention_pattern import attention_pattern
from .dispatch import use
from .facts import MaskFacts

if TYPE_CHECKING:  # what type checkers and editors know by name; a new operation works without a line here
    from .attention_apply import Attended as Attended
    from .attention_apply import attention_apply as attention_apply
    from .attention_gram_apply import attention_gram_apply as attention_gram_apply
    from .attention_transpose_apply import attention_transpose_apply as attention_transpose_apply
    from .channel_energy import channel_energy as channel_energy
    from .channel_gram import channel_gram as channel_gram
    from .decode_step import Evicted as Evicted
    from .decode_step import Merge as Merge
    from .decode_step import Merged as Merged
    from .decode_step import Stepped as Stepped
    from .decode_step import decode_step as decode_step
    from .group_reweighted_attention import Reweighted as Reweighted
    from .group_reweighted_attention import group_reweighted_attention as group_reweighted_attention
    from .group_reweighted_attention import knock_out as knock_out
    from .group_reweighted_attention import visual_redistribution as visual_redistribution
    from .nearest_merge import Nearest as Nearest
    from .nearest_merge import merge_tokens as merge_tokens
    from .nearest_merge import nearest_key as nearest_key
    from .packed_decode import Decoded as Decoded
    from .packed_decode import KeySegment as KeySegment
    from .packed_decode import cut as cut
    from .packed_decode import packed_decode as packed_decode
    from .packed_decode import unpacked as unpacked
    from .residual_census import ResidualCensus as ResidualCensus
    from .residual_census import residual_census as residual_census
    from .think_pack import think_pack as think_pack

_found = operations.exported()
globals().update(_found)  # over the folders of the same names, which are reached by import_module

__all__ = ["MaskFacts", "attention_pattern", "use"]
__all__ += list(_found)
