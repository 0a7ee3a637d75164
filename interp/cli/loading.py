"""Loading a model, as every command that runs one does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from interp.cli.terminal import bar

if TYPE_CHECKING:
    from interp.lens.lens import Lens


def loaded(model: str, dtype: str) -> tuple[Lens, dict[str, float]]:
    """A Lens, and the seconds that imports and loading took."""
    with bar("loading", 1) as step:
        began = time.perf_counter()
        import interp
        from interp.subjects.quiet import quiet_transformers

        _ = interp.Lens  # brings torch, transformers and transformer-lens: imports, not loading
        imported = time.perf_counter()
        with quiet_transformers():
            lens = interp.load(model, dtype=dtype)
        seconds = {"import": imported - began, "load": time.perf_counter() - imported}
        step(1, 1)
    return lens, seconds
