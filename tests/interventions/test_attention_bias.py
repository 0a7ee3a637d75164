"""AttentionBias against scores changed by hand, PASTA, and what no bias may do."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import AttentionBias, InterpError, KnockOut, interventions
from tests.interventions.edited_by_hand import by_hand, in_pieces, one_sentence
from tests.interventions.live_cache import close, left_padded
from tests.models import shared, tokens

EXAMPLES = [
    AttentionBias(keys=(1, 3), bias=2.0),
    AttentionBias(keys=(0, 11), bias=-3.0, queries=(4, 8, 11)),
    AttentionBias(keys=(0, 2), bias=1.5, mode="set"),
    AttentionBias(keys="images", bias=1.0, queries="text"),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def scores_by_hand(lens: Any, ids: torch.Tensor, keys: Any, bias: float, heads: Any, queries: Any, mode: str) -> Any:
    """Logits of a run in which a hook changes the scores of every layer, cell by cell."""

    def hook(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        new = scores.clone()
        for h in range(8) if heads is None else heads:
            for i in range(scores.shape[2]) if queries is None else queries:
                for j in keys:
                    cell = scores[:, h, i, j]
                    edited = cell + bias if mode == "add" else torch.full_like(cell, bias)
                    new[:, h, i, j] = torch.where(cell > -1e30, edited, cell)
        return new

    return lens.run_with_hooks(ids, fwd_hooks=[(lambda name: name.endswith("hook_attn_scores"), hook)])


def positions(most: int, length: int = 9) -> Any:
    return st.lists(st.integers(0, length), min_size=1, max_size=most, unique=True)


@settings(max_examples=30, deadline=None)
@given(
    keys=positions(4),
    bias=st.floats(-8, 8),
    heads=st.none() | positions(4, 7),
    queries=st.none() | positions(4),
    mode=st.sampled_from(["add", "set"]),
    name=st.sampled_from(["llama", "gemma2", "gpt_oss", "mistral", "gpt2"]),
    cut=st.integers(1, 9),
)
def test_any_settings(keys: Any, bias: float, heads: Any, queries: Any, mode: Any, name: str, cut: int) -> None:
    """In two pieces; learned sinks stay as they are, which a hook on the scores leaves alone too."""
    lens, ids = interp.load(shared(name)), tokens(length=10)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # rows before the keys, or beyond a window, have nothing to change
        wanted = scores_by_hand(lens, ids, keys, bias, heads, queries, mode)
        with lens.apply(AttentionBias(keys=keys, bias=bias, heads=heads, queries=queries, mode=mode)):
            found = in_pieces(lens, ids, (cut, 10 - cut))
    close(found / wanted.abs().max(), wanted / wanted.abs().max())


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_it_is_attention_steering(name: str) -> None:
    """PASTA: in some heads the others' attention times alpha, scaled back to the row's sum; by two biases."""
    lens, ids, alpha = interp.load(shared(name)), tokens(length=12), 0.01
    part, others, heads = (3, 4, 5), [0, 1, 2, *range(6, 12)], (1, 4, 6)

    def steered(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        new = pattern.clone()
        for h in heads:
            new[:, h][..., others] *= alpha
            new[:, h] *= pattern[:, h].sum(-1, keepdim=True) / new[:, h].sum(-1, keepdim=True)
        return new

    def beside_the_sink(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        """In a model with learned sinks the row's sum changes: the sink's logit is none of the others'."""
        new, sink = pattern.clone(), 1 - pattern.sum(-1, keepdim=True)
        for h in heads:
            new[:, h][..., others] *= alpha
            new[:, h] /= new[:, h].sum(-1, keepdim=True) + sink[:, h]
        return new

    wanted = by_hand(lens, ids, beside_the_sink if name == "gpt_oss" else steered)
    size = wanted.abs().max()
    with lens.apply(AttentionBias(keys=others, bias=math.log(alpha), heads=heads)):
        close(lens(ids) / size, wanted / size)
    with lens.apply(AttentionBias(keys=part, bias=-math.log(alpha), heads=heads)):
        raised = in_pieces(lens, ids, (7, 4, 1))
    if name == "gpt_oss":
        assert (raised - wanted).abs().max() > 0.01
    else:
        close(raised / size, wanted / size)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("mode", ["add", "set"])
def test_no_bias_lets_a_row_see_what_is_hidden(name: str, mode: Any) -> None:
    """Later tokens, padding, and what lies beyond a window stay hidden; who sees the token looks at nothing else."""
    lens, (ids, mask) = interp.load(shared(name)), left_padded(14, 5)
    names = [f"blocks.0.attn.hook_{point}" for point in ("pattern", "event", "z")]
    lens_pattern = lens.run_with_cache(ids, attention_mask=mask, names_filter=names[:1])[1]["pattern", 0]
    with lens.apply(AttentionBias(keys=4, bias=1000.0, mode=mode)):
        _, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=names)
    for found in (cache["pattern", 0], cache["event", 0].pattern()):
        for b, pad in enumerate((0, 5)):
            visible = lens_pattern[b, :, pad:] > 0
            assert bool((found[b, :, pad:][~visible] == 0).all())
            seen = visible[:, :, pad + 4]
            assert bool(seen.any())
            close(found[b, :, pad:, pad + 4][seen], torch.ones(int(seen.sum())))
            close(found[b, :, pad:][~seen], lens_pattern[b, :, pad:][~seen])


def test_a_bias_far_down_is_a_knock_out() -> None:
    """In a model without learned sinks, but for rows that see nothing else: those keep it."""
    lens, ids = interp.load(shared("llama")), tokens()
    with lens.apply(KnockOut(keys=3)):
        wanted = lens(ids)
    with lens.apply(AttentionBias(keys=3, bias=-1000.0)):
        close(in_pieces(lens, ids, (8, 4)), wanted, 1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_token_that_nobody_looked_at_can_be_raised(sign: int) -> None:
    """To where a softmax in fp32 had no number left for it; row by row, so that no bias by key will do."""
    lens, ids = interp.load(shared("llama")), tokens(1, 12)
    down = AttentionBias(keys=3, bias=-200.0 * sign, queries=range(4, 12))
    up = AttentionBias(keys=3, bias=200.0 * sign, queries=range(4, 12))
    with lens.apply(down | up):
        assert torch.equal(lens(ids), lens.model(ids).logits)
    wanted = scores_by_hand(lens, ids, [3], 201.0 * sign, None, range(4, 12), "add")
    with lens.apply(up | AttentionBias(keys=3, bias=1.0 * sign, queries=range(4, 12))):
        close(lens(ids), wanted, 1e-4)


def test_rows_for_which_it_is_nothing_keep_every_bit() -> None:
    """A row that sees only what is biased, or nothing of it, pays what it paid; beside a sink it does not."""
    for name, first in (("llama", True), ("gpt_oss", False)):
        lens, ids = interp.load(shared(name)), tokens()
        z = "blocks.1.attn.hook_z"
        before = lens.run_with_cache(ids, names_filter=z)[1]["z", 1]
        with lens.apply(AttentionBias(keys=(0, 1), layers=1, heads=2)):
            after = lens.run_with_cache(ids, names_filter=z)[1]["z", 1]
        same = (after == before).all(-1)[0]  # row, head
        assert bool(same[:, [0, 1, 3, 4, 5, 6, 7]].all())
        assert same[:, 2].tolist() == [first, first, *[False] * 10]


def test_what_did_nothing_says_so() -> None:
    lens, ids = interp.load(shared("llama")), tokens()
    nothing = "attention_bias changed nothing: no row that it edits paid attention to its keys"
    for edit, says in (
        (AttentionBias(keys=20), "attention_bias changed nothing: keys 20 would lie beyond 12 tokens"),
        (AttentionBias(keys=(1, 20)), "keys 20 would lie beyond 12 tokens, the longest text that it met"),
        (AttentionBias(keys=5, queries=3), nothing),
        (AttentionBias(keys=5, queries=3, mode="set"), nothing),
    ):
        for look in ([], [("blocks.0.attn.hook_pattern", lambda value, hook: None)]):
            with pytest.warns(UserWarning, match=says), lens.apply(edit), lens.hooks(fwd_hooks=look):
                lens(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lens.apply(AttentionBias(keys=5, bias=-1000.0)):  # nothing is left there, and so it did something
            lens(ids)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"bias": 1001.0}, "bias should be -1,000 to 1,000 nats, found 1001.0; KnockOut takes all attention away"),
        ({"bias": -float("inf")}, "bias should be a finite number"),
        ({"mode": "scale"}, "mode should be one of add, set"),
        ({"keys": []}, "keys should be distinct numbers"),
    ],
)
def test_a_bad_setting_is_told_when_it_is_made(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InterpError) as told:
        AttentionBias(**asked)
    assert says in one_sentence(told.value)


def test_zero_is_nothing_where_it_is_added_and_a_logit_where_it_is_set() -> None:
    assert AttentionBias(bias=0.0).idle
    assert not AttentionBias(bias=0.0, mode="set").idle


def test_it_is_read_from_text() -> None:
    edit = interventions.parse("attention_bias:keys=[1,2],bias=-0.5,mode=set,layers=0")
    assert edit == AttentionBias(keys=(1, 2), bias=-0.5, mode="set", layers=0)
