"""`make coverage`: measure model types, and keep what is found of all of them."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is built here
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

from benchmarks.coverage import kinds, page, processes
from benchmarks.coverage.build import build
from benchmarks.coverage.judge import FACTS, Row, counted, judge, worse


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("kinds", nargs="*", help="model types, `llama` or `vl:gemma3`; all of them where none is named")
    parser.add_argument("--quick", action="store_true", help="the important ones")
    parser.add_argument("--jobs", type=int, default=2, help="types at a time")
    parser.add_argument("--timeout", type=float, default=90, help="seconds for one type")
    parser.add_argument("--write", action="store_true", help="keep what is found of the types named, too")
    options = parser.parse_args(arguments)
    some = bool(options.kinds or options.quick)
    targets = kinds.targets(options.kinds) if options.kinds else kinds.quick() if options.quick else kinds.targets([])
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    began, rows = time.monotonic(), []
    _warm_up()
    for target, row in processes.measured(targets, options.jobs, options.timeout):
        family, kind = target.split(":")
        verdict = judge(row)._asdict()
        rows.append({"family": family, "kind": kind, **verdict, **row})
        told = " ".join(f"{verdict['group']} {verdict['reason']}".split())
        print(f"{target:34} {verdict['verdict']:10} {row['seconds']:>5} s  {told[:150]}", flush=True)
    rows.sort(key=lambda row: targets.index(f"{row['family']}:{row['kind']}"))
    print(f"{len(rows)} types in {time.monotonic() - began:.0f} s: {counted(rows)}")
    before = {(row["family"], row["kind"]): row for row in page.rows()} if page.CSV.exists() else {}
    problems = worse(rows, before)
    print(*problems, sep="\n", file=sys.stderr)
    if options.write and some:
        before |= {(row["family"], row["kind"]): row for row in rows}
        rows = list(before.values())
    if options.write or not some:
        write(rows)
        page.PAGE.write_text(page.page(), encoding="utf-8")
        print(f"wrote {page.CSV.name} and {page.PAGE.name}")
    return 1 if problems else 0


def _warm_up() -> None:
    """What all of them need is imported once, before processes part."""
    import interp

    lens = interp.load(build("causal", "llama"))
    ids = torch.randint(5, 70, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), lens.apply(interp.SnapKV(budget=0.5, window=4) | interp.ThinK(ratio=0.5, recent=4, window=4)):
        lens.generate(ids, max_new_tokens=2)
    interp.probe(lens, ids[0])


def write(rows: list[Row]) -> None:
    """The rows as CSV, with the versions in each. Seconds differ from run to run, and stay out of it."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    rows = [versions | {k: v for k, v in row.items() if k not in ("seconds", "done")} for row in rows]
    columns = list(dict.fromkeys([*FACTS, *(name for row in rows for name in row)]))
    with page.CSV.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
