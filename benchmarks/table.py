"""Results of a benchmark: printed, and kept as CSV with the machine in every row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from interp.results.provenance import provenance

RESULTS = Path(__file__).parent / "results"
MACHINE = ("cpu", "threads", "device", "torch", "transformers", "transformer_lens", "python", "commit", "time")


def publish(name: str, rows: Iterable[dict[str, Any]], device: str = "cpu") -> Path:
    """Print the rows as a table and write them, with versions and machine, to `results/<name>.csv`."""
    table = pd.DataFrame(list(rows))
    print(f"\n{name}\n{table.to_string(index=False)}", flush=True)
    facts = provenance(device)
    for key in MACHINE:
        table[key] = facts.get(key, "")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    table.to_csv(path, index=False)
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path
