"""Several texts' results as one: nothing of one text passes for another's, and each can be had back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import interp
from interp.probes import available
from interp.results.many_texts import gather, one, single
from interp.results.storage import load, save
from tests.models import shared, tokenizer

WORDS = [f"w{i}" for i in range(4, 104)]
TEXTS = [" ".join(WORDS[:n]) for n in (5, 9, 99)] + ["w40 w41 w42"]  # the third has bins of two tokens
PROBES = sorted(available())


@pytest.fixture(scope="module")
def lens() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


@pytest.fixture(scope="module")
def gathered(lens: interp.Lens) -> dict[str, xr.Dataset]:
    return interp.probe(lens, TEXTS)


@pytest.fixture(scope="module")
def alone(lens: interp.Lens) -> list[dict[str, xr.Dataset]]:
    return [interp.probe(lens, text) for text in TEXTS]


def without_times(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign_attrs(seconds_forward=0, time="")


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("text", range(len(TEXTS)))
def test_one_text_is_what_it_would_be_alone(gathered, alone, probe: str, text: int) -> None:
    found, expected = one(gathered[probe], text), alone[text][probe]
    xr.testing.assert_identical(without_times(found), without_times(expected))
    assert {n: v.dtype.kind for n, v in found.variables.items()} == {
        n: v.dtype.kind for n, v in expected.variables.items()
    }
    assert {k: type(v) for k, v in found.attrs.items()} == {k: type(v) for k, v in expected.attrs.items()}


@pytest.mark.parametrize("probe", PROBES)
def test_results_of_several_texts_survive_a_file(gathered, alone, probe: str, tmp_path: Path) -> None:
    stored = load(save(gathered[probe], tmp_path / "several.nc"))
    xr.testing.assert_identical(stored, gathered[probe])
    xr.testing.assert_identical(without_times(one(stored, 1)), without_times(alone[1][probe]))


@pytest.mark.parametrize("probe", PROBES)
def test_findings_are_about_the_text_that_was_picked(gathered, alone, probe: str) -> None:
    about = available()[probe]()
    with pytest.raises(interp.InterpError, match=r"these are results of 4 texts; pick one with .isel\(text=0\)"):
        about.findings(gathered[probe])
    for i, results in enumerate(alone):
        expected = about.findings(results[probe])
        assert about.findings(gathered[probe].isel(text=i)) == expected
        assert about.findings(one(gathered[probe], i)) == expected


def test_words_and_counts_of_each_text(gathered) -> None:
    ds = gathered["text_sinks"]
    assert ds["token_text"].dims == ("text", "token")
    assert ds["token_text"].values[3, :5].tolist() == ["<bos>", "w40", "w41", "w42", ""]
    assert ds["n_tokens"].values.tolist() == ds["T"].values.tolist() == [6, 10, 100, 4]
    assert ds["alpha_first_T"].values.tolist() == [6, 10, 100, 4]
    assert "T" not in ds["alpha_first"].attrs
    assert not {"T", "n_tokens", "tokens_sha256"} & set(ds.attrs)
    assert ds.attrs["k"] == 0, "what all texts share stays an attribute"
    assert ds.attrs["texts"] == 4
    assert set(gathered["logit_lens"]["top_token"].dims) == {"text"}
    assert all(v.attrs["units"] and v.attrs["description"] for v in ds.data_vars.values())
    assert all(ds[name].attrs["units"] == "text" for name in ("tokens_sha256",))


def test_means_are_of_quantities_only(gathered) -> None:
    ds = gathered["text_sinks"]
    for place in ("primary_sink", "massive_position", "massive_channel", "n_tokens", "T", "token_size"):
        assert f"{place}_mean" not in ds
        assert f"{place}_low" not in ds
    np.testing.assert_allclose(ds["is_sink_mean"], ds["is_sink"].mean("text"))
    assert {"psi_mean", "psi_low", "psi_high", "massive_mean"} <= set(ds)
    assert "magnitude_mean" not in gathered["channel_imbalance"]
    assert "rank90_mean" in gathered["attention_rank"]


def test_bins_of_different_width_are_numbered(gathered) -> None:
    ds = gathered["channel_imbalance"]
    assert "token_bin" not in ds.coords
    assert ds["token_bin_start"].dims == ("text", "token_bin")
    assert ds["token_bin_start"].values[2, :3].tolist() == [0, 2, 4]
    assert ds["token_bin_start"].values[0, :3].tolist() == [0, 1, 2]
    assert np.isnan(ds["token_bin_start"].values[0, 6:]).all()
    assert ds["tokens_per_bin"].values.tolist() == [1, 1, 2, 1]


def made(numbers: list[int], **attrs: object) -> xr.Dataset:
    data = {
        "id": ("token", np.array(numbers)),
        "level": ("layer", np.ones(2), {"units": "1", "T": len(numbers), **attrs}),
    }
    return xr.Dataset(data, {"where": ("layer", ["a", "b"])}, {"title": "made", **attrs})


def test_attributes_that_only_some_texts_have_and_names_that_are_taken() -> None:
    parts = [made([5, 6, 7], text="a.txt", level="x", some=3, nested=[1, 2]), made([8], text="", level="y")]
    parts[0]["extra"] = ("layer", np.array([4, 5]), {"units": "token"})
    both = gather(parts)
    assert both["text"].values.tolist() == [0, 1]
    assert both["text_attribute"].values.tolist() == ["a.txt", ""]
    assert both["level_attribute"].values.tolist() == ["x", "y"]
    assert both["level_some"].values[0] == 3
    assert np.isnan(both["level_some"].values[1])
    assert both["where"].dims == ("layer",)
    assert "token" not in both.coords, "no labels where the texts had none"
    xr.testing.assert_identical(one(both, 1), parts[1])
    again = one(both, 0)
    assert (again.attrs["some"], type(again.attrs["some"]), again.attrs["nested"]) == (3, int, "[1, 2]")
    assert again["id"].dtype == parts[0]["id"].dtype
    xr.testing.assert_identical(again["extra"], parts[0]["extra"])
    assert "extra_mean" not in both
    assert parts[0]["level"].attrs["T"] == 3, "the parts are left as they were"


def test_one_refuses_what_is_not_there(gathered, alone) -> None:
    with pytest.raises(interp.InterpError, match="there is no text 4; these are results of 4 texts"):
        one(gathered["logit_lens"], 4)
    with pytest.raises(interp.InterpError, match="one text already"):
        one(alone[0]["logit_lens"], 0)
    assert single(alone[0]["logit_lens"]) is alone[0]["logit_lens"]
    xr.testing.assert_identical(one(gathered["logit_lens"], -1), one(gathered["logit_lens"], 3))


def test_picking_leaves_the_gathered_result_alone(gathered) -> None:
    before = gathered["text_sinks"].copy(deep=True)
    one(gathered["text_sinks"], 0)
    single(gathered["text_sinks"].isel(text=1))
    xr.testing.assert_identical(gathered["text_sinks"], before)


def test_a_list_of_one_text(lens) -> None:
    found = interp.probe(lens, TEXTS[:1], "text_sinks")["text_sinks"]
    assert found.sizes["text"] == 1
    assert found["token_text"].dims == ("text", "token")
    assert "psi_low" not in found
    (by_itself,) = interp.probe(lens, TEXTS[0], "text_sinks").values()  # another probe may have the pattern written out
    xr.testing.assert_identical(without_times(one(found, 0)), without_times(by_itself))
    with pytest.raises(interp.InterpError, match="results of 1 text;"):
        single(found)


def test_report_of_a_picked_text(gathered, alone, tmp_path: Path) -> None:
    from interp.report.content import content_of

    picked = {name: result.isel(text=1) for name, result in gathered.items()}
    content, expected = content_of(picked, {}, None), content_of(alone[1], {}, None)
    assert content.n_tokens == 10
    assert content.table == expected.table
    assert [s.findings for s in content.sections] == [s.findings for s in expected.sections]


def test_compared_models_keep_their_own_words(alone) -> None:
    one_model, other = alone[0]["text_sinks"], alone[3]["text_sinks"]
    both = interp.compare({"a": one_model, "b": other})
    assert both["token_text"].sel(model="b").values.tolist() == ["<bos>", "w40", "w41", "w42", "", ""]
    assert "T" not in both.attrs
