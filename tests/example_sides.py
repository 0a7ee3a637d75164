"""A prompt's two continuations that look like `interp.side_by_side`'s own, without a model: for tests of figures."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tests.example_results import example_text


def example_sides(tokens: int = 1024, **_: int) -> dict[str, xr.Dataset]:
    """What `interp.side_by_side` returns, by the name that figures know it by."""
    rng, steps = np.random.default_rng(3), max(1, tokens // 8)
    text = np.array(example_text(steps), dtype=object)
    logprob = -rng.exponential(1.0, (2, 2, steps)).astype("float32")
    sides = ["unchanged", "intervened"]
    ds = xr.Dataset(
        {
            "token_id": (("side", "step"), np.ones((2, steps), int)),
            "token_text": (("side", "step"), np.array([text, text[::-1]], dtype=object)),
            "logprob": (("side", "by", "step"), logprob),
            "shift": (("side", "step"), logprob[:, 1] - logprob[:, 0]),
        },
        coords={"side": sides, "by": sides, "step": np.arange(steps)},
        attrs={"first_divergence": 0},
    )
    return {"side_by_side": ds}
