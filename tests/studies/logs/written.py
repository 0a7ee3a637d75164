"""Small logs as the two harnesses write them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any


def lm_eval(path: Path, scores: list[float], docs: list[dict[str, Any]] | None = None, **more: Any) -> Path:
    """A samples_*.jsonl; `more` goes into every line."""
    lines = []
    for i, score in enumerate(scores):
        doc = {"question": f"what is {i}?", "article": i // 4} if docs is None else docs[i]
        row = {
            "doc_id": i, "doc": doc, "target": "A", "arguments": {"gen_args_0": {"arg_0": "Q"}}, "resps": [["A"]],
            "filtered_resps": ["A"], "filter": "none", "metrics": ["acc"], "doc_hash": f"hash of {doc}",
            "prompt_hash": "p", "target_hash": "t", "acc": score,
        }  # fmt: skip
        lines.append(json.dumps({**row, **more}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def summaries(values: list[Any], epochs: int = 1, scorer: str = "match") -> list[dict[str, Any]]:
    """Summaries of samples of inspect_ai; sample i // epochs in epoch i % epochs + 1."""
    return [
        {
            "id": f"s{i // epochs}", "epoch": i % epochs + 1, "input": f"question {i // epochs}", "target": "A",
            "metadata": {"image": f"picture {i // epochs // 3}"}, "scores": {scorer: {"value": value}},
        }
        for i, value in enumerate(values)
    ]  # fmt: skip


def inspect_ai(path: Path, rows: list[dict[str, Any]], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A .eval log with consolidated summaries, and a transcript that nobody should read."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("_journal/start.json", "{}")
        archive.writestr("samples/s0_epoch_1.json", "no JSON at all")
        archive.writestr("header.json", json.dumps({"version": 2, "status": "success"}))
        archive.writestr("summaries.json", json.dumps(rows))
    return path
