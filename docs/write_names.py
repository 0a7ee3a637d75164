"""Writes the names of all interventions, probes and tasks where an editor looks for them: `python -m docs.write_names`.

At runtime these classes are found by their files. What completes code reads it instead, so the packages that hand them
out end in a block of imports that is never executed. It may lack a new class, which works all the same.
"""

from __future__ import annotations

from pathlib import Path

from interp.discovery import homes

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "interp": ("interp.interventions.edits", "interp.interventions.policies", "interp.probes"),
    "interp.interventions": ("interp.interventions.edits", "interp.interventions.policies"),
    "interp.probes": ("interp.probes",),
    "interp.tasks": ("interp.tasks",),
}
"""Packages that hand out classes, and the folders in which these lie."""
HEAD = "if TYPE_CHECKING:  # for editors; written by python -m docs.write_names"


def names(package: str) -> dict[str, str]:
    """The classes that a package hands out, each with its module."""
    return {cls: home for folder in FOLDERS[package] for cls, home in homes(folder).items()}


def file_of(package: str) -> Path:
    return ROOT.joinpath(*package.split("."), "__init__.py")


def written(package: str) -> str:
    """The package's file with its block as it should be."""
    code, _, _ = file_of(package).read_text(encoding="utf-8").partition(f"\n\n{HEAD}\n")
    lines = [
        f"    from {home} import {cls} as {cls}" for cls, home in sorted(names(package).items(), key=lambda x: x[::-1])
    ]
    return "\n".join([code.rstrip(), "", "", HEAD, *lines, ""])


if __name__ == "__main__":
    for package in FOLDERS:
        file_of(package).write_text(written(package), encoding="utf-8")
