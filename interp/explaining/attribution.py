"""Attribution: put one dropped channel or token back and see how the prediction changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from interp.errors import InterpError
from interp.explaining.base import NothingToSay, Question
from interp.explaining.case import Case
from interp.explaining.memberships import memberships
from interp.explaining.restoring import at_rest, with_channels, with_tokens
from interp.explaining.scores import (
    NOT_RECORDED,
    Place,
    about_scores,
    channel_scores,
    token_scores,
    value_channel_scores,
)
from interp.explaining.summaries import Membership
from interp.results.described import described
from interp.results.naming import quoted

Tensor = torch.Tensor
Kind = Literal["channels", "value_channels", "tokens"]
SCORES = {"channels": channel_scores, "value_channels": value_channel_scores, "tokens": token_scores}
ONE = {"channels": "channel", "value_channels": "channel", "tokens": "position"}


@dataclass(frozen=True)
class Attribution(Question):
    """The effect of single dropped channels (or evicted tokens) on the logit difference, against the method's score.

    For each sampled one the cache that the policy left of the prompt gets it back, exactly as the full cache holds it;
    then the next `steps` true tokens are read, and at each the logit of the true next token minus that of its rival is
    compared with the pruned cache's. No gradient is taken and nothing is approximated; `batch` caches go through the
    model in one pass.

    The rival is the full cache's likeliest token beside the true one; `answers` names the pair instead. Half of the
    samples are those that the method itself ranks highest among what it dropped, half are random. A policy that acts at
    every step is judged by what it did after the prompt. Where kept keys have taken over something of what was dropped
    (compensation, merging), they stay that way, and effects need not add up to the full cache's. A token that a summary
    stands for (`Recall`) leaves it, or it would count twice; the summary's key stays as it was fitted.

    The method's score is what it wrote down itself; `own_score` among the attributes says what that number is. Of a
    method that wrote down nothing it says "not recorded": scores are NaN then, nothing is correlated with them and all
    samples are random.

    Args:
        of: "channels" (of keys), "value_channels" or "tokens"; None takes the first of these that the policy dropped.
        samples: how many are put back.
        steps: tokens read after that.
        answers: (token, rival) as texts of one token each, or token ids; for all steps.
        batch: caches compared in one pass.
        seed: of the random half.

    Examples:
        >>> from interp.explaining.attribution import Attribution
        >>> policy = interp.H2OPrefill(budget=0.5)
        >>> why = interp.explain(lens, policy, prompt, "w9 w10 w11", Attribution(samples=4, steps=2))
        >>> why["attribution"].effect.dims
        ('sample', 'step')
    """

    name: ClassVar[str] = "attribution"
    of: Kind | None = None
    samples: int = 64
    steps: int = 8
    answers: tuple[Any, Any] | None = None
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of not in (None, *SCORES):
            raise InterpError(f"attribution: of should be one of {', '.join(SCORES)}, found {self.of!r}.")
        if min(self.samples, self.steps, self.batch) < 1:
            raise InterpError("attribution: samples, steps and batch should be at least 1.")

    @torch.no_grad()
    def ask(self, case: Case) -> xr.Dataset:
        of, scores = self._dropped(case)
        fed = case.policy.fed
        stop = min(fed + self.steps, case.steps)
        tokens = case.fed[:, fed:stop]
        if tokens.shape[1] == 0:
            raise NothingToSay(
                "attribution: no token is left to read after the policy acted; pass a longer continuation."
            )
        run = Reader(case, of, tokens, self._pair(case, fed, stop))
        places, ranked = chosen(scores, self.samples, self.seed)
        pruned = run.read(at_rest(case.policy.rest))[0]
        batches = [places[i : i + self.batch] for i in range(0, len(places), self.batch)]
        difference = torch.cat([run.read(run.restored(part)) for part in batches])
        return self._answer(case, of, scores, places, ranked, run, pruned, difference - pruned)

    def _dropped(self, case: Case) -> tuple[Kind, dict[Place, float]]:
        """(what is put back, the method's score of all that could be)."""
        wanted: tuple[Kind, ...] = (self.of,) if self.of else ("channels", "value_channels", "tokens")
        for of in wanted:
            if scores := SCORES[of](case):
                return of, scores
        named = " and no ".join(_said(of) for of in wanted)
        raise NothingToSay(f"attribution: the policy dropped no {named} of the prompt, so nothing can be put back.")

    def _pair(self, case: Case, fed: int, stop: int) -> tuple[Tensor, Tensor]:
        """(token, rival) whose logits are compared at each step: `[step]` each."""
        if self.answers is not None:
            answer, rival = (self._token(case, text) for text in self.answers)
            return torch.full((stop - fed,), answer), torch.full((stop - fed,), rival)
        answers = case.continuation[0, fed + 1 : stop + 1]
        logits = case.full.logits[fed:stop].clone()
        logits.scatter_(-1, answers[:, None].to(logits.device), -torch.inf)
        return answers, logits.argmax(-1)

    @staticmethod
    def _token(case: Case, text: Any) -> int:
        if isinstance(text, (int, np.integer)):
            if not 0 <= text < case.lens.cfg.d_vocab:
                raise InterpError(f"attribution: there is no token {text}; the vocabulary has {case.lens.cfg.d_vocab}.")
            return int(text)
        ids = case.lens.token_ids(text)
        if len(ids) != 1:
            raise InterpError(f"attribution: answers are single tokens, and {text!r} has {len(ids)}.")
        return int(ids[0])

    def _answer(
        self, case: Case, of: Kind, scores: dict[Place, float], places: list[Place], ranked: int, run: Reader,
        pruned: Tensor, effect: Tensor,
    ) -> xr.Dataset:  # fmt: skip
        full = run.full_difference()
        score = np.array([scores[place] for place in places], "float32")
        total: dict[tuple[int, int], float] = {}
        for (layer, head, _), value in scores.items():
            total[layer, head] = total.get((layer, head), 0.0) + value
        share = np.array([scores[p] / total[p[:2]] if total[p[:2]] else np.nan for p in places], "float32")
        random = (np.arange(len(places)) >= ranked).astype("int8")
        size = effect.abs().mean(-1).numpy()
        one, about = ONE[of], about_scores(case, of, scores)
        column = [np.array([place[i] for place in places]) for i in range(3)]
        data: dict[str, Any] = {
            "effect": (("sample", "step"), effect, "logits", "logit difference with it put back, minus without"),
            "mean_effect": (("sample",), size, "logits", "|effect|, mean over steps"),
            "score": (("sample",), score, "1", f"the method's own score: {about}; NaN where it has none"),
            "score_share": (("sample",), share, "1", "score over the sum of what its head dropped"),
            "layer": (("sample",), column[0], "layer", "layer"),
            "kv_head": (("sample",), column[1], "head", "stored head"),
            one: (("sample",), column[2], "token" if of == "tokens" else "channel", f"{one} that was put back"),
            "random": (("sample",), random, "1", "1 for random ones, 0 for the highest scores among what was dropped"),
            "full": (("step",), full, "logits", "logit difference with the full cache"),
            "pruned": (("step",), pruned, "logits", "logit difference under the policy"),
            "spearman": (
                ("sampled", "against"),
                [[_spearman(size[m], x[m]) for x in (score, share)] for m in (random == 1, random >= 0)],
                "1",
                "rank correlation of |effect| with the method's score; NaN where there are too few",
            ),
        }  # fmt: skip
        if of == "tokens":
            text = np.array(case.token_text, dtype=object)[column[2]]
            data["token_text"] = (("sample",), text, "text", "text of the token that was put back")
        fed = case.policy.fed
        steps = case.step_coords()
        part = slice(fed, fed + effect.shape[1])
        coords = {
            "sample": np.arange(len(places)),
            "step": steps["step"][part],
            "step_text": ("step", steps["step_text"][1][part]),
            "next_text": ("step", steps["next_text"][1][part]),
            "rival_text": ("step", np.array(case.lens.to_str_tokens(run.pair[1]), dtype=object)),
            "sampled": ["random half", "all"],
            "against": ["score", "score_share"],
        }
        attrs = {
            "title": f"What single {_said(of)} do to the prediction",
            "description": f"Change of the logit difference when one of the dropped {_said(of)} is put back",
            "of": of,
            "candidates": len(scores),
            "own_score": about,
        }
        return described(data, coords, attrs)

    def findings(self, result: xr.Dataset) -> list[str]:
        of = result.attrs["of"]
        one = ONE[of]
        lost = result["pruned"] - result["full"]
        size = result["mean_effect"].values
        top = int(size.argmax())
        named = f"layer {int(result['layer'][top])}, head {int(result['kv_head'][top])}, {one} {int(result[one][top])}"
        if of == "tokens":
            named += f" {quoted(str(result['token_text'].values[top]))}"
        said = [
            f"The policy moves the logit difference by {float(np.abs(lost).mean()):.3f} on average over "
            f"{result.sizes['step']} tokens; a single {_said(of)[:-1]} put back moves it by {np.median(size):.4f} "
            f"in the median of {result.sizes['sample']} samples of {result.attrs['candidates']:,}, at most by "
            f"{size.max():.4f} ({named})."
        ]
        if result.attrs["own_score"] == NOT_RECORDED:
            said.append("The policy recorded no score of what it dropped, so effects are compared with none.")
        rho = float(result["spearman"].sel(sampled="random half", against="score"))
        if np.isfinite(rho):
            said.append(
                f"Over the random half the effect's rank correlation with the method's own score is {rho:+.2f} "
                f"(n = {int(result['random'].sum())})."
            )
        return said


def _said(of: Kind) -> str:
    return of.replace("_", " ")


class Reader:
    """Reads the same tokens with one cache after the other and returns logit differences."""

    def __init__(self, case: Case, of: Kind, tokens: Tensor, pair: tuple[Tensor, Tensor]) -> None:
        self.case, self.of, self.tokens, self.pair = case, of, tokens, pair
        stop = int(case.prompt.shape[1]) + case.policy.fed
        self.keys = {i: event.k[:, :, :stop] for i, event in case.full.events.items()}
        self.values = {i: event.v[:, :, :stop] for i, event in case.full.events.items()}

    @cached_property
    def members(self) -> dict[int, Membership]:
        """Which summary each evicted token left."""
        return memberships(self.case)

    def restored(self, places: list[Place]) -> Any:
        """A cache with a row for each place, which that row has back."""
        return self.restored_together([[place] for place in places])

    def restored_together(self, rows: list[list[Place]]) -> Any:
        """A cache with a row for each list of places, all of which that row has back."""
        rest = self.case.policy.rest
        if self.of == "tokens":
            return with_tokens(rest, self.keys, self.values, rows, self.members)
        if self.of == "channels":
            return with_channels(rest, self.keys, rows, "keys")
        return with_channels(rest, self.values, rows, "values")

    def read(self, cache: Any) -> Float[Tensor, "row step"]:
        rows = next(iter(cache.stored.values())).segments[-1].keys.shape[0]
        logits = self.case.lens(self.tokens.expand(rows, -1), past_key_values=cache, use_cache=True)
        return self._difference(logits)

    def full_difference(self) -> Float[Tensor, " step"]:
        fed = self.case.policy.fed
        return self._difference(self.case.full.logits[None, fed : fed + self.tokens.shape[1]])[0]

    def _difference(self, logits: Tensor) -> Float[Tensor, "row step"]:
        def pick(ids: Tensor) -> Tensor:
            return logits.gather(-1, ids.to(logits.device).expand(logits.shape[0], -1)[..., None])[..., 0]

        answer, rival = (pick(ids).float().cpu() for ids in self.pair)
        return answer - rival


def chosen(scores: dict[Place, float], samples: int, seed: int) -> tuple[list[Place], int]:
    """(places, how many of them are the highest scores): half by score, half at random among the others.

    Of equal scores a random one goes first; where there is nothing to rank by, or room for all, all are random.
    """
    places = sorted(scores)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(places))
    value = np.array([scores[places[i]] for i in shuffled])
    if len(places) <= samples or len(np.unique(value[np.isfinite(value)])) < 2:
        return [places[i] for i in shuffled[:samples]], 0
    order = shuffled[np.argsort(-value, kind="stable")]  # what has no score comes last
    ranked = samples // 2
    drawn = rng.choice(order[ranked:], samples - ranked, replace=False)
    return [places[i] for i in [*order[:ranked], *drawn]], ranked


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    good = np.isfinite(a) & np.isfinite(b)
    if good.sum() < 3 or len(np.unique(a[good])) < 2 or len(np.unique(b[good])) < 2:
        return float("nan")
    return float(spearmanr(a[good], b[good]).statistic)
