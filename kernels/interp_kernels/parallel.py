"""Heads in parallel: one Python thread a core, torch single-threaded inside each.

torch's own threads meet at a barrier after every operation. A block's operations last well under a millisecond, so
on a machine that is busy with something else too those barriers cost many times the work itself. Shares of heads
need no barrier, and torch releases the interpreter lock while it computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from .blocks import Task, cells

SMALL = 1 << 23  # cells of A (about 25 ms of work) below which starting threads costs more than it brings


def for_each(tasks: Sequence[Task], function: Callable[[Task], None]) -> None:
    """Call function on every task, in threads when there is enough work; an exception in one is raised here.

    As many threads as torch.get_num_threads() says. Gradients are off in them; inference mode is the caller's.
    """
    threads = torch.get_num_threads()
    enough = sum(cells(block) for task in tasks for block in task.blocks) >= SMALL
    workers = min(threads, len(tasks)) if enough else 1
    inference = torch.is_inference_mode_enabled()

    def run(task: Task) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            function(task)

    try:
        if threads > 1:
            torch.set_num_threads(1)
        if workers < 2:
            for task in tasks:
                function(task)
        else:  # the setting is each thread's own, so every worker makes it again
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                deque(pool.map(run, tasks), maxlen=0)
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
