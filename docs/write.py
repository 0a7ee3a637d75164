"""Writes all that a command writes from the code: `python -m docs.write`. `make docs` does it before building the site.

Studies are not run for it: `docs/icl.md` takes what lies in runs/, and keeps the sections of the others.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.coverage import page as coverage
from docs import write_hook_points, write_icl, write_interventions, write_names, write_probes, write_tasks


def main() -> None:
    for writer in (write_hook_points, write_probes, write_interventions, write_tasks, coverage):
        writer.PAGE.write_text(writer.page(), encoding="utf-8")
        print(f"wrote {writer.PAGE.name}")
    write_icl.main(Path("runs"))
    for package in write_names.FOLDERS:
        write_names.file_of(package).write_text(write_names.written(package), encoding="utf-8")


if __name__ == "__main__":
    main()
