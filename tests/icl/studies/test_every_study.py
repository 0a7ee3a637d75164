"""Every study: what it says of itself, and, slowly, a quick run from nothing to a report."""

from __future__ import annotations

import json
import re
import time

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
TRAINED_ONLY = sorted(EXPECTED - {"language-model"})


def test_all_are_found():
    assert set(studies.available()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_says_what_it_is(name):
    study = studies.make(name, quick=True)
    assert json.loads(json.dumps(study.settings()))["quick"] is True
    assert 10 < len(study.summary) < 90
    assert "arXiv" in study.paper
    assert len(study.description) > 150
    assert all(choice.setting and choice.used for choice in study.choices())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED_ONLY)
def test_a_quick_run_judges_nothing_it_did_not_train(name, tmp_path):
    study = studies.make(name, quick=True)
    told = []
    ds = study.run(tmp_path, lambda fraction, what: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0
    rows = study.verdicts(ds)
    assert len(rows) >= 5
    assert not [row for row in rows if row.verdict == NOT_REPRODUCED]
    assert len({row.claim for row in rows}) == len(rows)
    assert sum(ds[name].dtype.kind == "f" for name in ds.data_vars) >= 5

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
