"""Writes the pictures of docs/explorer.md, or all pages light and dark: `python -m docs.write_explorer_pictures [DIR]`.

Starts the explorer and photographs it in headless Chromium through Playwright. Without DIR it writes the pictures
that the page shows to docs/images; with one, every page in both themes, to be looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from interp.icl import studies
from interp_explorer.study_view import folder_of
from tests.chromium import CHROMIUM, FLAGS
from tests.explorer.serving import served

IMAGES = Path(__file__).parent / "images"
WIDTH, SHORTEST, TALLEST = 1280, 800, 4000  # pixels
STUDY = "softmax-regression"  # the one whose quick form is quickest
PAGES = {
    "overview": "",
    "channels": "channels?layer=5&kv_head=1",
    "rank": "rank?layer=7&head=4",
    "sinks": "sinks?layer=3&head=2",
    "image": "image?model=emoji-vlm&word=66&patches=41-42&generate=true&change=all+of+the+image",
    "in_context": f"in_context?heads=true&tokens=128&run_study=true&study={STUDY}",
    "intervene": "intervene?tokens=256&steps=32&ask=true",
    "tables": f"studies?folder={Path(__file__).parents[1]}/benchmarks/results",
    "export": "rank?layer=7&head=4",
}
# what the page shows, and how much of it in pixels
SHOWN = {"overview": 1000, "rank": 1320, "image": 1570, "intervene": 1560}


def photograph(page: Any, address: str, picture: Path, height: int | None, link: str | None = None) -> None:
    """A page once it has drawn itself, and a link of it was followed; `height` in pixels, None for all of it."""
    page.set_viewport_size({"width": WIDTH, "height": SHORTEST})
    page.goto(address)
    settle(page)
    start = page.get_by_role("button", name="Start", exact=True)  # an address starts nothing by itself
    if start.count():
        start.click()
        settle(page)
    if link is not None:
        page.get_by_role("link", name=link).click()
        settle(page)
    inside = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": height or min(max(inside, SHORTEST), TALLEST)})
    page.wait_for_timeout(2000)
    page.screenshot(path=picture)
    print(f"wrote {picture}")


def settle(page: Any) -> None:
    page.wait_for_timeout(1000)
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=900_000, state="attached")
    page.wait_for_timeout(2500)
    if page.locator("[data-testid=stException]").count():
        sys.exit(f"{page.url} shows a traceback")


def main(folder: Path | None) -> None:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        sys.exit("writing pictures needs chromium on the PATH; make browser installs it")
    (folder or IMAGES).mkdir(parents=True, exist_ok=True)
    with served() as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for theme in ("light",) if folder is None else ("light", "dark"):
            page = browser.new_context(color_scheme=theme).new_page()
            page.context.request.get(server.address)  # which leaves the token's cookie in this browser
            # the study that the page before it has run is in a folder of the user's own, made when it is asked for
            ran = urlencode({"folder": folder_of(studies.make(STUDY, quick=True))})
            pages = PAGES | {"studies": f"studies?{ran}"}
            for name in SHOWN if folder is None else pages:
                target = IMAGES / f"explorer_{name}.png" if folder is None else folder / f"{name}_{theme}.png"
                height, link = SHOWN[name] if folder is None else None, "Export" if name == "export" else None
                photograph(page, f"{server.url}/{pages[name]}", target, height, link)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
