"""Whether a change of the code changed a number: fingerprints of a fixed set of runs of the demo model.

    python -m benchmarks.fixed_runs before.json             # at the commit before
    python -m benchmarks.fixed_runs after.json before.json  # after: says what differs, to the last bit

Logits, hook points, generated tokens, losses, what every cache holds, the datasets that are written (all but their
provenance and seconds) and the answers of `explain`. One thread, so that sums keep their order;
fingerprints of different machines or versions of torch do not compare. Only documented names are used, so the same file
runs on both sides of a move.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import interp
from interp.subjects.texts import demo_text

PROMPT, READ_ON = 192, 24
POINTS = (
    "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_v", "attn.hook_z", "attn.hook_attn_scores", "attn.hook_pattern",
    "attn.hook_column_mass", "attn.hook_lse", "attn.hook_row_entropy", "attn.hook_key_energy", "attn.hook_query_energy",
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
)  # fmt: skip


def interventions() -> dict[str, Any]:
    """Every intervention with its defaults, and combinations that meet in one layer."""
    each = {name: cls() for name, cls in interp.interventions.available().items()}
    return each | {
        "think:0.7": interp.ThinK(ratio=0.7),
        "think.recommended": interp.ThinK.recommended(0.7),
        "think:surgeon": interp.ThinK(ratio=0.7, selector="surgeon"),
        "think:gram": interp.ThinK(ratio=0.7, selector="gram"),
        "d2o:code": interp.D2O(variant="code"),
        "h2o|think": interp.H2O(budget=0.3) | interp.ThinK(),
        "d2o|think": interp.D2O(budget=0.3) | interp.ThinK(),
        "knock_out|sink_removal|snapkv": interp.KnockOut(keys=3) | interp.SinkRemoval() | interp.SnapKV(budget=0.3),
    }


def runs() -> Iterator[tuple[str, Any]]:
    """(name, arrays or text) of every run."""
    lens = interp.load("demo")
    tokens = lens.to_tokens(demo_text(), truncate=PROMPT + READ_ON)
    prompt, rest = tokens[:, :PROMPT], tokens[:, PROMPT:]
    with torch.no_grad():
        yield "logits", lens(tokens)
        wanted = [f"blocks.{layer}.{point}" for layer in (0, 11, 29) for point in POINTS]
        logits, cache = lens.run_with_cache(prompt, names_filter=wanted)
        yield "logits with hooks", logits
        for name in wanted:
            yield name, cache[name]
    yield "generate", lens.generate(prompt, max_new_tokens=READ_ON, do_sample=False)
    for name, intervention in interventions().items():
        with lens.apply(intervention):
            yield f"score {name}", lens.score(prompt, rest, chunk=1)
            held = {f"{layer} {part} {n}": x for n, (layer, part, x) in enumerate(lens.last_cache.parts())}
            yield f"cache {name}", held
            yield f"generate {name}", lens.generate(prompt, max_new_tokens=READ_ON, do_sample=False)
    for name, dataset in interp.probe(lens, prompt, list(interp.probes.available())).items():
        yield f"probe {name}", dataset
    several = interp.probe(lens, [demo_text()[:400], demo_text()[2000:2400]], ["text_sinks", "channel_imbalance"])
    for name, dataset in several.items():
        yield f"probe {name} of two texts", dataset
    for name in ("h2o|think", "recall", "d2o", "think"):
        for question, dataset in interp.explain(lens, interventions()[name], prompt, rest).items():
            yield f"explain {name} {question}", dataset


def fingerprint(value: Any) -> str:
    """SHA-256 of a tensor, a dataset as it is written and read back, text, or a dictionary of them."""
    digest = hashlib.sha256()
    if isinstance(value, xr.Dataset):
        value = _written(value)
    if isinstance(value, dict):
        digest.update(json.dumps({key: fingerprint(of) for key, of in value.items()}, sort_keys=True).encode())
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    else:
        digest.update(repr(value.tolist() if isinstance(value, np.ndarray) else value).encode())
    return digest.hexdigest()


def _written(dataset: xr.Dataset) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        read = interp.storage.load(interp.storage.save(dataset, Path(folder) / "result.nc"))
    passing = {*interp.storage.provenance(), "commit", "seconds_forward"}
    found: dict[str, Any] = {str(name): value for name, value in read.attrs.items() if name not in passing}
    for name, variable in read.drop_vars("seconds_forward", errors="ignore").variables.items():
        found[f"variable {name}"] = {"dims": repr(variable.dims), "values": variable.values, **variable.attrs}
    return found


def main(out: str, before: str | None = None) -> None:
    torch.set_num_threads(1)
    found = {}
    for name, value in runs():
        found[name] = fingerprint(value)
        print(f"{found[name][:12]}  {name}", flush=True)
    Path(out).write_text(json.dumps(found, indent=1))
    if before is not None:
        old = json.loads(Path(before).read_text())
        changed = sorted(name for name in found.keys() | old.keys() if found.get(name) != old.get(name))
        print(f"{len(found)} runs, {len(changed)} differ" + "".join(f"\n  {name}" for name in changed))
        sys.exit(bool(changed))


if __name__ == "__main__":
    main(*sys.argv[1:])
