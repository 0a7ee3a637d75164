"""The in-context learning score against losses worked out otherwise, and against models whose losses are known."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from interp.errors import InterpError
from interp.icl.language import icl_score
from interp.lens.lens import Lens
from tests.models import shared, tokenizer, tokens
from tests.probes.schema import check_result


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(shared("llama"), tokenizer())


@pytest.mark.parametrize("width", [1, 4])
def test_score_is_the_late_loss_minus_the_early_one(lens, width):
    rows = tokens(5, 50)
    ds = icl_score(lens, rows, late=40, early=10, width=width)
    logprob = lens.model(rows[:, :40]).logits.log_softmax(-1).detach()
    loss = torch.stack([-logprob[i, range(39), row[1:40]] for i, row in enumerate(rows)])  # of tokens 2 to 40
    late, early = (loss[:, end - 1 - width : end - 1].mean(1) for end in (40, 10))
    torch.testing.assert_close(torch.tensor(ds["loss"].values), loss, atol=1e-5, rtol=1e-5)
    for name, values in (("icl_score", late - early), ("late_loss", late), ("early_loss", early)):
        assert float(ds[name]) == pytest.approx(float(values.mean()), abs=1e-5)
        assert float(ds[f"{name}_se"]) == pytest.approx(float(values.std() / math.sqrt(5)), rel=1e-4)
    assert ds["token"].values[[0, -1]].tolist() == [2, 40]


def test_a_model_that_knows_nothing_has_no_score():
    model = copy.deepcopy(shared("llama"))
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    ds = icl_score(Lens(model), tokens(3, 30), late=30, early=5)
    assert float(ds["icl_score"]) == pytest.approx(0, abs=1e-6)
    assert float(ds["late_loss"]) == pytest.approx(math.log(128), rel=1e-6)


def test_one_text_is_read_as_stretches_and_several_from_their_beginnings(lens, tmp_path):
    words = [f"w{4 + i * i % 100}" for i in range(64)]
    stretches = icl_score(lens, " ".join(words), late=20, early=5)
    rows = torch.tensor([[0, *(int(word[1:]) for word in words[i : i + 19])] for i in (0, 19, 38)])
    assert stretches.sizes["text"] == 3
    torch.testing.assert_close(stretches["loss"].values, icl_score(lens, rows, late=20, early=5)["loss"].values)
    texts = [" ".join(words[i : i + 25]) for i in (0, 19, 38)]
    torch.testing.assert_close(icl_score(lens, texts, late=20, early=5)["loss"].values, stretches["loss"].values)
    assert icl_score(lens, " ".join(words), late=20, early=5, most=2).attrs["texts"] == 2
    check_result(stretches, tmp_path)


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        (["w5 " * 30, "w6 w7"], {}, "icl_score needs 20 tokens of each text and text 1 has 3; pass longer texts"),
        ("w6 w7", {}, "icl_score needs 20 tokens of each text and text 0 has 3"),
        ([], {}, "icl_score has nothing to read"),
        ("w5 " * 30, {}, "needs at least two texts of 20 tokens for a standard error, found 1"),
        ("w5 " * 99, {"early": 1}, "the first token has no loss"),
        ("w5 " * 99, {"early": 16, "width": 5}, "must not overlap"),
        ("w5 " * 99, {"width": 0}, "compares 0 tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(lens, texts, settings, said):
    with pytest.raises(InterpError, match=said):
        icl_score(lens, texts, **{"late": 20, "early": 5, **settings})
