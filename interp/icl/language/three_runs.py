"""Does a model learn from demonstrations in its prompt as it does from training on them?

`three_runs` reads the same queries three times: bare (ZSL), after demonstrations (ICL), and bare again after fine-
tuning on the demonstrations (FT). It compares what ICL and FT changed, by the measures of Dai et al. 2023, Deutch et
al. 2024 and Shen, Mishra and Khashabi 2023, and returns every similarity with its controls along `condition`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InterpError
from interp.icl.language.changes import Change, fine_tuned_change, in_context_change
from interp.icl.language.comparison import compared
from interp.icl.language.controls import CONDITIONS, gaussian, untrained
from interp.icl.language.fine_tuning import RECIPES, Recipe, check_recipe, choose_learning_rate, fine_tuned
from interp.icl.language.label_tasks import LabelPrompts, LabelTask, label_task, wrong_task_for
from interp.icl.language.readings import Reading, read

if TYPE_CHECKING:
    import xarray as xr

    from interp.lens.protocol import InterventionLens

Progress = Callable[[float, str], None]
"""Told the fraction that is done, 0 to 1, and what is being done now."""


def three_runs(
    lens: InterventionLens,
    task: LabelTask | str,
    *,
    demos: int = 16,
    queries: int = 24,
    held_out: int = 24,
    seed: int = 0,
    recipes: Sequence[Recipe] = RECIPES,
    learning_rates: Mapping[Recipe, float] | None = None,
    wrong_task: LabelTask | str | None = None,
    progress: Progress = lambda fraction, what: None,
) -> xr.Dataset:
    """ZSL, ICL and FT on one draw of a task, compared, with all controls.

    Args:
        lens: from `interp.load`; its weights are the same afterwards, bit for bit. They must be float32 or float64.
        task: a task or the name of one, see `label_tasks()`.
        demos, queries, held_out: how many examples; the held-out ones serve to choose learning rates.
        seed: decides examples and their order, shuffled labels, Gaussians and untrained weights.
        recipes: ways of fine-tuning, see `fine_tuned`.
        learning_rates: of each recipe, the same in all conditions; None chooses on held-out examples of `task`.
        wrong_task: what the control of that name is taught; None takes the next task with other label words.
        progress: see `Progress`.

    Returns:
        What `interp.icl.language.comparison.compared` returns, over (recipe, condition), and `learning_rate` (recipe).
        Standard errors are over queries.

    Raises InterpError for fewer than 4 demonstrations (they are ranked), recipes that do not exist or have no rate, and
    what drawing, fine-tuning and untrained weights refuse.
    """
    import xarray as xr

    if demos < 4:
        raise InterpError(f"three_runs ranks demonstrations, so it takes 4 of them at least; found {demos}.")
    if not recipes:
        raise InterpError(f"three_runs takes at least one recipe of {', '.join(RECIPES)}.")
    for recipe in recipes:
        check_recipe(recipe)
        if learning_rates is not None and recipe not in learning_rates:
            raise InterpError(
                f"learning_rates names {', '.join(learning_rates) or 'none'} and the recipe {recipe} is asked for; add "
                "its rate, or leave learning_rates out to have all chosen."
            )
    task = label_task(task) if isinstance(task, str) else task
    wrong = label_task(wrong_task) if isinstance(wrong_task, str) else wrong_task or wrong_task_for(task)
    right = task.draw(lens.tokenizer, demos, queries, held_out, seed)
    taught = {
        "demos": right,
        "untrained": right,
        "wrong_task": right.with_demos_of(wrong.draw(lens.tokenizer, demos, 1, 0, seed)),
        "shuffled_labels": right.with_shuffled_labels(seed),
    }
    progress(0.0, f"{task.name}: reading")
    trained, fresh = (_Subject.of(subject, right) for subject in (lens, untrained(lens, seed)))
    subjects = dict.fromkeys(CONDITIONS, trained) | {"untrained": fresh}
    results, rates = [], []
    for i, recipe in enumerate(recipes):
        begun = i / len(recipes)
        if learning_rates is None:
            progress(begun, f"{task.name}: choosing a learning rate ({recipe})")
            rates.append(choose_learning_rate(lens, right, recipe)[0])
        else:
            rates.append(learning_rates[recipe])
        changes: dict[str, Change] = {}
        for j, (condition, prompts) in enumerate(taught.items()):
            progress(begun + (1 + j) / (1 + len(taught)) / len(recipes), f"{task.name}: {recipe}, {condition}")
            changes[condition] = subjects[condition].fine_tuned(prompts, rates[-1], recipe)
        changes["gaussian"] = gaussian(changes["demos"], seed)
        results.append(xr.concat([subjects[c].compared(changes[c]) for c in CONDITIONS], "condition"))
    ds = xr.concat(results, "recipe")
    about = {"units": "1", "description": "step size of plain SGD"}
    ds = ds.assign(learning_rate=("recipe", np.array(rates, dtype=float), about))
    ds = ds.assign_coords(recipe=list(recipes), condition=list(CONDITIONS), layer=np.arange(lens.cfg.n_layers))
    ds["condition"].attrs = {"description": "; ".join(f"{name}: {text}" for name, text in CONDITIONS.items())}
    ds.attrs = {
        "title": "In-context learning beside fine-tuning",
        "description": "How alike two changes of a model are: demonstrations in the prompt, and training on them",
        "model": lens.cfg.model_name,
        "task": task.name,
        "template": task.template,
        "labels": list(task.labels),
        "task_source": task.source,
        "wrong_task": wrong.name,
        "demos": demos,
        "queries": queries,
        "held_out": held_out,
        "seed": seed,
        "chance": 1 / len(task.labels),
        "untrained_init_std": float(getattr(lens.model.config, "initializer_range", np.nan)),
    }
    return ds


@dataclass(frozen=True)
class _Subject:
    """One model's bare and in-context run on the same queries."""

    lens: InterventionLens
    prompts: LabelPrompts
    zsl: Reading
    icl: Change

    @classmethod
    def of(cls, lens: InterventionLens, prompts: LabelPrompts) -> _Subject:
        zsl = read(lens, prompts, demos=False)
        return cls(lens, prompts, zsl, in_context_change(zsl, read(lens, prompts, demos=True), prompts))

    def fine_tuned(self, taught: LabelPrompts, lr: float, recipe: Recipe) -> Change:
        """What training on the demonstrations of `taught` changes for this subject's queries."""
        with fine_tuned(self.lens, taught, lr, recipe) as training:
            ft = read(self.lens, self.prompts, demos=False)
        return fine_tuned_change(self.zsl, ft, training)

    def compared(self, ft: Change) -> xr.Dataset:
        return compared(self.zsl, self.icl, ft, self.prompts)
