"""What the model would predict after each layer, and what each layer and head adds to its final prediction.

Logit lens (nostalgebraist 2020): the residual stream of every layer, read out with the model's own final norm and
unembedding. Direct logit attribution (Elhage et al. 2021): the final residual stream is the sum of what embedding,
attention and MLP blocks wrote into it, and with the final norm's scale frozen each part's share of a logit difference
is a dot product. "Direct" leaves out what a part does through later layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from interp.probes.base import Context, Fold, Probe
from interp.results.columns import Column
from interp.results.described import Row, described
from interp.results.naming import quoted
from interp.results.ragged import stacked

Tensor = torch.Tensor

POSITIONS = 64  # last positions over which the divergence from the final prediction is averaged


@dataclass(frozen=True)
class LogitLens(Probe):
    """Prediction of every layer, and direct logit attribution at the last position by layer and head.

    Attributions are to the logit of the model's top token minus that of its runner-up, before a final softcap.
    Embedding, layers and biases add up to that difference; the attribute `unexplained` says by how much they miss it.
    Where they do not, because a norm follows the sum (BERT) or a writer is unknown, shares and `unexplained` are NaN.

    Examples:
        >>> seen = interp.probe(lens, prompt, ["logit_lens"])["logit_lens"]
        >>> float(abs(seen.attrs["unexplained"])) < 1e-3
        True
    """

    name: ClassVar[str] = "logit_lens"
    reads_logits: ClassVar[bool] = True

    def begin(self, context: Context) -> Fold:
        return LogitFold(context)

    def findings(self, result: xr.Dataset) -> list[str]:
        layers, rank = result["layer"].values, result["lens_rank"].values
        top, runner_up = quoted(result.attrs["top_token"]), quoted(result.attrs["runner_up"])
        probability = float(result["lens_probability"][-1])
        difference = float(result.attrs["logit_difference"])
        if not np.isfinite([probability, difference]).all():
            return ["The model's logits at the last token are no numbers, so nothing can be read off its layers."]
        return [
            f"After the last token the model predicts {top} (probability {probability:.2f}), which is the logit lens' "
            f"top token {_since(rank, layers)}.",
            f"Its logit lies {difference:.2f} above that of {runner_up}; {_contributions(result, layers)}.",
        ]

    @classmethod
    def columns(cls, result: xr.Dataset) -> list[Column]:
        """None: its numbers are read against each other, which the figure does and six columns would not."""
        return []


def _since(rank: np.ndarray, layers: np.ndarray) -> str:
    """From which layer on the final token stays the lens' own."""
    if len(layers) == 1:
        return "after its one layer"
    elsewhere = np.flatnonzero(rank > 1)
    if not len(elsewhere):
        return "in every layer"
    return f"from layer {layers[min(elsewhere[-1] + 1, len(layers) - 1)]} on"


def _contributions(result: xr.Dataset, layers: np.ndarray) -> str:
    """Which part and which heads add most to the difference, where one adds more than another."""
    parts = [
        (float(result[f"{kind}_attribution"][i]), f"the {label} of layer {layer}")
        for kind, label in (("attention", "attention"), ("mlp", "MLP"), ("mixer", "mixer"))
        for i, layer in enumerate(layers)
        if f"{kind}_attribution" in result and np.isfinite(result[f"{kind}_attribution"][i])
    ]
    if not parts:
        return "what its blocks write does not add up to it, so none has a share"
    sizes = {f"{abs(amount):.2f}" for amount, _ in parts}
    if len(sizes) == 1:
        told = f"attention and MLP of every layer contribute {sizes.pop()} either way"
    else:
        amount, part = max(parts, key=lambda pair: abs(pair[0]))
        told = f"the largest direct contribution comes from {part} ({amount:+.2f})"
    heads = result["head_attribution"].transpose("layer", "head").values
    known = heads[np.isfinite(heads)]
    if not len(known):
        return told
    if len({f"{abs(x):.2f}" for x in known}) == 1:
        return f"{told}, {'its one head' if len(known) == 1 else 'every head'} contributes {abs(known[0]):.2f}"
    order = np.argsort(-np.abs(heads), axis=None)[: min(3, len(known))]  # NaN comes last
    strongest = (np.unravel_index(i, heads.shape) for i in order)
    listed = ", ".join(f"layer {layers[i]} head {j} ({heads[i, j]:+.2f})" for i, j in strongest)
    return f"{told}, the heads that contribute {'most' if len(known) > 3 else 'something'} are {listed}"


class LogitFold(Fold):
    def __init__(self, context: Context) -> None:
        self.lens = context.lens
        self.embed = torch.empty(0)
        self.resid: dict[int, Tensor] = {}
        self.attention: dict[int, Tensor] = {}
        self.mlp: dict[int, Tensor] = {}
        self.mixer: dict[int, Tensor] = {}
        self.z: dict[int, Tensor] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        listens: dict[str, Callable[[int, Any], None]] = {
            "hook_resid_pre": self.enter,
            "hook_resid_post": lambda layer, resid: self.resid.update({layer: resid[0, -POSITIONS:].clone()}),
        }
        if not self.lens.anatomy.additive:  # parts that do not add up to the whole are no shares of it
            return listens
        wished: dict[str, Callable[[int, Any], None]] = {
            "hook_attn_out": lambda layer, out: self.attention.update({layer: out[0, -1].clone()}),
            "hook_mixer_out": lambda layer, out: self.mixer.update({layer: out[0, -1].clone()}),
            "hook_mlp_out": lambda layer, out: self.mlp.update({layer: out[0, -1].clone()}),
            "attn.hook_z": lambda layer, z: self.z.update({layer: z[:, -1:].clone()}),
            "attn.hook_gated_z": lambda layer, z: self.z.update({layer: z[:, -1:].clone()}),  # after the layer's z
        }
        there = {name.split(".", 2)[2] for name in self.lens.hook_dict if name.startswith("blocks.")}
        return listens | {name: keep for name, keep in wished.items() if name in there}

    def enter(self, layer: int, resid: Tensor) -> None:
        """Keep what the first block reads: not `hook_embed`, since positions and Gemma's scaling come after that."""
        if self.embed.numel() == 0:
            self.embed = resid[0, -1].clone()

    @torch.no_grad()
    def result(self) -> xr.Dataset:
        layers = sorted(self.resid)
        final = self._read_out(self.resid[layers[-1]])
        top, runner_up = (int(i) for i in final[-1].topk(2).indices)
        numbers: dict[str, Any] = {"lens_top_token": [], "lens_probability": [], "lens_rank": [], "kl_to_final": []}
        for layer in layers:
            lens = self._read_out(self.resid[layer])
            numbers["lens_top_token"] += self._text(int(lens[-1].argmax()))
            numbers["lens_probability"].append(float(lens[-1, top].exp()))
            numbers["lens_rank"].append(1 + int((lens[-1] > lens[-1, top]).sum()))
            numbers["kl_to_final"].append(float((final.exp() * (final - lens)).sum(-1).mean()))
        shares, difference = self._attributions(layers, top, runner_up)
        parts = [name for name in shares if name != "head_attribution"]
        explained = sum(float(np.nansum(shares[part], dtype=np.float64)) for part in parts)
        numbers |= shares
        data = {
            name: Row(dims, np.array(numbers[name], dtype), units, description)
            for name, (dims, dtype, units, description) in VARIABLES.items()
            if name in numbers
        }
        coordinates = {"layer": layers, "head": np.arange(data["head_attribution"].values.shape[1])}
        attrs = {
            "title": "Logit lens and direct logit attribution",
            "description": "Each layer's own prediction, and what each layer and head adds to the final one",
            "top_token": self._text(top)[0],
            "top_token_id": top,
            "runner_up": self._text(runner_up)[0],
            "runner_up_id": runner_up,
            "logit_difference": difference,
            "unexplained": difference - explained if self.lens.anatomy.additive else np.nan,
            "kl_positions": len(final),
        }
        return described(data, coordinates, attrs)

    def _read_out(self, resid: Tensor) -> Tensor:
        """Log probabilities `[pos, d_vocab]` that a residual stream stands for, fp32."""
        return self.lens.unembed(self.lens.normalized(resid)).float().log_softmax(-1)

    def _text(self, token: int) -> list[str]:
        return list(self.lens.to_str_tokens(torch.tensor([token])))

    def _attributions(self, layers: list[int], top: int, runner_up: int) -> tuple[dict[str, Any], float]:
        """Each part's share of the logit difference, and the difference itself."""
        resid = self.resid[layers[-1]][-1]
        frozen = self.lens.final_norm_frozen(resid)
        direction, constant = self._direction(top, runner_up)

        def share(part: Tensor) -> np.ndarray:
            return (frozen(part.to(resid.dtype)).float() @ direction).cpu().numpy()

        difference = float(self.lens.normalized(resid).float() @ direction) + constant
        shares = {
            "embed_attribution": share(self.embed),
            "bias_attribution": difference - float(share(resid)),
        }
        for name, wrote in (("attention", self.attention), ("mlp", self.mlp), ("mixer", self.mixer)):
            if wrote or name != "mixer":  # where nothing is known, and in blocks that lack it: NaN
                shares[f"{name}_attribution"] = np.array([share(wrote[i]) if i in wrote else np.nan for i in layers])
        shares["head_attribution"] = self._by_head(layers, share)
        if not self.lens.anatomy.additive:
            shares |= dict.fromkeys(("embed_attribution", "bias_attribution"), np.nan)
        return shares, difference

    def _by_head(self, layers: list[int], share: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """Each head's share `[layer, head]`; NaN in layers without attention, or whose output projection is unknown."""
        known = {i: z for i, z in self.z.items() if self.lens.anatomy.blocks[i].heads_written}
        rows = {i: share(self.lens.head_contributions(i, z)) for i, z in known.items()}
        nothing = np.full(self.lens.cfg.n_heads, np.nan)
        return stacked([rows.get(i, nothing) for i in layers])

    def _direction(self, top: int, runner_up: int) -> tuple[Tensor, float]:
        """The direction `[d_model]` and the constant that turn the normalised residual into the logit difference.

        The unembedding is affine up to a softcap, whose slope at 0 is 1, so both are its gradient and value at 0.
        """
        with torch.enable_grad():
            origin = torch.zeros_like(self.embed, requires_grad=True)
            logits = self.lens.unembed(origin)
            difference = logits[top] - logits[runner_up]
            (direction,) = torch.autograd.grad(difference, origin)
        return direction.float(), float(difference)


# name: (dimensions, dtype, units, description)
VARIABLES: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
    "lens_probability": (
        ("layer",),
        "float32",
        "1",
        "probability of the final top token after this layer, last position",
    ),
    "lens_rank": (("layer",), "int32", "1", "rank of the final top token there; 1 is the top"),
    "lens_top_token": (("layer",), object, "token", "the most probable token there"),
    "kl_to_final": (
        ("layer",),
        "float32",
        "nats",
        "KL(final || this layer), mean over the last kl_positions positions",
    ),
    "attention_attribution": (("layer",), "float32", "logits", "attention's part in logit(top) - logit(runner-up)"),
    "mlp_attribution": (("layer",), "float32", "logits", "the MLP's part"),
    "mixer_attribution": (("layer",), "float32", "logits", "the part of what stands in attention's place (hybrids)"),
    "head_attribution": (("layer", "head"), "float32", "logits", "each head's part, output bias left out"),
    "embed_attribution": ((), "float32", "logits", "the token (and position) embedding's part"),
    "bias_attribution": ((), "float32", "logits", "the part of the biases of final norm and unembedding"),
}
