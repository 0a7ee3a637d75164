"""A new probe, question or intervention is one new file: finding what lies in a folder, by name."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from interp.errors import UnknownNameError

T = TypeVar("T")


def classes_in(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """Concrete subclasses of `base` with a `name` of their own in the modules of a package, by that name, sorted.

    Modules whose name starts with `_` hold what others share, and are not looked at.
    """
    names = [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    classes = [c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if c.__module__ == m.__name__]
    found = {
        vars(c)["name"]: c
        for c in classes
        if issubclass(c, base) and isinstance(vars(c).get("name"), str) and not inspect.isabstract(c)
    }
    return dict(sorted(found.items()))


def homes(package: str) -> dict[str, str]:
    """The classes that `classes_in` finds in a package of `interp`, each with the full name of its module, read off the
    files: nothing is imported, so `interp` can hand out such classes and stay light itself."""
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    names = [module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_")]
    code = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in names}
    return {cls: f"{package}.{name}" for name in names for cls in named_classes(code[name])}


def named_classes(code: str) -> list[str]:
    """Classes at the top of a file that give themselves a `name`, in order."""
    classes = [node for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]
    return [cls.name for cls in classes if any(map(_names, cls.body))]


def _names(line: ast.stmt) -> bool:
    """Whether a line of a class is `name = "..."`, with a type or without."""
    if not isinstance(line, (ast.Assign, ast.AnnAssign)):
        return False
    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
    return (
        any(isinstance(target, ast.Name) and target.id == "name" for target in targets)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def fetching(package: str, where: Mapping[str, str], modules: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports what a name stands for when the name is first used.

    where: full name of the module that defines each name; modules: full name of the module that a name is.
    """

    def fetch(name: str) -> Any:
        if name in where:
            return getattr(importlib.import_module(where[name]), name)
        if modules and name in modules:
            return importlib.import_module(modules[name])
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return fetch


def unknown(kind: str, name: Any, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that does not exist, with the nearest one and all there are."""
    known = list(known)
    (near,) = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    return UnknownNameError(f"there is no {kind} {name!r}; did you mean {near!r}? There are {', '.join(known)}.")
