"""What mkdocs is told while it builds: pages that are made from the code and the notebooks, and the navigation.

Nothing here is committed as a page: the reference, the errors and the notebooks are made anew with every build.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # mkdocs runs this file by its path

from docs import api_pages, error_page  # noqa: E402

WRITTEN = [
    {"Questions": "questions.md"},
    {"Methods": [
        {"Probes": "probes.md"}, {"Interventions": "interventions.md"}, {"Hook points": "hook_points.md"},
        {"Tasks": "tasks.md"}, {"In-context learning": "icl.md"}, {"Explorer": "explorer.md"}]},
]  # fmt: skip
LAST = [
    {"Coverage": "coverage.md"},
    {"Benchmarks": "benchmarks.md"},
    {"Models that see": "images.md"},
    {"Statistics of studies": "statistics.md"},
    {"What is trusted": "trust.md"},
    {"Words and errors": [{"Glossary": "glossary.md"}, {"Errors": "errors.md"}]},
    {"Contributing": ["contributing.md", {"Architecture": "architecture.md"}]},
]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, and say where in the navigation every page stands."""
    from mkdocs.structure.files import File

    def add(path: str, text: str) -> str:
        files.append(File.generated(config, path, content=text))
        return path

    add("index.md", at_home((ROOT / "README.md").read_text(encoding="utf-8")))
    add("contributing.md", at_home((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    add("errors.md", error_page.page())
    notebooks = [
        {title: add(f"notebooks/{path.stem}.md", text)}
        for path in sorted((ROOT / "examples").glob("*.ipynb"))
        for title, text in [notebook(path)]
    ]
    config["nav"] = [{"Home": "index.md"}, *WRITTEN, {"Notebooks": notebooks}, reference(add), *LAST]
    return files


def reference(add: Any) -> dict[str, Any]:
    """The section of the navigation that holds the API reference; its pages are added."""

    def placed(members: list[api_pages.Entry]) -> list[dict[str, str]]:
        return [{e.label: add(path, api_pages.page(e))} for path, e in api_pages.pages(members).items()]

    groups = api_pages.families()
    entries: list[Any] = [add("api/index.md", api_pages.index(groups))]
    for title, (what, members) in groups.items():
        start = add(
            f"api/{title.lower().replace(' ', '_')}/index.md",
            f"# {title}\n\n{what}\n\n{api_pages.table(members, '../')}",
        )
        entries.append({title: [start, *placed(members)]})
    taken = {e.module for _, members in groups.values() for e in members}
    inside = [{title: placed(members)} for title, members in api_pages.rooms(taken).items()]
    return {"Reference": [*entries, {"Room by room": inside}]}


def at_home(text: str) -> str:
    """A page of the repository's root as a page of the site: links into docs/ and to notebooks lead to their pages."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\]\(examples/(\w+)\.ipynb\)", r"](notebooks/\1.md)", text)
    return text.replace("](CONTRIBUTING.md", "](contributing.md").replace("](README.md", "](index.md")


def notebook(path: Path) -> tuple[str, str]:
    """(title, page) of a notebook as it is stored, which is without outputs."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    blocks = [c.source if c.cell_type == "markdown" else f"```python\n{c.source}\n```" for c in cells]
    title = re.search(r"^# (.+)$", blocks[0], re.MULTILINE)
    note = f"<small>This page is `examples/{path.name}`, whose cells the tests run on the demo model.</small>"
    return (title[1] if title else path.stem), "\n\n".join([blocks[0], note, *blocks[1:]])
