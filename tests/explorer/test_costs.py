"""What a rerun costs: time of this process, and memory that it keeps."""

from __future__ import annotations

import gc
import time

import psutil
import pytest

from tests.explorer.opening import charts, opened, sentences

pytestmark = pytest.mark.timeout(900)


def steps(app, count: int) -> list[float]:
    """Move the slider of ε so many times; seconds of processor time each rerun took."""
    took = []
    for i in range(count):
        before = time.process_time()
        app.slider(key="epsilon").set_value(round(0.1 + 0.05 * (i % 17), 2)).run()
        took.append(time.process_time() - before)
    assert sentences(app) == ""
    return took


def test_fifty_reruns_keep_little_memory():
    app = opened("sinks")
    steps(app, 5)  # what is imported and compiled the first time is no growth
    gc.collect()
    before = psutil.Process().memory_info().rss
    steps(app, 50)
    gc.collect()
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    print(f"grown by {grown:.1f} MiB in 50 reruns")
    assert grown < 50


@pytest.mark.slow
def test_a_slider_redraws_soon_at_two_thousand_tokens():
    app = opened("sinks", tokens="2048", layer="4", head="2")
    assert len(charts(app)) == 5
    took = sorted(steps(app, 12))
    print(f"median {1000 * took[6]:.0f} ms, longest {1000 * took[-1]:.0f} ms")
    assert took[6] < 0.3
