"""Long English texts for the benchmarks: The Debian Administrator's Handbook and the Jargon File.

`make bench-data` fetches and unpacks Debian's packages debian-handbook and jargon-text and calls

    python -m benchmarks.long_texts FOLDER

with the folder where both were unpacked. White space is collapsed; of the handbook's HTML pages tags are stripped, and
they follow in the order of their file names, one line each. The handbook is by Raphaël Hertzog and Roland Mas, CC BY-SA
3.0 or GPL 2+; the Jargon File is in the public domain. They are kept in the cache folder and are not part of this
project.
"""

import argparse
import gzip
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

from interp.subjects.weight_cache import cache_home

PAGES = Path("usr/share/doc/debian-handbook/html/en-US")
JARGON = Path("usr/share/doc/jargon-text/jargon.txt.gz")
SILENT = {"head", "script", "style"}  # elements whose text nobody reads
INLINE = {"a", "abbr", "b", "code", "em", "i", "span", "strong", "sub", "sup", "tt"}  # these do not end a word


def path_of(name: str) -> Path:
    """Where `make bench-data` leaves a text: "debian-handbook" or "jargon-file"."""
    return cache_home() / "texts" / f"{name}.txt"


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


def handbook(pages: Path) -> str:
    """The text of all pages of a folder in file-name order, one line a page."""
    return "\n".join(page_text(page.read_text(encoding="utf-8")) for page in sorted(pages.glob("*.html"))) + "\n"


def jargon(path: Path) -> str:
    """The Jargon File from its first entry on; what stands before are forewords and a list of all entries."""
    text = gzip.decompress(path.read_bytes()).decode("latin-1")
    first = re.search(r"^ +:[^:\n]+: ", text, re.MULTILINE)
    if first is None:
        sys.exit(f"{path} has no entries that start as :entry: does.")
    return " ".join(text[first.start() :].split()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the benchmarks' long texts to the cache folder.")
    parser.add_argument("folder", type=Path, help="where the packages debian-handbook and jargon-text were unpacked")
    folder = parser.parse_args().folder
    if not any((folder / PAGES).glob("*.html")) or not (folder / JARGON).is_file():
        sys.exit(f"there is no {PAGES} or no {JARGON} in {folder}: are debian-handbook and jargon-text unpacked there?")
    for name, text in (
        ("debian-handbook", handbook(folder / PAGES)),
        ("jargon-file", jargon(folder / JARGON)),
    ):
        target = path_of(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(f"{target}: {len(text):,} characters")


if __name__ == "__main__":
    main()
