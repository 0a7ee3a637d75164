"""A cache in a file: another process goes on from it as this one would have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import interp
from interp import InterpError
from tests.interventions.examples import POLICIES, refusal
from tests.lens.many import lens_of
from tests.models import shared, tiny, tokens

PROMPT, STEPS = 40, 6


def left_alone(lens: Any, policy: Any) -> Any:
    """The cache of a prompt and a token, under a policy or none."""
    ids = tokens(2, PROMPT + 1)
    with torch.no_grad():
        if policy is None:
            lens(ids, use_cache=True)
        else:
            with lens.apply(policy):
                lens(ids[:, :PROMPT], use_cache=True)
                lens(ids[:, PROMPT:], past_key_values=lens.last_cache, use_cache=True)
    return lens.last_cache


@torch.no_grad()
def goes_on(lens: Any, cache: Any) -> torch.Tensor:
    new = tokens(2, STEPS, seed=9)
    return torch.cat([lens(part, past_key_values=cache, use_cache=True) for part in new.split(1, 1)], 1)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("policy", [None, *POLICIES.values()], ids=["none", *POLICIES])
def test_it_goes_on_as_if_it_had_never_been_away(policy: Any, name: str, tmp_path: Path) -> None:
    lens = interp.load(shared(name))
    if policy is not None and refusal(policy, name):
        pytest.skip("the policy refuses this model")
    cache = left_alone(lens, policy)
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", cache)
    loaded = interp.load_cache(interp.load(shared(name)), path)
    assert loaded.nbytes() <= cache.nbytes()
    assert loaded.get_seq_length() == cache.get_seq_length()
    assert torch.equal(goes_on(lens, loaded), goes_on(lens, cache))
    for layer, stored in cache.stored.items():
        assert torch.equal(loaded.stored[layer].places(), stored.places())


def test_another_process_goes_on_with_it(tmp_path: Path) -> None:
    lens = interp.load(shared("llama"))
    policy = interp.H2O(budget=12) | interp.ThinK(ratio=0.5, recent=4, window=4)
    cache = left_alone(lens, policy)
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", cache)
    program = (
        "import sys, torch, interp\n"
        "from tests.models import shared\n"
        "from tests.lens.test_cache_files import goes_on\n"
        "lens = interp.load(shared('llama'))\n"
        "torch.save(goes_on(lens, interp.load_cache(lens, sys.argv[1])), sys.argv[2])\n"
    )
    out = tmp_path / "logits.pt"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(path), str(out)], check=True, cwd=root)
    assert torch.equal(torch.load(out), goes_on(lens, cache))


def test_a_recurrent_state_goes_along(tmp_path: Path) -> None:
    lens = lens_of("lfm2")
    cache = left_alone(lens, interp.SnapKV(budget=12, window=4))
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", cache)
    assert torch.equal(goes_on(lens, interp.load_cache(lens, path)), goes_on(lens, cache))


def test_a_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    lens = interp.load(shared("llama"))
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", left_alone(lens, None))
    with pytest.raises(InterpError, match=r"another model: architecture 'Llama.*here 'GPT2"):
        interp.load_cache(interp.load(shared("gpt2")), path)

    other = tiny("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(InterpError, match="another model: weights"):
        interp.load_cache(interp.load(other), path)


def test_what_is_no_such_file_is_one_sentence(tmp_path: Path) -> None:
    lens = interp.load(shared("llama"))
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", left_alone(lens, interp.SnapKV(budget=12, window=4)))
    with pytest.raises(InterpError, match="no cache that"):
        interp.load_cache(lens, tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(InterpError, match="no cache that"):
        interp.load_cache(lens, tmp_path / "weights.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(InterpError):
            interp.load_cache(lens, tmp_path / "damaged.safetensors")


def test_words_that_name_something_else_make_nothing(tmp_path: Path) -> None:
    """A file whose checksum is right and whose words are not ours."""
    from interp.files import tensors as tensor_file
    from interp.lens.cache_files import KEY

    lens = interp.load(shared("llama"))
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", left_alone(lens, None))
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[KEY])
    held = load_file(path)
    for wrong in (
        {"Popen": {"args": "true"}},
        {"tensor": ["nowhere"]},
        {"dtype": "load"},
        {"range": "x"},
        {"dict": 3},
        {"tensor": [next(iter(held)), 0]},
    ):
        changed = json.loads(json.dumps(about))
        changed["layers"][0]["held"]["keys"] = wrong
        tensor_file.write(path, held, KEY, changed)
        with pytest.raises(InterpError, match="could go on from"):
            interp.load_cache(lens, path)


@pytest.mark.parametrize("part", ["layers", "keeper", "model"])
@pytest.mark.parametrize("wrong", [3, [], [None], {}, "x", {"held": 1}, {"policies": 3, "plans": {}}, [{"class": []}]])
def test_words_of_any_kind_are_one_sentence(part: str, wrong: object, tmp_path: Path) -> None:
    from interp.files import tensors as tensor_file
    from interp.lens.cache_files import KEY

    lens = interp.load(shared("llama"))
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", left_alone(lens, None))
    held, about = tensor_file.read(path, KEY)
    tensor_file.write(path, held, KEY, {**about, part: wrong})
    with pytest.raises(InterpError, match=r"could go on from|another model"):
        interp.load_cache(lens, path)


def test_a_cache_is_its_own_whatever_becomes_of_its_file(tmp_path: Path) -> None:
    """Tensors that lay in the file would change with it, and end the process where it is cut short."""
    lens = interp.load(shared("llama"))
    path = interp.save_cache(lens, tmp_path / "cache.safetensors", left_alone(lens, None))
    cache = interp.load_cache(lens, path)
    before = [tensor.clone() for _, _, tensor in cache.parts()]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(0)
    assert all(map(torch.equal, before, (tensor for _, _, tensor in cache.parts())))


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=PROMPT)
    path = tmp_path / "cache.safetensors"
    lens(ids)
    with pytest.raises(InterpError, match="no cache to save"):
        interp.save_cache(lens, path)
    with lens.apply(interp.Temperature(2.0)):
        lens(ids, use_cache=True)
    with pytest.raises(InterpError, match="without attention edits"):
        interp.save_cache(lens, path)
    with lens.apply(interp.D2O(budget=0.4, compress_at="first_decode", skip=(), metric="uniform")):
        lens(ids, use_cache=True)
        with pytest.raises(InterpError, match="yet to compress"):
            interp.save_cache(lens, path)
        lens(ids[:, :1], past_key_values=lens.last_cache, use_cache=True)
    assert not path.exists()
