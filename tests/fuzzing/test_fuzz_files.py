"""Files that were damaged, spliced or made up: refused in a sentence, or as they were; nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save as as_safetensors

import interp
from interp.files import apart, places, tensors
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.results import encoding, storage
from interp_explorer import tables
from tests.fuzzing.drawing import Draw, changed, damaged
from tests.fuzzing.trying import fuzz, inputs
from tests.icl.studies.toy_study import ToyStudy
from tests.models import shared, tokenizer, tokens

RESULT = xr.Dataset(
    {"x": (("layer", "t"), np.random.default_rng(0).normal(size=(3, 40)), {"units": "1"}), "n": ("t", np.arange(40))},
    coords={"token": ("t", np.array([f"word {i}" for i in range(40)], dtype=object))},
    attrs={"title": "a result", "seconds": {"load": 1.5}},
)
OTHER = RESULT.assign(x=RESULT["x"] * 7)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience than users have: one second of computing."""
    monkeypatch.setattr(apart, "SECONDS", 1)


@cache
def contents() -> tuple[bytes, bytes]:
    return storage.as_bytes(RESULT), storage.as_bytes(OTHER)


def stored(folder: Path) -> Callable[[Draw], None]:
    wanted = storage.load(storage.save(RESULT, folder / "x.nc"))

    def attempt(draw: Draw) -> None:
        whole, other = contents()
        content = damaged(draw, whole, other)
        draw.trying("a result of", len(content), "bytes")
        (folder / "x.nc").write_bytes(content)
        found = storage.load(folder / "x.nc")
        assert found.identical(wanted) or content == other, "a damaged result was taken for one"

    return attempt


@inputs(900)
def test_results(count: int, tmp_path: Path) -> None:
    fuzz("results", count, stored(tmp_path))


def resealed(folder: Path) -> Callable[[Draw], None]:
    """Who computes the checksum anew may say other numbers; a dataset or a sentence comes of it, and nothing else."""
    content, other = (encoding.encoded(one) for one in (RESULT, OTHER))

    def attempt(draw: Draw) -> None:
        made = damaged(draw, content, other)
        draw.trying("a sealed result of", len(made), "bytes")
        (folder / "x.nc").write_bytes(storage._sealed(made))
        assert isinstance(storage.load(folder / "x.nc"), xr.Dataset)

    return attempt


@inputs(40)
def test_results_with_a_checksum_made_anew(count: int, tmp_path: Path) -> None:
    fuzz("sealed results", count, resealed(tmp_path))


def taken_apart(draw: Draw) -> None:
    """What a decoder that somebody got hold of may answer: a dataset, or an error that `load` makes a sentence of."""
    about, pieces = answer()
    said = changed(draw, about)
    blobs = [bytearray(damaged(draw, one) if draw.often(0.2) else one) for one in pieces]
    draw.trying(said)
    try:
        made = encoding.dataset_of(said, blobs, ours=draw.often(0.7))
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return
    assert isinstance(made, xr.Dataset)


@cache
def answer() -> tuple[dict, list[bytes]]:
    about, pieces = apart.decoded("interp.results.decoding", encoding.encoded(RESULT), "x")
    return about, list(map(bytes, pieces))


@inputs(250)
def test_answers_of_decoders(count: int) -> None:
    fuzz("answers of decoders", count, taken_apart)


def saved_cache(path: Path) -> tuple[interp.Lens, bytes]:
    lens = lens_of()
    with torch.no_grad(), lens.apply(interp.SnapKV(budget=6, window=4) | interp.ThinK(window=4, recent=2)):
        lens(tokens(1, 14), use_cache=True)
    interp.save_cache(lens, path)
    return lens, path.read_bytes()


@cache
def lens_of() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


def cache_files(folder: Path) -> Callable[[Draw], None]:
    lens, content = saved_cache(folder / "c.safetensors")
    with torch.no_grad():
        lens(tokens(1, 9, seed=3), use_cache=True)
    other = interp.save_cache(lens, folder / "o.safetensors").read_bytes()
    wanted = kept(interp.load_cache(lens, folder / "c.safetensors"))

    def attempt(draw: Draw) -> None:
        made = damaged(draw, content, other)
        draw.trying("a cache of", len(made), "bytes")
        (folder / "c.safetensors").write_bytes(made)
        found = kept(interp.load_cache(lens, folder / "c.safetensors"))
        assert made == other or all(map(torch.equal, found, wanted)), "a damaged cache was taken for one"

    return attempt


def kept(held: interp.cache.lens_cache.LensCache) -> list[torch.Tensor]:
    return [tensor for _, _, tensor in held.parts()]


@inputs(400)
def test_caches(count: int, tmp_path: Path) -> None:
    fuzz("caches", count, cache_files(tmp_path))


def cache_words(folder: Path) -> Callable[[Draw], None]:
    """The words of a cache changed, with a checksum made anew."""
    path = folder / "c.safetensors"
    lens, _ = saved_cache(path)
    held, about = tensors.read(path, "interp cache")

    def attempt(draw: Draw) -> None:
        said, changed_tensors = changed(draw, about), dict(held)
        if draw.often(0.3):
            name = draw.choice(sorted(held))
            x = held[name]
            changed_tensors[name] = draw.choice((x[..., :1], x.double(), x.flatten(), x[:0], x.bool(), x.int() - 5))
        draw.trying(said, {name: (x.shape, x.dtype) for name, x in changed_tensors.items() if x is not held[name]})
        text = json.dumps(said)
        meta = {"interp cache": text, "sha256": tensors.checksum(changed_tensors, text)}
        path.write_bytes(as_safetensors({name: x.contiguous() for name, x in changed_tensors.items()}, meta))
        interp.load_cache(lens, path)

    return attempt


@inputs(150)
def test_words_of_caches(count: int, tmp_path: Path) -> None:
    fuzz("words of caches", count, cache_words(tmp_path))


def models(folder: Path) -> Callable[[Draw], None]:
    path = folder / "m.safetensors"
    content = AttentionRegressor(RegressorConfig(d_in=3, n_ctx=5), seed=0).save(path).read_bytes()
    other = AttentionRegressor(RegressorConfig(d_in=3, n_ctx=5), seed=1).save(path).read_bytes()
    with safe_open(path, "pt") as file:
        (key,) = [key for key in file.metadata() if key != "sha256"]
    held, about = tensors.read(path, key)

    def attempt(draw: Draw) -> None:
        if draw.often(0.5):
            made = damaged(draw, content, other)
            draw.trying("a model of", len(made), "bytes")
        else:
            text = json.dumps(changed(draw, about))
            draw.trying(text)
            made = as_safetensors(held, {key: text, "sha256": tensors.checksum(held, text)})
        path.write_bytes(made)
        AttentionRegressor.load(path)

    return attempt


@inputs(250)
def test_models_of_tasks(count: int, tmp_path: Path) -> None:
    fuzz("models of tasks", count, models(tmp_path))


def study_parts(folder: Path) -> Callable[[Draw], None]:
    home = folder / "study"
    wanted = ToyStudy(seeds=1).run(home)
    files = {path: path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file() and path.name != "result.nc"}

    def attempt(draw: Draw) -> None:
        (home / "result.nc").unlink(missing_ok=True)
        path = draw.choice(list(files))
        other = files[draw.choice([one for one in files if one.suffix == path.suffix])]
        made = damaged(draw, files[path], other)
        draw.trying(path.name, made[:200] if path.suffix == ".json" else len(made))
        try:
            path.write_bytes(made)
            found = ToyStudy(seeds=1).run(home)
            assert found.equals(wanted), "a damaged part was taken for one"
        finally:
            for one, content in files.items():
                one.write_bytes(content)

    return attempt


@inputs(80)
def test_parts_of_studies(count: int, tmp_path: Path) -> None:
    fuzz("parts of studies", count, study_parts(tmp_path))


def journals(folder: Path) -> Callable[[Draw], None]:
    """A journal from elsewhere renames nothing but temporary files of ours to results and pages of the same folder."""
    drafts = [f".interp-{i:016x}.part" for i in range(2)]
    journal = f".interp-{7:016x}.swap"
    moves = [[drafts[0], "a.nc"], [drafts[1], "a.html"]]
    mine = {"a.nc": b"old", "a.html": b"old", "keep.txt": b"kept", ".hidden": b"kept"}

    def attempt(draw: Draw) -> None:
        said = json.dumps(moves).encode()
        content = damaged(draw, said) if draw.often(0.5) else json.dumps(changed(draw, moves)).encode()
        draw.trying(content)
        for name, held in {**mine, drafts[0]: b"new", drafts[1]: b"new", journal: content}.items():
            (folder / name).write_bytes(held)
        places.settle(folder)
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
        for path in folder.iterdir():
            path.unlink()
        assert left.keys() >= mine.keys()
        assert left["keep.txt"] == left[".hidden"] == b"kept"
        assert not any(name.startswith(".interp-") for name in left)
        assert all(name in mine or name.endswith((".nc", ".md", ".html", ".htm")) for name in map(str.lower, left))

    return attempt


@inputs(300)
def test_journals(count: int, tmp_path: Path) -> None:
    fuzz("journals", count, journals(tmp_path))


TABLE = pd.DataFrame({"a": [1.0, 2.0, np.nan], "b": ["x", "", None], "c": [1, 2, 3], "d": [[1], [2, 3], None]})


def parquet(folder: Path) -> Callable[[Draw], None]:
    path = folder / "t.parquet"
    TABLE.to_parquet(path)
    content = path.read_bytes()

    def attempt(draw: Draw) -> None:
        made = damaged(draw, content)
        draw.trying(made)
        path.write_bytes(made)
        assert isinstance(tables.read(path), pd.DataFrame)

    return attempt


@inputs(40)
def test_parquet(count: int, tmp_path: Path) -> None:
    fuzz("parquet", count, parquet(tmp_path))


def comma_separated(folder: Path) -> Callable[[Draw], None]:
    path = folder / "t.csv"
    content = b'# seconds\na,b,c\n1,2,x\n3,,"y, z"\n5.5,6,\n'

    def attempt(draw: Draw) -> None:
        made = content
        for _ in range(draw.choice((1, 1, 3))):
            made = damaged(draw, made) or b"\xff"
        draw.trying(made)
        path.write_bytes(made)
        found = tables.read(path)
        for name in found.columns:
            tables.different(found[name])
        numbers = list(found.select_dtypes("number").columns)
        if len(numbers) > 1:
            tables.front(found, numbers[0], numbers[1]).to_json()

    return attempt


@inputs(150)
def test_comma_separated(count: int, tmp_path: Path) -> None:
    fuzz("comma separated", count, comma_separated(tmp_path))
