"""`interp.evaluate`: a task run item by item, with an intervention in force or none."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError
from interp.files.reading import expect_regular
from interp.interventions import Intervention, parts
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.protocol import reads_text, takes_interventions
from interp.settings.checking import checked
from interp.tasks.asking import Asking
from interp.tasks.base import Item, Measured, Task
from interp.tasks.catalogue import made

if TYPE_CHECKING:
    import xarray as xr

    from interp.lens.protocol import InterventionLens

Progress = Callable[[int, int], None]
"""Called as `progress(items done, items in all)`."""
MOST_NOTES = 20
"""Different warnings that a result keeps."""


@in_evaluation_mode
def evaluate(
    lens: InterventionLens,
    task: str | Task,
    intervention: Intervention | None = None,
    items: int | None = None,
    seed: int = 0,
    *,
    chat: bool | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Ask a model every item of a task, and judge the answers; returns the numbers of each item.

    Args:
        lens: from `interp.load`.
        task: a name, with settings (`"pope:strategy=popular"`) or without, or a task from `interp.tasks`.
        intervention: in force for every item, as in `lens.apply`; None: the model as it is.
        items: so many of them, drawn by `seed` (whole pairs, where those count, so that it may be one more); None:
            all. What is drawn for a smaller number is part of what is drawn for a larger one.
        seed: of the items that a task makes itself, and of the draw.
        chat: whether prompts are messages of a conversation; None: where the model has a template for them.
        progress: see `Progress`.

    The result has a dimension `item`: the task's scores, `answer` and `prompt` (untrusted), `expected` (as JSON), and
    `noted`, whether a warning was given on the way. Along `item` lie `cluster` and the task's facets. Attributes name
    model, task, intervention and what the numbers depend on; `items_sha256` is of what was asked. What they add up to
    says `interp.tasks.summary`, in words `interp.tasks.findings`.

    An intervention that changed nothing of an item is a warning, kept in `attrs["notes"]` with the number of items.
    Raises InterpError for a task that lacks its files, and for an intervention that does not fit the model.

    Examples:
        >>> result = interp.evaluate(lens, "windowed_perplexity:context=20,scored=5", items=3)
        >>> result["nats"].dims
        ('item',)
        >>> list(interp.tasks.summary(result)["measure"])
        ['nll', 'perplexity', 'bits_per_byte']
    """
    from interp.results.provenance import provenance

    chosen = made(task)
    if not reads_text(lens) or not takes_interventions(lens):
        raise InterpError(f"evaluate asks a Lens, not {type(lens).__name__}; pass one from interp.load.")
    if intervention is not None and not isinstance(intervention, Intervention):
        raise InterpError(
            f"evaluate: an intervention is one of interp.interventions, such as interp.ThinK(ratio=0.5), not "
            f"{intervention!r}."
        )
    if checked("evaluate", "items", items, int | None) is not None and items is not None and items < 1:
        raise InterpError(f"evaluate: items should be at least 1, found {items}.")
    if checked("evaluate", "seed", seed, int) < 0:
        raise InterpError(f"evaluate: seed should be at least 0, found {seed}.")
    asked = drawn(chosen, chosen.items(seed), items, seed)
    asking = Asking(lens, intervention, chat)
    began, measured, notes = time.perf_counter(), [], []
    for done, item in enumerate(asked, start=1):
        measured.append(chosen.measure(asking, item))
        notes.append(list(dict.fromkeys(asking.notes)))
        asking.notes.clear()
        if progress is not None:
            progress(done, len(asked))
    result = _dataset(chosen, asked, measured, [bool(one) for one in notes])
    result.attrs |= {
        "model": lens.cfg.model_name,
        "architecture": lens.cfg.architecture,
        "dtype": lens.cfg.dtype,
        "interventions": json.dumps([part.settings() for part in _in_force(lens, intervention)]),
        "chat": asking.chat,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 3),
        "notes": json.dumps(dict(Counter(note for one in notes for note in one).most_common(MOST_NOTES))),
        **provenance(lens.device),
    }
    _speak(notes)
    return result


def _in_force(lens: InterventionLens, intervention: Intervention | None) -> Sequence[Intervention]:
    """What acts: the intervention of the call, or those of a block of `lens.apply` around it."""
    if intervention is None:
        return [*lens.edits_in_force, *lens.policies_in_force]
    return parts(intervention)


def drawn(task: Task, items: Sequence[Item], number: int | None, seed: int) -> list[Item]:
    """So many items, or whole clusters of as many, drawn at random, in the task's order. Raises InterpError where there
    is none, two have one id, one is no text, or a picture of one is no file."""
    found = list(items)
    if not found:
        raise InterpError(f"{task.name} has no items with these settings; change them.")
    if twice := [name for name, times in Counter(item.id for item in found).items() if times > 1]:
        raise InterpError(f"{task.name} has two items called {twice[0]!r}; give each an id of its own.")
    if number is not None and number < len(found):
        together = [item.cluster if task.whole_clusters else item.id for item in found]
        sizes = Counter(together)
        names, kept, count = list(sizes), set[str](), 0
        for place in np.random.default_rng(seed).permutation(len(names)):
            if count >= number:
                break
            kept.add(names[place])
            count += sizes[names[place]]
        found = [item for item, name in zip(found, together, strict=True) if name in kept]
    for item in found:
        _expect_text(item, task)
        for picture in item.images:
            if isinstance(picture, Path):
                _expect_file(picture, item, task)
    return found


def _expect_text(item: Item, task: Task) -> None:
    words = (item.id, item.cluster, item.prompt, *item.expected, *item.choices, *item.facets.values())
    try:
        "".join(words).encode()
    except UnicodeEncodeError:  # JSON may hold half a character as \ud800, which no text does
        raise InterpError(f"{task.name}: item {item.id!a} holds half a character; mend it in its file.") from None


def _expect_file(picture: Path, item: Item, task: Task) -> None:
    try:
        expect_regular(picture)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InterpError(
            f"{task.name} has no picture {picture} for item {item.id!r} ({reason}); put it there, or name the folder "
            "with the pictures as the setting images."
        ) from None


def _dataset(task: Task, items: Sequence[Item], measured: Sequence[Measured], noted: Sequence[bool]) -> xr.Dataset:
    from interp.results.described import described

    def text(values: Sequence[str]) -> np.ndarray:
        return np.array(values, dtype=object)

    variables: dict[str, Any] = {
        name: ("item", np.array([float(one.scores[name]) for one in measured]), units, description)
        for name, (units, description) in task.scores.items()
    }
    variables |= {
        "answer": ("item", text([one.answer for one in measured]), "text", "what the model wrote, untrusted"),
        "prompt": ("item", text([item.prompt for item in items]), "text", "what was asked, untrusted"),
        "expected": ("item", text([json.dumps(item.expected) for item in items]), "text", "what is right, as JSON"),
        "noted": ("item", np.array(noted), "1", "whether a warning was given, as that nothing was changed"),
    }
    facets = sorted({name for item in items for name in item.facets})
    coords = {
        "item": text([item.id for item in items]),
        "cluster": ("item", text([item.cluster for item in items])),
        **{name: ("item", text([item.facets.get(name, "") for item in items])) for name in facets},
    }
    asked = json.dumps([[item.id, item.cluster, item.prompt, item.expected, item.choices] for item in items])
    attrs = {
        "title": task.title,
        "description": f"The task {task.name}, item by item",
        "task": task.name,
        "task_settings": json.dumps(task.settings()),
        "facets": json.dumps(facets),
        "items_sha256": hashlib.sha256(asked.encode()).hexdigest(),
    }
    return described(variables, coords, attrs)


def _speak(notes: Sequence[Sequence[str]]) -> None:
    """Warn of what was noted, once."""
    if told := Counter(note for one in notes for note in one):
        first, _ = told.most_common(1)[0]
        touched = sum(map(bool, notes))
        warnings.warn(f"in {touched} of {len(notes)} items: {first}", stacklevel=4)
