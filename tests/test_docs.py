"""Pages that a command writes are what that command writes today."""

from docs import write_hook_points, write_interventions, write_probes


def test_hook_points_page_is_current() -> None:
    written = write_hook_points.PAGE.read_text(encoding="utf-8")
    assert written == write_hook_points.page(), "run python -m docs.write_hook_points"


def test_probes_page_is_current() -> None:
    written = write_probes.PAGE.read_text(encoding="utf-8")
    assert written == write_probes.page(), "run python -m docs.write_probes"


def test_interventions_page_is_current() -> None:
    written = write_interventions.PAGE.read_text(encoding="utf-8")
    assert written == write_interventions.page(), "run python -m docs.write_interventions"
