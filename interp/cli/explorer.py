"""`interp app`: serves the explorer, a package of its own that this library only knows by its name."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import os
import secrets
import socket
from pathlib import Path

from interp.errors import InterpError
from interp.files.private import private_folder

PORT = 8501
LARGEST_UPLOAD = 10  # MB; pages take less, but it is the server that refuses
SERVING = "interp_explorer.serving"


def start(port: int | None = None, address: str = "localhost", browser: bool = True) -> int:
    """Serve the explorer in this process until it is interrupted or terminated; returns the exit code.

    port: without one, the first free one from 8501 on. address: what to listen on, a name or a number of this
    machine; anything but localhost lets other machines in. Whoever comes has to know the token that is made here and
    printed with the address. browser: whether to open one.
    Raises InterpError where Streamlit is not installed, the address is empty or none of this machine's, or the port is
    taken.
    """
    if importlib.util.find_spec("interp_explorer") is None or importlib.util.find_spec("streamlit") is None:
        raise InterpError("the explorer needs Streamlit, which is not installed here: pip install 'interp[app]'.")
    host = _host(address)
    chosen = _free_port(host, address) if port is None else port
    if not _free(host, chosen):
        raise InterpError(f"port {chosen} of {address} is taken; choose another with --port.")
    options = {
        "server.address": host,
        "server.port": chosen,
        "server.maxUploadSize": LARGEST_UPLOAD,
        "server.headless": True,  # a browser is opened with the token, which Streamlit does not know
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "server.showEmailPrompt": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
    }
    _expect_home()
    url = f"http://{_from_here(host)}:{chosen}"
    importlib.import_module(SERVING).serve(options, url, secrets.token_urlsafe(32), browser)
    return 0


def _expect_home() -> None:
    """Streamlit looks for its settings in a home folder, which a user that is a mere number does not have."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(private_folder("home"))


def _host(address: str) -> str:
    """The number of this machine's that `address` is.

    A number, since a name may have several: on another of them somebody else could listen, and be sent the token.
    Raises InterpError where it is empty, which would be all numbers of the machine, or none that can be listened on.
    """
    if not address.strip():
        raise InterpError(
            "--address is empty; leave it out to listen on localhost, or give 0.0.0.0 to let every machine of the "
            "network in."
        )
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InterpError(f"--address {address} is no name or number of a machine that is known here.") from None
    hosts = sorted((str(where[0]) for *_, where in found), key=lambda host: ":" in host)  # as ever, IPv4 if it is there
    for host in hosts:
        if _free(host, 0):
            return host
    raise InterpError(f"--address {address} is not an address of this machine, so nothing can listen on it.")


def _from_here(host: str) -> str:
    """How a browser on this machine writes `host`."""
    number = ipaddress.ip_address(host.partition("%")[0])
    if number.is_unspecified:
        number = ipaddress.ip_address("127.0.0.1" if number.version == 4 else "::1")
    return f"[{number}]" if number.version == 6 else str(number)


def _free(host: str, port: int) -> bool:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return True
    except OSError:
        return False


def _free_port(host: str, address: str) -> int:
    for port in range(PORT, PORT + 100):
        if _free(host, port):
            return port
    raise InterpError(f"no port from {PORT} to {PORT + 99} of {address} is free; choose one with --port.")
