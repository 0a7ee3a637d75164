"""Writes the pictures of README and docs: `python -m docs.write_pictures report.html`.

Photographs, in headless Chromium, the report that `make demo` leaves and what `interp.explain` says about a cache
policy on the demo model. Needs Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPT, STEPS = 512, 47  # tokens read before and under the policy
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


def explain(picture: Path) -> list[str]:
    """Picture what keeping a fifth of the prompt changes while the demo model reads on; returns what is said of it."""
    import interp
    from interp import explaining
    from interp.subjects.texts import demo_text

    lens = interp.load("demo")
    tokens = lens.to_tokens(demo_text(), truncate=PROMPT + STEPS + 1)
    policy = interp.H2OPrefill(budget=0.2)
    why = interp.explain(lens, policy, tokens[:, :PROMPT], tokens[:, PROMPT:], ["perturbation", "missed_mass"])
    figure = interp.figures.perturbation(why["perturbation"])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explanation.html"
        figure.write_html(page, config={"displayModeBar": False})
        photograph(page, picture, 1100, int(figure.layout.height) + 20)
    return explaining.findings(why)


def main(report: Path) -> None:
    if not report.is_file():
        sys.exit(f"there is no report {report}; make demo writes one")
    IMAGES.mkdir(exist_ok=True)
    photograph(report, IMAGES / "report.png", 1200, 1500)
    print(f"wrote {IMAGES / 'report.png'}")
    print("\n".join([*explain(IMAGES / "explanation.png"), f"wrote {IMAGES / 'explanation.png'}"]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "report.html"))
