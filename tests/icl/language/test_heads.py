"""Head scores against patterns whose scores are known, loops over their definitions, and heads built by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

from interp import figures
from interp.errors import InterpError
from interp.icl.language import (
    copying,
    duplicate_token,
    head_findings,
    head_scores,
    induction_scores,
    prefix_matching,
    previous_token,
)
from interp.icl.language._prompts import after_bos, random_tokens
from interp.icl.language.heads import earlier_occurrences, followers
from interp.lens.lens import Lens
from tests.icl.example_measurements import example_measurements
from tests.models import NAMES, shared, tokenizer, tokens
from tests.probes.schema import check_result

SAMPLES = 3


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(shared("llama"), tokenizer())


def planted(lens: Lens, targets: dict[int, list[int]], layer: int = 1, head: int = 5):
    """A context in which one head attends, in equal parts, to the given keys of each query, others to themselves."""

    def plant(pattern: torch.Tensor, hook) -> torch.Tensor:
        perfect = torch.eye(pattern.shape[-1])
        for query, keys in targets.items():
            perfect[query] = 0
            perfect[query, keys] = 1 / len(keys)
        pattern = pattern.clone()
        pattern[:, head] = perfect
        return pattern

    return lens.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", plant)])


def test_a_perfect_induction_head_scores_one_and_is_named(lens):
    unedited = induction_scores(lens, length=10, samples=SAMPLES)
    with planted(lens, {query: [query - 9] for query in range(11, 21)}):  # BOS is position 0
        ds = induction_scores(lens, length=10, samples=SAMPLES)
    assert float(ds["induction"][1, 5]) == pytest.approx(1.0)
    assert float(ds["induction_se"][1, 5]) == pytest.approx(0.0)
    torch.testing.assert_close(torch.tensor(ds["induction"].values[0]), torch.tensor(unedited["induction"].values[0]))
    assert ds["induction"].drop_sel(layer=1).max() < 0.9
    others = [head for head in range(8) if head != 5]
    assert ds["induction"].sel(layer=1, head=others).max() < 0.9
    assert head_findings(ds, above=0.95) == [
        "One of 24 heads is an induction head (layer.head, score above 0.95): 1.5 (1.00)."
    ]


def test_prefix_matching_has_both_averages_and_their_caps(lens):
    first = range(1, 1 + 7)  # after BOS
    latest = {7 * repeat + i: [7 * (repeat - 1) + i + 1] for repeat in (1, 2, 3) for i in first}
    spread = {7 * repeat + i: [7 * r + i + 1 for r in range(repeat)] for repeat in (1, 2, 3) for i in first}
    for targets in (latest, spread):
        with planted(lens, targets):
            ds = prefix_matching(lens, length=7, samples=SAMPLES)
        assert float(ds["prefix_matching"][1, 5]) == pytest.approx(1.0)
        assert float(ds["prefix_matching_entries"][1, 5]) == pytest.approx(0.5), "3 x 7 queries, 6 x 7 entries"
    assert ds["prefix_matching"].attrs["repeats"] == 4


def test_a_duplicate_token_head_is_none_that_looks_at_the_follower(lens):
    duplicate = {query: [query - 10] for query in range(11, 21)}
    with planted(lens, duplicate):
        assert float(duplicate_token(lens, length=10, samples=SAMPLES)["duplicate_token"][1, 5]) == pytest.approx(1.0)
        assert float(induction_scores(lens, length=10, samples=SAMPLES)["induction"][1, 5]) == 0.0
        assert float(prefix_matching(lens, length=10, repeats=2, samples=SAMPLES)["prefix_matching"][1, 5]) == 0.0


def test_previous_token_leaves_the_first_position_out(lens):
    rows = tokens(3, 12)
    with planted(lens, {query: [query - 1] for query in range(2, 12)}):
        ds = previous_token(lens, rows, length=12)
    assert float(ds["previous_token"][1, 5]) == pytest.approx(1.0)
    with planted(lens, {query: [0] for query in range(1, 12)}):
        ds = previous_token(lens, rows, length=12)
    assert float(ds["previous_token"][1, 5]) == 0.0


def test_uniform_attention_has_the_scores_of_counting(lens):
    uniform = {query: list(range(query + 1)) for query in range(21)}
    with planted(lens, uniform):
        ds = induction_scores(lens, length=10, samples=2).merge(duplicate_token(lens, length=10, samples=2))
    expected = sum(1 / (query + 1) for query in range(11, 21)) / 10
    assert float(ds["induction"][1, 5]) == pytest.approx(expected)
    assert float(ds["duplicate_token"][1, 5]) == pytest.approx(expected)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=14))
def test_targets_are_their_definitions(ids):
    row, n = torch.tensor(ids), len(ids)
    earlier = {(p, j) for p in range(n) for j in range(p) if ids[j] == ids[p]}
    after = {(p, j + 1) for p, j in earlier if j + 1 < p}
    assert {tuple(cell) for cell in earlier_occurrences(row).nonzero().tolist()} == earlier
    assert {tuple(cell) for cell in followers(row).nonzero().tolist()} == after


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_every_architecture_are_shares_of_its_pattern(name):
    lens = Lens(shared(name), tokenizer())
    ds = head_scores(lens, tokens(2, 256), samples=2)
    rows = after_bos(lens, random_tokens(lens, 2, 50, 0).repeat(1, 2))
    _, cache = lens.run_with_cache(rows, names_filter=lambda point: point.endswith("hook_pattern"))
    patterns = torch.stack([cache["pattern", layer] for layer in range(3)])
    expected = sum(patterns[..., query, query - 49] for query in range(51, 101)).mean(1) / 50
    torch.testing.assert_close(torch.tensor(ds["induction"].values).float(), expected, atol=1e-6, rtol=1e-5)
    for score in ("induction", "duplicate_token", "prefix_matching", "previous_token"):
        assert 0 <= ds[score].min() <= ds[score].max() <= 1 + 1e-6
    assert -1 <= ds["copying"].min() <= ds["copying"].max() <= 1


def one_head(writes: torch.Tensor) -> Lens:
    """A model of one layer and head that writes `writes @ value` of what it attends to; each token is a channel."""
    n = len(writes)
    config = hf.LlamaConfig(
        vocab_size=n, hidden_size=n, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=n, max_position_embeddings=64,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).eval()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(n))
        model.lm_head.weight.copy_(torch.eye(n))
        attention.v_proj.weight.copy_(torch.eye(n))
        attention.o_proj.weight.copy_(writes)
    return Lens(model)


@pytest.mark.parametrize(
    ("writes", "score"),
    [
        (torch.eye(60), 1.0),  # raises the attended token alone: r = 1/2
        (-torch.eye(60), -1.0),  # lowers it
        (torch.eye(60)[[*range(1, 60), 0]], -1.0),  # raises another
    ],
    ids=["copies", "suppresses", "shifts"],
)
def test_copying_of_heads_built_by_hand(writes, score):
    ds = copying(one_head(writes), length=12, samples=2)
    assert float(ds["copying"][0, 0]) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_copying_follows_its_definition(name):
    """The same from the weights, over the whole vocabulary, token by token."""
    model = shared(name)
    lens = Lens(model, tokenizer())
    ds = copying(lens, length=9, samples=2, seed=4)
    rows = random_tokens(lens, 2, 9, 4)
    expected = torch.zeros(2, 3, 8)
    for sample, row in enumerate(rows):
        _, cache = lens.run_with_cache(after_bos(lens, row[None]))
        resid = cache["resid_post", 2][0, -1]
        for layer in range(3):
            values = cache["v", layer][0, 1:]  # without BOS
            for head in range(8):
                v = values[:, head // (8 // values.shape[1])]
                expected[sample, layer, head] = _copying_by_hand(name, model, layer, head, v, row, resid)
    torch.testing.assert_close(torch.tensor(ds["copying"].values).float(), expected.mean(0), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def _copying_by_hand(name, model, layer, head, v, row, resid) -> float:
    if name == "gpt2":
        weight, norm = model.transformer.h[layer].attn.c_proj.weight.T, model.transformer.ln_f
    else:
        weight, norm = model.model.layers[layer].self_attn.o_proj.weight, model.model.norm
    written = v @ weight[:, 8 * head : 8 * head + 8].T
    if name != "llama":  # a LayerNorm subtracts the mean
        written = written - written.mean(-1, keepdim=True)
    logits = written * norm.weight @ model.lm_head.weight.T / resid.std()
    raised = (logits - logits.mean(-1, keepdim=True)).clamp_min(0)
    shares = []
    for i, token in enumerate(row):
        own, all_of_them = float(raised[i, token]), sum(float(raised[i, other]) for other in row)
        shares.append(own / (own + all_of_them) if all_of_them > 0 else 0.0)
    return 4 * sum(shares) / len(shares) - 1


def test_bos_comes_first_where_the_tokenizer_has_one(lens):
    rows = random_tokens(lens, 4, 20, 0)
    assert after_bos(lens, rows).shape == (4, 21)
    assert (after_bos(lens, rows)[:, 0] == 0).all()
    bare = Lens(shared("llama"))
    assert after_bos(bare, rows) is rows
    with planted(bare, {query: [query - 9] for query in range(10, 20)}):
        assert float(induction_scores(bare, length=10, samples=2)["induction"][1, 5]) == pytest.approx(1.0)


def test_random_tokens_are_distinct_and_common_enough(lens):
    rows = random_tokens(lens, 30, 60, 0)
    assert all(len(set(row.tolist())) == 60 for row in rows)
    assert int(rows.min()) >= 6
    assert int(rows.max()) < 128 - 6
    torch.testing.assert_close(rows[:2], random_tokens(lens, 2, 60, 0))
    assert not torch.equal(rows, random_tokens(lens, 30, 60, 1))


def test_text_is_cut_into_stretches_that_each_begin_as_the_tokenizer_begins(lens):
    seen: list[torch.Tensor] = []
    text = " ".join(f"w{4 + i % 100}" for i in range(40))
    with lens.hooks(fwd_hooks=[("hook_embed", lambda x, hook: seen.append(x[0, 0].clone()))]):
        ds = previous_token(lens, text, length=13)
    assert ds["previous_token"].attrs["samples"] == 3, "39 of 40 words, 12 and BOS each"
    assert all(torch.equal(x, seen[0]) for x in seen)


def test_results_describe_themselves_and_findings_say_none_where_there_is_none(lens, tmp_path):
    ds = head_scores(lens, tokens(2, 256), samples=2)
    check_result(ds, tmp_path)
    assert {ds[f"{name}_se"].dims for name in ds.data_vars if not name.endswith("_se")} == {("layer", "head")}
    said = head_findings(ds, above=0.99)
    assert said[0].startswith("No head is an induction head (score above 0.99); the nearest is ")
    assert said[-1].startswith("Copying is strongest in ")
    assert f"{4 / 26 - 1:.2f} all tokens of the sequence alike" in said[-1]
    assert len(head_findings(ds[["induction"]], above=-1)) == 1
    assert " and 16 more." in head_findings(ds[["induction"]], above=-1)[0]


def test_standard_error_is_over_sequences(lens):
    two = induction_scores(lens, length=10, samples=2, seed=3)["induction"].values
    error = induction_scores(lens, length=10, samples=2, seed=3)["induction_se"].values
    row = after_bos(lens, random_tokens(lens, 1, 10, 3).repeat(1, 2))
    _, cache = lens.run_with_cache(row, names_filter="blocks.1.attn.hook_pattern")
    first = torch.stack([cache["pattern", 1][0, 5, q, q - 9] for q in range(11, 21)]).mean()
    assert error[1, 5] == pytest.approx(abs(float(first) - two[1, 5]), rel=1e-4), "half the difference of two"
    assert math.isfinite(error.max())


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda lens: induction_scores(lens, samples=1), "induction needs at least 2 sequences"),
        (lambda lens: induction_scores(lens, samples=0), "induction needs at least 2 sequences"),
        (lambda lens: copying(lens, samples=1), "copying needs at least 2 sequences"),
        (lambda lens: previous_token(lens, "w5 " * 300, samples=1), "previous_token needs at least 2 sequences"),
        (lambda lens: previous_token(lens, "w5 " * 300, samples=0), "previous_token has nothing to read"),
        (lambda lens: prefix_matching(lens, repeats=1), "takes 2 repeats of 2 tokens, found 1 of 25"),
        (lambda lens: induction_scores(lens, length=117), "117 distinct random tokens are needed and tiny"),
        (lambda lens: prefix_matching(lens, length=110, repeats=5), "551 tokens exceed the context of 512"),
        (lambda lens: previous_token(lens, "w5 " * 9, length=2), "reads at least 3 tokens"),
        (lambda lens: previous_token(lens, "w5 w6"), "previous_token needs 256 tokens of each text and text 0 has 3"),
        (lambda lens: previous_token(lens, tokens(2, 9)), "needs 256 tokens of each text and text 0 has 9"),
    ],
)
def test_what_cannot_be_scored_is_refused(ask, said):
    lens = Lens(shared("llama"), tokenizer(), name="tiny")
    with pytest.raises(InterpError, match=said):
        ask(lens)


def test_the_figure_shows_each_score_on_its_own_scale():
    ds = example_measurements(layers=4, heads=3)["head_scores"]
    ds["induction"][2, 1], ds["copying"][3, 0] = 0.93, -0.5
    fig = figures.icl_heads(ds)
    maps = dict(zip([note.text for note in fig.layout.annotations], fig.data, strict=True))
    assert maps["induction"].z[2, 1] == pytest.approx(0.93)
    assert maps["copying"].z[3, 0] == pytest.approx(-0.5)
    np.testing.assert_allclose(maps["prefix matching"].customdata, ds["prefix_matching_se"], rtol=1e-6)
    assert [trace.coloraxis for trace in maps.values()] == 4 * ["coloraxis"] + ["coloraxis2"]


@pytest.mark.slow
def test_the_demo_model_has_the_induction_heads_that_were_measured():
    import interp

    lens = interp.load("demo")
    ds = induction_scores(lens, samples=2).merge(prefix_matching(lens, samples=2))
    for name in ("induction", "prefix_matching"):
        strongest = ds[name].stack(at=("layer", "head")).sortby(ds[name].stack(at=("layer", "head")), ascending=False)
        assert {tuple(at) for at in strongest["at"].values[:4]} == {(18, 6), (17, 3), (17, 4), (17, 5)}
    assert ds["induction"].sel(layer=18, head=6) > 0.8
