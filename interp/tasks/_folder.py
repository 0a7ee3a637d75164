"""A folder with a published data set in it. Files are untrusted: each is read within bounds, and what it lacks is one
sentence."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from interp.errors import InterpError
from interp.files.private import expanded
from interp.files.reading import read_text
from interp.settings.checking import shown

MOST_BYTES = 2_000_000_000
"""Of a file of annotations: the largest that these tasks read, COCO's and GQA's, have some hundred million."""
MOST_ROWS = 5_000_000


class Folder:
    """What a user named as the folder of a task."""

    def __init__(self, task: str, folder: str | None, images: str | None, needs: str) -> None:
        """needs: what is expected there, for errors. Raises InterpError where there is no such folder."""
        self.task, self.needs = task, needs
        if not folder:
            raise InterpError(f"{task} reads a folder with {needs}; name it as folder=..., or --folder.")
        self.path = self._existing(folder, "folder")
        self.images = None if images is None else self._existing(images, "images")

    def _existing(self, folder: str, setting: str) -> Path:
        path = expanded(folder, f"{self.task}: {setting}")
        try:
            there = path.is_dir()
        except (OSError, ValueError):
            there = False
        if not there:
            raise InterpError(f"{self.task}: {setting} is no folder: {folder}; name the one with {self.needs}.")
        return path

    def file(self, *names: str) -> Path:
        """What `find` finds. Raises InterpError where there is none."""
        if (found := self.find(*names)) is None:
            raise InterpError(f"{self.task} finds no {' or '.join(names)} in {self.path}; it reads {self.needs}.")
        return found

    def find(self, *names: str) -> Path | None:
        """The first of these files that is there; `*` in the name of a file stands for anything. Raises InterpError
        where several fit."""
        for name in names:
            found = sorted(self.path.glob(name)) if "*" in name else [self.path / name]
            found = [path for path in found if path.is_file()]
            if len(found) > 1:
                listed = ", ".join(path.name for path in found[:4])
                raise InterpError(f"{self.task}: {self.path} has {len(found)} files {name} ({listed}); keep one.")
            if found:
                return found[0]
        return None

    def json(self, path: Path) -> Any:
        """What a JSON file holds."""
        return _parsed(read_text(path, "file of annotations", most=MOST_BYTES), str(path))

    def json_lines(self, path: Path) -> list[Mapping[str, Any]]:
        """The objects of a file with one a line; a file with one JSON list of objects will do."""
        text = read_text(path, "file of annotations", most=MOST_BYTES)
        if text.lstrip().startswith("["):
            return self.rows(_parsed(text, str(path)), path)
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return self.rows([_parsed(line, f"line {number} of {path}") for number, line in lines], path)

    def csv(self, path: Path) -> list[Mapping[str, Any]]:
        """The rows of a table whose first line names its columns."""
        text = read_text(path, "table", most=MOST_BYTES)
        try:
            rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True))
        except csv.Error as error:
            raise InterpError(f"{path} is no table of comma-separated values: {error}; download it again.") from None
        return self.rows([{str(key).strip(): value for key, value in row.items()} for row in rows], path)

    def rows(self, found: Any, where: Path | str) -> list[Mapping[str, Any]]:
        """A list of objects, of which there is at least one."""
        if not isinstance(found, list) or not all(isinstance(row, Mapping) for row in found):
            raise InterpError(f"{where} should hold a list of objects for {self.task}; download it again.")
        if not found:
            raise InterpError(f"{where} is empty; {self.task} reads {self.needs}.")
        if len(found) > MOST_ROWS:
            raise InterpError(f"{where} has {len(found):,} rows, and {MOST_ROWS:,} are read; cut it.")
        return found

    def picture(self, name: Any, places: Sequence[str], where: str) -> Path:
        """The picture that a file names: in the folder `images`, or else in the first of `places` that has it.

        A name that leads out of the folder is refused; whether the picture is there is found out when it is asked of.
        """
        inner = PurePosixPath(str(name))
        if (
            not isinstance(name, str) or not name.strip() or "\0" in name or "\\" in name or inner.is_absolute()
            or ".." in inner.parts
        ):  # fmt: skip
            raise InterpError(
                f"{where} names a picture that lies in no folder of {self.task}: {shown(name)}; it should be the name "
                "of a file below it."
            )
        if self.images is not None:
            return self.images / inner
        candidates = [self.path / place / inner for place in places]
        return next((path for path in candidates if path.is_file()), candidates[0])


def need(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a row. Raises InterpError where it is missing or of another type."""
    if name not in row:
        known = ", ".join(sorted(map(str, row))[:12])
        raise InterpError(f"{where} has no field {name!r}, only {known}; see the format that the task reads.")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join({str: "a text", int: "a whole number", list: "a list", dict: "an object"}.get(one, "other")
                            for one in (kind if isinstance(kind, tuple) else (kind,)))  # fmt: skip
        raise InterpError(f"{where}: {name} should be {names}, found {shown(value)}; download the file again.")
    return value


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that is text with something in it. Raises InterpError where it is none."""
    value: str = need(row, name, str, where)
    if not value.strip():
        raise InterpError(f"{where}: {name} is empty; download the file again.")
    return value


def name_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that is a name or a number, as text."""
    return str(need(row, name, (str, int), where))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InterpError(f"{where} is nested too deeply to be read; download it again.") from None
    except ValueError as error:  # of numbers of thousands of digits, too
        raise InterpError(f"{where} is no JSON: {str(error)[:120]}; download it again.") from None
