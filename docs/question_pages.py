"""The questions of `docs/questions.md`: what is asked, the lines that answer it, and the picture that they draw."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("questions.md")


@dataclass(frozen=True)
class Answer:
    """A section of the page."""

    question: str
    code: str
    picture: Path

    def figure(self) -> Any:
        """Run the lines, as a reader would; the figure that they end with."""
        names: dict[str, Any] = {"__name__": "__question__"}
        exec(compile(self.code, f"{PAGE.name}: {self.question}", "exec"), names)
        return names["figure"]


def answers() -> list[Answer]:
    """All of the page, in its order."""
    found = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        code = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        picture = re.findall(r"^!\[[^\]]+\]\((\S+)\)", section, re.MULTILINE)
        found.append(Answer(section.splitlines()[0], "\n".join(code), PAGE.parent / (picture or [""])[0]))
    return found
