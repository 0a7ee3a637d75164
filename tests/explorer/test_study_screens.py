"""The pages In-context learning and Studies, with a study that is really run, and with tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as some

from interp.files import private
from interp.icl import studies
from interp_explorer import tables
from tests.explorer.opening import charts, opened, sentences

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"policy": ["a", "b"] * 20, "bytes": rng.uniform(size=40), "loss": rng.uniform(size=40), "seed": [1] * 40}
    )


@pytest.mark.slow
def test_a_study_runs_here_and_its_folder_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(private, "cache_home", lambda: tmp_path)
    app = opened("in_context", study="softmax-regression")
    app.toggle(key="run_study").set_value(True).run()
    assert sentences(app) == ""
    ran = charts(app)
    study = studies.make("softmax-regression", quick=True)
    ds = app.session_state["view"].data["softmax-regression"]
    assert app.dataframe[0].value["found"].tolist() == [row.found for row in study.verdicts(ds)]
    assert len(ran) == len(study.figures(ds)) > 0

    (folder,) = private.private_folder("studies", "softmax-regression").iterdir()
    app = opened("studies", folder=str(folder))
    assert sentences(app) == ""
    assert app.selectbox(key="file").value == "result.nc", "the result comes before its parts"
    assert [chart["layout"]["title"] for chart in charts(app)] == [chart["layout"]["title"] for chart in ran]


@pytest.mark.slow
def test_heads_of_the_model_are_those_that_the_library_finds():
    import interp
    from interp.icl.language import head_findings, head_scores
    from interp_explorer.text import plain

    app = opened("in_context", heads="true")
    assert sentences(app) == ""
    said = " ".join(element.value for element in app.markdown)
    for sentence in head_findings(head_scores(interp.load("demo"), interp.subjects.demo_text(), samples=4)):
        assert plain(sentence) in said
    assert charts(app)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_table_is_filtered_and_its_front_drawn(rows, kind, tmp_path):
    rows.to_parquet(tmp_path / "r.parquet") if kind == "parquet" else rows.to_csv(tmp_path / "r.csv", index=False)
    app = opened("studies", folder=str(tmp_path))
    app.multiselect(key="filters").set_value(["policy", "bytes"]).run()
    app.multiselect(key="f policy").set_value(["a"]).run()
    app.slider(key="f bytes").set_value((0.2, 0.8)).run()
    assert sentences(app) == ""
    wanted = rows[(rows["policy"] == "a") & rows["bytes"].between(0.2, 0.8)]
    assert len(app.dataframe[0].value) == len(wanted)
    others, front, _ = charts(app)[0]["data"]
    best = tables.pareto(wanted, "bytes", "loss", less_x=True, less_y=True)
    assert front["text"] == ["a"] * best.sum()
    assert others["text"] == ["a"] * (~best).sum()

    script: dict = {}
    code = app.session_state["view"].code
    exec("\n".join(line for line in code if not line.endswith(".show()")), script)
    pd.testing.assert_frame_equal(script["table"], wanted, check_dtype=False)


@given(
    some.lists(some.tuples(*[some.floats(-3, 3).map(lambda x: round(x, 1)) | some.just(np.nan)] * 2), max_size=20),
    some.booleans(),
    some.booleans(),
)
def test_the_front_is_what_no_row_beats(points, less_x, less_y):
    def beats(a, b):
        pairs = zip(a, b, (less_x, less_y), strict=True)
        ahead = [(p < q) - (q < p) if less else (q < p) - (p < q) for p, q, less in pairs]
        return min(ahead) >= 0 and max(ahead) > 0

    whole = [i for i, point in enumerate(points) if not np.isnan(point).any()]
    wanted = [i for i in whole if not any(beats(points[j], points[i]) for j in whole)]
    table = pd.DataFrame(points, columns=["x", "y"], dtype=float)
    assert np.flatnonzero(tables.pareto(table, "x", "y", less_x=less_x, less_y=less_y)).tolist() == wanted


def test_a_result_of_another_version_is_a_sentence(tmp_path):
    import xarray as xr

    ds = xr.Dataset({"gone": ("x", [1.0])}, attrs={"study": "single-layer", "settings": '{"quick": true}'})
    ds.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    assert "is of another version" in sentences(opened("studies", folder=str(tmp_path)))


def test_any_other_result_is_listed_number_by_number(tmp_path):
    import xarray as xr

    ds = xr.Dataset({"alone": ((), 2.5), "many": ("x", [1.0, 3.0])})
    ds.to_netcdf(tmp_path / "mine.nc", engine="h5netcdf")
    app = opened("studies", folder=str(tmp_path))
    assert app.dataframe[0].value["alone"].tolist() == [2.5]
    app.selectbox(key="opened variable").set_value("many").run()
    assert app.dataframe[0].value["many"].tolist() == [1.0, 3.0]
    assert sentences(app) == ""


@pytest.mark.parametrize("settings", ["{", "[1]", '{"quick": true, "gone": 1}'])
def test_a_result_with_other_settings_is_a_sentence(tmp_path, settings):
    import xarray as xr

    ds = xr.Dataset({"gone": ("x", [1.0])}, attrs={"study": "single-layer", "settings": settings})
    ds.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    assert "setting" in sentences(opened("studies", folder=str(tmp_path)))


@pytest.mark.parametrize("folder", ["/no/such/folder", "~nobody-of-this-name/x", "/" + "long" * 2000, "a\0b"])
def test_a_bad_results_folder_is_a_sentence(folder):
    assert "there is no folder" in sentences(opened("studies", folder=folder))


def test_an_empty_folder_and_a_far_too_large_one_are_sentences(tmp_path, monkeypatch):
    assert "no results" in sentences(opened("studies", folder=str(tmp_path)))
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text("x,y\n1,2\n")
    monkeypatch.setattr(tables, "WALKED", 2)
    assert "more than 2 files" in sentences(opened("studies", folder=str(tmp_path)))


def test_a_table_of_numbers_alone_with_infinite_ones_is_drawn(rows, tmp_path):
    only = rows[["bytes", "loss"]].copy()
    only.loc[3, "loss"] = np.inf
    only.to_csv(tmp_path / "r.csv", index=False)
    app = opened("studies", folder=str(tmp_path))
    app.multiselect(key="filters").set_value(["loss"]).run()
    assert sentences(app) == ""
    assert app.slider(key="f loss").value == (only["loss"].min(), only["loss"].drop(3).max())
    assert len(charts(app)) == 1


def test_columns_that_hold_lists_are_no_filters(tmp_path):
    pd.DataFrame({"layers": [[1, 2], [3]], "loss": [0.1, 0.2]}).to_parquet(tmp_path / "r.parquet")
    app = opened("studies", folder=str(tmp_path))
    assert sentences(app) == ""
    assert app.multiselect(key="filters").options == ["loss"]


def test_a_damaged_result_is_a_sentence(tmp_path):
    for file in ("bad.nc", "bad.parquet", "bad.csv"):
        (tmp_path / file).write_bytes(b"")
    app = opened("studies", folder=str(tmp_path))
    for file in ("bad.nc", "bad.parquet", "bad.csv"):
        app.selectbox(key="file").set_value(file).run()
        assert sentences(app)
