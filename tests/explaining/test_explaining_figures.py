"""Each figure shows the numbers of its answer: planted values are found where they were planted."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from interp import figures
from interp.explaining import available
from interp.figures._bins import COLUMNS, mean_in_bins, starts
from tests.explaining.example_answers import example_answers

ANSWERS = example_answers(layers=5, heads=4, kv_heads=2, width=16, tokens=600)


@pytest.fixture
def answers() -> dict[str, xr.Dataset]:
    return {name: ds.copy(deep=True) for name, ds in ANSWERS.items()}


def test_every_question_has_a_figure():
    assert set(ANSWERS) <= set(available())
    assert all(figures.figures_of(name) for name in available())


def test_merge_ledger_counts_each_layer_and_bins_positions(answers):
    ds = answers["ledger"]
    ds["layer_evicted"][:] = 0.0
    ds["layer_evicted"][3, 250:255] = 1.0
    heat, deleted, merged, *kinds = figures.merge_ledger(ds).data
    layer, is_merged = ds["layer"].values, ds["merged"].values == 1
    assert list(deleted.x) == [((layer == i) & ~is_merged).sum() for i in range(5)]
    assert list(merged.x) == [((layer == i) & is_merged).sum() for i in range(5)]
    assert list(merged.base) == list(deleted.x), "merged tokens are drawn after the deleted ones"
    assert heat.x[heat.z[3].argmax()] == 250
    assert heat.z[3].sum() == pytest.approx(1.0)
    assert not heat.z[[0, 1, 2, 4]].any()
    np.testing.assert_allclose(kinds[1].y, ds["kind_evicted"])


def test_bins_average_all_positions_once():
    values = np.random.default_rng(0).uniform(size=(3, 1000))
    binned, first = mean_in_bins(values), starts(1000)
    assert binned.shape[1] == len(first) <= COLUMNS
    width = np.diff(np.append(first, 1000))
    np.testing.assert_allclose((binned * width).sum(1), values.sum(1))
    np.testing.assert_allclose(mean_in_bins(values[:, :7]), values[:, :7])


def test_mask_overlap_shows_pairs_of_different_heads_only(answers):
    ds = answers["masks"]
    ds["overlap_heads"][:] = [[1.0, 0.25], [0.25, 1.0]]
    ds["drift"][..., 2] = 0.5
    fig = figures.mask_overlap(ds)
    lines = {trace.name: trace.y for trace in fig.data[1:]}
    np.testing.assert_allclose(lines["two heads of the layer"], 0.25)
    np.testing.assert_allclose(lines["chosen again 12 tokens later"], 0.5)
    np.testing.assert_allclose(
        lines["two of 2 prompts"], ds["overlap_prompts"].values[..., [0, 1], [1, 0]].mean((1, 2)), rtol=1e-6
    )
    assert [shape.y0 for shape in fig.layout.shapes] == [float(ds["chance"])]


def test_missed_mass_names_each_layers_most_missed_token(answers):
    ds = answers["missed_mass"]
    ds["missed_of_token"][2, 123] = 0.9
    fig = figures.missed_mass(ds)
    heat = fig.data[0]
    np.testing.assert_allclose(heat.z, ds["missed_mass"].mean("step"), rtol=1e-5)
    assert fig.layout.yaxis2.ticktext[2].startswith("123 “")
    assert [trace.name for trace in fig.data[1:]] == [
        "attention missed",
        "least possible",
        "error of the attention output",
    ]


def test_missed_mass_of_a_channel_policy_shows_its_errors(answers):
    ds = answers["missed_mass"]
    ds["missed_mass"][:] = 0.0
    heat, *lines = figures.missed_mass(ds).data
    np.testing.assert_allclose(heat.z, ds["logit_error"].mean("step"), rtol=1e-5)
    assert [trace.name for trace in lines] == ["relative logit error", "error of the attention output"]


def test_missed_mass_of_a_policy_of_value_channels_shows_the_error_of_the_output(answers):
    ds = answers["missed_mass"]
    ds["missed_mass"][:] = ds["logit_error"][:] = 0.0
    heat, line = figures.missed_mass(ds).data
    np.testing.assert_allclose(heat.z, ds["output_error"].mean("step"), rtol=1e-5)
    assert line.name == "error of the attention output"


def test_perturbation_names_the_tokens_that_lost_most(answers):
    ds = answers["perturbation"]
    ds["nll_difference"][:], ds["next_text"][:] = 0.01, "dull"
    ds["nll_difference"][[3, 7]], ds["next_text"][[3, 7]] = [2.0, 1.0], [" two", " one"]
    fig = figures.perturbation(ds)
    named = {(note.x, note.text) for note in fig.layout.annotations if note.textangle}
    assert named == {(3, "“ two”"), (7, "“ one”")}
    assert fig.layout.yaxis2.range[1] > 2.5, "there is room for the names"


def test_perturbation_says_which_tokens_got_worse(answers):
    ds = answers["perturbation"]
    heat, bars = figures.perturbation(ds).data
    np.testing.assert_array_equal(heat.z, ds["attn_out_error"])
    np.testing.assert_array_equal(bars.y, ds["nll_difference"])
    worse = ds["nll_difference"].values > 0
    colours = np.array(bars.marker.color)
    assert len(set(colours[worse])) == len(set(colours[~worse])) == 1
    assert colours[worse][0] != colours[~worse][0]


def test_cache_attribution_orders_the_strongest(answers):
    ds = answers["attribution"]
    ds["mean_effect"][7], ds["effect"][7] = 5.0, -5.0
    random, ranked, dots, means = figures.cache_attribution(ds).data
    assert len(random.x) + len(ranked.x) == ds.sizes["sample"]
    assert means.x[0] == pytest.approx(-5.0)
    np.testing.assert_allclose(dots.x[: ds.sizes["step"]], -5.0)
    assert means.text[0].startswith(f"L{int(ds['layer'][7])} H{int(ds['kv_head'][7])} {int(ds['position'][7])} “")
    np.testing.assert_array_equal(random.y, ds["mean_effect"].values[ds["random"].values == 1])


def test_cache_attribution_of_value_channels_says_so(answers):
    ds = answers["attribution"].drop_vars("token_text").rename({"position": "channel"})
    ds.attrs["of"] = "value_channels"
    fig = figures.cache_attribution(ds)
    assert fig.layout.title.text.startswith("64 value channels put back")
    assert fig.data[-1].text[0].split()[2] == "ch"
