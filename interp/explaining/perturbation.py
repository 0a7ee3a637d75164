"""Perturbation: how far a policy moves each layer's attention output while the true text is read on, and the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from interp.explaining.base import Question
from interp.explaining.case import Case
from interp.explaining.missed_mass import ratio
from interp.results.described import described
from interp.results.naming import quoted


@dataclass(frozen=True)
class Perturbation(Question):
    """‖o_full - o_policy‖ / ‖o_full‖ of every layer at every step, with what it does to the prediction beside it.

    Unlike the direct errors of `missed_mass` these add up: a layer also sees what earlier layers did.

    Examples:
        >>> why = interp.explain(lens, interp.H2OPrefill(budget=0.5), prompt, "w9 w10 w11", ["perturbation"])
        >>> dict(why["perturbation"].sizes)
        {'layer': 3, 'head': 8, 'step': 2}
    """

    name: ClassVar[str] = "perturbation"

    @torch.no_grad()
    def ask(self, case: Case) -> xr.Dataset:
        full, policy = case.full_alike, case.policy
        layers = sorted(full.z)
        change = [(full.z[i] - policy.z[i], full.z[i]) for i in layers]
        heads = torch.stack([ratio(d.norm(dim=-1), o.norm(dim=-1)).T for d, o in change])
        whole = torch.stack([ratio(d.flatten(1).norm(dim=-1), o.flatten(1).norm(dim=-1)) for d, o in change])
        nll_full, nll_policy = case.nll(full), case.nll(policy)
        log_p, log_q = full.logits.log_softmax(-1), policy.logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
        of = "attention output z, norm of the change over the norm with the full cache"
        data: dict[str, Any] = {
            "head_error": (("layer", "head", "step"), heads, "1", f"each head's {of}"),
            "layer_error": (("layer", "step"), whole, "1", f"all heads' {of}"),
        }
        if full.attn_out:
            out = [
                ratio((full.attn_out[i] - policy.attn_out[i]).norm(dim=-1), full.attn_out[i].norm(dim=-1))
                for i in layers
            ]
            said = "what attention adds to the residual stream, norm of the change over the norm with the full cache"
            data["attn_out_error"] = (("layer", "step"), torch.stack(out), "1", said)
        data |= {
            "nll_full": (("step",), nll_full, "nats", "negative log-likelihood of the next token, full cache"),
            "nll_policy": (
                ("step",),
                nll_policy,
                "nats",
                "negative log-likelihood of the next token, under the policy",
            ),
            "nll_difference": (("step",), nll_policy - nll_full, "nats", "nll_policy - nll_full: above 0 is worse"),
            "kl": (("step",), kl, "nats", "KL divergence of the policy's prediction from the full cache's"),
        }
        coords = {"layer": layers, "head": np.arange(heads.shape[1]), **case.step_coords()}
        attrs = {
            "title": "How far each layer moves",
            "description": "Relative change of attention outputs and of the loss under the policy, true text fed",
        }
        return described(data, coords, attrs)

    def findings(self, result: xr.Dataset) -> list[str]:
        moved = result["attn_out_error"] if "attn_out_error" in result else result["layer_error"]
        error, worse = moved.mean("step"), result["nll_difference"]
        if float(result["layer_error"].max()) == 0:
            return ["No layer's attention output moved at all."]
        most, least = int(error.values.argmax()), int(error.values.argmin())
        step = int(worse.values.argmax())
        return [
            f"Attention outputs move by {float(error.mean()):.1%} on average: most in layer {int(error.layer[most])} "
            f"({float(error.max()):.1%}), least in layer {int(error.layer[least])} ({float(error.min()):.1%}).",
            f"The loss changes by {float(worse.mean()):+.3f} nats a token over {result.sizes['step']} tokens, from "
            f"{float(result['nll_full'].mean()):.3f}; {int((worse > 0.1).sum())} tokens lose more than 0.1, most of "
            f"all {quoted(str(result['next_text'].values[step]))} ({float(worse[step]):+.2f}).",
        ]
