"""`interp app`: which port it takes, and that it ends when it is told to."""

from __future__ import annotations

import socket

import pytest

from interp.cli import explorer
from interp.errors import InterpError
from tests.explorer.serving import served


def test_a_taken_port_is_a_sentence():
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InterpError, match=f"port {port} of localhost is taken"):
            explorer.start(port, browser=False)


def test_without_a_port_it_takes_the_next_free_one(monkeypatch):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(explorer, "PORT", port)
        assert port < explorer._free_port("localhost") < port + 100


def test_it_listens_on_localhost_and_takes_no_large_upload(monkeypatch):
    import streamlit.web.cli

    given: list[str] = []
    monkeypatch.setattr(streamlit.web.cli, "main", lambda args, **_: given.extend(args))
    assert explorer.start(browser=False) == 0
    assert "--server.address=localhost" in given
    assert f"--server.maxUploadSize={explorer.LARGEST_UPLOAD}" in given
    given.clear()
    explorer.start(address="127.0.0.1", browser=False)
    assert "--server.address=127.0.0.1" in given


def test_it_serves_until_it_is_terminated_and_leaves_nothing_running():
    with served() as server:
        assert server.process.poll() is None
        assert not explorer._free("localhost", server.port)
    assert server.process.returncode == 0
    assert explorer._free("localhost", server.port), "nothing listens any more"
