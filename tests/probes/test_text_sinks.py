"""Sinks and massive activations: each planted without the other, and every number against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from interp.errors import InterpError
from interp.probes.text_sinks import TextSinks, seen_by
from interp.seam.event import AttentionEvent
from tests.probes.events import context, random_event, written_out
from tests.probes.schema import check_result

D_MODEL = 24


def measure(
    *events: AttentionEvent, probe: TextSinks | None = None, residuals: list | None = None, text: list | None = None
) -> xr.Dataset:
    tokens = events[0].q.shape[2]
    fold = (probe or TextSinks()).begin(context(tokens, len(events), text))
    for i, event in enumerate(events):
        fold.hooks()["attn.hook_event"](event.layer, event)
        calm = torch.randn(1, tokens, D_MODEL, generator=torch.Generator().manual_seed(i))
        fold.hooks()["hook_resid_post"](event.layer, calm if residuals is None else residuals[i])
    return fold.result()


def with_sink(tokens: int, at: int, layer: int = 0, strength: float = 6.0) -> AttentionEvent:
    """One channel of every query is answered by the key at `at` alone, which adds a constant to that key's scores."""
    event = random_event(tokens, layer=layer)
    event.q[..., 0], event.k[..., 0] = 1.0, 0.0
    event.k[:, :, at, 0] = strength / event.scale
    return event


def with_massive(tokens: int, at: int, channel: int, value: float = 5000.0) -> torch.Tensor:
    residual = torch.randn(1, tokens, D_MODEL, generator=torch.Generator().manual_seed(9))
    residual[0, at, channel] = -value
    return residual


@pytest.mark.parametrize(
    "facts",
    [{}, {"window": 70}, {"softcap": 0.5}, {"sinks": torch.tensor([0.0, 1.0, 3.0, -2.0])}],
    ids=["causal", "window", "softcap", "learned sinks"],
)
def test_attention_received_is_that_of_the_pattern(facts: dict, tmp_path: Path) -> None:
    tokens = 200
    event = random_event(tokens, **facts)
    pattern = written_out(event).numpy()
    ds = measure(event).sel(layer=0)
    seen = (np.tri(tokens) - np.tri(tokens, k=-facts.get("window", tokens))).sum(0)
    np.testing.assert_allclose(ds["column_mass"], pattern.sum(1), rtol=1e-4, atol=1e-5)
    counted = ds["mean_received"].values
    assert np.array_equal(np.isnan(counted), np.tile(seen < 64, (4, 1))), "max(64, 200 / 8) queries"
    np.testing.assert_allclose(counted[:, seen >= 64], (pattern.sum(1) / seen)[:, seen >= 64], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ds["alpha_first"], (pattern.sum(1) / seen)[:, 0], rtol=1e-4)
    check_result(measure(event), tmp_path)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize(("queries", "keys", "offset"), [(9, 9, None), (4, 9, None), (4, 9, 2), (7, 3, None)])
def test_how_many_queries_see_a_key(queries: int, keys: int, offset: int | None, window: int | None) -> None:
    distance = torch.arange(queries)[:, None] + (keys - queries if offset is None else offset) - torch.arange(keys)
    visible = (distance >= 0) & (distance < (window or queries + keys + 9))
    facts = {"causal": True, "offset": offset, "window": window}
    assert seen_by(facts, queries, keys)[0].tolist() == visible.sum(0).tolist()


def test_how_many_queries_see_a_key_without_causality() -> None:
    assert seen_by({"causal": False}, 4, 6).tolist() == [[4] * 6]
    mask = torch.rand(1, 2, 4, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    assert seen_by({"mask": mask}, 4, 6).tolist() == mask[0].sum(1).tolist()


@pytest.mark.parametrize(("tokens", "fewest"), [(8, 1), (63, 8), (64, 64), (512, 64), (520, 65), (1024, 128)])
def test_how_many_queries_count(tokens: int, fewest: int) -> None:
    ds = measure(random_event(tokens, heads=1, kv_heads=1, d_head=4)).sel(layer=0)
    assert int(ds["fewest_queries"]) == fewest
    assert ds["mean_received"].notnull().sum() == tokens - fewest + 1


def test_a_narrow_window_still_has_a_sink() -> None:
    ds = measure(random_event(200, window=16)).sel(layer=0)
    assert int(ds["fewest_queries"]) == 16
    assert ds["mean_received"].isel(head=0).notnull().values.tolist() == [True] * 185 + [False] * 15


def test_a_sink_without_massive_activation() -> None:
    ds = measure(with_sink(200, at=17, layer=5)).sel(layer=5)
    assert int(ds["primary_sink"]) == 17
    assert ds["primary_sink_share"] > 0.6
    assert ds["primary_sink_share"] == ds["mean_received"].sel(token=17).mean("head")
    assert ds["massive"] == 0
    assert ds["psi"] < 20


def test_a_massive_activation_without_a_sink() -> None:
    ds = measure(random_event(200), residuals=[with_massive(200, at=17, channel=3)]).sel(layer=0)
    assert ds["massive"] == 1
    assert (int(ds["massive_position"]), int(ds["massive_channel"])) == (17, 3)
    assert ds["residual_max"] == 5000
    np.testing.assert_allclose(ds["psi"], 5000 / ds["residual_median"])
    assert ds["primary_sink_share"] < 0.1
    assert not ds["is_sink"].any()


def test_the_last_tokens_do_not_win() -> None:
    """The last token is seen by itself alone, and can have all of that one row, whatever the text."""
    event = with_sink(200, at=199)
    assert written_out(event)[:, -1, -1].min() > 0.5
    assert int(measure(event).sel(layer=0)["primary_sink"]) <= 200 - 64


@pytest.mark.parametrize(
    ("largest", "median", "massive"), [(150, 0.2, 0), (90, 0.01, 0), (150, 0.1, 1), (100, 0.01, 0), (101, 0.1, 1)]
)
def test_massive_needs_both_criteria(largest: float, median: float, massive: int) -> None:
    residual = torch.full((1, 50, D_MODEL), median)
    residual[0, ::2] *= -1
    residual[0, 4, 2] = largest
    ds = measure(random_event(50), residuals=[residual]).sel(layer=0)
    assert int(ds["massive"]) == massive
    np.testing.assert_allclose(ds["residual_median"], median)
    np.testing.assert_allclose(ds["psi"], largest / median, rtol=1e-5)


def test_sink_rate_counts_heads_above_epsilon_and_says_at_what() -> None:
    events = [with_sink(70, at=3, layer=0), random_event(70, layer=1)]
    probe = TextSinks(epsilon=(0.01, 0.3, 0.8), position=3)
    ds = measure(*events, probe=probe)
    alpha = np.stack([written_out(e).numpy()[:, 3:, 3].mean(1) for e in events])
    np.testing.assert_allclose(ds["alpha_first"], alpha, rtol=1e-4)
    for epsilon in probe.epsilon:
        assert float(ds["sink_rate"].sel(epsilon=epsilon)) == pytest.approx(100 * (alpha > epsilon).mean())
        np.testing.assert_array_equal(ds["is_sink"].sel(epsilon=epsilon), alpha > epsilon)
    assert ds["sink_rate"].values.tolist() == sorted(ds["sink_rate"].values, reverse=True)
    assert len(set(ds["sink_rate"].values)) > 1
    for name in ("alpha_first", "is_sink", "sink_rate"):
        assert (ds[name].attrs["T"], ds[name].attrs["k"]) == (70, 3)


def test_learned_sinks_take_what_the_rows_lack() -> None:
    sinks = torch.tensor([0.0, 1.0, 3.0, -2.0])
    event = random_event(90, layer=0, sinks=sinks)
    ds = measure(event, random_event(90, layer=1))
    missing = 1 - written_out(event).sum(-1).mean(-1)
    np.testing.assert_allclose(ds["learned_sink_mass"].sel(layer=0), missing, rtol=1e-4)
    assert ds["learned_sink_mass"].sel(layer=1).isnull().all()
    assert "learned_sink_mass" not in measure(random_event(90))
    assert "Learned sink logits absorb" in TextSinks().findings(ds)[-1]


def test_geometry_of_the_sink() -> None:
    event = with_sink(100, at=0, strength=4.0)
    ds = measure(event).sel(layer=0)
    assert int(ds["primary_sink"]) == 0
    norms, values = event.k[0].norm(dim=-1), event.v[0].norm(dim=-1)
    np.testing.assert_allclose(ds["sink_key_norm"], norms[:, 0] / norms.median(-1).values, rtol=1e-5)
    np.testing.assert_allclose(ds["sink_value_norm"], values[:, 0] / values.median(-1).values, rtol=1e-5)
    q, k = event.q[0], event.k[0].repeat_interleave(2, 0)
    cosine = torch.nn.functional.cosine_similarity(q[:, :, None], k[:, None], dim=-1).mean(1)
    np.testing.assert_allclose(ds["sink_cosine"], cosine[:, 0], rtol=1e-4)
    np.testing.assert_allclose(ds["median_cosine"], cosine.median(-1).values, atol=1e-6)
    assert (ds["sink_cosine"] > ds["median_cosine"] + 0.1).all()


def test_findings() -> None:
    text = [f"w{i}" for i in range(200)]
    text[0], text[7] = "The", '\n<b>"'
    events = [with_sink(200, at, layer) for layer, at in enumerate([0, 0, 7, 7, 0])]
    events.append(random_event(200, layer=5))
    residuals = [with_massive(200, 7, 11, value=5000 if layer in (1, 2, 4) else 1) for layer in range(6)]
    ds = measure(*events, residuals=residuals, text=text, probe=TextSinks(epsilon=(0.3,)))
    where, how_many, rate, massive = TextSinks().findings(ds)
    assert 'layers 0-1: token 0 "The"; layers 2-3: token 7 "\\n<b>\\""; layers 4-5: token 0 "The".' in where
    assert "more than 60 % of the attention in 5 of 6 layers and more than 30 % in 5" in how_many
    assert "Sink_1 at epsilon 0.3 is 50.0 %" in rate
    assert "(T = 200)" in rate
    assert "layers 1-2, 4" in massive
    assert 'in channel 11 of token 7 "\\n<b>\\""' in massive
    calm = TextSinks().findings(measure(random_event(80)))
    assert calm[-1].startswith("No block puts out a massive activation")


def test_parameters_that_cannot_work_are_refused() -> None:
    with pytest.raises(InterpError, match="between 0 and 1, found"):
        TextSinks(epsilon=(0.3, 1.5))
    with pytest.raises(InterpError, match="0 or more, found -1"):
        TextSinks(position=-1)
    with pytest.raises(InterpError, match="position 12 lies beyond the text's 12 tokens"):
        TextSinks(position=12).begin(context(12))
