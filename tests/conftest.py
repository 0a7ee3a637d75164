"""The environment of every test: no network, and Triton in its interpreter where there is no GPU.

These lines come before any import of transformers or triton, which read the variables once.
"""

import os

import torch  # imports neither of them

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PIP_NO_INDEX"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tiny models gain nothing from a second thread, and lose a lot to one that waits on a busy machine.
torch.set_num_threads(1)
