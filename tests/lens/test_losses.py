"""Losses against fp64: a vocabulary is summed along a row as it lies, never along the columns of a view."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.lens.scoring import next_token_loss, nll_of
from tests.models import shared, tokens

ROOT = Path(interp.__file__).parents[1]


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3), length=st.integers(1, 40), words=st.sampled_from([7, 1000, 49152]),
    spread=st.sampled_from([0.1, 2.0, 12.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_losses_are_those_of_fp64(batch: int, length: int, words: int, spread: float, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(batch, length, words, generator=make)
    targets = torch.randint(0, words, (batch, length), generator=make)
    exact = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert (nll_of(logits, targets).double() - exact).abs().max() < 2e-5
    if length > 1:
        exact = -logits[:, :-1].double().log_softmax(-1).gather(-1, targets[:, 1:, None]).mean()
        assert abs(float(next_token_loss(logits, targets, None)) - float(exact)) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_score_and_loss_are_those_of_the_logits(kind: str) -> None:
    lens, ids = interp.load(shared(kind)), tokens(2, 20)
    exact = -lens(ids)[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert (lens.score(ids[:, :8], ids[:, 8:]).double() - exact[:, 7:]).abs().max() < 1e-5
    assert abs(float(lens(ids, return_type="loss")) - float(exact.mean())) < 1e-5


def test_no_loss_is_taken_of_a_transposed_view() -> None:
    """Everywhere in the project: what goes into a cross entropy was not transposed before it."""
    for folder in ("interp", "apps", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(function, ast.Call) and "cross_entropy" in ast.unparse(function.func):
                    told = ast.unparse(function.args[0])
                    assert "transpose" not in told, f"{file}: {told}"
                    assert "wide" not in told, f"{file}: {told}"
