"""Does a real language model learn in context the way fine-tuning on the same examples would teach it?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.icl.language.comparison import SIMILARITIES
from interp.icl.language.controls import CONDITIONS, CONTROLS
from interp.icl.language.fine_tuning import LEARNING_RATES, RECIPES, Recipe
from interp.icl.language.label_tasks import label_task, wrong_task_for
from interp.icl.language.order_of_runs import order_sensitivity_of_runs
from interp.icl.language.three_runs import three_runs
from interp.icl.studies._drawing import COLOURS, finished, heat, line, named_axes, panels, place
from interp.icl.studies.base import Choice, Picture, Progress, Study
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import NOT_FOUND, Verdict, between, mean_and_se

DAI = "Dai et al. 2023, mean of six tasks on 1.3 billion parameters"
CLAIM = "claim of Dai et al. 2023, with the controls of Deutch et al. 2024"
DEUTCH = "result files of Deutch et al. 2024, 1.3 billion parameters"
JUDGED = ("simaou", "simam_update", "kendall_tokens", "label_agreement", "token_overlap")
"""Similarities that must all exceed their controls before a recipe can be said to match in-context learning."""
HALF = 0.5**0.5
"""The cosine at which one change explains half of the other's squared length."""
NAMED = {"sgd": "SGD on keys and values", "layer_causal": "layer-causal SGD on keys and values"}
CELLS = ("task", "seed")
ORDER_QUERIES = 8
SCORES_CAPTION = (
    "Means over tasks and draws; rec2ftp is the share of all queries that it counts. A similarity says something only "
    "where the first column exceeds all others: untrained weights have nothing to learn with, the fine-tuned side of "
    "the last two columns was taught something else. Untrained weights are drawn once a draw, the same for all tasks."
)
LAYERS_CAPTION = (
    "Cosine of what demonstrations and fine-tuning change in each layer's attention output. Bands reach from the least "
    "to the greatest task and draw."
)
ACCURACY_CAPTION = (
    "ZSL: bare. ICL: after the demonstrations. FT: after fine-tuning on them. Where ZSL is right already there is "
    "nothing that in-context learning and fine-tuning could share, and Rec2FTP is undefined."
)


@dataclass(frozen=True)
class LanguageModel(Study):
    """Bare, in-context and fine-tuned runs of a language model on small label tasks, with every control.

    Examples:
        >>> study = interp.icl.studies.make("language-model", quick=True)
        >>> result = study.run("runs/language-model")  # doctest: +SKIP
    """

    name: ClassVar[str] = "language-model"
    title: ClassVar[str] = "Does a language model learn in context as fine-tuning would teach it?"
    paper: ClassVar[str] = (
        "Dai et al., Why can GPT learn in-context?, ACL Findings 2023 (arXiv:2212.10559); Deutch et al., In-context "
        "learning and gradient descent revisited, NAACL 2024 (arXiv:2311.07772)"
    )
    description: ClassVar[str] = (
        "A language model answers the same queries bare, after demonstrations, and after being fine-tuned on those "
        "demonstrations by plain SGD on its key and value projections. What demonstrations and fine-tuning change is "
        "compared, and every similarity is held against untrained weights, Gaussian numbers, a wrong task and shuffled "
        "labels."
    )
    summary: ClassVar[str] = "a real language model: demonstrations against fine-tuning, with controls"
    model: str = "demo"
    tasks: tuple[str, ...] = ("sentiment", "language", "kind", "help_topics")
    seeds: int = 2
    demos: int = 16
    queries: int = 24
    permutations: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise InterpError(f"{self.name} takes one task at least, and tasks is empty.")
        for key in ("demos", "queries", "permutations"):
            if (value := getattr(self, key)) < 1:
                raise InterpError(f"{self.name}: {key} should be at least 1, found {value}.")
        for task in self.tasks:
            label_task(task)  # an unknown name is refused before anything is measured

    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        @cache
        def lens() -> Any:  # loaded when the first part is missing
            from interp.lens.loading import load

            return load(self.model)

        tasks = self.tasks[:2][-1:] if self.quick else self.tasks  # language by default, whose texts are short
        found = []
        for i, task in enumerate(tasks):

            def say(fraction: float, what: str, i: int = i) -> None:
                progress((i + fraction) / len(tasks), what)

            found.append(self._measured(parts, lens, task, say))
        ds = xr.concat(found, "task").assign_coords(task=list(tasks))
        ds.attrs = {"model": self.model, **self._sizes}  # the parts' own attributes are those of one task
        return ds

    @property
    def _sizes(self) -> dict[str, int]:
        if self.quick:
            return {"demos": 8, "queries": 8, "held_out": 8}
        return {"demos": self.demos, "queries": self.queries, "held_out": 24}

    def _measured(self, parts: StudyParts, lens: Callable[[], Any], task: str, progress: Progress) -> xr.Dataset:
        """All of one task. The first draw chooses the learning rates for all of them, one a task as in the paper."""
        rates = {recipe: LEARNING_RATES[recipe][-1] for recipe in RECIPES} if self.quick else None
        seeds = 1 if self.quick else self.seeds
        draws = []
        for seed in range(seeds):
            say = lambda fraction, what, seed=seed: progress((seed + fraction) / (seeds + 1), what)  # noqa: E731
            make = partial(_runs, lens, task, seed=seed, learning_rates=rates, progress=say, **self._sizes)
            draws.append(parts.measured(f"{task}-{seed}", {"model": self.model, "rates": rates, **self._sizes}, make))
            rates = {recipe: float(draws[0]["learning_rate"].sel(recipe=recipe)) for recipe in RECIPES}
        progress(seeds / (seeds + 1), f"{task}: order of demonstrations")
        permutations = 2 if self.quick else self.permutations
        order = parts.measured(
            f"{task}-order",
            {"model": self.model, "rates": rates, "permutations": permutations, **self._sizes},
            partial(_orders, lens, task, self._sizes["demos"], rates, permutations),
        )
        return xr.concat(draws, "seed").assign_coords(seed=range(seeds)).merge(order)

    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        rows = [row for recipe in NAMED for row in self._recipe_verdicts(ds.sel(recipe=recipe), NAMED[recipe])]
        simaou = ds["simaou"]
        untrained = simaou.sel(recipe="sgd", condition="untrained")
        gain = simaou.sel(condition="demos", recipe="layer_causal") - simaou.sel(condition="demos", recipe="sgd")
        return [
            *rows,
            self._positive("untrained weights: simaou of SGD", f"{DEUTCH}, mean of five tasks: .127", untrained),
            self._positive(
                "simaou of layer-causal SGD less that of SGD", f"{DEUTCH}, mean of six tasks: .279 less .185", gain
            ),
        ]

    def _recipe_verdicts(self, of: xr.Dataset, named: str) -> list[Verdict]:
        above = [
            self._positive(f"{named}: {name} less that of {strongest}, its strongest control", CLAIM, excess)
            for name, (excess, strongest) in ((name, excess_over_controls(of[name])) for name in JUDGED)
        ]
        alike = by_task(of["simaou"].sel(condition="demos"))
        half = f"≥ {HALF:.2f}: half of the change's squared length"
        source = f"our criterion for two changes that are alike; {DAI}: .186, which is below it too"
        return [
            *above,
            between(f"{named}: simaou itself", source, alike, low=HALF, expected=half, measured=not self.quick),
        ]

    def _positive(self, claim: str, source: str, cells: xr.DataArray) -> Verdict:
        values = by_task(cells)
        value, error = mean_and_se(values)
        said = f"> 0 by 2 standard errors over {'tasks' if cells.sizes['task'] > 1 else 'draws'}"
        if math.isnan(error) and not self.quick:
            return Verdict(claim, source, said, value, error, NOT_FOUND)
        low = math.nextafter(2 * error, math.inf)  # nothing is not more than nothing, even without any spread
        return between(claim, source, values, low=low, expected=said, measured=not self.quick)

    def notes(self, ds: xr.Dataset) -> list[str]:
        return [
            *(conclusion(ds.sel(recipe=recipe), named) for recipe, named in NAMED.items()),
            *(
                _beside_controls(ds.sel(recipe=recipe), name, named)
                for recipe, named in NAMED.items()
                for name in SIMILARITIES
            ),
            *(_rates(ds["learning_rate"].sel(recipe=recipe), recipe) for recipe in RECIPES),
            *(_accuracies(ds.sel(task=task)) for task in ds["task"].values),
            "Order sensitivity, the spread of next-token probabilities over orders of the demonstrations: "
            + ", ".join(f"{run} {_told(ds['order_sensitivity'].sel(run=run))}" for run in ds["run"].values)
            + ". Gradient descent on all demonstrations at once would have 0.",
        ]

    def figures(self, ds: xr.Dataset) -> list[Picture]:
        scores = panels(list(NAMED.values()), 2, 0.22)
        layers = panels(list(NAMED.values()), 2)
        for i, recipe in enumerate(NAMED):
            at, of = place(i, 2), ds.sel(recipe=recipe)
            table = xr.concat([over_draws(of, name) for name in SIMILARITIES], "measure")
            table = table.assign_coords(measure=list(SIMILARITIES)).transpose("measure", "condition")
            heat(scores, table, at, form=".2f", scale="Blues", low=0, high=1)
            for colour, condition in zip(COLOURS, CONDITIONS, strict=False):
                profile = of["simaou_by_layer"].sel(condition=condition).stack(cell=CELLS)
                line(layers, profile.transpose("cell", "layer"), condition, colour, at, over="cell", legend=i == 0)
            named_axes(layers, at, "layer", "simaou" if i == 0 else "")
        tasks = panels(["share of queries labelled right"], 1)
        heat(tasks, accuracy_table(ds), place(0, 1), form=".2f", scale="Blues", low=0, high=1)
        return [
            Picture("scores", SCORES_CAPTION, finished(scores, "Every similarity beside its controls", 560)),
            Picture("layers", LAYERS_CAPTION, finished(layers, "SimAOU by layer", 420)),
            Picture("accuracy", ACCURACY_CAPTION, finished(tasks, "What each run gets right", 420)),
        ]

    def choices(self) -> list[Choice]:
        wrong = {task: wrong_task_for(label_task(task)).name for task in self.tasks}
        return [
            Choice(
                "learning rate",
                "chosen once a task, on held-out examples of its first draw",
                "ours",
                "paper: one a task too, for models of 1.3 B",
            ),
            Choice("wrong task", ", ".join(f"{other} for {task}" for task, other in wrong.items()), "ours"),
            Choice("random control of SimAOU", "Gaussian", "ours", "released code: U(0, 1), whose mean is not 0"),
            Choice("queries in Kendall's tau", "after rotary embedding", "ours", "paper: models without rotation"),
            Choice("top demonstrations and tokens", "a quarter of each", "ours", "paper: 5 demonstrations, 100 tokens"),
        ]


def excess_over_controls(score: xr.DataArray) -> tuple[xr.DataArray, str]:
    """The score of a similarity over (condition, ...) less that of the control with the largest mean, and its name."""
    means = score.sel(condition=list(CONTROLS)).mean([dim for dim in score.dims if dim != "condition"])
    strongest = CONTROLS[int(means.fillna(-np.inf).values.argmax())]  # one that is defined nowhere is not the strongest
    excess = score.sel(condition="demos", drop=True) - score.sel(condition=strongest, drop=True)
    return excess, strongest


def by_task(cells: xr.DataArray) -> xr.DataArray:
    """One value a task, its mean over draws, to judge by; where there is one task, one value a draw.

    Draws of a task share its texts, labels, template and learning rates, so they are no independent samples of what
    tasks show.
    """
    return cells.mean("seed") if "seed" in cells.dims and cells.sizes["task"] > 1 else cells


def conclusion(of: xr.Dataset, named: str) -> str:
    """What the numbers of one recipe allow to say, in one sentence about this recipe on this model.

    It matches if every judged similarity exceeds its strongest control by 2 standard errors and SimAOU reaches `HALF`.
    """
    values = by_task(of["simaou"].sel(condition="demos"))
    if values.size < 2:
        return f"{named}: one draw of one task is too little to judge by."
    alike, _ = mean_and_se(values)
    beaten = []
    for name in JUDGED:
        value, error = mean_and_se(by_task(excess_over_controls(of[name])[0]))
        if value > 2 * error:
            beaten.append(name)
    share = f"its simaou is {alike:.2f}, and a cosine of that size explains {alike**2:.0%} of a change"
    if len(beaten) == len(JUDGED) and alike >= HALF:
        return f"{named}: this fine-tuning recipe matches in-context learning on this model by these measures; {share}."
    if not beaten:
        return (
            f"{named}: none of {', '.join(JUDGED)} exceeds its strongest control by 2 standard errors, so these "
            "numbers give no reason to link this fine-tuning recipe to in-context learning on this model."
        )
    left = [name for name in JUDGED if name not in beaten]
    but = f" and does not in {', '.join(left)}" if left else ""
    return (
        f"{named}: this fine-tuning recipe does not match in-context learning on this model; it exceeds its strongest "
        f"control in {', '.join(beaten)}{but}, and {share}."
    )


def over_draws(of: xr.Dataset, name: str) -> xr.DataArray:
    """A similarity over all tasks and draws: its mean, or for Rec2FTP the share of all queries that it counts.

    A task with two such queries weighs as much as they do, not as much as one with twenty.
    """
    if name != "rec2ftp":
        return of[name].mean(CELLS)
    queries = of["rec2ftp_queries"]
    return (of["rec2ftp"] * queries).sum(CELLS) / queries.sum(CELLS)


def accuracy_table(ds: xr.Dataset) -> xr.DataArray:
    """Share of queries labelled right `[task, run]`, mean over draws."""
    demos = ds.sel(condition="demos").mean("seed")
    bare = demos.sel(recipe="sgd", drop=True)
    columns = {"ZSL": bare["accuracy_zsl"], "ICL": bare["accuracy_icl"]} | {
        f"FT by {recipe}": demos["accuracy_ft"].sel(recipe=recipe, drop=True) for recipe in NAMED
    }
    return xr.concat(list(columns.values()), "run").assign_coords(run=list(columns)).transpose("task", "run")


def _accuracies(of: xr.Dataset) -> str:
    table, task = accuracy_table(of.expand_dims("task"))[0], of["task"].item()
    runs = ", ".join(f"{run} {float(table.sel(run=run)):.2f}" for run in table["run"].values)
    return f"Accuracy on {task} (chance {1 / len(label_task(task).labels):.2f}): {runs}."


def _rates(used: xr.DataArray, recipe: Recipe) -> str:
    """In how many tasks each learning rate was used, and whether a better one may lie outside the grid."""
    counts = [int((used.isel(seed=0) == rate).sum()) for rate in LEARNING_RATES[recipe]]
    listed = ", ".join(f"{rate:g} in {n}" for rate, n in zip(LEARNING_RATES[recipe], counts, strict=True))
    ends = counts[0] + counts[-1]
    warning = f"; {ends} at an end of the grid, beyond which a better one may lie" if ends else ""
    return f"{NAMED[recipe]}: learning rate {listed} of {used.sizes['task']} tasks{warning}."


def _beside_controls(of: xr.Dataset, name: str, named: str) -> str:
    tell = _recovered if name == "rec2ftp" else lambda of: _told(of[name])
    told = {condition: tell(of.sel(condition=condition)) for condition in CONDITIONS}
    controls = ", ".join(f"{condition} {told[condition]}" for condition in CONTROLS)
    shared = f"; ICL against ZSL {_told(of['simam_zsl'].sel(condition='demos'))}" if name == "simam" else ""
    return f"{named}, {name}: {told['demos']}; controls: {controls}{shared}."


def _recovered(of: xr.Dataset) -> str:
    share, queries = float(over_draws(of, "rec2ftp")), int(of["rec2ftp_queries"].sum())
    return f"{share:.3f} of {queries} queries" if queries else "undefined"


def _told(cells: xr.DataArray) -> str:
    """Mean over tasks, of draws in which the value is defined, with its standard error over tasks."""
    values = by_task(cells).values.ravel()
    defined = xr.DataArray(values[~np.isnan(values)])
    if not defined.size:
        return "undefined"
    value, error = mean_and_se(defined)
    return f"{value:.3f}" if np.isnan(error) else f"{value:.3f} ± {error:.3f}"


def _runs(lens: Callable[[], Any], task: str, **settings: Any) -> xr.Dataset:
    return three_runs(lens(), task, **settings)


def _orders(lens: Callable[[], Any], task: str, demos: int, rates: Any, permutations: int) -> xr.Dataset:
    prompts = label_task(task).draw(lens().tokenizer, demos, ORDER_QUERIES, 0, seed=0)
    return order_sensitivity_of_runs(lens(), prompts, rates, permutations).drop_vars("sensitivity")
