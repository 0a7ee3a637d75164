"""Figures are found by their file names, cheaply, and stay functions whatever else was imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from interp import figures


def test_every_file_is_a_figure_with_its_probe_and_a_caption():
    files = {path.stem for path in Path(figures.__file__).parent.glob("[!_]*.py")}
    assert set(figures.names()) == files
    assert files <= set(dir(figures))
    for name in files:
        assert callable(getattr(figures, name))
        assert importlib.import_module(f"interp.figures.{name}").RESULT
        assert len(getattr(figures, name).__doc__.split("\n\n")[0]) > 40


def test_figures_of_a_result():
    assert list(figures.figures_of("channel_imbalance")) == ["channel_imbalance", "channel_surface"]
    assert list(figures.figures_of("attention_rank")) == ["rank_map", "spectrum"]
    of_sinks = ["massive_activations", "sink_map", "sink_rate", "token_heads", "token_mass"]
    assert list(figures.figures_of("text_sinks")) == of_sinks
    assert figures.figures_of("something_else") == {}


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(AttributeError, match="no figure 'sinkmap': did you mean 'sink_map'"):
        getattr(figures, "sinkmap")  # noqa: B009
    with pytest.raises(AttributeError, match="no figure 'qqqq': there are cache_attribution, channel_imbalance, "):
        getattr(figures, "qqqq")  # noqa: B009


@pytest.mark.parametrize(
    "statement",
    ["import interp.figures.sink_map", "from interp.figures.sink_map import BINS", "interp.figures.sink_map"],
)
def test_name_stays_the_function_when_its_module_is_imported(statement):
    code = f"import interp.figures; {statement}; assert interp.figures.sink_map.__name__ == 'sink_map'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_does_not_import_plotly():
    code = "import sys, interp.figures as f; f.names(); assert not {'plotly', 'torch', 'xarray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
