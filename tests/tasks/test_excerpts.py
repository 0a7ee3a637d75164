"""Excerpts, what they cost, and how long they are continued alike, beside `lens.score` and `lens.generate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interp
from interp.errors import InterpError
from tests.models import shared, tokenizer
from tests.tasks.answered import estimates


@pytest.fixture(scope="module")
def lens() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


def folder(path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        words = [f"w{n}" for n in draw.integers(0, 90, 100)]
        (path / f"{name}.txt").write_text("\n".join(" ".join(words[n : n + 10]) for n in range(0, 100, 10)) + "\n")
    return path


def test_excerpts_are_stretches_of_the_text(tmp_path: Path) -> None:
    task = interp.tasks.WindowedPerplexity(folder=str(folder(tmp_path)), context=20, scored=5, per_document=3)
    items = task.items(0)
    assert len(items) == 6
    assert {item.cluster for item in items} == {"one.txt", "two.txt"}
    for item in items:
        assert item.prompt + item.expected[0] in (tmp_path / item.cluster).read_text()
        assert len(item.prompt.split()) == 20
        assert len(item.expected[0].split()) == 5
        assert int(item.id.split(":")[1]) % 25 == 0  # so none overlaps another


def test_numbers_are_those_of_score(lens: interp.Lens, tmp_path: Path) -> None:
    task = interp.tasks.WindowedPerplexity(folder=str(folder(tmp_path)), context=20, scored=5)
    policy = interp.StreamingLLM(budget=0.4)
    for intervention in (None, policy):
        result = interp.evaluate(lens, task, intervention)
        costs = []
        for item in task.items(0):
            if intervention is None:
                costs.append(lens.score(item.prompt, item.expected[0])[0])
            else:
                with lens.apply(intervention):
                    costs.append(lens.score(item.prompt, item.expected[0])[0])
        total, tokens = sum(float(one.sum()) for one in costs), sum(len(one) for one in costs)
        found = estimates(result)
        assert found["nll"] == pytest.approx(total / tokens, rel=1e-5)
        assert found["perplexity"] == pytest.approx(np.exp(total / tokens), rel=1e-4)
        size = sum(len(item.expected[0].encode()) for item in task.items(0))
        assert found["bits_per_byte"] == pytest.approx(total / np.log(2) / size, rel=1e-5)
        assert not result["noted"].any()


def test_agreement_is_counted_to_the_first_difference(lens: interp.Lens, tmp_path: Path) -> None:
    task = interp.tasks.GreedyAgreement(folder=str(folder(tmp_path)), context=24, max_new_tokens=6)
    same = interp.evaluate(lens, task)
    assert estimates(same) == {"agreed": 1.0, "identical": 1.0}
    policy = interp.StreamingLLM(budget=0.2)
    result = interp.evaluate(lens, task, policy)
    for number, item in enumerate(task.items(0)):
        tokens = lens.to_tokens(item.prompt)
        plain = lens.generate(tokens, max_new_tokens=6)[0, tokens.shape[1] :].tolist()
        with lens.apply(policy):
            said = lens.generate(tokens, max_new_tokens=6)[0, tokens.shape[1] :].tolist()
        agreed = next(
            (n for n, (a, b) in enumerate(zip(said, plain, strict=False)) if a != b), min(len(said), len(plain))
        )
        assert result["agreed"][number] == agreed
        assert result["identical"][number] == (said == plain)
        assert agreed >= 1, "the first token comes from the prompt alone"
    assert estimates(result)["identical"] < 1


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="holds 0; name another"):
        interp.tasks.WindowedPerplexity(folder=str(tmp_path)).items(0)
