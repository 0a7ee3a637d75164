"""Missed mass: the attention that later tokens would have paid to what was dropped, and what dropping costs a layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from interp_kernels import attention_pattern, packed_decode
from jaxtyping import Bool, Float, Int

from interp.cache.segments import Segment
from interp.cache.stored_layer import StoredLayer
from interp.errors import InterpError
from interp.explaining.base import Question
from interp.explaining.case import NEVER, Case
from interp.explaining.restoring import at_positions
from interp.results.described import Row, described
from interp.results.naming import quoted
from interp.seam.event import AttentionEvent
from interp.seam.latent import columns, showing

Tensor = torch.Tensor


@dataclass(frozen=True)
class MissedMass(Question):
    """For each step, with the full cache's own queries: attention to tokens that the policy had evicted by then.

    A token that was merged into another, or that a summary stands for, counts as evicted. Beside it stand the least
    that any choice of as many tokens would have missed at that step, the attention of the step's `top` share of tokens,
    and how many of those are still held. For policies that act once after the prompt the direct errors are added, each
    layer by itself on the full cache's inputs: of the logits (what dropped channels and merging do to them) and of the
    attention output.

    Args:
        top: share of the tokens, by attention, whose recall is measured.

    Examples:
        >>> why = interp.explain(lens, interp.H2OPrefill(budget=0.5), prompt, "w9 w10 w11", ["missed_mass"])
        >>> why["missed_mass"].missed_mass.dims
        ('layer', 'head', 'step')
    """

    name: ClassVar[str] = "missed_mass"
    top: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1:
            raise InterpError(f"missed_mass: top should be above 0 and at most 1, found {self.top}.")

    @torch.no_grad()
    def ask(self, case: Case) -> xr.Dataset:
        policy, full = case.policy, case.full
        once = not policy.stepping
        rows = []
        for layer in case.layers:
            event = full.events[layer]
            numbers = self._mass(event, policy.evicted_at[layer])
            if once:
                numbers |= direct_errors(event, policy.rest.stored[layer], full.z[layer])
            rows.append(numbers)
        data = {}
        for name, (dims, units, about) in VARIABLES.items():
            if name in rows[0]:
                values = torch.stack([numbers[name] for numbers in rows]).float()
                data[name] = Row(("layer", *dims), values, units, about)
        text = np.array(case.token_text[: case.seen.shape[1]], dtype=object)
        coords = {
            "layer": list(case.layers),
            "head": np.arange(data["missed_mass"].values.shape[1]),
            "token": np.arange(len(text)),
            "token_text": ("token", text),
            **case.step_coords(),
        }
        attrs: dict[str, Any] = {
            "title": "Attention that was missed",
            "description": "Attention that steps with the full cache pay to tokens that the policy had evicted",
            "top": self.top,
        }
        if not once:
            attrs["absent"] = (
                "logit_error and output_error: the policy acts at every step, so no one cache stands for it"
            )
        return described(data, coords, attrs)

    def _mass(self, event: AttentionEvent, evicted_at: Int[Tensor, "head token"]) -> dict[str, Tensor]:
        pattern = attention_pattern(event.q, event.k, **event.maths)[0].float()  # [head, step, token]
        heads, steps, tokens = pattern.shape
        step = torch.arange(steps, device=pattern.device)
        gone = _by_query_head(evicted_at.to(pattern.device), heads)[:, None] <= step[:, None]
        visible = tokens - steps + 1 + step  # each step sees itself
        order = pattern.argsort(dim=-1, descending=True, stable=True)
        ranked, gone_ranked = pattern.gather(-1, order), gone.gather(-1, order)
        total = ranked.cumsum(-1)
        held = visible - gone.sum(-1)  # [head, step]
        n_top = (self.top * visible).ceil().long().expand(heads, steps)
        is_top = torch.arange(tokens, device=pattern.device) < n_top[..., None]
        missed = pattern * gone
        return {
            "missed_mass": missed.sum(-1),
            "least_missed": (total[..., -1] - total.gather(-1, held[..., None] - 1)[..., 0]).clamp_min(0),
            "top_mass": (ranked * is_top).sum(-1),
            "top_recall": (is_top & ~gone_ranked).sum(-1) / n_top,
            "missed_of_token": missed.mean((0, 1)),
        }

    def findings(self, result: xr.Dataset) -> list[str]:
        missed = result["missed_mass"]
        said = []
        if float(missed.max()) > 0:
            by_head = missed.mean("step")
            layer, head = np.unravel_index(int(by_head.values.argmax()), by_head.shape)
            said.append(
                f"Later tokens would have paid {float(missed.mean()):.1%} of their attention to what was evicted; the "
                f"best choice of as many tokens would have missed {float(result['least_missed'].mean()):.1%}. Most is "
                f"missed in layer {int(result['layer'][layer])} head {int(head)} ({float(by_head.max()):.1%})."
            )
            said.append(
                f"{float(result['top_recall'].mean()):.0%} of each step's top {result.attrs['top']:.0%} of tokens, "
                f"which hold {float(result['top_mass'].mean()):.0%} of the attention, are still there."
            )
            of_token = result["missed_of_token"]
            layer, token = np.unravel_index(int(of_token.values.argmax()), of_token.shape)
            said.append(
                f"The most missed token is {quoted(str(result['token_text'].values[token]))} at position {token}, in "
                f"layer {int(result['layer'][layer])}: {float(of_token.max()):.2%} of a step's attention."
            )
        if "logit_error" in result and float(result["logit_error"].max()) > 0:
            error = result["logit_error"].mean(("head", "step"))
            said.append(
                f"Logits of what is held are off by {float(error.mean()):.1%} (relative norm), most in layer "
                f"{int(error['layer'][int(error.values.argmax())])} ({float(error.max()):.1%})."
            )
        if "output_error" in result:
            error = result["output_error"].mean(("head", "step"))
            said.append(
                f"With unchanged inputs a head's attention output is off by {float(error.mean()):.1%} on average, most "
                f"in layer {int(error['layer'][int(error.values.argmax())])} ({float(error.max()):.1%})."
            )
        return said or ["Nothing was evicted, so no attention was missed."]


VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "missed_mass": (("head", "step"), "1", "attention of the full cache to tokens that the policy had evicted"),
    "least_missed": (("head", "step"), "1", "what the best choice of as many tokens would have missed at that step"),
    "top_mass": (("head", "step"), "1", "attention to the step's top tokens"),
    "top_recall": (("head", "step"), "1", "share of the step's top tokens that the policy still holds"),
    "missed_of_token": (("token",), "1", "attention to an evicted token, mean over heads and steps"),
    "logit_error": (
        ("head", "step"),
        "1",
        "norm of the change of q·k over that of q·k, over tokens held (no summaries), with the full cache's queries",
    ),
    "output_error": (
        ("head", "step"),
        "1",
        "norm of the change of a head's output z over that of z, with the full cache's queries",
    ),
}


def _by_query_head(x: Tensor, heads: int) -> Tensor:
    """`[stored head, ...]` for every query head."""
    return x.repeat_interleave(heads // x.shape[0], 0)


def direct_errors(
    event: AttentionEvent, stored: StoredLayer, z: Float[Tensor, "step head d"]
) -> dict[str, Float[Tensor, "head step"]]:
    """Errors of one layer alone: the steps of the full cache attend to what the policy left of the prompt."""
    steps = event.q.shape[2]
    old = stored.segments
    stop = event.k.shape[2] - steps
    tail = Segment(event.k[:, :, stop:], event.v[:, :, stop:], range(stop, event.k.shape[2]), tied=event.tied)
    segments = [*old, tail.per_head(old[0].keys.shape[1])]
    maths: dict[str, Any] = {
        "scale": event.scale,
        "softcap": event.softcap,
        "sinks": event.sinks,
        "d_value": stored.d_value,
    }
    left = stored.holding(segments)
    if (mask := event.facts.get("mask")) is None:
        got = packed_decode(event.q, left.for_kernel(), **maths).z
    else:  # each step sees tokens of its own
        rows = zip(event.q.split(1, 2), columns(mask, left).unbind(2), strict=True)
        got = torch.cat([packed_decode(q, showing(left.for_kernel(), seen), **maths).z for q, seen in rows], 2)
    if event.expanded is not None:
        got = event.expanded(got.transpose(1, 2)).transpose(1, 2)
    got, true = got[0].float(), z.transpose(0, 1)  # [head, step, d]
    return {
        "logit_error": relative_logit_error(event.q, event.k, segments, stored.d_head),
        "output_error": ratio((got - true).norm(dim=-1), true.norm(dim=-1)),
    }


def relative_logit_error(
    q: Float[Tensor, "1 head step d"], k: Tensor, segments: Iterable[Segment], d_head: int
) -> Float[Tensor, "head step"]:
    """‖q (K - K')ᵀ‖ / ‖q Kᵀ‖ over the tokens of the text that `segments` hold, a step seeing no later token."""
    heads, steps = q.shape[1], q.shape[2]
    first = k.shape[2] - steps
    error = total = torch.zeros(heads, steps, device=q.device)
    for segment in segments:
        true = at_positions(k, segment)[0].float()
        change = true - segment.dense_keys(d_head)[0].float()
        at = segment.at()[0].to(q.device).expand(true.shape[0], -1)
        at = at.masked_fill(~segment.of_the_text()[0], NEVER)  # a summary has no true key to be compared with
        step = torch.arange(steps, device=q.device)
        seen: Bool[Tensor, "head step n"] = _by_query_head(at, heads)[:, None] <= first + step[:, None]
        queries = q[0].float()
        error = error + _energy(queries, _by_query_head(change, heads), seen)
        total = total + _energy(queries, _by_query_head(true, heads), seen)
    return ratio(error.sqrt(), total.sqrt())


def _energy(q: Tensor, k: Tensor, seen: Tensor) -> Float[Tensor, "head step"]:
    return ((q @ k.mT).square() * seen).sum(-1)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where both are."""
    return torch.where(a == 0, 0.0, a / b)
