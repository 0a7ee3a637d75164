"""`interp.explain`: why a cache policy changes what a model says.

One file a question: what was evicted and where it went (`ledger`), which channels stay (`masks`), the attention that
what was dropped would have had (`missed_mass`), how far each layer's output moves (`perturbation`), and what happens to
the prediction when one channel or token is put back (`attribution`). Every `Question` in this folder is found by its
name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from interp.discovery import classes_in
from interp.errors import InterpError
from interp.explaining.base import NothingToSay, Question
from interp.lens.evaluating import in_evaluation_mode
from interp.settings.reading import made, several

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from interp.interventions.base import Intervention
    from interp.lens.protocol import TextLens

__all__ = ["NothingToSay", "Question", "available", "explain", "findings", "resolve"]


@in_evaluation_mode
def explain(
    lens: TextLens,
    intervention: Intervention,
    prompt: str | torch.Tensor,
    continuation: str | torch.Tensor,
    questions: Iterable[str | Question] | str | Question | None = None,
) -> dict[str, xr.Dataset]:
    """Ask why a cache policy changes what a model says; returns the answers by the questions' names.

    Args:
        lens: from `interp.load`.
        intervention: cache policies, such as `interp.ThinK(ratio=0.5)` or `H2O(budget=0.2) | ThinK()`.
        prompt: one text, or tokens `[pos]` or `[1, pos]`.
        continuation: the true text after it, or its tokens: what the model is made to read with the full cache and
            again under the policy. At least two tokens.
        questions: names, or question objects with their parameters; None asks all that apply, and leaves out, with a
            warning, those that have nothing to say about what the policy did here.

    The prompt is read once and then every token of the continuation but the last is fed (a "step"), all at once where
    the policy acts once after the prompt, one by one where it acts at every step. Nothing is trained and no gradient
    taken. Raises InterpError, before any compute, for a question that does not apply to the intervention, and for one
    asked by name that has nothing to say.

    Examples:
        >>> policy = interp.ThinK(ratio=0.7, window=8, recent=8)
        >>> why = interp.explain(lens, policy, prompt, "w9 w10 w11", ["masks", "perturbation"])
        >>> figure = interp.figures.perturbation(why["perturbation"])
        >>> list(why)
        ['masks', 'perturbation']
    """
    from interp.explaining.case import Case
    from interp.lens.finite import finite
    from interp.results.provenance import provenance

    wanted = resolve(questions, intervention)
    case = Case.of(lens, intervention, prompt, continuation)
    facts = case.facts() | provenance(lens.device)
    answers, silent = {}, []
    with finite(lens, [case.seen]) as numbers:
        for question in wanted:
            try:
                answers[question.name] = question.ask(case)
            except NothingToSay as reason:
                if questions is not None:
                    raise
                silent.append(str(reason))
            else:
                answers[question.name].attrs |= facts
        for run in case.runs:
            numbers.take_logits(run.logits)
    if silent:
        warnings.warn(f"left out of the explanation: {' '.join(silent)}", stacklevel=3)  # who called
    return answers


@cache
def available() -> dict[str, type[Question]]:
    """All questions by name, in alphabetical order."""
    return classes_in(__name__, __path__, Question)


def resolve(questions: Iterable[str | Question] | str | Question | None, intervention: Intervention) -> list[Question]:
    """Question objects from names, with settings (`attribution:samples=100`) or without, and questions; None means all
    that apply.

    Raises UnknownNameError for a name or a setting that is none, InterpError for a question that does not apply or is
    asked twice.
    """
    if questions is None:
        return [q for q in (cls() for cls in available().values()) if q.applies(intervention)]
    example = "attribution:samples=100"
    found = [made("question", q, Question, available(), example) for q in several(questions)]
    if not found:
        raise InterpError(f"no question was asked; there are {', '.join(available())}.")
    names = [q.name for q in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InterpError(f"{', '.join(twice)} is asked for twice; answers go by name, so ask one setting at a time.")
    if wrong := [q for q in found if not q.applies(intervention)]:
        raise InterpError(
            f"{wrong[0].name} asks about policies that decide about {' or '.join(wrong[0].stages)}, "
            f"which {intervention!r} does not."
        )
    return found


def findings(answers: Mapping[str, xr.Dataset]) -> list[str]:
    """Plain-text sentences computed from the answers of `interp.explain`."""
    return [sentence for name, ds in answers.items() for sentence in available()[name]().findings(ds)]
