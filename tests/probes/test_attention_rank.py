"""Rank of attention: numbers against a full SVD, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from interp.errors import InterpError
from interp.probes.attention_rank import AttentionRank, score_singular_values
from interp.seam.event import AttentionEvent
from tests.probes.events import context, lifelike_event, random_event, written_out
from tests.probes.schema import check_result

MASKS = {
    "causal": {},
    "window": {"window": 9},
    "softcap": {"softcap": 0.7},
    "learned sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


def measure(probe: AttentionRank, *events: AttentionEvent) -> xr.Dataset:
    fold = probe.begin(context(events[0].q.shape[2], len(events)))
    for event in events:
        fold.hooks()["attn.hook_event"](event.layer, event)
    return fold.result()


def all_singular_values(event: AttentionEvent) -> np.ndarray:
    return torch.linalg.svdvals(written_out(event)).numpy()


@pytest.mark.parametrize("facts", MASKS.values(), ids=MASKS)
def test_short_texts_are_exact(facts: dict, tmp_path: Path) -> None:
    event = random_event(63, **facts)
    ds = measure(AttentionRank(), event).isel(layer=0)
    sigma = all_singular_values(event)
    energy = (sigma**2).cumsum(-1) / (sigma**2).sum(-1, keepdims=True)
    share = sigma / sigma.sum(-1, keepdims=True)
    np.testing.assert_allclose(ds["singular_value"], sigma[:, :32], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ds["frobenius_squared"], (sigma**2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(ds["energy"], energy[:, :32], rtol=1e-4)
    np.testing.assert_array_equal(ds["rank90"], np.minimum((energy < 0.9).sum(-1) + 1, 33))
    np.testing.assert_allclose(ds["nuclear_norm"], sigma.sum(-1), rtol=1e-4)
    np.testing.assert_allclose(ds["effective_rank"], np.exp(-(share * np.log(share)).sum(-1)), rtol=1e-4)
    np.testing.assert_allclose(ds["sigma_share"], share.cumsum(-1)[:, :32], rtol=1e-4)
    assert not ds["nuclear_norm_error"].any()
    assert not ds["effective_rank_error"].any()
    assert (ds.attrs["method"], ds.attrs["k"], ds.attrs["n_tokens"], ds.attrs["d_head"]) == ("exact", 32, 63, 16)
    check_result(measure(AttentionRank(), event), tmp_path)


@pytest.fixture(scope="module")
def long_result() -> tuple[AttentionEvent, xr.Dataset]:
    event = lifelike_event(600, layer=2, heads=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionEvent, "pattern", lambda self: pytest.fail("wrote the pattern of a long text out"))
        return event, measure(AttentionRank(), event)


def test_long_texts_are_measured_without_the_pattern(long_result: tuple, tmp_path: Path) -> None:
    event, ds = long_result
    sigma = all_singular_values(event)
    found = ds["singular_value"].sel(layer=2).values
    matters = sigma[:, :32] >= 1e-3 * sigma[:, :1]
    assert (np.abs(found / sigma[:, :32] - 1) * matters).max() < 0.02
    np.testing.assert_allclose(ds["frobenius_squared"].sel(layer=2), (sigma**2).sum(-1), rtol=1e-5)
    assert (np.abs(ds["nuclear_norm"].sel(layer=2) - sigma.sum(-1)) <= ds["nuclear_norm_error"].sel(layer=2)).all()
    assert (ds["effective_rank_error"] > 0).all()
    assert (ds.attrs["method"], ds.attrs["passes"], ds.attrs["width"]) == ("block Lanczos", 4, 48)
    check_result(ds, tmp_path)


def test_rank_beyond_the_components_is_censored(long_result: tuple) -> None:
    event, ds = long_result
    sigma = all_singular_values(event)
    rank = ((sigma**2).cumsum(-1) < 0.9 * (sigma**2).sum(-1, keepdims=True)).sum(-1) + 1
    assert rank.min() <= 32 < rank.max(), "some heads are low-rank and some are not"
    np.testing.assert_array_equal(ds["rank90"].sel(layer=2), np.minimum(rank, 33))
    np.testing.assert_array_equal(ds["rank90_censored"].sel(layer=2), rank > 32)


@pytest.mark.parametrize(("tokens", "heads", "kv_heads"), [(1, 2, 1), (7, 4, 4), (63, 4, 2), (100, 6, 1)])
def test_scores_before_softmax(tokens: int, heads: int, kv_heads: int) -> None:
    event = random_event(tokens, heads=heads, kv_heads=kv_heads)
    keys = event.k[0].double().repeat_interleave(heads // kv_heads, 0)
    known = torch.linalg.svdvals(event.scale * event.q[0].double() @ keys.mT)[:, :16]
    found = score_singular_values(event.q[0], event.k[0], event.scale)
    assert found.shape == (heads, 16), "rank is at most d_head, whatever the number of tokens"
    torch.testing.assert_close(found[:, : known.shape[1]], known, rtol=1e-8, atol=1e-8)
    assert (found[:, known.shape[1] :] < 1e-6 * found[:, :1]).all()


def test_scores_are_those_without_mask_and_softcap() -> None:
    plain, capped = (
        measure(AttentionRank(), random_event(40, **facts)) for facts in ({}, {"softcap": 0.5, "window": 3})
    )
    xr.testing.assert_equal(plain["score_singular_value"], capped["score_singular_value"])
    share = plain["score_singular_value"] / plain["score_singular_value"].sum("channel")
    np.testing.assert_allclose(
        plain["score_effective_rank"], np.exp(-(share * np.log(share)).sum("channel")), rtol=1e-5
    )
    np.testing.assert_allclose(plain["score_energy"].isel(channel=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("tokens", [1, 2, 7, 31])
def test_fewer_tokens_than_components(tokens: int) -> None:
    ds = measure(AttentionRank(exact_below=0), random_event(tokens))
    assert ds.sizes["component"] == tokens == ds.attrs["k"]
    assert np.isfinite(ds["effective_rank"]).all()
    assert (ds["rank90"] <= tokens).all()
    assert not ds["rank90_censored"].any()


def test_layers_and_seeds_are_reproducible() -> None:
    events = [lifelike_event(200, layer, seed=layer) for layer in (0, 1)]
    probe = AttentionRank(k=8, width=16, passes=3, exact_below=64)
    xr.testing.assert_identical(measure(probe, *events), measure(probe, *reversed(events)))


def test_findings_name_the_heads_that_are_not_low_rank(long_result: tuple) -> None:
    _, ds = long_result
    wide = [int(h) for h in np.flatnonzero(ds["rank90_censored"].sel(layer=2))]
    pattern, effective, scores = AttentionRank().findings(ds)
    assert f"{len(wide)} of 6 heads need more than 32: layer 2 heads {wide[0]}-{wide[-1]}" in pattern
    assert "600 singular values" in pattern
    assert "in layer 2 head 0 to" in effective
    assert "at most 32 (the head dimension)" in scores


def test_findings_where_every_head_is_low_rank() -> None:
    ds = measure(AttentionRank(), *(lifelike_event(300, layer, heads=1) for layer in range(3)))
    assert "in every head that rank is at most 1." in AttentionRank().findings(ds)[0]


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 64}, {"passes": 0}])
def test_parameters_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(InterpError, match=f"attention_rank: {next(iter(wrong))} should"):
        AttentionRank(**wrong)
