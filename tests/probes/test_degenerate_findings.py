"""What every probe says where there is next to nothing to say: no superlative of one thing, no number that is none."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import transformers as hf
import xarray as xr

import interp
from interp.probes import available
from interp.results.wording import with_numbers
from tests.models import GROUPED, shared, tokenizer, tokens

PROBES = available()
every_probe = pytest.mark.parametrize("name", PROBES)


@cache
def one_head_one_layer() -> Any:
    config = hf.LlamaConfig(**{**GROUPED, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1})
    return interp.load(hf.LlamaForCausalLM(config).eval(), tokenizer())


@cache
def read(name: str, length: int, small: bool = False) -> xr.Dataset:
    lens = one_head_one_layer() if small else interp.load(shared("llama"), tokenizer())
    return interp.probe(lens, tokens(1, length)[0], name)[name]


def check(name: str, told: list[str]) -> None:
    assert told or "findings" not in vars(PROBES[name])  # a probe need not have any
    for said in told:
        assert said.endswith("."), said
        assert not re.search(r"\b(nan|inf)\b", said), said
        assert "more than 0:" not in said, said
        assert "more than 0." not in said, said
        for low, high in re.findall(r"from ([\d.e+]+) in .*? to ([\d.e+]+) in ", said):
            assert low != high, said
        for unbalanced, before in re.findall(r"ratio is ([\d.e+]+).*unbalanced \(([\d.e+]+)\)", said):
            assert unbalanced != before, said


@pytest.mark.parametrize("small", [False, True], ids=["llama", "one head in one layer"])
@pytest.mark.parametrize("length", [1, 2, 3, 12])
@every_probe
def test_short_texts_and_small_models(name: str, length: int, small: bool) -> None:
    told = PROBES[name]().findings(read(name, length, small))
    check(name, told)
    if small:
        assert not any(
            re.search(r"; most in layer|The most unbalanced|peaks at|contribute most", said) for said in told
        )
    if length == 1:
        assert not any(re.search(r"heads need more than|receives more than 60 %|Spearman", said) for said in told)


def filled(ds: xr.Dataset, value: float, where: Any = slice(None)) -> xr.Dataset:
    ds = ds.copy(deep=True)
    for variable in ds.data_vars.values():
        if variable.dtype.kind == "f":
            at = tuple(where if dim == "layer" else slice(None) for dim in variable.dims)
            variable.values[at] = value
    return ds


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
@pytest.mark.parametrize("where", [slice(None), slice(0, 1), slice(1, None)], ids=["everywhere", "first", "later"])
@every_probe
def test_values_that_are_all_alike_or_none(name: str, value: float, where: Any) -> None:
    check(name, PROBES[name]().findings(filled(read(name, 12), value, where)))


def test_the_one_token_is_no_finding() -> None:
    """Rotation by 0 leaves keys as they are, and the rank of one number is 1."""
    told = PROBES["channel_imbalance"]().findings(read("channel_imbalance", 1))
    assert any("leaves that ratio as it is" in said for said in told)
    assert PROBES["attention_rank"]().findings(read("attention_rank", 1)) == [
        "A pattern of one token is one number, 1, so its rank is 1 in every head."
    ]


def test_sentences_without_numbers_are_counted_and_token_text_is_no_number() -> None:
    told = with_numbers(["The mean is nan.", 'The sink is token 3 "nan inf".', "It is -inf times more.", "All well."])
    assert told == [
        'The sink is token 3 "nan inf".', "All well.",
        "2 of 4 findings cannot be put into words: their numbers are not defined here.",
    ]  # fmt: skip
