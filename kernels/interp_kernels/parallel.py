"""Heads in parallel: one Python thread a core, torch single-threaded inside each.

torch's own threads meet at a barrier after every operation. A block's operations last well under a millisecond, so
on a machine that is also busy with something else those barriers cost more than the work (2 busy cores: 5 to 20
times as long). Whole heads need no barrier, and torch releases the interpreter lock while it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")

SMALL = 1 << 20  # cells of A below which starting threads costs more than it brings (about 2 ms of work)


def map_heads(function: Callable[[Task], Result], tasks: Sequence[Task], cells: int) -> list[Result]:
    """[function(task) for task in tasks], in threads when the work (in cells of A) is worth it.

    As many threads as torch.get_num_threads() says; each inherits the caller's inference mode, without gradients.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) == 1 or cells < SMALL:
        return [function(task) for task in tasks]
    inference = torch.is_inference_mode_enabled()

    def run(task: Task) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return function(task)

    try:
        # in a worker this setting is the worker's own, but torch also gives it to threads that start later
        with ThreadPoolExecutor(min(threads, len(tasks)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(run, tasks))
    finally:
        torch.set_num_threads(threads)
