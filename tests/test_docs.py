"""Pages that a command writes are, section by section, what that command writes today; errors and names have a page.

A method that has no section yet fails nothing: `make docs` writes it. A section whose method is gone does.
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from docs import (
    api_pages,
    cures,
    error_page,
    write_hook_points,
    write_icl,
    write_interventions,
    write_probes,
    write_tasks,
)
from docs.sections import items, markdown, sections, settings
from interp.icl import studies
from tests.test_house import FLOORS, PACKAGES

ROOT = Path(__file__).parents[1]
WRITERS = {
    module.__name__.split(".")[-1]: module
    for module in (write_hook_points, write_interventions, write_probes, write_tasks)
}


@cache
def today(writer: str) -> dict[str, str]:
    return sections(WRITERS[writer].page())


def committed(writer: ModuleType) -> dict[str, str]:
    return sections(writer.PAGE.read_text(encoding="utf-8"))


LISTED = [(name, heading) for name, writer in WRITERS.items() for heading in committed(writer)]


@pytest.mark.parametrize(("writer", "heading"), LISTED, ids=lambda text: text or "head")
def test_what_a_page_lists_is_current(writer: str, heading: str) -> None:
    assert heading in today(writer), f"nothing is called so any more: {heading}; run python -m docs.write"
    assert committed(WRITERS[writer])[heading] == today(writer)[heading], "run python -m docs.write"


def test_the_page_of_studies_lists_what_there_is() -> None:
    heads = [write_icl.head(cls) for cls in studies.available().values()]
    known = {heading: body for head in heads for heading, body in sections(head).items() if heading}
    for heading, body in committed(write_icl).items():
        assert not heading or heading in known, f"no study is called so any more: {heading}"
        assert body.startswith(known.get(heading, "")), f"run python -m docs.write_icl runs/, or rewrite {heading}"


def test_sections_are_told_apart() -> None:
    """A test that takes two sections for one cannot find the one that is old."""
    page = "# Page\n\nhead\n\n## One\n\n### Part\n\ntext\n\n## Two\n"
    assert sections(page) == {"": "# Page\n\nhead", "## One": "### Part\n\ntext", "## Two": ""}


class _Described:
    """Does something, in one line.

    More of it, with code:

        x = 1

    Args:
        first: what it is
            over two lines: and a colon.
        low, high: both limits.

    Prose after the list.

    Examples:
        >>> 1 + 1
        2
    """


class _Derived(_Described):
    """Args as a word is no block.

    Args:
        high: its own.
    """


def test_docstrings_become_lists() -> None:
    assert settings(_Described) == {
        "first": "what it is over two lines: and a colon.",
        "low": "both limits.",
        "high": "both limits.",
    }
    assert settings(_Derived)["high"] == "its own."
    assert settings(_Derived)["low"] == "both limits."
    text = markdown(inspect.getdoc(_Described) or "", leave_out=("Args",))
    assert text == (
        "Does something, in one line.\n\nMore of it, with code:\n\n    x = 1\n\nProse after the list.\n\n"
        "```python\n>>> 1 + 1\n2\n```"
    )
    assert "- `first`: what it is over two lines: and a colon." in markdown(inspect.getdoc(_Described) or "")
    assert items("not a name at all: text") == {}


MODULE = """
class OddError(InterpError): ...
class OdderError(odd.OddError): ...
class Foreign(ValueError): ...
def f(x):
    raise OdderError(f"x is {x!r}, not {x + 1:.2f}; "
                     "ask for less.")
class A:
    def g(self):
        error = InterpError("one " + ("two" if self else "three"))
        raise errors.InterpError(message) from error
    def h(self):
        raise Foreign("not ours")
        return InterpError("made, and raised by the caller.")
"""


def test_every_error_that_is_made_is_found() -> None:
    tree = ast.parse(MODULE)
    known = error_page.family([tree])
    assert known == {"InterpError", "OddError", "OdderError"}
    assert [(where, name, text) for where, _, name, text in error_page.made(tree, known)] == [
        ("f", "OdderError", "x is ‹x›, not ‹x + 1›; ask for less."),
        ("A.g", "InterpError", "one two / three"),
        ("A.g", "errors.InterpError", "‹message›"),
        ("A.h", "InterpError", "made, and raised by the caller."),
    ]


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("the text is empty; pass some text.", "pass some text."),
        ("think: ratio should be below 1, found ‹x›.", "ratio should be below 1."),
        ("steps are increasing numbers, not ‹x›.", "steps are increasing numbers."),
        ("a group takes 2 of 3; found ‹n›.", "a group takes 2 of 3."),
        ("there is no probe ‹name›; did you mean ‹near›? There are ‹all›.", "did you mean ‹near›? There are ‹all›."),
        ("a set of hook_q|k is * wrong: leave_one out.", "leave&#95;one out."),
        ("this needs a name.", "Give what the sentence asks for."),
        ("a budget of 3 tokens has no room for 4 sinks.", cures.CURES["has no room for"]),
    ],
)
def test_every_error_has_a_cure(sentence: str, told: str) -> None:
    assert error_page.cure(sentence) == told


def test_the_page_of_errors_has_them_all() -> None:
    page, found = error_page.page(), error_page.sentences()
    assert len(found) > 300
    for sentence in found:
        assert error_page.shown(sentence.template) in page
        assert error_page.cure(sentence.template)


def test_only_a_new_file_may_leave_its_cure_to_the_sentence() -> None:
    """Families take new files without an edit elsewhere, so their errors may fall back; all others have a cure."""
    members = {entry.module for _, entries in api_pages.families().values() for entry in entries}
    fallen = [s for s in error_page.sentences() if error_page.cure(s.template) == error_page.NOTHING_SAID]
    said = [f"{s.module}: {s.template}" for s in fallen if not any(f"{s.module}.".startswith(f"{m}.") for m in members)]
    assert not said, f"give these a cure in docs/cures.py: {said}"


@pytest.mark.parametrize(
    "complaint",
    ["holes elsewhere", "the last segment holds", "None means no cap", "should lie in 0 to", "is at least 1 (or None)"],
)
def test_a_cure_says_more_than_the_complaint(complaint: str) -> None:
    found = [sentence.template for sentence in error_page.sentences() if complaint in sentence.template]
    assert found
    for template in found:
        assert error_page.cure(template) in cures.CURES.values(), template


def test_no_cure_is_left_without_an_error() -> None:
    told = [sentence.template for sentence in error_page.sentences()]
    assert not [words for words in cures.CURES if not any(words in text for text in told)]


def test_the_reference_has_a_page_for_every_public_module_and_one_only() -> None:
    groups = api_pages.families()
    members = [entry for _, entries in groups.values() for entry in entries]
    rest = [entry for entries in api_pages.rooms({entry.module for entry in members}).values() for entry in entries]
    paths = [*api_pages.pages(members), *api_pages.pages(rest)]
    assert len(paths) == len(set(paths))
    for module in ("interp.probes.text_sinks", "interp.figures.sink_map", "interp.runs.probing", "interp.lens.lens",
                   "interp.icl.studies.depth", "interp_kernels.attention_apply", "interp_kernels.facts"):  # fmt: skip
        assert f"api/{module}.md" in paths
    for private in ("interp.figures._theme", "interp_kernels.attention_apply.cpu", "interp.icl.language._mlp"):
        assert f"api/{private}.md" not in paths


def test_every_folder_is_a_room_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root holds only what lies in no folder, and a folder that nobody listed has a title all the same."""
    at_the_root = {entry.module for entry in api_pages.rooms(set())["Root"]}
    assert not {module for module in at_the_root if module.startswith("interp.") and (module.count(".") > 1)}
    assert "interp.settings" not in at_the_root
    assert "interp.errors" in at_the_root
    monkeypatch.delitem(api_pages.TITLES, "interp.settings")
    assert {entry.module for entry in api_pages.rooms(set())["Settings"]} >= {"interp.settings.reading"}


def test_the_architecture_names_every_room() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for room in (room for rooms in FLOORS for room in rooms if room != "interp"):
        path = PACKAGES[room.split(".")[0]].relative_to(ROOT) / room.replace(".", "/")
        name = f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"
        assert name in page, f"docs/architecture.md says nothing of {name}"


def test_the_drawing_of_floors_is_the_one_that_is_tested() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawing = page.split("```")[1]
    drawn = {
        int(number): text for number, text in re.findall(r"floor (\d+) (.*?)(?=\n   floor|\Z)", drawing, re.DOTALL)
    }
    for number, rooms in enumerate(FLOORS[:-3]):  # what is started, above, is drawn another way
        named = {
            name.rstrip("/").removesuffix(".py") for name in re.findall(r"\b(?:interp|kernels)/[\w/.]+", drawn[number])
        }
        expected = {str(PACKAGES[room.split(".")[0]].relative_to(ROOT) / room.replace(".", "/")) for room in rooms}
        assert named == expected, f"docs/architecture.md draws {sorted(named)} on floor {number}"


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/glossary.md", "docs/questions.md"])
def test_paths_that_a_page_names_are_there(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`((?:interp|kernels|apps|docs|tests|benchmarks|examples)/[\w/.]*)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]
