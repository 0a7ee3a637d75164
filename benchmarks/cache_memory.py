"""Does freed mean freed: resident memory of a generation, beside what `cache.nbytes()` says.

Each policy in a process of its own: the demo model reads 4,096 tokens of the Debian handbook and generates 64. Peak
and final resident memory are above what the process held before; "held" is `nbytes` at the end. The last column is the
drop of the final resident memory against the full cache, over the drop of `nbytes`: 1 where every byte that was
dropped was given back.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.probe_cost import status, text
from benchmarks.table import publish

TOKENS, NEW = 4096, 64
POLICIES = ("", "think:ratio=0.5", "think:ratio=0.7", "snapkv:budget=0.2", "snapkv:budget=0.2 think:ratio=0.5")


def one(spec: str) -> None:
    """Generate under one policy and print what its process held."""
    import interp
    from interp.interventions import parse_all

    lens = interp.load("demo")
    tokens = lens.to_tokens(text()[0], truncate=TOKENS)
    lens.generate(tokens[:, :64], max_new_tokens=2, eos_token_id=None)  # warm-up
    lens.last_cache = None
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    how = {"max_new_tokens": NEW, "eos_token_id": None}
    if spec:
        with lens.apply(parse_all(spec.split())):
            lens.generate(tokens, **how)
    else:
        lens.generate(tokens, **how)
    gc.collect()
    held = lens.last_cache.nbytes() / 2**20
    print(json.dumps({"peak": status("VmHWM") - before, "final": status("VmRSS") - before, "held": held}))


def measured(spec: str) -> dict[str, float]:
    # glibc keeps freed blocks for reuse below a threshold that grows with use; with a fixed one it gives them back
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-m", "benchmarks.cache_memory", spec]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    rows: list[dict[str, Any]] = []
    found = {spec: measured(spec) for spec in POLICIES}
    full = found[""]
    for spec, seen in found.items():
        dropped = full["held"] - seen["held"]
        rows.append({
            "policy": spec or "full cache", "tokens": TOKENS, "MB held": round(seen["held"], 1),
            "peak MB above start": round(seen["peak"]), "final MB above start": round(seen["final"]),
            "freed of dropped": round((full["final"] - seen["final"]) / dropped, 2) if dropped else "",
        })  # fmt: skip
    publish("cache_memory", rows)


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
