"""TransformerLens' activation cache over a Lens: its names and this library's, its methods, or what to do instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from interp.errors import InterpError, UnknownNameError, UnsupportedModelError
from interp.lens.habits import point_instead
from interp.lens.head import gain
from interp.lens.patterns_later import Changed, Later, of_one_text

with warnings.catch_warnings():  # the import adds filters that would hide other libraries' warnings from the user
    from transformer_lens.ActivationCache import ActivationCache
    from transformer_lens.utilities import Slice, get_act_name

Tensor = torch.Tensor
MIXERS = "cache['mixer_out', layer]"
EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""What norms of transformers call the number under their root."""


class LensActivations(ActivationCache):
    """An activation cache that also resolves this library's points: `cache["column_mass", 3]`.

    Taking the residual stream apart works as in TransformerLens: `accumulated_resid`, `decompose_resid`,
    `stack_head_results`, `get_full_resid_decomposition(expand_neurons=False)`, `apply_ln_to_stack` at the final norm,
    `logit_attrs`. Neurons and norms inside of blocks are not shown, and who asks is told so.
    """

    def __init__(
        self, cache_dict: dict[str, Tensor], model: Any, has_batch_dim: bool = True, later: Later | None = None
    ) -> None:
        super().__init__(cache_dict, model, has_batch_dim)
        self._later = later
        # what a learned embedding of positions adds lies between the embedding and the first block
        positions = getattr(model.cfg, "positional_embedding_type", "other")
        self.has_pos_embed = positions == "other" and self.has_embed and "blocks.0.hook_resid_pre" in cache_dict

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, tuple) and len(key) >= 2 and isinstance(key[1], int):
            layer, n_layers = key[1], self.model.cfg.n_layers
            if not -n_layers <= layer < n_layers:
                raise UnknownNameError(f"there is no layer {layer}; this model has {n_layers} layers.")
            layer %= n_layers
            for name in (f"blocks.{layer}.attn.hook_{key[0]}", f"blocks.{layer}.hook_{key[0]}"):
                if name in self.cache_dict:
                    return self.cache_dict[name]
            if key[0] == "pattern" and (pattern := self._pattern(f"blocks.{layer}.attn.hook_pattern")) is not None:
                return pattern
            known = [name, f"blocks.{layer}.attn.hook_{key[0]}"]
            known += {get_act_name(key[0], layer, *key[2:])}.difference(known)
        elif key in ("pos_embed", "hook_pos_embed") and self.has_pos_embed:
            return self["blocks.0.hook_resid_pre"] - self["hook_embed"]
        else:
            known = [str(key), f"hook_{key}"]
            if (found := next((name for name in known if name in self.cache_dict), None)) is not None:
                return self.cache_dict[found]
            if (pattern := self._pattern(str(key))) is not None:
                return pattern
        try:
            return super().__getitem__(key)
        except (KeyError, AssertionError, TypeError, ValueError):
            self._refuse(key, known)
            raise

    def _pattern(self, name: str) -> Tensor | None:
        """The pattern of that hook point, where this cache can compute it."""
        room = name.removesuffix("hook_pattern")
        return None if self._later is None or room == name else self._later(room)

    def remove_batch_dim(self, batch_size: int | None = None) -> ActivationCache:
        """This cache of one text without the batch axis."""
        if self.has_batch_dim:
            if (found := self._batch_size() if batch_size is None else batch_size) != 1:
                raise InterpError(f"this cache holds {found} texts, so its batch axis stays; read one text by itself.")
            self._later = self._changed(of_one_text)
        return super().remove_batch_dim(batch_size)

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> LensActivations:
        """Some of the texts: a number (which takes the batch axis away), a slice, or numbers."""
        cut = batch_slice if isinstance(batch_slice, Slice) else Slice(batch_slice)
        if not self.has_batch_dim and cut.mode != "empty":
            raise InterpError("this cache has no batch axis; slice the one that has.")
        chosen = super().apply_slice_to_batch_dim(cut)
        later = self._changed(lambda pattern: cut.apply(pattern, dim=0))
        return LensActivations(chosen.cache_dict, self.model, chosen.has_batch_dim, later)

    def to(self, device: Any) -> LensActivations:
        """Move what is stored, and what patterns are computed from."""
        super().to(device)
        self._later = None if self._later is None else self._later.to(device)
        return self

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Later | None:
        return None if self._later is None else Changed(self._later, change)

    def _refuse(self, key: Any, names: list[str]) -> None:
        """Raise UnknownNameError for what this cache does not hold, by any of the names that were meant."""
        for name in names:
            if name in self.model.hook_dict:
                raise UnknownNameError(
                    f"this cache holds no {name}; name it: run_with_cache(..., names_filter={name!r})."
                ) from None
            if (reason := self.model.why_absent(name)) is not None:
                raise UnknownNameError(f"this model has no {name}: {reason}.") from None
        told = next((told for name in names if (told := point_instead(name)) is not None), None)
        raise UnknownNameError(
            f"this cache holds no {key!r}; {told or 'print its keys() and name one of them'}."
        ) from None

    def compute_head_results(self) -> None:
        """What each head adds to the residual stream, into the cache as `attn.hook_result` of every layer."""
        self._ensure_head_results()

    def _ensure_head_results(self) -> bool:
        cfg = self.model.cfg
        if len(cfg.attention_layers) < cfg.n_layers:
            raise UnsupportedModelError(
                f"heads of all layers are stacked, and some layers of {cfg.architecture} have none; call "
                "lens.head_contributions for those that have."
            )
        missing = [i for i in range(cfg.n_layers) if f"blocks.{i}.attn.hook_result" not in self.cache_dict]
        for layer in missing:
            weight, _ = self.model.output_map(layer)
            gated = f"blocks.{layer}.attn.hook_gated_z" in self.model.hook_dict
            read = self["gated_z" if gated else "z", layer]
            result = torch.einsum("...hd,hdm->...hm", read.to(weight.dtype), weight)
            self.cache_dict[f"blocks.{layer}.attn.hook_result"] = self.model.cfg.residual_scale * result
        return not missing

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Any = None,
        batch_slice: Any = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Tensor:
        """A stack `[component, ..., d_model]` through the final norm, with its scale as it is on the whole stream (for
        a LayerNorm also centred, and without its bias); with `recompute_ln` the final norm of each component.

        The norm's weights are in what is returned, since W_U is the model's own: the dot product with a direction of
        `tokens_to_residual_directions` is what a component adds to that logit.
        """
        n_layers = self.model.cfg.n_layers
        if layer not in (None, -1, n_layers):
            raise InterpError(
                f"the scale of a norm inside of layer {layer} is not shown by a Lens; apply the final one: layer=-1."
            )
        norm = self.model.anatomy.final_norm
        if norm is None:
            raise UnsupportedModelError(f"{self.model.cfg.architecture} has no final norm that could be found.")
        batch, pos = (x if isinstance(x, Slice) else Slice(x) for x in (batch_slice, pos_slice))
        stack = batch.apply(residual_stack, dim=1) if has_batch_dim else residual_stack
        if recompute_ln:
            normed: Tensor = norm(stack)
            return normed
        resid = pos.apply(self["resid_post", n_layers - 1], dim=-2)
        resid = batch.apply(resid) if self.has_batch_dim else resid
        epsilon = next((getattr(norm, name) for name in EPSILONS if hasattr(norm, name)), None)
        if epsilon is None:
            raise UnsupportedModelError(
                f"{type(norm).__name__} does not say what it adds under its root; read lens.normalized instead."
            )
        if torch.allclose(norm(resid + resid.std()), norm(resid), rtol=1e-3, atol=1e-3):  # no constant passes LayerNorm
            stack, resid = (x - x.mean(-1, keepdim=True) for x in (stack, resid))
        scale = (resid.float().square().mean(-1, keepdim=True) + float(epsilon)).sqrt()
        scaled: Tensor = gain(norm, float(epsilon), stack) * stack / scale.to(stack.dtype)
        return scaled

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """The residual stream as embedding, attention and MLPs of all layers, as in TransformerLens."""
        self._refuse_crossing()
        return super().decompose_resid(*args, **kwargs)

    def _refuse_crossing(self) -> None:
        """Raise where cross-attention writes to the stream: the decompositions would not add up."""
        anatomy = getattr(self.model, "anatomy", None)  # models of regression tasks have none
        if anatomy is not None and any(block.cross is not None for block in anatomy.blocks):
            raise UnsupportedModelError(
                f"cross-attention of {self.model.cfg.architecture} writes to the stream too, which TransformerLens' "
                "decompositions leave out; add up hook_attn_out, hook_cross_attn_out and hook_mlp_out."
            )

    def get_full_resid_decomposition(  # type: ignore[override]  # its own stands in the middle
        self, layer: int | None = None, mlp_input: bool = False, *, expand_neurons: bool = True, **kwargs: Any
    ) -> Any:
        """The residual stream as heads, MLPs, embedding and biases, as in TransformerLens with
        `expand_neurons=False`."""
        if expand_neurons:
            raise InterpError("a Lens shows what an MLP adds and not its neurons; pass expand_neurons=False.")
        self._refuse_crossing()
        return super().get_full_resid_decomposition(layer, mlp_input, expand_neurons=False, **kwargs)

    def get_neuron_results(self, *args: Any, **kwargs: Any) -> Tensor:
        """Not of a Lens: raises InterpError."""
        raise InterpError("a Lens shows what an MLP adds and not its neurons: cache['mlp_out', layer].")

    def stack_neuron_results(self, *args: Any, **kwargs: Any) -> Any:
        """Not of a Lens: raises InterpError."""
        raise InterpError("a Lens shows what an MLP adds and not its neurons: cache.decompose_resid(mode='mlp').")

    def logit_lens(self, **kwargs: Any) -> Any:
        """Not of a Lens: raises InterpError."""
        raise InterpError(
            "the logit lens is a probe, interp.probe(lens, text, 'logit_lens'); of a cached stream the logits are "
            "lens.unembed(lens.normalized(cache['resid_post', layer]))."
        )

    def compute_ssm_effective_attention(self, *args: Any, **kwargs: Any) -> Any:
        """Not of a Lens: raises InterpError."""
        raise InterpError(f"a Lens shows what a mixer adds and not its states: {MIXERS}.")

    def compute_ssm_state(self, *args: Any, **kwargs: Any) -> Any:
        """Not of a Lens: raises InterpError."""
        raise InterpError(f"a Lens shows what a mixer adds and not its states: {MIXERS}.")

    def ssm_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Not of a Lens: raises InterpError."""
        raise InterpError("a Lens lists no mixers; lens.cfg.attn_types is none for the layers that have one.")
