"""Pages that a command writes are what that command writes today."""

from docs.write_hook_points import PAGE, page


def test_hook_points_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m docs.write_hook_points"
