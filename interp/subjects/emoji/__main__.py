"""Trains emoji-vlm: `python -m interp.subjects.emoji FOLDER`. Started again, it goes on from its last checkpoints."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from interp.subjects.emoji.evaluation import told
from interp.subjects.emoji.training import train, train_further


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m interp.subjects.emoji", description="Train emoji-vlm.")
    parser.add_argument("folder", type=Path, help="where checkpoints are kept, and continued from")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute; default 1")
    parser.add_argument("--questions", type=int, default=2000, help="of each condition, at the end; default 2000")
    parser.add_argument("--further", action="store_true", help="go on from the weights that ship, the last stage only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    learn = train_further if options.further else train
    print(told(learn(options.folder, options.questions)))


main()
