"""The key/value cache that a Lens hands to the model.

Keys and values pass through `Cache.update` once, when they are new: that is where `hook_rot_k` (or `hook_k`) and
`hook_v` fire, so that what a hook returns is what gets stored and every later step attends to it. A cache from
elsewhere has no such seam: hooks on it may read, and an edit is refused.

Under a cache policy the full-attention layers are `StoredLayer`s, which hold what the policy left, in segments. They
know the true position of every token, count the tokens seen (that is what the model's position ids follow), and free
what they drop. The attention seam reads their segments; anybody else gets dense tensors, zeros for dropped channels, or
an InterpError where those would not be the whole truth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from transformers import DynamicCache

from interp.cache.beside import stored_layer
from interp.cache.kinds import kind_of
from interp.cache.stored_layer import StoredLayer
from interp.errors import InterpError

Tensor = torch.Tensor
INDEX_PARTS = ("indexer_keys", "indexer_position_ids")
"""What layers hold beside keys and values by which their model chooses among these."""
NewKeysValues = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


class LensCache(DynamicCache):
    """transformers' dynamic cache (sliding layers where the config has them) that lets hooks see new keys and values.

    `listener` is set by the Lens for the time of a call and called as `listener(layer, keys, values)` with tensors
    `[batch, kv_head, new, d_head]`; between calls it is None, so a cache can be copied, kept and passed on freely.
    With `policies`, full-attention layers are `StoredLayer`s and `keeper` applies the policies to them.
    """

    layers: list[Any]

    def __init__(self, config: Any, keeper: Any = None) -> None:
        super().__init__(config=config)
        self._listener: NewKeysValues | None = None
        self.keeper = keeper
        """What applies cache policies to this sequence (`interp.interventions.base.Keeper`), or None."""
        if keeper is not None:
            for i in keeper.layers:
                self.layers[i] = stored_layer(self.layers[i], i in keeper.cfg.latent_layers) or self.layers[i]

    @property
    def listener(self) -> NewKeysValues | None:
        return self._listener

    @listener.setter
    def listener(self, listener: NewKeysValues | None) -> None:
        self._listener = listener
        for layer in self.stored.values():
            layer.seam = listener is not None

    @property
    def stored(self) -> dict[int, StoredLayer]:
        """Layers that a policy may act on, by number."""
        return {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, StoredLayer)}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx == self._first:  # before anything is stored, so that a refusal leaves the cache as it was
            self._check_arrival(key_states.shape[2])
        if self._listener is not None:
            key_states, value_states = self._listener(layer_idx, key_states, value_states)
        stored: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return stored

    @property
    def _first(self) -> int:
        """The first layer that stores keys and values; of a cache whose layers come as they are needed, 0."""
        kept = (i for i, layer in enumerate(self.layers) if kind_of(layer) != "none")
        return next(kept, 0)

    @property
    def waits(self) -> bool:
        """Whether the prompt was read and policies wait for the first token after it before they compress."""
        return self.keeper is not None and self.keeper.waits(self.get_seq_length())

    def _check_arrival(self, new: int) -> None:
        """Raise InterpError where `new` tokens cannot attend to what this cache holds, or to what it should hold."""
        if self._listener is None:
            self._check_dense_view(new)
        elif new > 1 and self.waits:
            names = " and ".join(policy.name for policy in self.keeper.policies)
            raise InterpError(
                f"{names} compresses at the first token after the prompt, and {new} came at once, which would all "
                "attend in full: pass that one by itself first, or let it compress at the prompt's end."
            )

    def _check_dense_view(self, new: int) -> None:
        """Raise InterpError where dense keys and values are not all there is to a compressed cache."""
        layers = [layer for layer in self.stored.values() if layer.is_initialized]
        reasons = [layer.needs_seam for layer in layers if layer.needs_seam is not None]
        lengths = {layer.kept for layer in layers}
        # one token without padding needs no mask, and a mask is made for all layers at once
        if len(lengths) > 1 and (new > 1 or any(layer.padding is not None for layer in layers)):
            reasons.append(f"{min(lengths)} to {max(lengths)} tokens by layer, which no one mask fits")
        if reasons:
            raise InterpError(f"only a Lens can attend to this cache, which stores {reasons[0]}; continue through it.")

    def crop(self, tokens: int) -> None:
        """Forget the newest tokens: -`tokens` of them, or all but the first `tokens` of the text where it is positive.

        All layers do or, where one of them cannot, none: it raises before any is cut.
        """
        seen = self.get_seq_length()
        left = max(0, seen + tokens) if tokens <= 0 else min(tokens, seen)
        if left == seen and not any(getattr(layer, "record_past", False) for layer in self.layers):
            return  # a window that has moved on would refuse even to forget nothing
        if self.keeper is not None and left < seen and self.keeper.needs_more_than(left):
            raise InterpError(
                f"the cache cannot go back to {left} tokens while its policies have yet to compress the prompt of "
                f"{self.keeper.prompt_tokens}; start a new one."
            )
        states = [i for i, layer in enumerate(self.layers) if hasattr(layer, "recurrent_states")]
        if left < seen and states:
            raise InterpError(
                f"the cache cannot forget tokens: layers {', '.join(map(str, states))} hold a recurrent state, which "
                "has no past; start a new one."
            )
        for i, layer in enumerate(self.layers):
            try:
                copy.copy(layer).crop(left - seen)
            except (RuntimeError, ValueError) as error:  # transformers' own, of a sliding window that has moved on
                raise InterpError(
                    f"the cache cannot go back to {left} tokens: the window of layer {i} has moved on, and what it "
                    "left behind does not come back; start a new cache, or go on with a copy (copy.deepcopy)."
                ) from error
        super().crop(left - seen)

    def fork(self) -> Self:
        """A cache that goes on by itself from here, without copying keys and values: updates make new tensors of them.
        Recurrent states are written in place and copied. Of a cache whose layers are in slots, take a deep copy."""
        made = copy.copy(self)
        made.layers = [_forked(layer) for layer in self.layers]
        return made

    def reset(self) -> None:
        super().reset()
        if self.keeper is not None:
            self.keeper.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.keeper is not None:
            self.keeper.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = self._rows().repeat_interleave(repeats)
        super().batch_repeat_interleave(repeats)
        if self.keeper is not None:
            self.keeper.reorder(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = self._rows()[indices.cpu()]
        super().batch_select_indices(indices)
        if self.keeper is not None:
            self.keeper.reorder(rows)

    def _rows(self) -> Tensor:
        """Numbers of the texts in the batch."""
        held = next((tensor for _, _, tensor in self.parts()), None)
        return torch.arange(0 if held is None else held.shape[0])

    def parts(self) -> Iterator[tuple[int, str, Tensor]]:
        """(layer, part, tensor) of everything that the cache holds."""
        for i, layer in enumerate(self.layers):
            if isinstance(layer, StoredLayer):
                for segment in layer.segments:
                    yield from ((i, name, tensor) for name, tensor in segment.tensors())
                held = [(name, getattr(layer, name, None)) for name in INDEX_PARTS]
            else:
                held = [(name, getattr(layer, name, None)) for name in ("keys", "values", *INDEX_PARTS)]
                for name in ("conv_states", "recurrent_states"):
                    states = getattr(layer, name, {})  # by number; older releases of transformers hold one alone
                    held += [(name, state) for state in (states.values() if isinstance(states, dict) else [states])]
            yield from ((i, name, tensor) for name, tensor in held if isinstance(tensor, Tensor))

    def nbytes(self) -> int:
        """Bytes held by the cache: the sum over distinct storages, so a view is not counted twice and slack is not
        hidden."""
        held = (tensor.untyped_storage() for _, _, tensor in self.parts() if tensor.numel())
        return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())

    def report(self) -> Any:
        """Bytes by layer and part, as a pandas DataFrame with a row a layer.

        Columns: `tokens` (seen), `kept` (stored in each head), the parts (keys, values, channels, positions, mass, ...)
        and `bytes`.
        """
        import pandas as pd

        held: dict[tuple[int, str], dict[int, int]] = {}
        for layer, part, tensor in self.parts():
            storage = tensor.untyped_storage()
            held.setdefault((layer, part), {})[storage.data_ptr()] = storage.nbytes() if tensor.numel() else 0
        table = pd.Series({where: sum(sizes.values()) for where, sizes in held.items()}, dtype="int64")
        if table.empty:
            return pd.DataFrame(columns=["tokens", "kept", "bytes"])
        table = table.unstack(fill_value=0)
        total = table.sum(axis=1)
        kept = [_kept(self.layers[i]) for i in table.index]
        seen = [0 if kind_of(self.layers[i]) == "none" else self.get_seq_length(i) for i in table.index]
        table = table.assign(bytes=total)
        table.insert(0, "kept", kept)
        table.insert(0, "tokens", seen)
        return table.rename_axis("layer")


def _forked(layer: Any) -> Any:
    if kind_of(layer) == "none":
        return copy.deepcopy(layer)
    made = copy.copy(layer)
    if hasattr(layer, "recurrent_states"):  # beside keys and values (Falcon-H1, Zamba)
        made.conv_states, made.recurrent_states = copy.deepcopy((layer.conv_states, layer.recurrent_states))
    return made


def _kept(layer: Any) -> int:
    if isinstance(layer, StoredLayer):
        return layer.kept
    keys = getattr(layer, "keys", None)
    return int(keys.shape[-2]) if isinstance(keys, Tensor) else 0
