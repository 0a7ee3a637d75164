"""`interp app`: which port it takes, and that it ends when it is told to."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from interp.cli import explorer
from interp.cli.main import app
from interp.errors import InterpError
from tests.explorer.serving import served


def test_a_taken_port_is_a_sentence():
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InterpError, match=f"port {port} of localhost is taken"):
            explorer.start(port, browser=False)


def test_without_a_port_it_takes_the_next_free_one(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(explorer, "PORT", port)
        assert port < explorer._free_port("127.0.0.1", "localhost") < port + 100


@pytest.fixture
def served_with(monkeypatch) -> list[tuple]:
    """What the server would have been started with."""
    from interp_explorer import serving

    given: list[tuple] = []
    monkeypatch.setattr(serving, "serve", lambda *args: given.append(args))
    return given


def test_it_listens_on_loopback_and_takes_no_large_upload(served_with):
    assert explorer.start(browser=False) == 0
    explorer.start(address="127.0.0.1", browser=False)
    for options, url, _, browser in served_with:
        assert options["server.address"] == "127.0.0.1"
        assert options["server.maxUploadSize"] == explorer.LARGEST_UPLOAD
        assert url == f"http://127.0.0.1:{options['server.port']}"
        assert not browser


def test_every_start_has_a_long_token_of_its_own(served_with):
    explorer.start(browser=False)
    explorer.start(browser=False)
    (_, _, one, _), (_, _, two, _) = served_with
    assert one != two
    assert len(one) >= 43, "256 bits"


def test_all_addresses_only_where_they_are_asked_for(served_with):
    explorer.start(address="0.0.0.0", browser=False)
    ((options, url, _, _),) = served_with
    assert options["server.address"] == "0.0.0.0"
    assert url.startswith("http://127.0.0.1:"), "what a browser of this machine can open"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "--address is empty; leave it out to listen on localhost"),
        (" ", "--address is empty"),
        ("nowhere.invalid", "no name or number of a machine that is known here"),
        ("not a name", "no name or number"),
        ("a" * 300, "no name or number"),
        ("192.0.2.1", "is not an address of this machine"),  # a number that is kept for examples
    ],
)
def test_an_address_that_nothing_can_listen_on_is_one_line(served_with, address, said):
    result = CliRunner().invoke(app, ["app", "--no-browser", "--address", address])
    assert isinstance(result.exception, InterpError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not served_with


def test_it_serves_until_it_is_terminated_and_leaves_nothing_running():
    with served() as server:
        assert server.process.poll() is None
        assert not explorer._free("127.0.0.1", server.port)
    assert server.process.returncode == 0
    assert explorer._free("127.0.0.1", server.port), "nothing listens any more"
