"""Loading a model, as every command that runs one does."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from interp.cli.terminal import bar
from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.lens.lens import Lens


def check_device(device: str | None) -> None:
    """Raise InterpError where torch cannot use a device here, or knows none of that name."""
    if device is None:
        return
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?|auto", device):
        raise InterpError(f"--device is cpu, cuda, cuda:1, ... or auto (over all GPUs), not {device!r}.")
    if device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available() or int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise InterpError(f"there is no device {device} that torch can use here; leave --device out, or pass cpu.")


def loaded(model: str, dtype: str, device: str | None = None) -> tuple[Lens, dict[str, float]]:
    """A Lens, and the seconds that imports and loading took; device: a name that `check_device` takes."""
    with bar("loading", 1) as step:
        began = time.perf_counter()
        import interp
        from interp.subjects.quiet import quiet_transformers

        _ = interp.Lens  # brings torch, transformers and transformer-lens: imports, not loading
        imported = time.perf_counter()
        with quiet_transformers():
            lens = interp.load(model, dtype=dtype, device_map=device)
        seconds = {"import": imported - began, "load": time.perf_counter() - imported}
        step(1, 1)
    return lens, seconds
