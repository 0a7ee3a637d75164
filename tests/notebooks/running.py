"""Every notebook in `examples/` runs from top to bottom on the demo model.

Notebooks are the longest tests there are and the last to begin, and a file of tests stays with one worker: in two files
they share two.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "notebooks are stored without outputs"
    # One thread, as all tests: threads of two kernels that share the cores wait for each other at every step.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(env=alone)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in shown) >= 4
    assert not any(output["output_type"] == "error" for output in shown)
