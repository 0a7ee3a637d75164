"""Which tokens a summary stands for, found by grouping anew what the method grouped."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.explaining.case import Case
from interp.explaining.summaries import Membership, of_the_text
from interp.interventions.base import parts
from interp.interventions.policies._summaries import TINY, Readers, clusters
from interp.interventions.policies.recall import Recall, RecallPlan
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@torch.no_grad()
def memberships(case: Case) -> dict[int, Membership]:
    """Of every layer that has summaries, by grouping anew what `Recall` evicted, in the eyes of the same queries."""
    policy = next((member for member in parts(case.intervention) if isinstance(member, Recall)), None)
    if policy is None:
        return {}
    stored, found = case.policy.rest.stored, {}
    plan = RecallPlan(policy, case.prompt_facts)

    def look(event: AttentionEvent, hook: Any) -> None:
        own = stored[event.layer].segments
        count = sum(int((~of_the_text(segment)[0, 0]).sum()) for segment in own)
        if count:
            plan.observe(event.layer, event)
            readers, groups = plan.readers.pop(event.layer), event.k.shape[1]
            spread = own[0].keys.shape[1] // groups
            evicted_at = case.policy.evicted_at[event.layer][::spread, : event.k.shape[2]]
            gone = (evicted_at <= case.policy.fed).to(event.k.device)
            heads = [_belonging(event.k[0, h].float(), gone[h], readers.head(0, h), count) for h in range(groups)]
            summary, share = (
                torch.stack(of_heads).repeat_interleave(spread, 0) for of_heads in zip(*heads, strict=True)
            )
            found[event.layer] = Membership(summary, share, count)

    hooks = [(f"blocks.{i}.attn.hook_event", look) for i in stored]
    case.lens.run_with_hooks(case.prompt, return_type=None, fwd_hooks=hooks, **case.lens.last_logits_only)
    return found


def _belonging(
    keys: Float[Tensor, "token d"], gone: Bool[Tensor, " token"], readers: Readers, count: int
) -> tuple[Int[Tensor, " token"], Float[Tensor, " token"]]:
    """(summary, share) of one head's tokens."""
    at = gone.nonzero()[:, 0]  # in the text's order, as the method saw them
    cluster = clusters(keys[at], count)
    attention = (readers.rows @ keys[at].mT - readers.lse[:, None]).exp() * (at <= readers.at[:, None])
    paid = attention.sum(0)
    of_cluster = paid.new_zeros(count).scatter_add(0, cluster, paid).clamp_min(TINY)
    summary = torch.full_like(gone, -1, dtype=torch.long)
    return summary.scatter(0, at, cluster), keys.new_zeros(len(keys)).scatter(0, at, paid / of_cluster[cluster])
