"""Files that a user names: read with a bound, and refused before they are opened where reading would not end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import interp
from interp import interventions
from interp.errors import InterpError
from interp.files import reading
from interp.subjects import read_text
from interp.subjects.weights import load_gguf
from interp_explorer import tables
from tests.models import shared, tokenizer

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes and devices with names of files")


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def socket_in(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / "socket"))  # such addresses are short
    return folder / "socket"


ENDLESS: dict[str, Callable[[Path], Path]] = {
    "is a pipe": pipe,
    "is a socket": socket_in,
    "is a device": lambda _: Path("/dev/zero"),
    "is a folder": lambda folder: folder,
}
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": (".txt", read_text),
    "weights": (".gguf", load_gguf),
    "intervention": (".toml", interventions.load),
    "cache": (".safetensors", lambda path: interp.load_cache(interp.load(shared("llama")), path)),
    "table": (".csv", tables.read),
    "result": (".nc", interp.storage.load),
}


def in_time(read: Callable[[], object]) -> BaseException | None:
    """What a call raises; fails where it waits."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            read()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for something that nobody will write"
    return raised[0] if raised else None


@posix
@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("reader", READERS)
def test_what_never_ends_is_refused_before_it_is_opened(reader: str, what: str, tmp_path: Path) -> None:
    suffix, read = READERS[reader]
    path = tmp_path / f"named{suffix}"
    path.symlink_to(ENDLESS[what](tmp_path))
    error = in_time(lambda: read(path))
    assert isinstance(error, InterpError)
    assert "\n" not in str(error)
    if reader not in ("cache", "result"):  # those say that there is no such file
        assert what in str(error)


@posix
def test_a_model_folder_with_a_pipe_is_refused(tmp_path: Path) -> None:
    shared("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    os.remove(tmp_path / "tokenizer_config.json")
    os.mkfifo(tmp_path / "tokenizer_config.json")
    for read in (lambda: interp.load(str(tmp_path)), lambda: interp.load(shared("llama"), str(tmp_path))):
        error = in_time(read)
        assert isinstance(error, InterpError)
        assert "tokenizer_config.json: it is a pipe" in str(error)


@posix
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    path = pipe(tmp_path)
    looked = [lambda _: None, reading.expect_regular]  # at first it was a file
    monkeypatch.setattr(reading, "expect_regular", lambda found: looked.pop(0)(found))
    error = in_time(lambda: reading.read_bytes(path, "text file"))
    assert "it is a pipe" in str(error)


def test_a_file_is_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"0123456789")
    assert reading.read_text(path, "text file", most=10) == "0123456789"
    with pytest.raises(InterpError, match="more than 9 bytes, the most that is read of a text file; name a part of it"):
        reading.read_text(path, "text file", most=9)


@pytest.mark.parametrize("name", ["zero\0byte", "half\ud800", "x" * 256, "none.txt", "file/below"])
def test_names_that_no_file_has_are_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InterpError) as caught:
        read_text(tmp_path / name)
    assert "\n" not in str(caught.value)
