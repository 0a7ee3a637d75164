"""`make bench`: run the benchmarks named on the command line, or all of them."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = (
    "probe_cost",
    "edit_cost",
    "kernels",
    "spectrum_accuracy",
    "cache_quality",
    "cache_choice",
    "cache_decode",
    "cache_memory",
    "gram_loss",
    "icl_training",
    "emoji_vlm",
    "visual_sinks",
    "visual_sink_causes",
    "interval_coverage",
)


def main(names: list[str]) -> None:
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
