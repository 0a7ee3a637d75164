"""The lines of README.md and docs/questions.md run as they stand, and every question has its picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.question_pages import Answer, answers

ROOT = Path(__file__).parents[1]


def test_every_question_has_lines_and_a_picture() -> None:
    asked = answers()
    assert len(asked) >= 10
    assert len({answer.picture for answer in asked}) == len(asked)
    for answer in asked:
        assert answer.question.endswith("?")
        assert 5 <= len(answer.code.splitlines()) <= 20, answer.question
        assert answer.picture.is_file(), f"run python -m docs.write_question_pictures {answer.picture.stem}"


@pytest.mark.slow
@pytest.mark.parametrize("answer", answers(), ids=lambda answer: answer.picture.stem)
def test_the_lines_of_a_question_draw_its_figure(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    figure = answer.figure()
    assert figure.layout.title.text
    assert len(figure.data)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_lines_of_the_readme_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert lines
    monkeypatch.chdir(tmp_path)
    for block in lines:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "sinks.html").stat().st_size > 10_000
