"""Configs and weight indexes that claim what cannot be: one sentence, in time, before memory is spent."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

import interp
from interp.subjects import claimed_size
from tests.lens.foreign_folders import said, whole
from tests.models import tokens


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("foreign") / "whole")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(interp.InterpError) as caught:
        interp.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers = '3'"),
        ({"num_hidden_layers": 3.5}, "num_hidden_layers = 3.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True"),
        ({"num_hidden_layers": 10**5}, "more than 1,300 parts"),
        ({"num_hidden_layers": 2}, "asks for 2 of model.layers, and its weights have 3"),
        ({"num_hidden_layers": 10**400}, r"num_hidden_layers = 1000|Exceeds|not what it should be|asks for a model"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"num_attention_heads": 7}, "not a multiple"),
        ({"num_key_value_heads": 0}, "not what it should be"),
        ({"num_key_value_heads": 3}, "other shapes"),
        ({"head_dim": 10**9}, "asks for a model of"),
        ({"head_dim": -8}, "head_dim = -8"),
        ({"vocab_size": 10**9}, "asks for a model of"),
        ({"vocab_size": 129}, "other shapes"),
        ({"hidden_size": 10**12}, "asks for a model of"),
        ({"intermediate_size": -1}, "intermediate_size = -1"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is not a number"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps = inf"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": math.nan}}, r"rope_parameters\.rope_theta is not"),
        ({"rope_parameters": {"rope_type": "none such"}}, "none such"),
        ({"text_config": {"num_hidden_layers": -1}}, "num_hidden_layers = -1"),
        ({"hidden_act": "none such"}, "none such"),
        ({"model_type": ["llama"]}, "not what it should be"),
        ({"quantization_config": "none such"}, "not what it should be"),
    ],
)  # fmt: skip
def test_a_config_that_no_model_has(folder: Path, fields: dict[str, object], says: str) -> None:
    said(folder, "config.json", **fields)
    with pytest.raises(interp.InterpError, match=says):
        interp.load(folder)
    refused(folder)


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gpt_oss", "mixtral", "deepseek_v3", "t5", "bart", "qwen3_next", "zamba2"]
)
def test_what_real_models_say_is_no_fault(kind: str) -> None:
    claimed_size.refuse_impossible(CONFIG_MAPPING[kind]().to_dict(), kind)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", "[" * 10_000, '{"model_type": "none such"}', "\0"])
def test_a_config_that_says_nothing(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "cannot load" in refused(folder)


@pytest.mark.parametrize(
    "content", ["[]", '{"eos_token_id": "x", "num_beams": -3, "max_length": "a"}', '{"num_beams": 0}']
)
def test_settings_of_generation_that_are_none(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(interp.InterpError) as caught:
        interp.load(folder).generate(tokens(), 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../outside.safetensors", "no file of its folder"),
        ("/outside.safetensors", "no file of its folder"),
        ("sub/../../outside.safetensors", "no file of its folder"),
        ("..\\outside.safetensors", "no file of its folder"),
        (3, "no file of its folder"),
        ("gone.safetensors", "which is not there"),
    ],
)
def test_an_index_stays_in_its_folder(folder: Path, name: object, says: str) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))
    assert says in refused(folder)
    index.write_text("[]")
    assert "is damaged" in refused(folder)


def test_an_index_of_several_files_is_followed(folder: Path) -> None:
    before = interp.load(folder)(tokens())
    interp.load(folder).model.save_pretrained(folder, max_shard_size="100kB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(interp.load(folder)(tokens()), before)


def test_nobody_is_asked_whether_code_may_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on standard input where it is not told; what it is not told of has no answer there."""

    class Terminal:
        def readline(self) -> str:
            raise AssertionError("somebody was asked")

    monkeypatch.setattr(sys, "stdin", Terminal())
    code = {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "who/x--modeling_x.M"}
    said(folder, "config.json", auto_map=code)
    assert interp.load(folder).cfg.n_layers == 3  # transformers' own llama, as if no code were named
    said(folder, "config.json", model_type="none such")
    assert "trust_remote_code=True" in refused(folder)
    from transformers.dynamic_module_utils import resolve_trust_remote_code

    from interp.subjects.quiet import loading

    with loading(), pytest.raises(ValueError, match="trust_remote_code=True"):
        resolve_trust_remote_code(None, "who/x", has_local_code=False, has_remote_code=True)
    assert "input" not in vars(sys.modules["transformers.dynamic_module_utils"])


def test_models_of_other_threads_are_not_counted() -> None:
    def build() -> None:
        torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(2_000)))

    with claimed_size.bounded("x", lambda: claimed_size.Held(1, 1), quantised=False):
        other = threading.Thread(target=build)
        other.start()
        other.join()
        with pytest.raises(interp.InterpError, match=r"more than 1,010 parts"):
            build()
    build()
