"""How often emoji-vlm answers to the letter on what its training never saw, and how often without the picture.

New scenes in wordings of the training, and scenes with held-out pairs of kinds in held-out wordings; blind: the same
questions about an empty picture.
"""

from __future__ import annotations

import torch

from benchmarks.table import publish
from interp.subjects.emoji.answering import shipped
from interp.subjects.emoji.evaluation import evaluate

QUESTIONS = 400


def main() -> None:
    torch.set_num_threads(1)
    reading = shipped(dtype=torch.bfloat16)
    reading.model.set_attn_implementation("eager")  # of short sequences it is the quickest on a processor
    table = evaluate(reading, QUESTIONS)
    publish(
        "emoji_vlm",
        [{"scenes": scenes, "asked": asked, **cell} for scenes, row in table.items() for asked, cell in row.items()],
    )


if __name__ == "__main__":
    main()
