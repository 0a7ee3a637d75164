"""What others may ask of a lens: `TextLens` of any, `InterventionLens` of one that interventions reach."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.lens.protocol import InterventionLens, TextLens, reads_text, takes_interventions
from tests.models import NAMES, shared
from tests.seam.test_bridge import bridged

ROOT = Path(__file__).parents[2]


def members(protocol: type) -> set[str]:
    """What a protocol asks for, what it takes over from another included."""
    asked = {name for cls in protocol.__mro__ for name in (*vars(cls), *getattr(cls, "__annotations__", ()))}
    mine = {name for name in asked if not name.startswith("_")} | {"__call__"}
    assert len(mine) > 20
    return mine


def misses(lens: Any, protocol: type) -> Iterator[str]:
    """Members of a protocol that a lens lacks, and parameters that its methods do not take."""
    for name in sorted(members(protocol)):
        if not hasattr(lens, name):
            yield name
            continue
        asked = vars(next((cls for cls in protocol.__mro__ if name in vars(cls)), object)).get(name)
        if not inspect.isfunction(asked):
            continue
        takes = inspect.signature(lens.forward if name == "__call__" else getattr(lens, name)).parameters
        anything = {kind for p in takes.values() if (kind := p.kind) in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        for parameter in list(inspect.signature(asked).parameters.values())[1:]:
            known = parameter.name in takes or inspect.Parameter.VAR_KEYWORD in anything
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and not known:
                yield f"{name}({parameter.name})"


@pytest.mark.parametrize("name", NAMES)
def test_a_lens_has_what_others_need(name: str) -> None:
    lens = interp.load(shared(name))
    assert not list(misses(lens, InterventionLens))
    assert reads_text(lens)
    assert takes_interventions(lens)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_bridge_is_read_and_takes_no_interventions(name: str) -> None:
    lens = interp.load(bridged(name))
    assert not list(misses(lens, TextLens))
    assert reads_text(lens)
    assert not takes_interventions(lens)
    assert {"policies_of", "score", "last_cache"} <= set(misses(lens, InterventionLens))
    assert lens.edits_in_force == lens.policies_in_force == ()


def test_a_regressor_reads_no_text() -> None:
    assert not reads_text(interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=4)))


def test_what_is_missing_is_seen() -> None:
    """A test that overlooks a miss cannot fail."""
    lens = interp.load(shared("llama"))
    lens.to_tokens = lambda input: None
    del lens.absent
    assert list(misses(lens, TextLens)) == ["absent", "to_tokens(truncate)"]


def unknown(tree: ast.AST) -> Iterator[str]:
    """Parameters and fields called `lens`, and `self`, that could be anything."""
    for node in ast.walk(tree):
        given = [(node.arg, node.annotation)] if isinstance(node, ast.arg) else []
        if isinstance(node, ast.AnnAssign):
            given = [(ast.unparse(node.target), node.annotation)]
        for name, annotation in given:
            if name.split(".")[-1] in ("lens", "self") and isinstance(annotation, ast.Name) and annotation.id == "Any":
                yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize(
    "path", [p for folder in ("interp", "kernels", "apps") for p in sorted((ROOT / folder).rglob("*.py"))], ids=str
)
def test_no_lens_is_anything(path: Path) -> None:
    assert not list(unknown(ast.parse(path.read_text(encoding="utf-8"))))


def test_a_lens_that_is_anything_is_seen() -> None:
    code = "class A:\n    lens: Any\n    def f(self: Any, lens: Any, model: Any): ...\n    def g(self, lens: Lens): ..."
    assert list(unknown(ast.parse(code))) == ["line 2: lens", "line 3: self", "line 3: lens"]


TYPED = """
import interp
from interp.lens import BridgeLens, InterventionLens, Lens, TextLens

reveal_type(interp.ThinK(ratio=0.5))
reveal_type(interp.TextSinks(epsilon=(0.3,)))
reveal_type(interp.load("demo"))
with interp.load("demo").apply(interp.H2O(budget=0.5)) as lens:
    reveal_type(lens)
interp.ThinK(ratoi=0.5)
interp.TextSinks(epsilon="0.3")

def read(lens: TextLens) -> None:
    lens.scores("a", "b")

def score(lens: InterventionLens) -> None:
    lens.score("a")

def all_of_them(lens: Lens, bridge: BridgeLens) -> None:
    read(lens)
    read(bridge)
    score(lens)
    score(bridge)
    interp.patch(bridge, "a", "b", "hook_resid_pre", len)
    interp.probe(interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=4)), "a")
    interp.probe("demo", "a")
"""
SAID = {
    5: "interp.interventions.policies.think.ThinK",
    6: "interp.probes.text_sinks.TextSinks",
    7: "interp.lens.lens.Lens",
    9: "interp.lens.lens.Lens",
    10: 'Unexpected keyword argument "ratoi"',
    11: "incompatible type",
    14: '"TextLens" has no attribute "scores"',
    17: 'Missing positional argument "continuation"',
    23: "incompatible type",
    26: "incompatible type",
}


@pytest.mark.slow
def test_mypy_knows_what_a_lens_can_do(tmp_path: Path) -> None:
    """Types that are `Any` somewhere inside make every check pass, so right lines have wrong ones beside them."""
    path = tmp_path / "typed.py"
    path.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    found = (re.match(r".*typed\.py:(\d+): (?:error|note): (.*)", line) for line in reversed(lines))
    said = {int(match[1]): match[2] for match in found if match}  # the first of each line of code
    assert said.keys() == SAID.keys(), "\n".join(lines)
    assert all(part in said[number] for number, part in SAID.items()), "\n".join(lines)
