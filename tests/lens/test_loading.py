"""`interp.load`: every kind of model it takes, and one clear line for what it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from tests.models import shared, tokenizer, tokens
from tests.subjects.tiny_gguf import write_tiny_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shared("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder(folder: Path) -> None:
    lens = interp.load(str(folder))
    assert torch.equal(lens(tokens()), shared("llama")(tokens()).logits)
    assert lens.to_str_tokens("w5 w6")[-2:] == ["w5", "w6"]
    assert lens.cfg.model_name == str(folder)


def test_a_vocabulary_smaller_than_what_is_tried_at_load() -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, bos_token_id=0,
        eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.tensor([[3, 4, 7]])
    assert torch.equal(interp.load(model)(ids), model(ids).logits)


def test_dtype_and_attention_pass_through(folder: Path) -> None:
    lens = interp.load(str(folder), dtype="bfloat16", attn_implementation="eager")
    assert (lens.cfg.dtype, lens.cfg.attention) == ("bfloat16", "eager")
    assert lens(tokens()).dtype == torch.bfloat16


def test_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    lens = interp.load(str(path))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(lens(ids), lens.model(ids).logits)


def test_a_loaded_model_and_an_object_that_is_none() -> None:
    assert interp.load(shared("gpt2")).cfg.n_layers == 3
    with pytest.raises(interp.InterpError, match="not Linear"):
        interp.load(torch.nn.Linear(2, 2))


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for name, says in (
        (tmp_path / "empty", "no config.json"),
        (tmp_path / "notes.txt", "not a .gguf"),
        (tmp_path / "absent.gguf", "absent.gguf"),
        ("nobody/no-such-model", "cannot load 'nobody/no-such-model'"),
    ):
        with pytest.raises(interp.InterpError, match=says) as caught:
            interp.load(str(name))
        assert "\n" not in str(caught.value)
    with pytest.raises(interp.InterpError, match="dtype is one of"):
        interp.load("demo", dtype="int3")


def test_truncated_safetensors_in_a_folder(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(interp.InterpError, match="cannot load the folder") as caught:
        interp.load(str(folder))
    assert "\n" not in str(caught.value)


def test_weights_that_lack_a_tensor(folder: Path) -> None:
    """transformers would fill the gap with random numbers."""
    from safetensors.torch import load_file, save_file

    weights = next(folder.glob("*.safetensors"))
    tensors = load_file(weights)
    tensors.pop("model.layers.1.self_attn.k_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(interp.InterpError, match=r"lack 1 tensors, model\.layers\.1\.self_attn\.k_proj"):
        interp.load(str(folder))


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()
    torch.save(shared("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(interp.InterpError, match="safetensors"):
        interp.load(str(folder))


def test_importing_the_package_is_light() -> None:
    """`import interp`, its figures and its kernels need neither transformers nor TransformerLens."""
    code = (
        "import sys, interp;"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'plotly', 'xarray'} & set(sys.modules);"
        "import interp.figures, interp_kernels;"
        "print(sorted(heavy), sorted({'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[] []"


def test_public_names() -> None:
    for name in ("load", "probe", "compare", "Lens", "InterpError", "figures", "report"):
        assert name in dir(interp)
        assert getattr(interp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = interp.nonsense


def test_the_lens_leaves_logging_and_warnings_alone() -> None:
    """TransformerLens' import adds warning filters, its bridge silences transformers' logger: neither reaches users."""
    code = (
        "import warnings, interp.lens.in_force; from transformers.utils import logging;"
        "before = logging.get_verbosity(), list(warnings.filters); import interp; interp.Lens;"
        "print(before == (logging.get_verbosity(), list(warnings.filters)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "True"
