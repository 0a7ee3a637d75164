"""Which code makes the numbers of a study: what decides whether a part that was kept is still what would be made."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("interp", "interp_kernels")


@functools.cache
def code_of(made: type) -> str:
    """Versions of interp and torch, and a checksum of the code that a class reaches by its imports.

    Comments, docstrings, and what is imported for types alone do not count. Takes half a second, once.
    """
    own = Path(inspect.getfile(made))
    seen: dict[Path, str] = {}
    waiting = [(made.__module__, own)]
    while waiting:
        module, path = waiting.pop()
        if path in seen:
            continue
        tree = _Numbers().visit(ast.parse(path.read_bytes()))
        seen[path] = ast.dump(tree)
        waiting += _imported(tree, module, package=path.name == "__init__.py")
    digest = hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()
    version, torch = (importlib.metadata.version(name) for name in ("interp", "torch"))
    return f"interp {version}, code {digest[:12]}, torch {torch}"


class _Numbers(ast.NodeTransformer):
    """Leaves out what has no part in numbers."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)


def _imported(tree: ast.AST, module: str, package: bool) -> Iterator[tuple[str, Path]]:
    """(module, file) of what a file imports from our packages, at its top or in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES and (found := _file(name) or _file(name.rpartition(".")[0])):
                yield found


def _file(module: str) -> tuple[str, Path] | None:
    """A module and its file; None for a name that is no module."""
    root, *inside = module.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None or not inside:  # a package's own file only fetches
        return None
    path = Path(spec.origin).parent.joinpath(*inside)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return module, file
    return None
