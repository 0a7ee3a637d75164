"""The API reference: a page for every public module, grouped by what a reader looks for.

Families (probes, cache policies, edits, questions, tasks, figures, studies, kernels) are what discovery finds, the
other pages the rest of the public modules, room by room: a new file has its page with the next `make docs`. The text of
a page is left to mkdocstrings, which reads the docstrings.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, replace
from types import ModuleType

import interp_kernels
from interp_kernels import operations

import interp
from interp import explaining, figures, interventions, probes, tasks
from interp.icl import studies
from interp.interventions import CachePolicy

TITLES = {
    "interp.lens": "Lens", "interp.seam": "Seam", "interp.cache": "Cache", "interp.interventions": "Interventions",
    "interp.probes": "Probes", "interp.runs": "Runs", "interp.results": "Results", "interp.settings": "Settings",
    "interp.explaining": "Explaining",
    "interp.figures": "Figures", "interp.report": "Report", "interp.subjects": "Subjects", "interp.icl.tasks": "Tasks",
    "interp.icl.models": "Models", "interp.icl.learners": "Learners", "interp.icl.measures": "Measures",
    "interp.tasks": "Evaluation",
    "interp.icl.language": "Language models", "interp.icl.studies": "Studies", "interp.icl": "In context",
    "interp.studies": "Ablation studies", "interp.cli": "Command line", "interp_kernels": "Kernels", "interp": "Root",
}  # fmt: skip
"""Titles of rooms, in the order of the pages; a room that is not listed has one made of its name, at the end."""
EXAMPLES = """Examples are run by the tests, on a tiny random model. They take some names for granted: `lens` is a Lens,
`prompt` a text of forty tokens, `results` holds a result of each probe, question and measurement by its name, and `q`,
`k`, `v` are queries, keys and values `[batch, head, token, channel]`."""
PATHS = ("reference", "cpu", "triton", "backward", "forms")  # ways to compute a kernel, not names of its own


@dataclass(frozen=True)
class Entry:
    """A thing that has a page of its own."""

    label: str
    """What a person calls it: `interp.ThinK`, `think`."""
    module: str
    """The module that its page documents."""
    summary: str
    objects: tuple[str, ...] | None = None
    """Full names of what the page documents; None: all that is public in the module."""
    anchor: str = ""
    """The full name of the thing itself, where the page documents more than it."""


def families() -> dict[str, tuple[str, list[Entry]]]:
    """(what a family is, its members) by the family's title, as discovery finds them."""
    found = interventions.available().values()
    policies = [cls for cls in found if issubclass(cls, CachePolicy)]
    edits = [cls for cls in found if not issubclass(cls, CachePolicy)]
    read = probes.available() | probes.available("images") | probes.available("tasks")
    drawn = [importlib.import_module(f"interp.figures.{name}") for name in figures.names()]
    return {
        "Probes": (
            "What `interp.probe` can measure, in one forward pass.",
            [_of_class(c, c.name) for c in read.values()],
        ),
        "Cache policies": (
            "What a cache can be made to keep: `lens.apply(...)`, `--with`.",
            [_of_class(c, f"interp.{c.__name__}") for c in policies],
        ),
        "Attention edits": (
            "How attention can be changed: `lens.apply(...)`, `--with`.",
            [_of_class(c, f"interp.{c.__name__}") for c in edits],
        ),
        "Questions": (
            "What `interp.explain` can be asked about a cache policy.",
            [_of_class(c, c.name) for c in explaining.available().values()],
        ),
        "Tasks": (
            "What `interp.evaluate` can measure of a model's answers: `interp evaluate MODEL --task NAME`.",
            [_of_class(c, c.name) for c in tasks.available().values()],
        ),
        "Figures": (
            "Functions from a result to a plotly figure: `interp.figures.NAME(ds)`.",
            [Entry(m.__name__.rpartition(".")[2], m.__name__, _first_sentence(m)) for m in drawn],
        ),
        "Studies": (
            "Experiments from papers, re-run: `interp icl NAME`.",
            [_of_class(c, c.name) for c in studies.available().values()],
        ),
        "Kernels": ("Operations of `interp_kernels`; each has a readable reference beside it.", kernels()),
    }


def _of_class(cls: type, label: str) -> Entry:
    return Entry(label, cls.__module__, _first_sentence(cls), anchor=f"{cls.__module__}.{cls.__qualname__}")


def kernels() -> list[Entry]:
    """Operations of `interp_kernels`, with all that they make public."""
    found = []
    for name in operations.names():
        module = importlib.import_module(f"interp_kernels.{name}")
        found.append(Entry(name, module.__name__, _first_sentence(module), _objects(module)))
    return found


def _objects(package: ModuleType) -> tuple[str, ...]:
    """Functions and classes that a package defines, or a module of it if it is a kernel's, and that it makes public."""
    kernel = package.__name__.startswith("interp_kernels.")
    named = [(x, x.__module__) for name, x in vars(package).items() if _is_public(name, x)]
    own = [x for x, at in named if at == package.__name__ or (kernel and at.startswith(f"{package.__name__}."))]
    return tuple(f"{x.__module__}.{x.__qualname__}" for x in own if inspect.getdoc(x))


def _is_public(name: str, thing: object) -> bool:
    return not name.startswith("_") and (inspect.isroutine(thing) or inspect.isclass(thing))


def titles() -> dict[str, str]:
    """The title of every room, by its name: those of `TITLES`, and each other folder of `interp`."""
    folders = [info.name for info in pkgutil.iter_modules(interp.__path__, "interp.") if info.ispkg]
    return TITLES | {name: name.split(".")[1].replace("_", " ").capitalize() for name in folders if name not in TITLES}


def rooms(taken: set[str]) -> dict[str, list[Entry]]:
    """Public modules that are on no family's page, by the room they lie in."""
    titled = titles()
    found: dict[str, list[Entry]] = {title: [] for title in titled.values()}
    for package in (interp, interp_kernels):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            parts = info.name.split(".")
            hidden = any(part.startswith("_") for part in parts) or info.name in taken or parts[-1] in PATHS
            inside_a_kernel = any(
                info.name.startswith(f"{name}.") for name in taken if name.startswith("interp_kernels.")
            )
            if hidden or inside_a_kernel:
                continue
            module = importlib.import_module(info.name)
            room = max((room for room in titled if f"{info.name}.".startswith(f"{room}.")), key=len)
            objects = _objects(module) if info.ispkg else None
            found[titled[room]].append(Entry(info.name, info.name, _first_sentence(module), objects))
    return {title: entries for title, entries in found.items() if entries}


def _first_sentence(thing: object) -> str:
    """The first paragraph of a docstring in one line, as a cell of a table."""
    first = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


def page(entry: Entry) -> str:
    """A page of the reference, for mkdocstrings to fill."""
    head = f"# {entry.label}\n\n" + ("" if entry.label == entry.module else f"`{entry.module}`\n\n")
    if entry.objects is None:
        return f"{head}::: {entry.module}\n    options: {{heading_level: 2}}\n"
    options = "{show_root_heading: true, show_root_toc_entry: true, show_root_full_path: false, heading_level: 2}"
    blocks = "\n".join(f"::: {name}\n    options: {options}\n" for name in entry.objects)
    return f"{head}{inspect.getdoc(importlib.import_module(entry.module)) or ''}\n\n{blocks}"


def pages(entries: list[Entry]) -> dict[str, Entry]:
    """Entries by the path of their page: those that share a module share a page, which bears all their labels."""
    found: dict[str, Entry] = {}
    for entry in entries:
        path = f"api/{entry.module}.md"
        found[path] = replace(entry, label=f"{found[path].label}, {entry.label}") if path in found else entry
    return found


def table(entries: list[Entry], up: str = "") -> str:
    """Names with their first sentence, linked to where they are documented; `up`: from the page to the folder api/."""
    rows = [
        f"| [`{e.label}`]" + (f"[{e.anchor}]" if e.anchor else f"({up}{e.module}.md)") + f" | {e.summary} |"
        for e in entries
    ]
    return "\n".join(["| name | what |", "| --- | --- |", *rows, ""])


def index(groups: dict[str, tuple[str, list[Entry]]]) -> str:
    """The first page of the reference: what people call, then the families."""
    names = []
    for name in interp.__all__:
        thing = getattr(interp, name)
        if inspect.ismodule(thing):
            link = f"({thing.__name__}.md)"
        else:
            link = f"[{thing.__module__}.{thing.__qualname__}]"
        names.append(f"| [`interp.{name}`]{link} | {_first_sentence(thing)} |")
    lines = ["# Reference", "", EXAMPLES, "", "What people call:", "", "| name | what |", "| --- | --- |", *names]
    for title, (what, entries) in groups.items():
        lines += ["", f"## {title}", "", what, "", table(entries)]
    return "\n".join(lines)
