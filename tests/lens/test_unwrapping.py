"""Models that other libraries have wrapped: the model inside, or how it is loaded."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interp
from tests.lens.test_staying_current import adapt
from tests.models import shared, tiny, tokens


class PeftModel(nn.Module):
    """The parts of peft's wrapper that matter; peft itself need not be installed."""

    def __init__(self, model: Any, learned_prompt: bool = False) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        self.peft_config = {"default": types.SimpleNamespace(is_prompt_learning=learned_prompt)}

    def get_base_model(self) -> Any:
        return self.base_model.model


@pytest.fixture
def peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", types.SimpleNamespace(PeftModel=PeftModel))  # type: ignore[arg-type]


@pytest.mark.usefixtures("peft")
def test_adapters_of_a_peft_model_are_active() -> None:
    model = tiny("llama")
    plain = interp.load(model)(tokens())
    adapt(model, "o_proj")
    lens = interp.load(PeftModel(model))
    assert lens.model is model
    assert torch.equal(lens(tokens()), model(tokens()).logits)
    assert not torch.equal(lens(tokens()), plain)


@pytest.mark.usefixtures("peft")
def test_a_learned_prompt_lies_outside() -> None:
    with pytest.raises(interp.UnsupportedModelError, match="learned prompt"):
        interp.load(PeftModel(shared("llama"), learned_prompt=True))


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: torch.compile(m, backend="eager"),
        nn.DataParallel,
        lambda m: torch.compile(PeftModel(m), backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ],
)
def test_wrappers_are_taken_off(wrap: Any) -> None:
    model = shared("llama")
    lens = interp.load(wrap(model))
    assert lens.model is model
    assert torch.equal(lens(tokens()), model(tokens()).logits)


@pytest.mark.parametrize("wrap", [lambda m: nn.Sequential(m), lambda m: torch.compile(nn.Linear(2, 2)), lambda m: 3])
def test_what_is_no_model_is_named(wrap: Any) -> None:
    with pytest.raises(interp.InterpError, match=r"not (Sequential|Linear|int)"):
        interp.load(wrap(shared("llama")))


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (json.dumps({"base_model_name_or_path": "some/model"}), "of some/model and no model"),
        (json.dumps({"base_model_name_or_path": None}), "of the model that it was trained on"),
        ("[]", "of the model that it was trained on"),
        ("not JSON", "of the model that it was trained on"),
    ],
)
def test_a_folder_with_an_adapter_says_how(tmp_path: Path, written: str, says: str) -> None:
    (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(interp.InterpError, match=says) as caught:
        interp.load(tmp_path)
    assert "peft.PeftModel.from_pretrained" in str(caught.value)
