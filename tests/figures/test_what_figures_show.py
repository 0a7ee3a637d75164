"""Each figure shows the numbers of its dataset: planted values are found where they were planted."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from interp import figures
from interp.figures._lines import LINE
from interp.figures._need import FigureError
from interp.figures._text import escape, visible
from interp.figures.token_mass import LINES, SHOWN
from tests.example_results import example_results

RESULTS = example_results(layers=5, heads=4, kv_heads=2, width=16, tokens=600)


@pytest.fixture
def results() -> dict[str, xr.Dataset]:
    return {name: ds.copy(deep=True) for name, ds in RESULTS.items()}


def test_channel_imbalance_is_relative_to_the_median_of_the_head(results):
    ds = results["channel_imbalance"]
    ds["energy"][:] = 2.0
    ds["energy"].loc[{"tensor": "key", "layer": 3, "kv_head": 1, "channel": 7}] = 2000.0
    ds["energy"].loc[{"tensor": "value", "layer": 0, "kv_head": 0}] = 0.0
    fig = figures.channel_imbalance(ds)
    panels = {annotation.text: trace for annotation, trace in zip(fig.layout.annotations, fig.data, strict=False)}
    keys, values = panels["keys after rotary"], panels["values"]
    row = list(keys.y).index("layer 3 · kv head 1")
    assert keys.z[row, 7] == pytest.approx(3.0)
    assert keys.customdata[row, 7] == pytest.approx(1000)
    assert np.count_nonzero(keys.z) == 1
    assert np.isnan(values.z[0]).all(), "a head without energy has no median to compare with"
    assert fig.layout.coloraxis.cmax == pytest.approx(3.0)
    assert {trace.coloraxis for trace in fig.data} == {"coloraxis"}, "keys and values share one scale"


def test_channel_imbalance_without_rotary_draws_keys_and_values(results):
    fig = figures.channel_imbalance(results["channel_imbalance"].sel(tensor=["key", "value"]))
    assert [annotation.text for annotation in fig.layout.annotations] == ["keys", "values"]


def test_channel_surface_chooses_the_most_unbalanced_head(results):
    ds = results["channel_imbalance"]
    ds["max_over_median"].loc[{"tensor": "key", "layer": 2, "kv_head": 1}] = 1e6
    ds["max_over_median"].loc[{"tensor": "value", "layer": 4, "kv_head": 0}] = 1e9
    fig = figures.channel_surface(ds)
    assert "layer 2, key/value head 1" in fig.layout.title.text
    for trace, tensor in zip(fig.data, ("key", "value"), strict=True):
        np.testing.assert_array_equal(trace.z, ds["magnitude"].sel(tensor=tensor, layer=2, kv_head=1))
    assert fig.layout.scene.zaxis.range == fig.layout.scene2.zaxis.range, "keys and values share one scale"
    assert "layer 4, key/value head 0" in figures.channel_surface(ds, layer=4, kv_head=0).layout.title.text
    assert "layer 2, key/value head 0" in figures.channel_surface(ds, layer=2, kv_head=0).layout.title.text


def test_spectrum_draws_a_chosen_head_on_top(results):
    ds = results["attention_rank"]
    fig = figures.spectrum(ds, layer=3, head=2)
    chosen = [trace for trace in fig.data if trace.line.dash == "dash"]
    sigma = ds["singular_value"].sel(layer=3, head=2).values
    score_energy = ds["score_energy"].sel(layer=3, head=2).values
    assert len(chosen) == 4
    np.testing.assert_allclose(chosen[0].y, sigma / sigma[0], rtol=1e-5)
    np.testing.assert_allclose(chosen[3].y, score_energy, rtol=1e-5)
    assert "layer 3 head 2" in fig.layout.title.text
    with pytest.raises(FigureError, match="both layer and head"):
        figures.spectrum(ds, layer=3)
    with pytest.raises(FigureError, match="head 99"):
        figures.spectrum(ds, layer=3, head=99)


def test_spectrum_shows_median_band_and_bounds(results):
    ds = results["attention_rank"]
    fig = figures.spectrum(ds)
    medians = [trace for trace in fig.data if trace.hovertemplate]
    energy = ds["energy"].values.reshape(-1, ds.sizes["component"])
    np.testing.assert_allclose(medians[1].y, np.median(energy, 0), rtol=1e-6)
    np.testing.assert_allclose(medians[1].customdata[:, 1], np.quantile(energy, 0.9, axis=0), rtol=1e-6)
    lines = {(shape.x0, shape.x1) for shape in fig.layout.shapes if shape.x0 == shape.x1}
    assert lines == {(16, 16)}, "the scores' rank is bounded by d_head"
    assert [shape.y0 for shape in fig.layout.shapes if shape.y0 == shape.y1] == [0.9, 0.9]


def test_rank_map_marks_what_was_cut_off(results):
    ds = results["attention_rank"]
    ds["rank90"][:] = 3
    ds["rank90_censored"][:] = 0
    ds["rank90"][2, 1], ds["rank90_censored"][2, 1] = 33, 1
    pattern, numbers, scores, _ = figures.rank_map(ds).data
    assert pattern.text[2, 1] == ">32"
    assert (np.delete(pattern.text.ravel(), 2 * 4 + 1) == "3").all()
    assert pattern.z[2, 1] == pytest.approx(np.log2(33))
    assert numbers.text[2 * 4 + 1] == ">32"
    assert scores.text[0, 0] == str(int(ds["score_rank90"][0, 0]))


def test_sink_map_shows_single_positions_although_columns_are_binned(results):
    ds = results["text_sinks"]
    ds["mean_received"][:] = 1e-3
    ds["mean_received"][:, :, 500:] = np.nan
    ds["mean_received"][3, :, 123] = 0.5
    ds["primary_sink"][3], ds["primary_sink_share"][3] = 123, 0.5
    heat, rings, bars = figures.sink_map(ds).data
    row, column = np.unravel_index(np.nanargmax(heat.z), heat.z.shape)
    assert row == 3
    assert abs(heat.x[column] - 123) <= 3
    assert heat.customdata[3, column] == pytest.approx(0.5)
    assert heat.text[3, column].startswith("123 “")
    assert np.isnan(heat.z[:, -1]).all()
    assert heat.z.shape[1] <= 128
    assert rings.x[3] == 123
    assert bars.x[3] == 0.5


def test_token_mass_lays_the_text_out_without_overlap(results):
    ds = results["text_sinks"]
    bars = figures.token_mass(ds).data[1]
    assert len(bars.x) == SHOWN
    end = np.asarray(bars.base) + np.asarray(bars.x)
    line = np.asarray(bars.y)
    assert end.max() <= LINE
    assert (np.diff(line) >= 0).all()
    same_line = np.diff(line) == 0
    assert (end[:-1][same_line] == np.asarray(bars.base)[1:][same_line]).all()
    breaks = [i for i, text in enumerate(ds["token_text"].values[: SHOWN - 1]) if "\n" in text]
    assert breaks
    assert all(line[i + 1] == line[i] + 1 for i in breaks)


def test_token_mass_of_empty_lines_stays_readable(results):
    ds = results["text_sinks"]
    ds["token_text"][:] = "\n"
    fig = figures.token_mass(ds)
    assert len(fig.data[1].x) == LINES
    assert fig.layout.title.text.endswith("(first 60 of 600 tokens)")
    assert fig.layout.height < 1500


def test_token_mass_says_what_it_shows(results):
    ds = results["text_sinks"]
    ds["mean_received"][:] = 0.001
    ds["mean_received"][2, 3, 17] = 0.25
    ds["mean_received"][:, :, 30] = np.nan
    fig = figures.token_mass(ds, layer=2, head=3)
    bars = fig.data[1]
    assert bars.customdata[17][1] == "25.000% of attention"
    assert bars.customdata[30][1].endswith("too few queries")
    assert bars.insidetextfont.color[17] == "white"
    assert len(set(bars.marker.color)) == 3
    assert fig.layout.title.text == "Attention received, layer 2, head 3 (first 400 of 600 tokens)"
    assert figures.token_mass(ds).data[1].customdata[17][1] == f"{(0.25 + 19 * 0.001) / 20:.3%} of attention"


@pytest.mark.parametrize(
    ("figure", "result", "where", "message"),
    [
        ("token_mass", "text_sinks", {"layer": 7}, "layer 7 is not in this result, which has 0 to 4"),
        ("token_mass", "text_sinks", {"head": -1}, "head -1 is not in this result, which has 0 to 3"),
        ("channel_surface", "channel_imbalance", {"kv_head": 2}, "kv_head 2 is not in this result, which has 0, 1"),
    ],
)
def test_absent_head_is_refused(results, figure, result, where, message):
    with pytest.raises(FigureError, match=message):
        getattr(figures, figure)(results[result], **where)


def test_logit_lens_shows_both_attributions_and_the_token_of_each_layer(results):
    ds = results["logit_lens"]
    fig = figures.logit_lens(ds)
    probability, rank, attention, mlp, heads = fig.data
    np.testing.assert_array_equal(probability.x, ds["lens_probability"])
    np.testing.assert_array_equal(rank.x, ds["lens_rank"])
    np.testing.assert_array_equal(attention.x, ds["attention_attribution"])
    np.testing.assert_array_equal(mlp.x, ds["mlp_attribution"])
    np.testing.assert_array_equal(heads.z, ds["head_attribution"])
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax, "no contribution is drawn in the neutral colour"
    assert [label.split("  ")[1] for label in fig.layout.yaxis.ticktext] == ["0", "1", "2", "3", "4"]
    assert "&lt;script&gt;" in fig.layout.yaxis.ticktext[0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n", r"\n"),
        (" a", " a"),
        ("\x00\x7f\x85", r"\x00\x7f\x85"),
        ("\u202e\ufeff\u2028", r"\u202e\ufeff\u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        ("\ue000", r"\ue000"),
        ("é漢🧑‍🔬", "é漢🧑‍🔬"),
    ],
)
def test_visible_shows_what_the_eye_would_miss(text, shown):
    assert visible(text) == shown


def test_escape_leaves_nothing_for_plotly_to_interpret():
    assert escape('<b>&lt;"$\\alpha$') == '&lt;b&gt;&amp;lt;"&#36;\\alpha&#36;'
    assert escape("abcdef", most=4) == "abc…"
    assert escape("&&&&&", most=4) == "&amp;&amp;&amp;…", "cut before escaping, so that no entity is cut"


def test_sink_rate_counts_heads_above_epsilon(results):
    ds = results["text_sinks"]
    ds["alpha_first"][:] = 0.0
    ds["alpha_first"].loc[{"layer": 2, "head": 1}] = 0.5
    ds["alpha_first"].loc[{"layer": 2, "head": 3}] = 0.25
    (bars,) = figures.sink_rate(ds).data
    np.testing.assert_allclose(bars.y, [0, 0, 25, 0, 0])
    (bars,) = figures.sink_rate(ds, epsilon=0.2).data
    np.testing.assert_allclose(bars.y, [0, 0, 50, 0, 0])


def test_token_heads_shows_the_chosen_token_or_the_sink_of_most_layers(results):
    ds = results["text_sinks"]
    ds["primary_sink"][:] = [7, 0, 7, 3, 7]
    ds["mean_received"].loc[{"token": 7, "layer": 3, "head": 2}] = 0.75
    fig = figures.token_heads(ds)
    assert "token 7 " in fig.layout.title.text
    (heat,) = fig.data
    assert heat.z[list(heat.y).index("layer 3"), 2] == pytest.approx(75)
    assert "token 5 " in figures.token_heads(ds, token=5).layout.title.text
    with pytest.raises(FigureError, match="token 600 is not in this result"):
        figures.token_heads(ds, token=600)


def test_massive_activations_are_marked_where_they_are(results):
    ds = results["text_sinks"]
    ds["massive"][:] = [0, 1, 0, 0, 0]
    ds["residual_max"][:] = [3.0, 5000.0, 4.0, 4.0, 4.0]
    ds["massive_position"][1], ds["massive_channel"][1] = 9, 44
    largest, median = figures.massive_activations(ds).data
    np.testing.assert_allclose(largest.y, ds["residual_max"])
    np.testing.assert_allclose(median.y, ds["residual_median"])
    assert [colour == largest.marker.color[1] for colour in largest.marker.color] == [False, True, False, False, False]
    assert largest.text[1].startswith("token 9 ")
    assert largest.text[1].endswith("channel 44")
