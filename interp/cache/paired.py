"""The cache of an encoder-decoder: a Lens' own for the decoder's tokens, and the encoder's keys beside it."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, EncoderDecoderCache

from interp.cache.lens_cache import LensCache


class PairedCache(EncoderDecoderCache):  # type: ignore[misc]  # transformers' classes have no types
    """transformers' cache of an encoder-decoder, whose self-attention is cached in a `LensCache`.

    Keys and values of the encoder's tokens are stored as the model made them: hooks see them at every step anew.
    """

    keeper = None
    """No cache policy acts here."""

    self_attention_cache: LensCache

    def __init__(self, own: LensCache) -> None:
        super().__init__(own, DynamicCache())

    def nbytes(self) -> int:
        """Bytes held: of the decoder's tokens, and of the encoder's."""
        crossing = (t for layer in self.cross_attention_cache.layers for t in (layer.keys, layer.values))
        held = (tensor.untyped_storage() for tensor in crossing if tensor is not None)
        beside: dict[int, int] = {storage.data_ptr(): storage.nbytes() for storage in held}
        total: int = self.self_attention_cache.nbytes() + sum(beside.values())
        return total


def of_own_tokens(cache: Any) -> Any:
    """The part of a cache that holds the keys of the main stack's own tokens: in most models all of it."""
    return getattr(cache, "self_attention_cache", cache)
