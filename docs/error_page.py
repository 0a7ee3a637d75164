"""The page of errors, read from the code: every sentence that the library raises, and what to do about it.

A sentence is the template that the code holds, with what is filled in between ‹ and ›. Nothing is listed by hand, so a
new error is on the page with the next `make docs`. What would work is most often said by the sentence itself, in its
last part; `docs/cures.py` has it for those that only state what is wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from docs.cures import CURES

HEAD = """# Errors

Every sentence that the library raises, read from the code when this site is built, by the module that raises it. What
stands between ‹ and › is filled in: `‹self.ratio›` is the ratio that was given. All are `interp.InterpError` or derive
from it; kernels, which stand alone, raise `ValueError` and `TypeError`. The command line prints the sentence alone and
exits with code 2; `--debug` shows where it came from.

Search for the words that do not change from case to case.
"""

ROOT = Path(__file__).parents[1]
SOURCES = {"interp": ROOT, "interp_kernels": ROOT / "kernels"}
BUILT_IN = {"interp_kernels": ("ValueError", "TypeError")}  # kernels know nothing of interp, and raise Python's own


@dataclass(frozen=True)
class Sentence:
    """One place where an error is made."""

    module: str
    function: str
    line: int
    error: str
    template: str


def modules(packages: Mapping[str, Path]) -> dict[str, Path]:
    """Every file of some packages, each of which lies in a folder, by the name of its module."""
    found = {}
    for package, root in packages.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def trees() -> dict[str, ast.Module]:
    """Every module of the library, by its name."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules(SOURCES).items()}


def family(modules: list[ast.Module]) -> set[str]:
    """Names of `InterpError` and of every class that derives from it, however far down."""
    known = {"InterpError"}
    classes = [node for module in modules for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    while new := {c.name for c in classes if {ast.unparse(b).split(".")[-1] for b in c.bases} & known} - known:
        known |= new
    return known


def sentences() -> list[Sentence]:
    """Every error of the library, in the order of modules and lines."""
    read = trees()
    known = family(list(read.values()))
    found = []
    for name, tree in read.items():
        errors = known | set(BUILT_IN.get(name.split(".")[0], ()))
        found += [Sentence(name, *parts) for parts in made(tree, errors)]
    return found


def made(node: ast.AST, errors: set[str], inside: str = "") -> Iterator[tuple[str, int, str, str]]:
    """(function, line, error, template) of every error that is made below `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from made(child, errors, f"{inside}.{child.name}".lstrip("."))
            continue
        if isinstance(child, ast.Call) and child.args and ast.unparse(child.func).split(".")[-1] in errors:
            yield inside, child.lineno, ast.unparse(child.func), template(child.args[0])
        yield from made(child, errors, inside)


def template(node: ast.expr) -> str:
    """The text of an expression that makes a message; what is only known when it is raised, between ‹ and ›."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value) for value in values)
        case ast.FormattedValue(value=value):
            return template(value) if isinstance(value, ast.Constant | ast.JoinedStr) else f"‹{ast.unparse(value)}›"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
        case ast.IfExp(body=body, orelse=other):
            return f"{template(body)} / {template(other)}"
    return f"‹{ast.unparse(node)}›"


NOTHING_SAID = "Give what the sentence asks for."
FOUND = re.compile(r"[,;] (?:and )?(?:not|found) ")


def cure(sentence: str) -> str:
    """What would work, as Markdown: from `CURES`, else the part of the sentence that says it."""
    for part, told in CURES.items():
        if part in sentence:
            return told
    clauses = re.split(r"[;:] |(?<=[a-z])\. ", sentence.rstrip(". "))
    told, *found = FOUND.split(clauses[-1])
    if told.startswith("found ") and len(clauses) > 1:
        told, found = clauses[-2], [told]
    return f"{shown(told)}." if found or len(clauses) > 1 else NOTHING_SAID


def page() -> str:
    """The page as Markdown, with a heading for every module that raises."""
    lines, module = [HEAD], ""
    for found in sentences():
        if found.module != module:
            module = found.module
            lines.append(f"\n## {module}\n")
        where = f"`{found.error}`" + (f" in `{found.function}`" if found.function else "")
        lines.append(f"**{shown(found.template)}**\n:   → {cure(found.template)}  \n    <small>{where}</small>\n")
    return "\n".join(lines)


def shown(text: str) -> str:
    """Text as Markdown that shows it letter by letter."""
    return re.sub(r"[\\`*_\[\]<>#|~^$&]", lambda mark: f"&#{ord(mark[0])};", text)
