"""What the model would predict after each layer, and what each layer and head adds to its final prediction.

Logit lens (nostalgebraist 2020): the residual stream of every layer, read out with the model's own final norm and
unembedding. Direct logit attribution (Elhage et al. 2021): the final residual stream is the sum of what embedding, attention
and MLP blocks wrote into it, and with the final norm's scale frozen each part's share of a logit difference is a dot
product. "Direct" leaves out what a part does through later layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from interp.probes._naming import quoted
from interp.probes.base import Context, Fold, Probe

Tensor = torch.Tensor

POSITIONS = 64  # last positions over which the divergence from the final prediction is averaged


@dataclass(frozen=True)
class LogitLens(Probe):
    """Prediction of every layer, and direct logit attribution at the last position by layer and head.

    Attributions are to the logit of the model's top token minus that of its runner-up, before a final softcap. Embedding, layers
    and biases add up to that difference; `unexplained` says by how much they miss it.
    """

    name: ClassVar[str] = "logit_lens"

    def begin(self, context: Context) -> Fold:
        return LogitFold(context)

    def findings(self, result: xr.Dataset) -> list[str]:
        layers, rank = result["layer"].values, result["lens_rank"].values
        top, runner_up = quoted(result.attrs["top_token"]), quoted(result.attrs["runner_up"])
        below = np.flatnonzero(rank > 1)
        since = layers[below[-1] + 1] if len(below) else layers[0]
        parts = [
            (float(result[f"{kind}_attribution"][i]), f"the {label} of layer {layer}")
            for kind, label in (("attention", "attention"), ("mlp", "MLP"))
            for i, layer in enumerate(layers)
        ]
        heads = result["head_attribution"]
        strongest = np.argsort(-np.abs(heads.values), axis=None)[:3]
        named = [np.unravel_index(i, heads.shape) for i in strongest]
        listed = ", ".join(f"layer {layers[i]} head {j} ({float(heads[i, j]):+.2f})" for i, j in named)
        amount, part = max(parts, key=lambda pair: abs(pair[0]))
        return [
            f"After the last token the model predicts {top} (probability {float(result['lens_probability'][-1]):.2f}); it is the "
            f"logit lens' top token from layer {since} on.",
            f"Its logit lies {result.attrs['logit_difference']:.2f} above that of {runner_up}; the largest direct contribution comes "
            f"from {part} ({amount:+.2f}), the heads that contribute most are {listed}.",
        ]


class LogitFold(Fold):
    def __init__(self, context: Context) -> None:
        self.lens = context.lens
        self.embed: Tensor | None = None
        self.resid: dict[int, Tensor] = {}
        self.written: dict[tuple[str, int], Tensor] = {}
        self.z: dict[int, Tensor] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {
            "hook_resid_pre": self.enter,
            "hook_resid_post": self.leave,
            "hook_attn_out": lambda layer, out: self.write("attention", layer, out),
            "hook_mlp_out": lambda layer, out: self.write("mlp", layer, out),
            "attn.hook_z": self.mix,
        }

    def enter(self, layer: int, resid: Tensor) -> None:
        if layer == 0:  # not hook_embed: position embeddings and Gemma's scaling come after it
            self.embed = resid[0, -1].clone()

    def leave(self, layer: int, resid: Tensor) -> None:
        self.resid[layer] = resid[0, -POSITIONS:].clone()

    def write(self, part: str, layer: int, out: Tensor) -> None:
        self.written[part, layer] = out[0, -1].clone()

    def mix(self, layer: int, z: Tensor) -> None:
        self.z[layer] = z[:, -1:].clone()

    @torch.no_grad()
    def result(self) -> xr.Dataset:
        layers = sorted(self.resid)
        final = self.lens.unembed(self.lens.ln_final(self.resid[layers[-1]])).float().log_softmax(-1)
        top, runner_up = (int(i) for i in final[-1].topk(2).indices)
        by_layer = [self._prediction(self.resid[layer], final, top) for layer in layers]
        names = ("lens_probability", "lens_rank", "kl_to_final", "lens_top_token")
        numbers = dict(zip(names, map(np.array, zip(*by_layer, strict=True)), strict=True))
        numbers["lens_top_token"] = np.array(self._text(numbers["lens_top_token"].tolist()), dtype=object)
        shares, difference = self._attributions(layers, top, runner_up)
        data = {
            name: (dims, (numbers | shares)[name], {"units": units, "description": description})
            for name, (dims, units, description) in VARIABLES.items()
        }
        coordinates = {"layer": layers, "head": np.arange(data["head_attribution"][1].shape[1])}
        parts = ("embed", "attention", "mlp", "bias")
        explained = sum(float(np.sum(shares[f"{part}_attribution"], dtype=np.float64)) for part in parts)
        attrs = {
            "title": "Logit lens and direct logit attribution",
            "description": "The prediction that each layer already makes, and what each layer and head adds to the final one",
            "top_token": self._text([top])[0],
            "top_token_id": top,
            "runner_up": self._text([runner_up])[0],
            "runner_up_id": runner_up,
            "logit_difference": difference,
            "unexplained": difference - explained,
            "kl_positions": len(final),
        }
        return xr.Dataset(data, coordinates, attrs)

    def _prediction(self, resid: Tensor, final: Tensor, top: int) -> tuple[float, int, float, int]:
        """Probability and rank of the final top token at the last position, divergence, and the layer's own top token."""
        lens = self.lens.unembed(self.lens.ln_final(resid)).float().log_softmax(-1)
        divergence = (final.exp() * (final - lens)).sum(-1).mean()
        last = lens[-1]
        return float(last[top].exp()), 1 + int((last > last[top]).sum()), float(divergence), int(last.argmax())

    def _attributions(self, layers: list[int], top: int, runner_up: int) -> tuple[dict[str, np.ndarray], float]:
        """Each part's share of the logit difference, and the difference itself."""
        resid = self.resid[layers[-1]][-1]
        frozen = self.lens.final_norm_frozen(resid)
        direction, constant = self._readout(top, runner_up)

        def share(part: Tensor) -> np.ndarray:
            return (frozen(part.to(resid.dtype)).float() @ direction).cpu().numpy()

        attention, mlp, heads = [], [], []
        for layer in layers:
            attention.append(share(self.written["attention", layer]))
            mlp.append(share(self.written["mlp", layer]))
            heads.append(share(self.lens.head_contributions(layer, self.z[layer])))
        whole = float(self.lens.ln_final(resid).float() @ direction)
        shares = {
            "attention_attribution": np.array(attention),
            "mlp_attribution": np.array(mlp),
            "head_attribution": np.array(heads),
            "embed_attribution": share(self.embed),
            "bias_attribution": np.float32(whole - float(share(resid)) + constant),
        }
        return shares, whole + constant

    def _readout(self, top: int, runner_up: int) -> tuple[Tensor, float]:
        """The direction `[d_model]` and the constant by which the normalised residual becomes the logit difference.

        The unembedding is affine up to a softcap, whose slope at 0 is 1, so both are its value and gradient at 0.
        """
        with torch.enable_grad():
            origin = torch.zeros_like(self.embed, requires_grad=True)
            logits = self.lens.unembed(origin)
            difference = logits[top] - logits[runner_up]
            (direction,) = torch.autograd.grad(difference, origin)
        return direction.float(), float(difference)

    def _text(self, ids: list[int]) -> list[str]:
        return list(self.lens.to_str_tokens(torch.tensor(ids)))


VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {  # dimensions, units, description
    "lens_probability": (("layer",), "1", "probability of the final top token, read out after this layer at the last position"),
    "lens_rank": (("layer",), "1", "rank of the final top token among all tokens there; 1 is the top"),
    "lens_top_token": (("layer",), "token", "the token with the highest probability there"),
    "kl_to_final": (("layer",), "nats", "KL divergence of the layer's prediction from the final one, mean over the last kl_positions positions"),
    "attention_attribution": (("layer",), "logits", "direct contribution of the layer's attention to logit(top) - logit(runner-up), final norm frozen"),
    "mlp_attribution": (("layer",), "logits", "direct contribution of the layer's MLP"),
    "head_attribution": (("layer", "head"), "logits", "direct contribution of each head; an output bias belongs to no head"),
    "embed_attribution": ((), "logits", "direct contribution of the token (and position) embedding"),
    "bias_attribution": ((), "logits", "contribution of the biases of final norm and unembedding"),
}  # fmt: skip
