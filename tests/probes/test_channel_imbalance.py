"""Channel imbalance: hand-made channels, scipy's Spearman, and what is missing without rotation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from interp.probes.channel_imbalance import VARIABLES, ChannelImbalance, imbalance, token_consistency
from interp.seam.event import AttentionEvent
from tests.probes.events import context, random_event
from tests.probes.schema import check_result

BLANK = tuple(VARIABLES)  # in layers whose keys are not rotated, before rotation; `attrs["pre_rotary"]` says which


def measure(*events: AttentionEvent, absent: dict | None = None) -> xr.Dataset:
    about = context(events[0].q.shape[2], len(events))
    about.lens.absent = absent or {}
    fold = ChannelImbalance().begin(about)
    for event in events:
        fold.hooks()["attn.hook_event"](event.layer, event)
    return fold.result()


@pytest.mark.parametrize(
    ("energy", "max_over_median", "top10_share", "participation_ratio"),
    [
        ([2, 2, 2, 2], 1, 1 / 4, 1),
        ([1, 1, 1, 5], 5, 5 / 8, 64 / (4 * 28)),
        ([4, 1, 3, 2], 4 / 2.5, 4 / 10, 100 / (4 * 30)),
        ([0, 7, 0, 0], np.inf, 1, 1 / 4),
        ([1] * 18 + [2, 20], 20, 22 / 40, 1600 / (20 * 422)),  # the tenth of 20 channels is 2
        ([1] * 20 + [2], 2, 4 / 22, 22**2 / (21 * 24)),  # of 21, it is 3
    ],
)
def test_metrics_of_hand_made_energies(
    energy: list[float], max_over_median: float, top10_share: float, participation_ratio: float
) -> None:
    e = np.array(energy, float)
    found = imbalance(np.stack([e, e[::-1]]))
    differences = np.abs(e[:, None] - e).mean() / (2 * e.mean())  # Gini's own definition
    for name, known in {
        "max_over_median": max_over_median,
        "top10_share": top10_share,
        "gini": differences,
        "participation_ratio": participation_ratio,
    }.items():
        np.testing.assert_allclose(found[name], [known, known], err_msg=name)


def test_token_consistency_is_spearmans_correlation() -> None:
    draw = np.random.default_rng(0)
    size, energy = draw.exponential(size=(2, 30, 17)), draw.exponential(size=(2, 17))
    size[1] = energy[1] * draw.uniform(0.5, 2, (30, 17))
    known = [np.mean([spearmanr(token, e).statistic for token in head]) for head, e in zip(size, energy, strict=True)]
    np.testing.assert_allclose(token_consistency(size, energy), known, rtol=1e-6)
    assert known[1] > 0.7 > 0.3 > abs(known[0])


def planted(layer: int = 4, strength: float = 10.0) -> AttentionEvent:
    """Channel 3 of kv head 1's keys is strong for every token; values are flat."""
    event = random_event(100, layer=layer)
    event.k[0, 1, :, 3] *= strength
    return event


def test_energies_and_magnitudes(tmp_path: Path) -> None:
    event = planted()
    ds = measure(event).isel(layer=0)
    for name, x in (("key", event.k[0]), ("value", event.v[0])):
        np.testing.assert_allclose(ds["energy"].sel(tensor=name), x.square().mean(1), rtol=1e-5)
        np.testing.assert_allclose(ds["magnitude"].sel(tensor=name, token_bin=12), x[:, 12:14].abs().mean(1), rtol=1e-5)
    assert ds["token_bin"].values.tolist() == list(range(0, 100, 2)), "100 tokens make 50 bins of 2"
    assert int(ds["energy"].sel(tensor="key", kv_head=1).argmax("channel")) == 3
    assert ds["max_over_median"].sel(tensor="key", kv_head=1) > 50
    assert ds["max_over_median"].sel(tensor="value", kv_head=1) < 3
    check_result(measure(event), tmp_path)


def test_the_last_token_bin_may_be_shorter() -> None:
    event = random_event(129)  # 64 bins of 3 would need 192 tokens: 43 bins
    magnitude = measure(event)["magnitude"].sel(tensor="value", layer=0)
    assert magnitude.sizes["token_bin"] == 43
    np.testing.assert_allclose(magnitude.isel(token_bin=-1), event.v[0, :, 126:].abs().mean(1), rtol=1e-5)


def test_one_token() -> None:
    ds = measure(random_event(1))
    assert ds.sizes["token_bin"] == 1
    np.testing.assert_allclose(ds["token_consistency"], 1)


def test_keys_before_rotation_where_they_can_be_had() -> None:
    event = random_event(40, unrotate=lambda k: 3 * k)
    ds = measure(event)
    assert ds["tensor"].values.tolist() == ["key_pre_rotary", "key", "value"]
    energy = ds["energy"]
    np.testing.assert_allclose(energy.sel(tensor="key_pre_rotary"), 9 * energy.sel(tensor="key"), rtol=1e-5)
    assert "QK-norm" in ds.attrs["pre_rotary"]


def test_without_rotation_the_tensor_is_absent_and_says_why() -> None:
    ds = measure(random_event(40), absent={"blocks.0.attn.hook_pre_rot_k": "keys are latent"})
    assert ds["tensor"].values.tolist() == ["key", "value"]
    assert ds.attrs["pre_rotary"] == "not available in any layer: keys are latent"
    assert "rotated" in measure(random_event(40)).attrs["pre_rotary"]


def test_a_layer_without_rotation_among_others_is_blank() -> None:
    ds = measure(random_event(40, layer=0, unrotate=lambda k: k), random_event(40, layer=1), random_event(40, layer=2))
    before = ds["max_over_median"].sel(tensor="key_pre_rotary")
    assert np.isfinite(before.sel(layer=0)).all()
    assert before.sel(layer=[1, 2]).isnull().all()
    assert ds.attrs["pre_rotary"].startswith("not available in layers 1-2:")
    assert all("nan" not in sentence for sentence in ChannelImbalance().findings(ds))


def test_values_may_be_narrower_than_keys() -> None:
    event = random_event(40)
    event.v = event.v[..., :10]
    energy = measure(event)["energy"].sel(layer=0)
    assert energy.sel(tensor="value").isnull().any("kv_head").values.tolist() == [False] * 10 + [True] * 6
    assert energy.sel(tensor="key").notnull().all()


def test_findings_compare_keys_with_values_and_name_the_channel() -> None:
    ds = measure(random_event(100, layer=3, unrotate=lambda k: k), planted(4))
    keys_and_values, worst, rotation, consistency = ChannelImbalance().findings(ds)
    ratio = ds["max_over_median"].median(["layer", "kv_head"])
    factor = float(ratio.sel(tensor="key") / ratio.sel(tensor="value"))
    assert f"keys are {factor:.3g} times as unbalanced as values" in keys_and_values
    assert "layer 4, key/value head 1: channel 3 has" in worst
    assert "Before the rotary embedding" in rotation
    assert "Spearman" in consistency
