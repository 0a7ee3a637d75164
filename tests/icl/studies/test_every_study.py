"""Every study: what it says of itself, and, slowly, a quick run from nothing to a report."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from interp.icl import studies
from interp.icl.studies import report
from interp.icl.studies.verdicts import NOT_REPRODUCED

EXPECTED = {
    "single-layer",
    "depth",
    "softmax-heads",
    "copying",
    "sine",
    "optimal",
    "softmax-regression",
    "algorithms",
    "language-model",
}
TRAINED_ONLY = sorted(set(studies.available()) - {"language-model"})  # that one reads the demo model, for minutes


def test_all_are_found():
    """Those whose files name one."""
    files = [path.read_text(encoding="utf-8") for path in Path(studies.__file__).parent.glob("[!_]*.py")]
    own_name = re.compile(r'^    name(?:: ClassVar\[str\])? = "([^"]+)"', re.MULTILINE)
    named = {found for text in files for found in own_name.findall(text)}
    assert set(studies.available()) == named >= EXPECTED


@pytest.mark.parametrize("name", studies.available())
def test_each_says_what_it_is(name):
    study = studies.make(name, quick=True)
    assert json.loads(json.dumps(study.settings()))["quick"] is True
    assert 10 < len(study.summary) < 90, "one line of the list of studies"
    assert re.search(r"\b\d{4}\b|arXiv", study.paper), "authors, title, venue and year"
    assert "arXiv" in study.paper or name not in EXPECTED
    assert len(study.description) > 150, "one paragraph: what is trained or loaded, and what is measured"
    assert study.title
    assert "\n" not in study.title + study.paper + study.description + study.summary
    assert all(choice.setting and choice.used for choice in study.choices())
    assert len({choice.setting for choice in study.choices()}) == len(study.choices())


@pytest.mark.parametrize("name", studies.available())
def test_each_is_found_again_by_its_result(name):
    study = studies.make(name, quick=True)
    assert type(study).__dataclass_params__.frozen
    for settings in (study.settings(), json.dumps(study.settings())):
        again = studies.of_result(xr.Dataset(attrs={"study": name, "settings": settings}))
        assert again == study
        assert hash(again) == hash(study)
    with pytest.raises(studies.InterpError, match=f"the study {name} has no setting 'no_such'"):
        studies.make(name, no_such=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED_ONLY)
def test_a_quick_run_judges_nothing_it_did_not_train(name, tmp_path):
    study = studies.make(name, quick=True)
    told = []
    ds = study.run(tmp_path, lambda fraction, what: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0
    rows = study.verdicts(ds)
    assert len(rows) >= (5 if name in EXPECTED else 1)
    assert not [row for row in rows if row.verdict == NOT_REPRODUCED]
    assert len({row.claim for row in rows}) == len(rows)
    assert sum(ds[key].dtype.kind == "f" for key in ds.data_vars) >= (5 if name in EXPECTED else 1)

    pictures = study.figures(ds)
    assert len({picture.name for picture in pictures}) == len(pictures)
    assert all(re.fullmatch(r"\w+", picture.name) and picture.figure.data for picture in pictures)
    files = report.write(study, ds, tmp_path)
    assert files["html"].read_text().count("<figure ") == len(pictures)

    began = time.perf_counter()
    again = study.run(tmp_path)
    assert time.perf_counter() - began < 20
    xr.testing.assert_allclose(again.drop_attrs(), ds.drop_attrs(), rtol=1e-6)
    stored = xr.open_dataset(tmp_path / "result.nc")
    assert np.isfinite(float(stored.attrs["threads"]))
