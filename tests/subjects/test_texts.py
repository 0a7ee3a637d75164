"""The default text and files: what is read is what was written, and what cannot be read says why."""

import pytest

from interp.errors import InterpError
from interp.subjects.texts import TextError, demo_text, read_text


def test_the_default_text_is_long_english_and_always_the_same():
    text = demo_text()
    assert len(text) > 300_000
    assert text == demo_text()
    assert text.startswith('The "assert" statement')
    assert sum(character.isascii() for character in text) > 0.99 * len(text)


@pytest.mark.parametrize("text", ["one\ntwo\r\n", "Größe σ ≤ 1", "<script>alert(1)</script>"])
def test_a_file_is_read_as_it_is(text, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert read_text(path) == text
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_text(str(path)) == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty: it has no visible text"),
        (b" \n\t\xc2\xa0\n", "is empty: it has no visible text"),
        (b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at offset 3"),
        (b"cut off \xe2\x82", "not UTF-8: byte 0xe2 at offset 8"),
        ("wide".encode("utf-16"), "not UTF-8: byte 0xff at offset 0"),
    ],
)
def test_bytes_that_are_no_text_are_refused(data, reason, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(TextError, match=reason) as caught:
        read_text(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_without_text_are_refused(tmp_path):
    with pytest.raises(TextError, match="there is no text file"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(TextError, match="is a folder"):
        read_text(tmp_path)
    assert issubclass(TextError, InterpError)
    assert issubclass(TextError, ValueError)
