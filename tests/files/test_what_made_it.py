"""What was kept is used only where the same code, settings and content made it, in a folder of one's own."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from interp.errors import InterpError, StorageError
from interp.files import private
from interp.icl import studies
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.studies import _code
from interp.results import storage
from interp.subjects.weight_cache import source_sha256
from interp.subjects.weights import load_gguf
from tests.icl.studies.toy_study import ToyStudy
from tests.subjects.tiny_gguf import write_tiny_gguf


def rewrite(path, change):
    ds = storage.load(path)
    change(ds)
    storage.save(ds, path)


def times_seven(ds):
    ds["loss"] = ds["loss"] * 7


def other_settings(ds):
    ds.attrs["part_settings"] = json.dumps({**json.loads(ds.attrs["part_settings"]), "lr": 1})


def nameless(ds):
    del ds.attrs["part_checksum"]


@pytest.mark.parametrize("change", [times_seven, other_settings, nameless])
def test_a_part_that_was_changed_by_hand_is_refused(change, tmp_path):
    ToyStudy().run(tmp_path)
    rewrite(tmp_path / "parts" / "seed-0.nc", change)
    with pytest.raises(InterpError, match=r"seed-0\.nc is no finished part .* remove .*, and it is made again"):
        ToyStudy().run(tmp_path)


def test_weights_that_were_changed_by_hand_are_refused(tmp_path):
    ToyStudy().run(tmp_path)
    path = tmp_path / "parts" / "seed-0.safetensors"
    path.write_bytes(save({name: weight * 7 for name, weight in load(path.read_bytes()).items()}))
    with pytest.raises(InterpError, match="these are not the weights that were written"):
        ToyStudy().run(tmp_path)


def test_parts_of_other_code_are_refused(tmp_path, monkeypatch):
    ToyStudy().run(tmp_path)
    monkeypatch.setattr("interp.icl.studies.base.code_of", lambda _: "interp 9.9, code 0, torch 1")
    with pytest.raises(InterpError, match=r"was made with code='interp .*', and code='interp 9\.9.* choose another"):
        ToyStudy().run(tmp_path)
    (tmp_path / "settings.json").unlink()  # parts that were carried to another folder
    with pytest.raises(InterpError, match=r"seed-0\.nc was made with code='interp .*', and code='interp 9\.9"):
        ToyStudy().run(tmp_path)


def test_a_result_says_which_code_made_it(tmp_path):
    assert ToyStudy().run(tmp_path).attrs["code"] == _code.code_of(ToyStudy)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A package of three files and a study in it, of which one is imported by the study, one by that one."""
    import importlib.util

    home = tmp_path / "interp_toy"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "study.py").write_text('"""Doc."""\nfrom interp_toy import near\nclass Toy: x = 1\n')
    (home / "near.py").write_text("def f():\n    from .far import g\n    return g\n")
    (home / "far.py").write_text("def g(): return 1\n")
    (home / "alone.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "interp_toy", raising=False)  # that of an earlier test
    monkeypatch.setattr(_code, "PACKAGES", ("interp_toy",))
    spec = importlib.util.find_spec("interp_toy.study")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def code():
        _code.code_of.cache_clear()
        monkeypatch.setattr("inspect.getfile", lambda _: str(home / "study.py"))
        return _code.code_of(module.Toy)

    yield home, code
    _code.code_of.cache_clear()


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [("far.py", "def g(): return 2\n", False), ("near.py", "x = 1\n", False), ("study.py", "class Toy: x = 2\n", False),
     ("alone.py", "x = 2\n", True), ("far.py", "# why\ndef g():\n    'Doc.'\n    return 1\n", True)],
)  # fmt: skip
def test_code_is_what_a_study_reaches_without_its_comments(file, text, same, tree):
    home, code = tree
    before = code()
    (home / file).write_text(text)
    assert (code() == before) is same


def test_studies_are_of_different_code():
    """A reader of imports that finds nothing would call everything the same."""
    known = studies.available()
    assert _code.code_of(known["sine"]) != _code.code_of(known["depth"])


def test_a_model_file_with_a_flipped_bit_is_refused(tmp_path):
    path = AttentionRegressor(RegressorConfig(d_in=3, n_ctx=5), seed=0).save(tmp_path / "m.safetensors")
    assert AttentionRegressor.load(path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(InterpError, match=r"m\.safetensors is damaged or was changed"):
        AttentionRegressor.load(path)


@pytest.mark.skipif(os.name == "nt", reason="file systems there keep no time of change")
@pytest.mark.parametrize("how", ["another file", "in place"])
def test_a_swapped_source_of_the_same_size_and_time_is_not_the_old_one(how, tmp_path):
    source, home = tmp_path / "m.gguf", tmp_path / "home"
    source.write_bytes(b"GGUF one")
    os.utime(source, ns=(10**18, 10**18))
    first = source_sha256(source, home)
    if how == "another file":
        other = tmp_path / "other"
        other.write_bytes(b"GGUF two")
        os.replace(other, source)
    else:
        source.write_bytes(b"GGUF two")
    os.utime(source, ns=(10**18, 10**18))
    assert source_sha256(source, home) != first


@pytest.mark.skipif(os.name == "nt", reason="file systems there keep no time of change")
def test_a_swapped_gguf_loads_the_new_model(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    source, found = tmp_path / "m.gguf", []
    for seed in (0, 1):
        write_tiny_gguf(source, seed=seed)
        os.utime(source, ns=(10**18, 10**18))
        found.append((source.stat().st_size, load_gguf(source)[0].state_dict()["lm_head.weight"]))
    assert found[0][0] == found[1][0]
    assert not torch.equal(found[0][1], found[1][1])


def test_a_private_folder_is_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    folder = private.private_folder("studies", "toy")
    (root,) = (tmp_path / "cache").iterdir()
    assert root.stat().st_mode & 0o777 == 0o700
    assert folder == root / "studies" / "toy"
    assert private.private_folder("studies", "toy") == folder
    root.chmod(0o770)
    with pytest.raises(StorageError, match="is not a folder of this user alone"):
        private.private_folder("studies", "toy")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="gives a folder to another user")
@pytest.mark.parametrize("theirs", ["folder", "link"])
def test_a_strangers_folder_is_not_used(theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    root = tmp_path / f"private-{os.geteuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if theirs == "link":
        root.symlink_to(elsewhere)
    else:
        root.mkdir(mode=0o700)
        os.chown(root, 12345, 12345)
    with pytest.raises(StorageError, match="is not a folder of this user alone"):
        private.private_folder("studies")
    assert np.array_equal(list(elsewhere.iterdir()), [])
