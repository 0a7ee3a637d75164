"""Writes docs/icl.md from the results of the studies: `python -m docs.write_icl runs/`.

`runs/NAME/result.nc` is what `interp icl NAME --out runs/NAME` leaves. A study without a result there keeps the section
that the page has, and is listed as not measured where the page has none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from docs.sections import sections
from interp.icl import studies
from interp.icl.studies import report
from interp.report.markdown import escape
from interp.results.storage import load

if TYPE_CHECKING:
    import xarray as xr

PAGE = Path(__file__).parent / "icl.md"
HEAD = """# In-context learning as gradient descent: what the studies found

Every claim below is a row of a study's report, and its verdict is computed from the numbers of the run (`interp icl
NAME --out runs/NAME`; this page: `python -m docs.write_icl runs/`). "An earlier independent re-run" is a
re-implementation that was measured before this library existed. Where a paper and its released code differ, the report
says which one was used.
"""


def page(runs: Path | None = None) -> str:
    """The page, with the sections that it has for studies without a result in `runs`."""
    written = sections(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else {}
    return "\n".join([HEAD, *(_section(name, runs and runs / name / "result.nc", written) for name in order())])


def main(runs: Path) -> None:
    PAGE.write_text(page(runs), encoding="utf-8")
    print(f"wrote {PAGE}")


def order() -> list[str]:
    """Studies in the order of the papers, the simplest first; those that this list does not know come last."""
    known = ["single-layer", "depth", "softmax-heads", "copying", "sine", "optimal", "softmax-regression", "algorithms"]
    return sorted(studies.available(), key=lambda name: known.index(name) if name in known else len(known))


def head(cls: type[studies.Study]) -> str:
    """How the section of a study begins."""
    return f"## {cls.title}\n\n`interp icl {cls.name} --out runs/{cls.name}` · {cls.paper}\n\n{cls.description}\n"


def _section(name: str, path: Path | None, written: dict[str, str]) -> str:
    cls = studies.available()[name]
    begins = head(cls)
    if path is None or not path.is_file():
        kept = written.get(f"## {cls.title}")
        return f"{begins}\nNot measured.\n" if kept is None else f"## {cls.title}\n\n{kept}\n"
    ds = load(path)
    study = studies.of_result(ds)
    rows = study.verdicts(ds)
    table = ["| claim | expected | found | verdict |", "| --- | --- | --- | --- |"]
    table += [f"| {escape(r.claim)} ({escape(r.source)}) | {r.expected} | {r.found} | {r.verdict} |" for r in rows]
    notes = [f"- {escape(note)}" for note in study.notes(ds)]
    return "\n".join([begins, f"{report.tally(rows)} {_machine(ds)}", "", *table, "", *notes, ""])


def _machine(ds: xr.Dataset) -> str:
    seconds = ds.attrs["seconds"]
    seconds = json.loads(seconds) if isinstance(seconds, str) else seconds
    parts = sum(value for part, value in seconds.items() if part != "this call")
    threads = "one thread" if ds.attrs["threads"] == 1 else f"{ds.attrs['threads']} threads"
    return f"Its parts took {parts / 60:.1f} min on {ds.attrs['cpu']}, {threads}."


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m docs.write_icl RUNS (the folder that holds a folder for each study)")
    main(Path(sys.argv[1]))
