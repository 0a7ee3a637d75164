"""Turn the HTML pages of The Debian Administrator's Handbook into one text file for long-context benchmarks.

`make bench-data` fetches and unpacks Debian's package debian-handbook and calls

    python -m benchmarks.extract_handbook FOLDER

with the unpacked package's folder. Tags are stripped, white space is collapsed, and pages follow in the order
of their file names, one line each. The text is by Raphaël Hertzog and Roland Mas, CC BY-SA 3.0 or GPL 2+; it is kept in
the cache folder and is not part of this project.
"""

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path

from interp.subjects.weight_cache import cache_home

PAGES = Path("usr/share/doc/debian-handbook/html/en-US")
SILENT = {"head", "script", "style"}  # elements whose text nobody reads
INLINE = {"a", "abbr", "b", "code", "em", "i", "span", "strong", "sub", "sup", "tt"}  # these do not end a word


def handbook_path() -> Path:
    """Where `make bench-data` leaves the text."""
    return cache_home() / "texts" / "debian-handbook.txt"


class _Words(HTMLParser):
    """Collects the visible text of one page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = 0  # depth inside SILENT elements

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent += tag in SILENT
        self._boundary(tag)

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in SILENT
        self._boundary(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._boundary(tag)

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data)

    def _boundary(self, tag: str) -> None:
        if tag not in INLINE:
            self.parts.append(" ")


def page_text(html: str) -> str:
    """The visible words of one HTML page with single spaces between them."""
    words = _Words()
    words.feed(html)
    words.close()
    return " ".join("".join(words.parts).split())


def extract(pages: Path) -> str:
    """The text of all pages of a folder in file-name order, one line a page."""
    return "\n".join(page_text(page.read_text(encoding="utf-8")) for page in sorted(pages.glob("*.html"))) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the handbook's text to the cache folder.")
    parser.add_argument("folder", type=Path, help="where the package debian-handbook was unpacked")
    pages = parser.parse_args().folder / PAGES
    if not any(pages.glob("*.html")):
        sys.exit(f"there are no HTML pages in {pages}: is the package debian-handbook unpacked there?")
    text, target = extract(pages), handbook_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {len(text):,} characters")


if __name__ == "__main__":
    main()
