"""Writes `tasks.md` from the tasks themselves: `python -m docs.write_tasks`."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

from docs.sections import cell, markdown, settings
from interp.tasks import Task, available

PAGE = Path(__file__).with_name("tasks.md")

HEAD = """# Tasks

A task measures how good what a model puts out is. `interp.evaluate(lens, task, intervention)` asks a model every item
of a task, with an intervention in force or none, and returns an `xarray.Dataset` with the numbers of each item;
`interp.tasks.summary(result)` says what they add up to, with intervals, and `interp.tasks.findings(result)` says it
in words.

```python
import interp

lens = interp.load("emoji-vlm")
result = interp.evaluate(lens, "pope:strategy=adversarial,scenes=20", interp.VAR(channels=507, tau_rel=0.6))
interp.tasks.summary(result)
interp.storage.save(result, "pope_var.nc")
```

```
interp evaluate emoji-vlm --task pope --with var:channels=507,tau_rel=0.6 --out pope_var.nc
interp evaluate MODEL --task pope --folder POPE --out pope.nc --items 500
interp evaluate --list
```

- **Settings** stand behind the name (`"pope:strategy=popular"`), or are fields:
  `interp.tasks.Pope(strategy="popular")`.
- **Items of our own** are scenes of emoji that emoji-vlm never saw, so that every protocol can be tried without any
  download. **Published sets** are read from a folder of yours (`folder=`, `--folder`): nothing is fetched. What such
  a folder lacks is one sentence, said before a model is loaded.
- **`items=500`** draws so many by the seed; fewer are part of more. `cluster` says what items share (a picture, a
  document, a pair), and the intervals know of it: shares have Wilson's interval with as many items as would tell as
  much if they were independent (`effective`), other numbers Student's interval of means over clusters.
- **An intervention acts as in `lens.apply`**, anew for every item. One that changed nothing of an item is a warning,
  in `attrs["notes"]` and in the variable `noted`: such a result says nothing about it.
- **`blind=true`** replaces every picture by a grey one: what is right then was not seen. The sentence of `findings`
  says what the best single answer to all items would get.
- **Answers are greedy**, and judged as the protocol says; `answer` has them word for word. They, prompts and ids may
  come from files and are untrusted.

Results of the same task, settings and seed have the same items in the same order (`items_sha256`), for comparing them
item by item. This page is written by `python -m docs.write_tasks`.
"""


def section(task: type[Task]) -> str:
    module = sys.modules[task.__module__]
    lines = [f"\n## `{task.name}`: {task.title[0].lower()}{task.title[1:]}\n", markdown(inspect.getdoc(module) or "")]
    lines += [f"\n### `interp.tasks.{task.__name__}`\n", markdown(inspect.getdoc(task) or "", leave_out=("Args",))]
    lines += ["\n| setting | default | what |", "| --- | --- | --- |"]
    told = settings(task)
    fields = sorted(dataclasses.fields(task), key=lambda field: field.name in ("ask", "max_new_tokens", "blind"))
    lines += [f"| `{f.name}` | `{cell(repr(f.default))}` | {cell(told.get(f.name, ''))} |" for f in fields]
    lines += ["\n| of all items | units | what |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {one.units} | {cell(one.description)} |" for name, one in task.metrics.items()]
    lines += ["\n| of each item | units | what |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {units} | {cell(said)} |" for name, (units, said) in task.scores.items()]
    by = f", and sorted by {', '.join(f'`{facet}`' for facet in task.by)}" if task.by else ""
    lines += [f"\nClusters are {task.clusters}{by}."]
    return "\n".join(lines) + "\n"


def page() -> str:
    return HEAD + "".join(section(task) for task in available().values())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
