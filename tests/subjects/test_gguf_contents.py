"""What transformers' GGUF reader leaves out of a file is named, and nothing that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import interp
from interp.subjects.weights import WeightsError, load_gguf
from tests.subjects.tiny_gguf import write_tiny_gguf


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a tiny file with settings and tensors besides."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    plain = gguf.GGUFWriter

    def write(settings: dict[str, Any], tensors: dict[str, list[float]]) -> Path:
        class Writer(plain):  # type: ignore[misc, valid-type]
            def write_header_to_file(self, *args: Any, **kwargs: Any) -> Any:
                for name, value in settings.items():
                    add = {str: self.add_string, bool: self.add_bool, int: self.add_uint32, float: self.add_float32}
                    add[type(value)](f"llama.{name}", value)
                for name, values in tensors.items():
                    self.add_tensor(name, np.array(values, np.float32))
                return super().write_header_to_file(*args, **kwargs)

        monkeypatch.setattr(gguf, "GGUFWriter", Writer)
        return write_tiny_gguf(tmp_path / "odd.gguf")

    return write


@pytest.mark.parametrize(
    "settings",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 32},
        {"rope.scaling.factor": 8.0},
        {"rope.scaling.attn_factor": 1.2},
        {"rope.scale_linear": 4.0},
        {"attention.sliding_window": 8},
        {"attention.scale": 0.3},
        {"attention.clamp_kqv": 8.0},
        {"attention.causal": False},
        {"attn_logit_softcapping": 30.0},
        {"final_logit_softcapping": 30.0},
        {"logit_scale": 0.5},
        {"residual_scale": 0.22},
        {"embedding_scale": 12.0},
        {"attention.key_length": 16},
    ],
    ids=str,
)
def test_settings_that_would_be_skipped(written: Any, settings: dict[str, Any]) -> None:
    path = written(settings, {})
    for _ in range(2):  # the refused model is not kept either
        with pytest.raises(WeightsError, match=f"llama.{next(iter(settings))}") as caught:
            interp.load(path)
    assert "\n" not in str(caught.value)
    assert "safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"rope_freqs.weight": [1, 2, 4, 8]},
        {"blk.0.attn_q.bias": [5.0] * 32},
        {"blk.1.attn_output.bias": [5.0] * 32, "blk.1.ffn_down.bias": [1.0] * 32},
        {"blk.0.attn_q_norm.weight": [2.0] * 8},
        {"blk.1.post_attention_norm.weight": [2.0] * 32},
        {"blk.1.attn_sinks.weight": [2.0] * 4},
        {"output_norm.bias": [2.0] * 32},
        {"something.else.weight": [2.0]},
    ],
    ids=str,
)
def test_tensors_that_would_be_dropped(written: Any, tensors: dict[str, list[float]]) -> None:
    path = written({}, tensors)
    with pytest.raises(WeightsError, match="leaves out") as caught:
        load_gguf(path)
    assert all(name in str(caught.value) for name in tensors)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rope.scaling.type": "none"},
        {"rope.scaling.factor": 1.0},
        {"rope.dimension_count": 8},
        {"attention.key_length": 8, "attention.value_length": 8},
        {"attention.causal": True},
        {"attention.sliding_window": 0},
        {"logit_scale": 1.0},
        {"vocab_size": 260},
    ],
    ids=str,
)
def test_settings_that_change_nothing(written: Any, settings: dict[str, Any]) -> None:
    model, _ = load_gguf(written(settings, {}))
    again, _ = load_gguf(written(settings, {}))
    ids = torch.arange(2, 20)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_the_reader_is_put_back(written: Any) -> None:
    from transformers import modeling_gguf_pytorch_utils as reader

    before = reader.TENSOR_PROCESSORS
    with pytest.raises(WeightsError):
        load_gguf(written({}, {"rope_freqs.weight": [1, 2, 4, 8]}))
    assert reader.TENSOR_PROCESSORS is before
