"""Weights under TransformerLens' names, `[in, out]` by head, as views or small computations on the model's own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import InterpError, UnsupportedModelError
from interp.lens.familiar import FamiliarMixin
from interp.lens.readout import ReadoutMixin, output_map

Tensor = torch.Tensor


class WeightsMixin(FamiliarMixin, ReadoutMixin):
    """`lens.W_U`, `W_E`, `W_Q`, `W_K`, `W_V`, `W_O`, their biases, and the few methods that read them."""

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding, without the scale or softcap that some models put on logits."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight.mT

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Bias of the unembedding, zeros where it has none."""
        bias: Tensor | None = self.model.get_output_embeddings().bias
        return self.W_U.new_zeros(self.W_U.shape[-1]) if bias is None else bias

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query projections."""
        return self._projections("q_proj", self.cfg.n_heads)

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """Key projections, one for each key/value head."""
        return self._projections("k_proj", self.cfg.n_key_value_heads)

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """Value projections, one for each key/value head."""
        return self._projections("v_proj", self.cfg.n_key_value_heads)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Biases of the query projections, zeros where they have none."""
        return self._biases("q_proj", self.cfg.n_heads)

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:
        """Biases of the key projections, zeros where they have none."""
        return self._biases("k_proj", self.cfg.n_key_value_heads)

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:
        """Biases of the value projections, zeros where they have none."""
        return self._biases("v_proj", self.cfg.n_key_value_heads)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output projections."""
        return torch.stack([self.output_map(layer)[0] for layer in range(self.cfg.n_layers)])

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Biases of the output projections, zeros where they have none."""
        return torch.stack([self.output_map(layer)[1] for layer in range(self.cfg.n_layers)])

    def output_map(self, layer: int) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
        """(W_O, b_O) of a layer, read off from what its output projection does, whatever module that is."""
        return output_map(self.cfg, self.anatomy.blocks[layer], layer)

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "... d_model"]:
        """Directions of the normalised residual stream that raise the logits of tokens: columns of W_U."""
        ids = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        directions = self.W_U.mT[torch.as_tensor(ids, device=self.W_U.device)]
        return directions[0] if directions.shape[:-1] == (1,) else directions

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """Biases `[d_model]` that attention has added to the residual stream before a layer, or before its MLP."""
        if include_mlp_biases:
            raise InterpError("a Lens does not take MLPs apart, so their biases are unknown: include_mlp_biases=False.")
        total = self.W_E.new_zeros(self.cfg.d_model)
        for each in range(layer + mlp_input):
            total = total + self.cfg.residual_scale * self.output_map(each)[1]
        return total

    def _projections(self, name: str, heads: int) -> Tensor:
        return torch.stack([module.weight.unflatten(0, (heads, -1)).mT for module in self._projecting(name)])

    def _biases(self, name: str, heads: int) -> Tensor:
        modules = self._projecting(name)
        biases = [
            module.weight.new_zeros(module.out_features) if module.bias is None else module.bias for module in modules
        ]
        return torch.stack([bias.unflatten(0, (heads, -1)) for bias in biases])

    def _projecting(self, name: str) -> list[nn.Linear]:
        """The projection of that name in every layer."""
        found = [getattr(block.attention, name, None) for block in self.anatomy.blocks]
        modules = [module for module in found if isinstance(module, nn.Linear)]
        if len(modules) < len(found):
            raise UnsupportedModelError(
                f"{self.cfg.architecture} has no {name} of its own in every layer, so its weights by head are unknown; "
                "hook the activations, or read lens.model."
            )
        return modules
