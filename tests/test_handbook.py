"""The benchmark text: tags go, words stay whole, pages follow in file-name order."""

from benchmarks.extract_handbook import extract, page_text


def test_tags_go_and_words_stay_whole():
    html = (
        "<html><head><title>no</title><style>no</style></head><body><h1>Chapter&nbsp;1.</h1><p>The <b>apt</b>-get\n"
        "  tool&#39;s <code>file</code>,<br/>here &amp; there.</p><script>no()</script><p>End</p></body></html>"
    )
    assert page_text(html) == "Chapter 1. The apt-get tool's file, here & there. End"


def test_pages_follow_each_other_by_name(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.html").write_text(f"<p>page {name}</p>")
    (tmp_path / "style.css").write_text("p {}")
    assert extract(tmp_path) == "page a\npage b\npage c\n"
