"""Writes the pictures of README and docs: `python -m docs.write_pictures report.html`.

Takes the report that `make demo` leaves, opens it in headless Chromium and photographs it. Needs Chromium (Debian:
`apt-get install chromium`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--virtual-time-budget=15000",
)  # fmt: skip


def photograph(page: Path, picture: Path, width: int, height: int) -> None:
    """Write what Chromium shows of a local page as PNG."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("writing pictures needs chromium on the PATH (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}",
             f"--screenshot={picture}", page.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


def main(report: Path) -> None:
    if not report.is_file():
        sys.exit(f"there is no report {report}; make demo writes one")
    IMAGES.mkdir(exist_ok=True)
    photograph(report, IMAGES / "report.png", 1200, 1500)
    print(f"wrote {IMAGES / 'report.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "report.html"))
