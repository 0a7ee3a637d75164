"""`interp icl`: run a study and write its report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.terminal import at_home, command_line, printable, progress_bars
from interp.errors import InterpError
from interp.files.writing import Outputs, expect_writable

if TYPE_CHECKING:
    from interp.icl.studies.base import Progress


def icl(
    name: Annotated[str | None, typer.Argument(help="a study; without it, lists them")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", callback=at_home, help="folder for report, result and trained parts")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="under a minute; some claims are then not judged")] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="how many seeds, where the study has any")] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", help="code or paper, where they disagree and the study has both")
    ] = None,
    list_studies: Annotated[bool, typer.Option("--list", help="list the studies")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Re-run a paper's experiment on in-context learning: trains or loads, measures, compares, writes a report.

    Continues a study that was interrupted, when it is given the same folder and settings.
    """
    if list_studies or name is None:
        if list_studies and name is not None:
            raise InterpError(f"--list lists all studies; leave it out to run {name}.")
        _list(as_json)
        return
    from interp.icl import studies

    asked = {"quick": quick or None, "seeds": seeds, "variant": variant}
    study = studies.make(name, **{setting: value for setting, value in asked.items() if value is not None})
    if out is None:
        raise InterpError(f"--out names the folder for the report of {name}; add --out DIR.")
    from interp.icl.studies import report

    expect_writable(*(out / file for file in report.FILES.values()))
    with Outputs() as outputs:  # the result and what is told of it appear together
        with _bar(name) as progress:
            ds = study.run(out, progress, outputs)
        files = report.write(study, ds, out, command_line(), outputs)
    rows = study.verdicts(ds)
    paths = {"result": str(out / report.FILES["result"]), **{kind: str(path) for kind, path in files.items()}}
    if as_json:
        told = {"study": name, "settings": study.settings(), "seconds": ds.attrs["seconds"]}
        print(json.dumps({**told, "verdicts": report.as_rows(rows), "notes": study.notes(ds), "files": paths}))
        return
    print(f"{study.title}\n{study.paper}\n")
    for row in rows:
        print(f"  {row.verdict:22} {row.claim}: expected {row.expected}, found {row.found}")
    print(
        "\n"
        + "\n".join([report.tally(rows), *study.notes(ds), *(f"wrote {printable(path)}" for path in paths.values())])
    )


def _list(as_json: bool) -> None:
    from interp.icl import studies

    known = {name: cls.summary for name, cls in studies.available().items()}
    if as_json:
        print(json.dumps(known))
        return
    for name, summary in known.items():
        print(f"{name:20} {summary}")


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    with progress_bars() as bars:
        task = bars.add_task(what, total=1.0)
        yield lambda fraction, doing: bars.update(task, completed=fraction, description=f"{what}: {doing}")
