"""The report of a study: its verdicts, the paper's figures redrawn, and how each disputed setting was chosen.

HTML that works offline, in the look and under the security policy of every other report, and Markdown beside it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.files.writing import Outputs, together
from interp.files.writing import write as write_file
from interp.icl.studies.verdicts import NOT_FOUND, NOT_REPRODUCED, REPRODUCED, TOO_QUICK, Verdict
from interp.report.content import facts_of
from interp.report.html import render
from interp.report.markdown import code_block, escape
from interp.results import repeating

if TYPE_CHECKING:
    import xarray as xr

    from interp.icl.studies.base import Choice, Study

HERE = Path(__file__).parent
FILES = {"result": "result.nc", "markdown": "report.md", "html": "report.html"}
"""What a finished study leaves in its folder, besides its parts."""
SHOWN_ELSEWHERE = {"study", "title", "paper", "command", "settings", "seconds"}


@dataclass(frozen=True)
class Content:
    """What both forms of a report say: plain, unescaped text and numbers."""

    study: Study
    rows: list[Verdict]
    choices: list[Choice]
    notes: list[str]
    facts: list[tuple[str, str]]
    command: str
    python: str

    @property
    def tally(self) -> str:
        """Counts of the verdicts, and what a ± in their table is, where it has one."""
        if all(math.isnan(row.se) for row in self.rows):
            return tally(self.rows)
        return f"{tally(self.rows)} ± is one standard error over repeated runs: seeds, and tasks where a study has any."


def write(
    study: Study, ds: xr.Dataset, folder: str | Path, command: str = "", outputs: Outputs | None = None
) -> dict[str, Path]:
    """Write `report.html` and `report.md` of the result `ds` of `study` into `folder`; returns both paths by kind.

    `command` is the command line that made it. The result itself is `result.nc`, which `study.run` wrote beside them.
    Both pages appear together, and with what else is in `outputs`.
    """
    from markupsafe import Markup

    made, run, told = (
        repeating.study_made(study), repeating.study_run(study.name), repeating.study_reported(study.name)
    )  # fmt: skip
    content = Content(
        study=study,
        rows=study.verdicts(ds),
        choices=study.choices(),
        notes=study.notes(ds),
        facts=_facts(study, ds),
        command=command,
        python=repeating.script([*made, *run, *told]),
    )
    figures = [
        {"name": p.name, "caption": p.caption, "height": p.figure.layout.height, "json": Markup(p.figure.to_json())}
        for p in study.figures(ds)
    ]
    style = (HERE / "report.css").read_text(encoding="utf-8")
    pages = {
        "markdown": _markdown(content),
        "html": render(HERE / "report.html", style, figures=figures, content=content),
    }
    with together(outputs) as files:
        return {kind: write_file(Path(folder) / FILES[kind], page, files) for kind, page in pages.items()}


def tally(rows: list[Verdict]) -> str:
    """How many claims got which verdict, in one sentence."""
    counts = Counter(row.verdict for row in rows)
    parts = [f"{counts[word]} {word}" for word in (REPRODUCED, NOT_REPRODUCED, TOO_QUICK, NOT_FOUND) if counts[word]]
    return f"Of {len(rows)} claims: {', '.join(parts)}." if rows else "This study makes no claims."


def _facts(study: Study, ds: xr.Dataset) -> list[tuple[str, str]]:
    """What was run, as (label, value): settings, then what the result says of itself, then time and machine."""
    settings = [(name.replace("_", " "), str(value)) for name, value in study.settings().items()]
    rest = {name: value for name, value in ds.attrs.items() if name not in SHOWN_ELSEWHERE | study.settings().keys()}
    seconds = ds.attrs["seconds"]
    seconds = json.loads(seconds) if isinstance(seconds, str) else seconds
    parts = sum(value for name, value in seconds.items() if name != "this call")
    took = f"{seconds['this call']:.0f} s in this call; its parts took {parts:.0f} s to make, now or earlier"
    return [*settings, ("Time", took), *((label.replace("_", " "), value) for label, value in facts_of(rest))]


def _markdown(content: Content) -> str:
    parts = [
        f"# {escape(content.study.title)}",
        escape(content.study.paper),
        escape(content.study.description),
        "## Verdicts",
        escape(content.tally),
        _table(
            ["claim", "expected", "source", "found", "verdict"],
            [[row.claim, row.expected, row.source, row.found, row.verdict] for row in content.rows],
        ),
        "\n".join(f"- {escape(note)}" for note in content.notes),
    ]
    if content.choices:
        parts += [
            "## Settings on which sources differ",
            _table(
                ["setting", "used here", "whose", "instead"],
                [[c.setting, c.used, c.variant, c.instead] for c in content.choices],
            ),
        ]
    parts += [
        "## What was run",
        "\n".join(f"- {escape(label)}: {escape(value, 300)}" for label, value in content.facts),
        "All numbers: [result.nc](result.nc). The figures are in report.html.",
        "## How to regenerate",
    ]
    if content.command:
        parts += ["On the command line:", code_block(content.command, "sh")]
    parts += ["In Python:", code_block(content.python, "python")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, [":---"] * len(head), *([escape(cell) or " " for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def as_rows(rows: list[Verdict]) -> list[Mapping[str, Any]]:
    """Verdicts as plain values for JSON, which has neither NaN nor infinity: null, and what was found as text."""
    return [
        {
            "claim": row.claim,
            "source": row.source,
            "expected": row.expected,
            "ours": _plain(row.ours),
            "se": _plain(row.se),
            "found": row.found,
            "verdict": row.verdict,
        }
        for row in rows
    ]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
