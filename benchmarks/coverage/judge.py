"""What the checks of one model type come to: full, partial, refused, wrong, crashed, or not built."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

Row = dict[str, str]
SOUND = ("full", "partial", "refused", "not built")
"""Verdicts that a type may have; the others are bugs."""
FACTS = ("family", "kind", "architecture", "verdict", "group", "reason", "built", "runs", "loads", "needs_eager",
         "layers", "attention_layers", "absent")  # fmt: skip
NOT_CHECKS = {*FACTS, "done", "end", "seconds"}

OWN_CODE = "softmax in the model's own code: no queries, keys and observables, so no policies"
GROUPS = (
    ("is an encoder-decoder model", "no cache policies on encoder-decoders"),
    ("which reads the text, attends", "attention of the encoder not reached"),
    ("does not run on text tokens alone", "needs more than text"),
    ("no language-model head", "no language-model head"),
    ("its attention itself", OWN_CODE),
    ("'attn.hook_event'", OWN_CODE),
    ("has no attention that a Lens", "no attention"),
    ("attention registry", "attention outside transformers' registry"),
    ("lists of layers", "several stacks of layers"),
    ("in no list of layers", "attention in no list of layers"),
    ("keys where there are", "attends to keys that are no tokens"),
    (" times in one pass", "several attention calls in a layer"),
    ("several times in this call", "several attention calls in a layer"),
    ("attention modules", "several attention calls in a layer"),
    ("computes other logits", "computes something else while looked at"),
    ("to its attention", "attention gets something that only the model understands"),
    ("the bare model does not generate", "the bare model does not generate from tokens alone"),
    ("handed a cache", "the bare model generates differently with a cache"),
    ("does not generate", "does not generate text"),
    ("reports weights", "patterns not compared: the model reports none of what it computes"),
    ("carries a bias", "an attention mask with a bias"),
    ("dropped nothing", "policies have no layer to act on"),
    ("has no layer whose cache", "policies have no layer to act on"),
    ("its cache is bounded already", "policies have no layer to act on"),
    ("latent", "latent attention"),
    ("unknown way", "readout unknown"),
    ("final norm", "readout unknown"),
    ("residual stream is unknown", "parts of the residual stream unknown"),
    ("one vector a token", "several residual streams"),
    ("unembedding", "readout unknown"),
    ("cache", "cache holds something else"),
)
"""Words of a refusal -> what it is about, the first that fits."""


class Verdict(NamedTuple):
    verdict: str
    group: str
    reason: str


def judge(row: Row) -> Verdict:
    """What a row says of its type."""
    built = row.get("built", "no answer")
    if built.startswith("failed: "):
        return Verdict("not built", "", built.removeprefix("failed: "))
    loads = row.get("loads", "")
    if loads.startswith("refused: "):
        return Verdict("refused", group(loads), loads.removeprefix("refused: "))
    if loads.startswith("crashed: "):
        return Verdict("crashed", "while loading", loads.removeprefix("crashed: "))
    if not loads or (row.get("done") != "ok" and row.get("runs") == "ok"):
        last = next((name for name, cell in row.items() if cell == "no answer"), "loads")
        return Verdict("crashed", f"at {last}", row.get("end", "no answer"))
    if row.get("runs") != "ok":
        return Verdict("crashed", "loads what does not run", row.get("runs", ""))
    cells = {name: cell for name, cell in row.items() if name not in NOT_CHECKS}
    for mark, verdict in (("WRONG", "wrong"), ("crashed: ", "crashed")):
        if found := [f"{name}: {cell.removeprefix(mark)}" for name, cell in cells.items() if cell.startswith(mark)]:
            return Verdict(verdict, ", ".join(name.split(":")[0] for name in found), "; ".join(found))
    lacking: dict[str, list[str]] = {}
    for name, cell in cells.items():
        for mark in ("refused: ", "idle: ", "unknown: "):
            if cell.startswith(mark):
                lacking.setdefault(cell.removeprefix(mark), []).append(name)
    if row.get("absent"):  # so that there is less to add up is said by that
        lacking = {text: names for text, names in lacking.items() if "such point" not in text and "add up" not in text}
        lacking |= {row["absent"]: []}
    if not lacking:
        return Verdict("full", "with eager attention" if row.get("needs_eager") else "", "")
    groups = dict.fromkeys(group(text) for text in lacking)
    told = (f"{', '.join(_together(names))}: {text}" if names else text for text, names in lacking.items())
    return Verdict("partial", " + ".join(groups), "; ".join(told))


def _together(names: list[str]) -> list[str]:
    """The checks of the four policies as one word, where all are among them."""
    policies = [name for name in names if name.split("_")[0] in ("think", "snapkv", "h2o", "d2o")]
    if len(policies) < 7:
        return names
    return [*(name for name in names if name not in policies), "all four policies"]


def group(text: str) -> str:
    """What a refusal is about."""
    return next((name for words, name in GROUPS if words in text), text[:60])


def counted(rows: list[Row]) -> str:
    """Counts of verdicts in one line."""
    counts = Counter(row["verdict"] for row in rows)
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())


def worse(rows: list[Row], before: dict[tuple[str, str], Row]) -> list[str]:
    """What a run may not find: wrong numbers, crashes, and types that were full and are no longer."""
    told = []
    for row in rows:
        was = before.get((row["family"], row["kind"]), {}).get("verdict", "not measured")
        if row["verdict"] not in SOUND or (was == "full" and row["verdict"] != "full"):
            told.append(f"{row['family']}:{row['kind']} is {row['verdict']}, and was {was}: {row['reason']}")
    return told
