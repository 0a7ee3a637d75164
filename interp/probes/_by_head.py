"""Small dense algebra of many heads: one Python thread a core, torch single-threaded inside each.

torch's own threads meet at a barrier after every step of a factorisation. For matrices of a few hundred rows on a
machine that is busy with something else, these barriers cost many times the work (nine eigenproblems of order 240 on
2 busy cores: over a second, against 0.06 s). Whole heads need no barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def by_head(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[function(item) for item in items]`, without gradients, on as many threads as torch.get_num_threads() says."""
    threads = min(torch.get_num_threads(), len(items))

    def run(item: Item) -> Result:
        with torch.no_grad():  # a new thread starts with gradients
            return function(item)

    if threads < 2:
        return [run(item) for item in items]
    before = torch.get_num_threads()
    try:
        # the setting is each worker's own, but threads born later inherit it: hence the `finally`
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(run, items))
    finally:
        torch.set_num_threads(before)
