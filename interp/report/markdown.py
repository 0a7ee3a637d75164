"""The Markdown report: the same words and numbers for a reader without a browser, with the results beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.figures._text import visible
from interp.files.writing import Outputs, together, write
from interp.report.content import Content, content_of
from interp.report.table import Table
from interp.results.storage import save

if TYPE_CHECKING:
    import xarray as xr

    from interp.probes import Probe

_INLINE = re.compile(r"[\\`*_\[\]|~$@]|:(?=//)|(?<=www)\.")  # CommonMark, GitHub's tables, autolinks and mathematics
_FIRST = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$))|(?=[-+#=]))")  # what would begin a list, a heading or a rule
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def write_markdown(
    results: Mapping[str, xr.Dataset],
    run: Mapping[str, Any],
    path: str | Path,
    probes: Iterable[Probe] | None = None,
    outputs: Outputs | None = None,
) -> Path:
    """Write the report of one run as Markdown and, beside `report.md`, each result as `report.<probe>.nc`.

    Arguments and errors are those of `write_report`. All appear together, and with what else
    is in `outputs`; the Markdown last, so it never names a missing result.
    """
    content = content_of(results, run, probes)
    path = Path(path)
    with together(outputs) as files:
        names = {name: save(result, data_path(path, name), files).name for name, result in results.items()}
        return write(path, _page(content, names), files)


def data_path(path: Path, name: str) -> Path:
    """Where the result of a probe lies beside the report `path`."""
    return path.with_name(f"{path.stem}.{name}.nc")


def escape(text: str, most: int | None = None) -> str:
    """Text that neither Markdown nor HTML takes for markup; control characters become visible (`\\n`)."""
    marked = _INLINE.sub(lambda match: "\\" + match[0], visible(text, most))
    return _FIRST.sub(lambda match: match[0] + "\\", marked).translate(_ENTITIES)


def _page(content: Content, files: Mapping[str, str]) -> str:
    parts = [
        f"# Attention and KV cache of {escape(content.model)}",
        f"Reading {content.n_tokens:,} tokens of {escape(content.text, 300)}",
        "## What was run",
        "\n".join(f"- {escape(label)}: {escape(value, 300)}" for label, value in content.facts),
        "## Findings",
    ]
    for section in content.sections:
        parts.append(f"### {escape(section.title)}")
        parts.append(escape(section.description))
        parts.append("\n".join(f"- {escape(finding)}" for finding in section.findings))
        parts.append(f"All numbers: [{files[section.name]}]({files[section.name]})")
    parts += ["## By layer", _table(content.table)]
    parts.append("; ".join(f"**{title}**: {escape(about)}" for title, about, _ in content.table.columns) + ".")
    parts.append("## How to regenerate")
    if content.command:
        parts += ["On the command line:", code_block(content.command, "sh")]
    parts += ["In Python:", code_block(content.python, "python")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> str:
    head = [title for title, _, _ in table.columns]
    rule = [":---" if is_token else "---:" for _, _, is_token in table.columns]
    tokens = [is_token for _, _, is_token in table.columns]
    rows = [
        [f"“{escape(cell, 24)}”" if is_token else escape(cell) for cell, is_token in zip(row, tokens, strict=True)]
        for row in table.rows
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def code_block(text: str, language: str) -> str:
    """A fenced block whose fence is longer than any run of backticks inside."""
    shown = "\n".join(visible(line) for line in text.split("\n"))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}{language}\n{shown}\n{fence}"
