"""Interventions as text: every setting of every method comes back as it was, and mistakes are named."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import interventions
from interp.errors import InterpError
from interp.interventions import _specs, catalogue

NAMES = tuple(interventions.available())


@dataclass(frozen=True)
class Odd(interventions.Intervention):
    """A field of every type that a method may have."""

    needed: int
    name: ClassVar[str] = "odd"
    limit: float | None = 0.5
    count: int | float = 3
    layers: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    label: str = "none of it"
    bits: Literal[2, 4] = 4
    on: bool = False


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> type[Odd]:
    known = interventions.available() | {"odd": Odd}
    monkeypatch.setattr(catalogue, "available", lambda: known)
    return Odd


def variants(cls: type) -> list[tuple[str, object]]:
    """One changed value for each setting of a method."""
    changed: list[tuple[str, object]] = []
    for field in dataclasses.fields(cls):
        kind, value = get_type_hints(cls)[field.name], field.default
        kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
        if value is not None and NoneType in kinds:
            changed.append((field.name, None))
        if bool in kinds:
            changed.append((field.name, not value))
        if int in kinds and not isinstance(value, tuple):
            changed.append((field.name, (value or 0) + 1))
        if float in kinds:
            number = 0.0 if value is None or isinstance(value, tuple) else value
            changed.append((field.name, number / 2 + 0.03125))
        for literal in (kind for kind in kinds if get_origin(kind) is Literal):
            changed += [(field.name, choice) for choice in get_args(literal) if choice != value]
    return changed


def made(cls: type, key: str, value: object) -> interventions.Intervention | None:
    """The intervention with one setting changed, or None where that one setting alone makes no sense."""
    try:
        return cls(**{key: value})
    except InterpError:
        return None


def as_toml(value: object) -> object:
    return "none" if value is None else list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_every_method_survives(name: str, tmp_path: Path) -> None:
    cls = interventions.available()[name]
    found = [(key, value, made(cls, key, value)) for key, value in variants(cls)]
    kept = [(key, value, one) for key, value, one in found if one is not None]
    assert len(kept) >= len(dataclasses.fields(cls)) / 2
    for key, value, one in kept:
        assert interventions.parse(f"{name}:{key}={value}") == one
        path = interventions.save(one, tmp_path / f"{key}.toml")
        back = interventions.load(path)
        assert back == one
        assert type(back) is cls
        written = {key: as_toml(value) for key, value in one.settings().items()}
        assert tomllib.loads(path.read_text()) == {"intervention": [written]}


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_name_is_the_method_with_its_defaults(name: str) -> None:
    assert interventions.parse(name) == interventions.available()[name]()


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1, exclude_max=True))
def test_numbers_survive_to_the_last_bit(ratio: float) -> None:
    think = interp.ThinK(ratio=ratio)
    assert _specs.from_toml(_specs.to_toml(think)) == think
    assert interventions.parse(f"think:ratio={ratio!r}") == think


def test_a_composition_keeps_its_members_and_their_order(tmp_path: Path) -> None:
    both = interp.ThinK(ratio=0.25, sinks=4) | interp.SnapKV(budget=0.5)
    path = interventions.save(both, tmp_path / "new" / "both.toml")
    assert interventions.load(path) == both
    assert [table["name"] for table in tomllib.loads(path.read_text())["intervention"]] == ["think", "snapkv"]
    assert [p.name for p in path.parent.iterdir()] == ["both.toml"]
    assert interventions.parse(str(path)) == both
    assert interventions.parse_all(["think:ratio=0.25,sinks=4", "snapkv:budget=0.5"]) == both
    assert interventions.parse_all([]) is None


def test_settings_left_out_have_their_defaults() -> None:
    assert _specs.from_toml('[[intervention]]\nname = "think"\nratio = 0.5\n') == interp.ThinK(ratio=0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("odd:needed=3", Odd(3)),
        ("odd: needed = -3 , limit = none", Odd(-3, limit=None)),
        ("odd:needed=3,limit=1", Odd(3, limit=1.0)),
        ("odd:needed=3,limit=1e-3", Odd(3, limit=0.001)),
        ("odd:needed=3,limit=.5,count=2", Odd(3, count=2)),
        ("odd:needed=3,count=2.0", Odd(3, count=2.0)),
        ("odd:needed=3,layers=[0,2, 5],on=true", Odd(3, layers=(0, 2, 5), on=True)),
        ("odd:layers=[],needed=3,pair=[7,b]", Odd(3, pair=(7, "b"))),
        ("odd:needed=3,label=12,bits=2", Odd(3, label="12", bits=2)),
        ("odd:needed=3,label=a:b=c", Odd(3, label="a:b=c")),
        ("odd:needed=3,on=False,label=true", Odd(3, label="true")),
    ],
)
def test_values_are_read_by_the_type_of_their_field(text: str, expected: Odd, odd: type[Odd]) -> None:
    read = interventions.parse(text)
    assert read == expected
    assert [type(v) for v in vars(read).values()] == [type(v) for v in vars(expected).values()]
    again = _specs.from_toml(_specs.to_toml(expected))
    assert again == expected
    assert [type(v) for v in vars(again).values()] == [type(v) for v in vars(expected).values()]


def test_numpy_numbers_are_stored_as_numbers(odd: type[Odd]) -> None:
    given = odd(np.int64(3), limit=np.float32(0.25), layers=[np.int32(1), 2])  # type: ignore[arg-type]
    assert _specs.from_toml(_specs.to_toml(given)) == odd(3, limit=0.25, layers=(1, 2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thnk", "did you mean 'think'"),
        ("", "there is no intervention ''"),
        ("think:", "name:key=value"),
        ("think:ratio", "name:key=value"),
        ("think:ratio=", "name:key=value"),
        ("think:ratio=0.5,", "name:key=value"),
        ("think:ratio=0.5,ratio=0.6", "sets ratio twice"),
        ("think:rato=0.5", "did you mean 'ratio'"),
        ("think:name=h2o", "has no setting 'name'"),
        ("think:ratio=half", "ratio should be a finite number, found 'half'"),
        ("think:ratio=nan", "ratio should be a finite number, found 'nan'"),
        ("pyramidkv:beta=nan", "beta should be a finite number, found 'nan'"),
        ("pyramidkv:beta=inf", "beta should be a finite number, found 'inf'"),
        ("recall:ridge=inf", "ridge should be a finite number, found 'inf'"),
        ("h2o:budget=-inf", "budget should be a finite number or a whole number, found '-inf'"),
        ("d2o:centre=inf", "centre should be a finite number, found 'inf'"),
        ("random:seed=-1", "random: seed should be at least 0, found -1"),
        ("think:recent=1.5", "recent should be a whole number, found '1.5'"),
        ("think:compensate=1", "compensate should be true or false"),
        ("think:selector=gramm", "selector should be one of think, gram, surgeon, key_norm, random"),
        ("think:ratio=1", "ratio should be at least 0 and below 1"),
        ("odd", "needs the setting needed"),
        ("odd:needed=3,layers=3", "layers should be a list of whole numbers in brackets"),
        ("odd:needed=3,layers=[a]", "layers should be a list"),
        ("odd:needed=3,pair=[1]", "pair should be a list"),
        ("odd:needed=3,bits=3", "bits should be one of 2, 4"),
        ("odd:needed=none", "needed should be a whole number"),
        ("/no/such/file.toml", "/no/such/file.toml"),
    ],
)
def test_a_mistake_is_one_clear_error(text: str, says: str, odd: type[Odd]) -> None:
    with pytest.raises(InterpError) as caught:
        interventions.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "tables [[intervention]]"),
        (b"ratio = 0.5", "found ratio"),
        (b"[intervention]\nname = 'think'", "tables [[intervention]]"),
        (b"intervention = [1]", "tables [[intervention]]"),
        (b"[[intervention]]\nratio = 0.5", "needs a name"),
        (b"[[intervention]]\nname = 'thnk'", "did you mean 'think'"),
        (b"[[intervention]]\nname = 'think'\nratio = '0.5'", "ratio should be a finite number, found '0.5'"),
        (b"[[intervention]]\nname = 'think'\nratio = true", "ratio should be a finite number"),
        (b"[[intervention]]\nname = 'think'\nrecent = 1.5", "recent should be a whole number"),
        (b"[[intervention]]\nname = 'think'\nration = 1", "did you mean 'ratio'"),
        (b"[[intervention]", "not TOML"),
        (b"name = '\xff'", "not UTF-8"),
        (b"[[intervention]]\nname = 'h2o'\nbudget = " + b"9" * 5_000, "not TOML"),
        (b"[[intervention]]\nname = 'h2o'\nbudget = " + b"9" * 400, "budget should be"),
        (b"[[intervention]]\nname = 'h2o'\nsinks = " + b"9" * 400, "sinks should be a whole number"),
        (b"[[intervention]]\nname = 'h2o'\nbudget = 1e400", "budget should be"),
        (b"[[intervention]]\nname = 'h2o'\nbudget = nan", "budget should be"),
        (b"x = " + b"[" * 100_000, "not TOML"),
    ],
)
def test_a_damaged_file_is_one_clear_error(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_bytes(content)
    with pytest.raises(InterpError) as caught:
        interventions.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, odd: type[Odd]) -> None:
    with pytest.raises(InterpError, match="layers should be a list"):
        interventions.save(odd(3, layers="all"), tmp_path / "a.toml")  # type: ignore[arg-type]

    @dataclass(frozen=True)
    class Mine(interp.ThinK):
        pass

    with pytest.raises(InterpError, match="Mine cannot be stored"):
        interventions.save(Mine(), tmp_path / "b.toml")
    (tmp_path / "c.toml").mkdir()
    with pytest.raises(InterpError, match="cannot write"):
        interventions.save(interp.ThinK(), tmp_path / "c.toml")
    assert [p.name for p in tmp_path.iterdir()] == ["c.toml"]


def test_every_method_is_a_name_of_the_package() -> None:
    for cls in interventions.available().values():
        assert getattr(interp, cls.__name__) is cls
        assert cls.__name__ in dir(interp)
    with pytest.raises(AttributeError, match="no attribute 'ThinkTwice'"):
        _ = interp.ThinkTwice


def test_names_of_methods_cost_nothing_until_used() -> None:
    code = "import sys, interp; before = 'torch' in sys.modules; interp.ThinK; print(before, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"]
