"""Which tokens to keep, by methods that were tuned elsewhere: settings chosen on some excerpts, losses told of others.

`cache_quality` shows every method with settings that were found on the excerpts which it reports. Here every method,
ours and the others', has a grid of settings. At each budget the setting with the smallest mean loss over the excerpts
for choosing is taken, and what is reported is its loss on other excerpts, of the same two texts (a handbook and the
Jargon File). All act once, after a prompt of 1,024 tokens, and hold the same share of its tokens.

Attention matching is also shown the queries of "self-study", as its paper recommends (arXiv:2602.16284): the model is
asked about the text, continues, and its queries are taken. That costs some hundred generated tokens a prompt, which no
other method here pays, so it is a row of its own in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from tqdm import tqdm

import interp
from benchmarks.shared_prefill import PROMPT, Read, excerpts
from benchmarks.table import publish
from interp.interventions import Intervention
from interp.seam.event import AttentionEvent

TEXTS = ("debian-handbook", "jargon-file")
BUDGETS = (0.1, 0.2, 0.4)
SPACED = 8
"""Excerpts of each text; every fourth one is for choosing."""
QUESTIONS = (
    "\n\nIn short, the text above says that",
    "\n\nQuestions about the text above, with answers:\n1.",
    "\n\nThe most important facts of the text, as a list:\n-",
    "\n\nThe same text once more:\n",
)
ANSWER = 48


class Candidate(NamedTuple):
    """A method with settings, at a budget."""

    method: str
    budget: float
    settings: str
    policy: Intervention
    studied: bool = False
    """Whether it is shown the queries of self-study."""


def grids(budget: float) -> dict[str, list[Intervention]]:
    """Every method's settings at a budget. A recent share is one of the budget."""
    share: dict[str, Any] = {"budget": budget}
    return {
        "random": [interp.RandomTokens(**share, sinks=4, recent_share=r) for r in (0.25, 0.5)],
        "StreamingLLM": [interp.StreamingLLM(**share, sinks=s) for s in (4, 16)],
        "Knorm": [interp.Knorm(**share, sinks=4, recent=int(PROMPT * budget * r)) for r in (0.25, 0.5)],
        "SnapKV": [interp.SnapKV(**share, sinks=4, window=w) for w in (16, 32, 64)],
        "PyramidKV": [interp.PyramidKV(**share, window=w, beta=2) for w in (32, 64)],
        "TOVA": [interp.TOVA(**share, sinks=4)],
        "H2O": [interp.H2OPrefill(**share, sinks=s, recent_share=r) for s, r in product((0, 4), (0.25, 0.5))],
        "expected attention": [interp.ExpectedAttention(**share, recent_share=r) for r in (0.25, 0.5)],
        "D2O": [
            interp.D2O(**share, variant="paper", metric="uniform", compress_at="prefill_end", merge=m, recent_share=r)
            for m, r in (("key_value", 0.25), ("value", 0.25), ("value", 0.5))
        ],
        "attention matching": [interp.AttentionMatching(**share, recent_share=r, queries=1.0) for r in (0.25, 0.5)],
        "Recall": [interp.Recall(**share, summaries=s, queries=q) for s, q in product((0.05, 0.15, 0.3), (0.25, 1.0))],
    }


STUDIED = ("attention matching",)


def candidates() -> list[Candidate]:
    made = []
    for budget in BUDGETS:
        for method, policies in grids(budget).items():
            for policy in policies:
                varied = _varied(policy, policies)
                made.append(Candidate(method, budget, varied, policy))
                if method in STUDIED:
                    made.append(Candidate(f"{method}, self-study", budget, varied, policy, studied=True))
    return made


def _varied(policy: Intervention, grid: list[Intervention]) -> str:
    """The settings of a policy in which those of its grid differ."""
    own, all_of = policy.settings(), [other.settings() for other in grid]
    return ", ".join(f"{k}={v}" for k, v in own.items() if len({str(other[k]) for other in all_of}) > 1)


def studied(read: Read, seed: int) -> dict[int, AttentionEvent]:
    """Each layer's attention to the prompt by the queries of the model talking about it."""
    torch.manual_seed(seed)
    queries: dict[int, list[torch.Tensor]] = {layer: [] for layer in read.events}
    for question in QUESTIONS:
        asked = torch.cat([read.prompt, read.lens.to_tokens(question)], 1)
        _, seen = read.lens.generate(
            asked, ANSWER, min_new_tokens=ANSWER, do_sample=True, past_key_values=read.cache(None),
            names_filter=lambda name: name.endswith("hook_rot_q"),
        )  # fmt: skip
        for layer, own in queries.items():
            own.append(seen["rot_q", layer][:, -(asked.shape[1] - PROMPT + ANSWER - 1) :].transpose(1, 2))
    after = {"causal": True, "offset": PROMPT}
    return {layer: replace(event, q=torch.cat(queries[layer], 2), facts=after) for layer, event in read.events.items()}


@dataclass(frozen=True)
class Excerpt:
    text: str
    number: int
    tokens: torch.Tensor

    @property
    def for_choosing(self) -> bool:
        return self.number % 4 == 1


def all_excerpts(lens: interp.Lens) -> list[Excerpt]:
    return [Excerpt(text, i, tokens) for text in TEXTS for i, tokens in enumerate(excerpts(lens, SPACED, text))]


def losses(lens: interp.Lens, some: list[Excerpt], tried: list[Candidate]) -> Iterator[dict[str, Any]]:
    """Rows: what each candidate's cache adds to the mean loss of the tokens after each excerpt's prompt, in nats."""
    for excerpt in tqdm(some, mininterval=30):
        read = Read(lens, excerpt.tokens)
        full, whole = read.score(None)
        seen = studied(read, excerpt.number) if any(one.studied for one in tried) else None
        for one in tried:
            nll, held = read.score(one.policy, seen=seen if one.studied else None)
            yield {
                "method": one.method, "budget": one.budget, "settings": one.settings, "text": excerpt.text,
                "excerpt": excerpt.number, "change": float(nll.mean() - full.mean()), "of full": held / whole,
            }  # fmt: skip


def chosen(rows: pd.DataFrame, tried: list[Candidate]) -> list[Candidate]:
    """Of each method and budget the settings with the smallest mean loss."""
    means = rows.groupby(["method", "budget", "settings"])["change"].mean()
    best = means.groupby(level=["method", "budget"]).idxmin()
    return [one for one in tried if (one.method, one.budget, one.settings) in set(best)]


def summary(rows: pd.DataFrame, against: str, of: Callable[[str], bool] = lambda text: True) -> list[dict[str, Any]]:
    """Of each method and budget: mean and 95 % interval (t over excerpts) of the loss, and of the difference to
    another method on the same excerpts."""
    some = rows[rows["text"].map(of)]
    wide = some.pivot(index=["text", "excerpt"], columns=["budget", "method"], values="change")
    made = []
    for (budget, method), change in wide.items():
        gap = change - wide[budget, against]
        made.append({
            "budget": budget, "method": method, "change of loss": round(change.mean(), 4),
            "± 95 %": round(half(change), 4), f"above {against}": round(gap.mean(), 4),
            "± 95 % of that": round(half(gap), 4), "excerpts where it is": int((gap > 0).sum()), "of": len(gap),
            "settings": some[(some.method == method) & (some.budget == budget)]["settings"].iloc[0],
            "of full": round(some[(some.method == method) & (some.budget == budget)]["of full"].mean(), 3),
        })  # fmt: skip
    return sorted(made, key=lambda row: (row["budget"], row["change of loss"]))


def half(values: pd.Series) -> float:
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def main() -> None:
    lens, tried = interp.load("demo"), candidates()
    every = all_excerpts(lens)
    choosing = pd.DataFrame(losses(lens, [one for one in every if one.for_choosing], tried))
    means = choosing.groupby(["budget", "method", "settings"], sort=False)["change"].mean().round(4).reset_index()
    publish("cache_choice_grid", means.to_dict("records"))
    held_out = pd.DataFrame(losses(lens, [one for one in every if not one.for_choosing], chosen(choosing, tried)))
    publish("cache_choice", summary(held_out, "Recall"))
    by_text = [{"text": text, **row} for text in TEXTS for row in summary(held_out, "Recall", text.__eq__)]
    publish("cache_choice_by_text", by_text)


if __name__ == "__main__":
    main()
