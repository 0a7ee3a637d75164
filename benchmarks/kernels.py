"""The attention operations beside torch's own SDPA, with achieved bytes and FLOPs a second against this machine's.

On a CPU: the demo model's shapes in fp32. On a GPU: those of a model of eight billion parameters in fp16, up to 32k
tokens. `interp bench kernels` is the same without the file.
"""

from __future__ import annotations

import torch
from interp_kernels.timing import Shape, measure

from benchmarks.table import publish


def main() -> None:
    if torch.cuda.is_available():
        rows = measure((4096, 16384, 32768), shape=Shape(32, 8, 128), device="cuda", dtype=torch.float16)
        publish("kernels_gpu", rows, "cuda")
    else:
        publish("kernels", measure((1024, 2048, 4096, 8192), device="cpu", rounds=9))


if __name__ == "__main__":
    main()
