"""Writes the pictures of docs/questions.md: `python -m docs.write_question_pictures [WORD ...]`.

Runs the lines of every question, or of those whose picture has a name with one of the words in it, on the demo model,
prints what they print, and photographs the figure that they end with. Needs Chromium, and some minutes.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from docs.question_pages import answers
from docs.write_pictures import photograph

WIDTH = 1100  # pixels


def main(words: list[str]) -> None:
    warnings.simplefilter("ignore")
    for answer in answers():
        if words and not any(word in answer.picture.stem for word in words):
            continue
        print(f"## {answer.question}")
        figure = answer.figure()
        answer.picture.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "figure.html"
            figure.write_html(page, config={"displayModeBar": False})
            photograph(page, answer.picture, WIDTH, int(figure.layout.height or 450) + 20)
        print(f"wrote {answer.picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
