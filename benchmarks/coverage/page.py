"""Writes `docs/coverage.md` from `results/coverage.csv`: `python -m benchmarks.coverage.page`. `make docs` does it too;
only `make coverage` measures."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

Row = dict[str, str]
ROOT = Path(__file__).parents[2]
CSV = ROOT / "benchmarks" / "results" / "coverage.csv"
PAGE = ROOT / "docs" / "coverage.md"
FAMILIES = {
    "causal": "language models (`AutoModelForCausalLM`)",
    "vl": "models of images and text (`AutoModelForImageTextToText`), reading text",
    "variant": "settings of released models that differ from their config's defaults",
    "seq2seq": "encoder-decoders, a sample",
    "masked": "encoders, a sample",
}
VERDICTS = ("full", "partial", "refused", "wrong", "crashed", "not built")

HEAD = """# Coverage

Which of transformers' model types a Lens reads, measured: every type that the auto classes know is built small, with
random weights, from its own config class (nothing is downloaded), and what a Lens says of it is compared with the model
itself. Every number here comes from `benchmarks/results/coverage.csv`, which has a column for each check; `make
coverage` measures anew. Measured with transformers {transformers} and torch {torch}, on a CPU in fp32.

A type is **full** where all of this holds, **partial** where some of it is refused with a reason and the rest holds,
and **refused** where `interp.load` says why it would not do:

- logits are the model's own, bit for bit, without hooks and with hooks that read, and with padding;
- patterns are the model's own `output_attentions` (or what its attention function returns) to 1e-4, with padding too;
  the column mass is the sum of the pattern's columns; what heads put out is the pattern times the values;
- the residual stream adds up, and its end, read out, gives the model's logits;
- greedy generation gives the model's own text, without hooks, with hooks, and with padding;
- the cache policies ThinK, SnapKV, H2O and D2O run and drop something, and the first three, told to keep everything,
  change no token (D2O always drops);
- all probes run with their defaults.

Random weights say nothing of how good a policy is. Models of images and text read text alone here. A type that several
released models share is measured with its config's defaults; what some releases change in ways that attention sees has
rows of its own.
"""


def rows() -> list[Row]:
    """What the last run of all types found."""
    with CSV.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page() -> str:
    """The whole page."""
    found = rows()
    return "\n".join([
        HEAD.format(**{name: found[0][name] for name in ("transformers", "torch")}),
        "## How many\n", *_table(_counts(found)),
        "\n## Full\n", *_full(found),
        "\n## Partial\n", "What is named is refused, in one sentence that says why; all else holds.\n",
        *_table(_partial(found)),
        "\n## Refused\n", *_table(_refused(found)),
        *_unsound(found),
        "\n## Not built\n", "Their config or their class did not make a small model.\n",
        *_table([("type", "why"), *((_name(row), row["reason"][:160]) for row in _of(found, "not built"))]),
    ]) + "\n"  # fmt: skip


def _counts(found: list[Row]) -> list[tuple[str, ...]]:
    counts = Counter((row["family"], row["verdict"]) for row in found)
    shown = [verdict for verdict in VERDICTS if any(row["verdict"] == verdict for row in found)]
    lines = [
        (what, *(str(counts[family, verdict]) for verdict in shown), str(sum(counts[family, v] for v in shown)))
        for family, what in FAMILIES.items()
    ]
    return [("", *shown, "all"), *lines]


def _full(found: list[Row]) -> Iterator[str]:
    for family, what in FAMILIES.items():
        full = [row for row in _of(found, "full") if row["family"] == family]
        if full:
            yield f"{what[0].upper()}{what[1:]}: {', '.join(map(_kind, full))}.\n"
    yield (
        "¹ loaded with `attn_implementation='eager'`, which the Lens asks for. "
        "² a hybrid: some layers have no attention."
    )


def _kind(row: Row) -> str:
    hybrid = int(row["attention_layers"]) < int(row["layers"])
    return f"`{row['kind']}`{'¹' if row['needs_eager'] else ''}{'²' if hybrid else ''}"


def _partial(found: list[Row]) -> list[tuple[str, ...]]:
    """One line for each group of reasons: types, and the sentence of the first of them."""
    made = [("types", "what is lacking", "in the words of the first")]
    for group, some in _grouped(_of(found, "partial")):
        made.append((", ".join(map(_name, some)), group, some[0]["reason"][:300]))
    return made


def _refused(found: list[Row]) -> list[tuple[str, ...]]:
    made = [("types", "why", "in the words of the first")]
    for group, some in _grouped(_of(found, "refused")):
        made.append((", ".join(map(_name, some)), group, some[0]["reason"][:300]))
    return made


def _unsound(found: list[Row]) -> Iterator[str]:
    """Bugs, while there are some."""
    bugs = [*_of(found, "wrong"), *_of(found, "crashed")]
    if bugs:
        yield "\n## Wrong, or stopped by an error that is none of ours\n"
        yield from _table([("type", "what", "details"), *((_name(b), b["verdict"], b["reason"][:300]) for b in bugs)])


def _of(found: list[Row], verdict: str) -> list[Row]:
    return [row for row in found if row["verdict"] == verdict]


def _grouped(some: list[Row]) -> Iterable[tuple[str, list[Row]]]:
    """By group, the largest first."""
    groups: dict[str, list[Row]] = {}
    for row in some:
        groups.setdefault(row["group"], []).append(row)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _name(row: Row) -> str:
    """The type, with its family where that is not plain."""
    return f"`{row['kind']}`" if row["family"] in ("causal", "variant") else f"`{row['family']}:{row['kind']}`"


def _table(lines: list[tuple[str, ...]]) -> Iterator[str]:
    for i, cells in enumerate(lines):
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"
        if i == 0:
            yield f"|{' --- |' * len(cells)}"


def _cell(text: str) -> str:
    """Text of an error in a cell: angle brackets and bars are no Markdown here."""
    text = re.sub(r"[<>]", lambda m: {"<": "&lt;", ">": "&gt;"}[m[0]], " ".join(text.split()))
    return re.sub(r"([|*\[\]])", r"\\\1", text).replace("_", "\\_") if "`" not in text else text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
