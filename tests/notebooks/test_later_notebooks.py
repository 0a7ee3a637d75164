"""The second half of the notebooks, see `running.py`."""

from pathlib import Path

import pytest

from tests.notebooks.running import NOTEBOOKS, run


@pytest.mark.parametrize("path", NOTEBOOKS[len(NOTEBOOKS) // 2 :], ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    run(path)
