"""The benchmarks' texts: tags go, words stay whole, pages follow in file-name order."""

import gzip

from benchmarks.long_texts import handbook, jargon, page_text


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
    assert handbook(tmp_path) == "page a\npage b\npage c\n"


def test_the_jargon_file_starts_with_its_entries(tmp_path):
    path = tmp_path / "jargon.txt.gz"
    path.write_bytes(
        gzip.compress("Contents\n foo\n\n bar\n\n :foo: n.\n\n  caf\u00e9\n\n :bar: n. b\n".encode("latin-1"))
    )
    assert jargon(path) == ":foo: n. caf\u00e9 :bar: n. b\n"
