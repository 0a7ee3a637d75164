"""`interp evaluate`: run a task on a model, and say what its items add up to."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.loading import check_device, loaded
from interp.cli.terminal import at_home, bar, command_line, printable
from interp.errors import InterpError
from interp.files.writing import expect_writable

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from interp.tasks import Task


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="'demo', 'emoji-vlm', a hub id, a folder, or a .gguf file")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="a task, with settings if you like, as in pope:strategy=popular")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", callback=at_home, help="the NetCDF file for the result")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", callback=at_home, help="the folder with the task's published files")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", callback=at_home, help="the folder with its pictures, where it is another"),
    ] = None,
    interventions: Annotated[
        list[str] | None,
        typer.Option("--with", help="an intervention, as in var:tau_rel=0.3, or a .toml file of them; may be repeated"),
    ] = None,
    items: Annotated[
        int | None, typer.Option("--items", min=1, help="ask so many items, drawn; without it all")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the items that are drawn or made")] = 0,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="whether prompts are chat messages; without it, where a template is"),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="dtype of the weights")] = "float32",
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or auto (over all GPUs); without it the CPU")
    ] = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="list the tasks")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure how good a model's answers are, with interventions in force or none; keeps every item's numbers."""
    if list_tasks or (model is None and task is None):
        _list(as_json)
        return
    if model is None or task is None or out is None:
        raise InterpError("evaluate asks a model: interp evaluate MODEL --task NAME --out FILE.nc; --list lists tasks.")
    if out.suffix.lower() != ".nc":
        raise InterpError(f"--out names the NetCDF file for the result, not {out}; end it in .nc.")
    from interp.interventions import parse_all
    from interp.tasks.evaluating import drawn

    chosen, intervention = _task(task, folder, images), parse_all(interventions or ())
    check_device(device)
    expect_writable(out)
    drawn(chosen, chosen.items(seed), items, seed)  # what its files lack is said before the model is loaded
    lens, seconds = loaded(model, dtype, device)
    import interp
    from interp.results.storage import save
    from interp.runs.noting import noting
    from interp.subjects.quiet import quiet_transformers

    with bar(chosen.name, items or 1) as step, quiet_transformers(), noting():  # what is noted is told below
        result = interp.evaluate(lens, chosen, intervention, items, seed, chat=chat, progress=step)
    result.attrs |= {"command": command_line(), "seconds_loading": json.dumps(seconds)}
    save(result, out)
    _tell(result, out, as_json)


def _task(name: str, folder: Path | None, images: Path | None) -> Task:
    """The task that is asked for, with its folders."""
    from interp.tasks import made

    task = made(name)
    for setting, path in (("folder", folder), ("images", images)):
        if path is None:
            continue
        if setting not in task.settings():
            raise InterpError(f"{task.name} makes its items itself; leave --{setting} out.")
        task = dataclasses.replace(task, **{setting: str(path)})
    return task


def _tell(result: xr.Dataset, out: Path, as_json: bool) -> None:
    from interp.tasks import findings, summary

    rows, said = summary(result), findings(result)
    notes: dict[str, int] = json.loads(result.attrs["notes"])
    if as_json:
        about = {name: value for name, value in result.attrs.items() if name not in ("notes", "title", "description")}
        told = {
            "run": about,
            "summary": _records(rows),
            "findings": said,
            "notes": notes,
            "files": {"result": str(out)},
        }
        print(json.dumps(told, default=str))
        return
    for note, times in notes.items():
        print(f"note: {printable(note)} ({times} items)", file=sys.stderr)
    under = " | ".join(one["name"] for one in json.loads(result.attrs["interventions"]))
    print(printable(f"{result.attrs['title']}: {result.attrs['model']}{f' under {under}' if under else ''}") + "\n")
    print(*map(printable, _lines(rows)), sep="\n")
    print("\n" + "\n".join(printable(sentence) for sentence in said))
    print(f"wrote {printable(str(out))}")


def _lines(rows: pd.DataFrame) -> list[str]:
    """The table for a person."""
    sorted_by = (rows["facet"] + " " + rows["value"]).str.strip().replace("", "all")
    shown = rows.assign(of=sorted_by)[["of", "measure", "estimate", "low", "high", "items", "clusters"]]
    text: str = shown.to_string(index=False, float_format=lambda number: f"{number:.4f}", na_rep="-")
    return text.split("\n")


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The table for a program, in which what is no number is null."""
    found = rows.astype(object).where(rows.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]


def _list(as_json: bool) -> None:
    from interp.tasks import available

    known = {name: cls.title for name, cls in available().items()}
    if as_json:
        print(json.dumps(known))
        return
    for name, title in known.items():
        print(f"{name:22} {title}")
