"""Many cache policies after one reading of the prompt: what a policy sees of a layer is kept, and handed to each in
turn.

Prefill does not depend on the policy, so the queries, keys and values of one pass serve all of them. `check` compares
one policy with `lens.score`, which reads the prompt anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.long_texts import path_of
from interp.cache.lens_cache import LensCache
from interp.interventions import Intervention, parts
from interp.interventions.keeper import Keeper
from interp.lens.scoring import nll_of
from interp.seam.event import AttentionEvent

PROMPT, SCORED = 1024, 256


def excerpts(lens: Any, n: int, text_name: str = "debian-handbook") -> list[torch.Tensor]:
    """n stretches of PROMPT + SCORED tokens `[1, token]` from a text of `make bench-data`, evenly spaced."""
    text = path_of(text_name).read_text(encoding="utf-8")
    starts = [int((i + 0.5) * len(text) / (n + 1)) for i in range(n)]
    return [lens.to_tokens(text[start : start + 9000], truncate=PROMPT + SCORED) for start in starts]


class Read:
    """A model that has read the prompt of one excerpt."""

    @torch.no_grad()
    def __init__(self, lens: Any, excerpt: torch.Tensor) -> None:
        self.lens, self.prompt, self.rest = lens, excerpt[:, :PROMPT], excerpt[:, PROMPT:]
        self.events: dict[int, AttentionEvent] = {}

        def keep(event: AttentionEvent, hook: Any) -> None:
            self.events[hook.layer()] = event

        points = [(f"blocks.{i}.attn.hook_event", keep) for i in range(lens.cfg.n_layers)]
        self.logits = lens.run_with_hooks(self.prompt, fwd_hooks=points, **lens.last_logits_only)[:, -1:]

    def cache(self, policy: Intervention | None, seen: Mapping[int, AttentionEvent] | None = None) -> LensCache:
        """The prompt's cache after the policy acted; seen: what it sees of each layer, if not its own attention."""
        policies: Any = () if policy is None else parts(policy)
        keeper = Keeper(policies, self.lens.cfg, tuple(self.events), self.lens.output_norms)
        cache = LensCache(self.lens.model.config, keeper)
        keeper.expect(PROMPT)
        for layer, event in self.events.items():
            cache.update(event.k, event.v, layer)
            event = event if seen is None else seen[layer]
            keeper.attended(layer, cache.stored, event.q, lambda event=event: event)
        return cache

    @torch.no_grad()
    def score(
        self, policy: Intervention | None, chunk: int = SCORED, seen: Mapping[int, AttentionEvent] | None = None
    ) -> tuple[np.ndarray, int]:
        """(negative log-likelihood of every scored token, bytes of the cache when the policy had acted)."""
        cache = self.cache(policy, seen)
        held = cache.nbytes()
        if chunk > 1:
            for plan in cache.keeper.plans.values():
                plan.each_step = False  # what is evicted after the last token was fed changes nothing but the time
        logits = [self.logits]
        for part in self.rest[:, :-1].split(chunk, 1):
            logits.append(self.lens(part, past_key_values=cache, use_cache=True))
        return nll_of(torch.cat(logits, 1), self.rest)[0].numpy(), held


def readings(lens: Any, n: int) -> Iterator[Read]:
    """One excerpt after the other, each read once."""
    for excerpt in excerpts(lens, n):
        yield Read(lens, excerpt)


def check(read: Read, policy: Intervention) -> None:
    """Raise AssertionError unless the shortcut gives what `lens.score` gives."""
    with read.lens.apply(policy):
        long = read.lens.score(read.prompt, read.rest, chunk=SCORED)[0].numpy()
    np.testing.assert_allclose(read.score(policy)[0], long, rtol=1e-4, atol=1e-4)
