"""What transformers' cache keeps for each layer of a model, told by the class of its cache layer."""

from __future__ import annotations

from typing import Any, Literal

from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Kind = Literal["full", "beside", "indexed", "sliding", "none", "other"]
"""full: keys and values of all tokens. beside: those, and a recurrent state beside them (Falcon-H1, Zamba). indexed:
those, and the keys of an index by which each query chooses some of them (DeepSeek 3.2). sliding: of the newest tokens,
chunked attention included. none: no keys (recurrent states, layers that read another's cache). other: more than keys
and values."""

# those of transformers releases that know layers with attention and a recurrent state side by side
BESIDE = getattr(cache_utils, "LinearAttentionAndFullAttentionLayer", None)
INDEXED = getattr(cache_utils, "DynamicIndexedLayer", None)


def kind_of(layer: Any) -> Kind:
    """The kind of one cache layer."""
    if type(layer) is DynamicLayer:
        return "full"
    if type(layer) is BESIDE:
        return "beside"
    if type(layer) is INDEXED:
        return "indexed"
    if isinstance(layer, DynamicSlidingWindowLayer):
        return "sliding"
    return "other" if isinstance(layer, DynamicLayer) else "none"


def kinds(config: Any) -> tuple[Kind, ...]:
    """The kind of every layer's cache, in order of depth; empty where the cache does not know the layers beforehand."""
    return tuple(kind_of(layer) for layer in DynamicCache(config=config).layers)
