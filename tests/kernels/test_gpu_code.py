"""Every Triton kernel becomes machine code for an H100, also on a machine without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interp_kernels import operations

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("gpu_code.py")
KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_kernels_compile(dtype: str, tmp_path: Path) -> None:
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    settings |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(KERNELS)}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), dtype]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    made = dict.fromkeys((name for name in operations.names() if "triton" in operations.paths(name)), 0)
    for line in done.stdout.splitlines():
        if line.endswith(":"):
            name = line[:-1]
        else:
            made[name] += "bytes of machine code" in line
    assert len(made) >= 11
    assert all(made.values()), made  # an operation has at least one kernel
