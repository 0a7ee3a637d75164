"""`interp app`: has Streamlit run the explorer, a package of its own that this library never imports."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

from interp.errors import InterpError

PORT = 8501
LARGEST_UPLOAD = 10  # MB; pages take less, but it is the server that refuses


def start(port: int | None = None, address: str = "localhost", browser: bool = True) -> int:
    """Serve the explorer in this process until it is interrupted or terminated; returns the exit code.

    port: without one, the first free one from 8501 on. address: what to listen on; anything but localhost lets others
    in, who can then load models from this machine's disk. browser: whether to open one.
    Raises InterpError where Streamlit is not installed or the port is taken.
    """
    spec = importlib.util.find_spec("interp_explorer")
    if spec is None or spec.origin is None or importlib.util.find_spec("streamlit") is None:
        raise InterpError("the explorer needs Streamlit, which is not installed here: pip install 'interp[app]'.")
    chosen = _free_port(address) if port is None else port
    if not _free(address, chosen):
        raise InterpError(f"port {chosen} of {address} is taken; choose another with --port.")
    options = {
        "server.address": address,
        "server.port": str(chosen),
        "server.maxUploadSize": str(LARGEST_UPLOAD),
        "server.headless": "false" if browser else "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "server.showEmailPrompt": "false",
        "client.toolbarMode": "minimal",
    }
    from streamlit.web.cli import main as streamlit

    flags = [f"--{name}={value}" for name, value in options.items()]
    streamlit(
        ["run", str(Path(spec.origin).with_name("app.py")), *flags], prog_name="interp app", standalone_mode=False
    )
    return 0


def _free(address: str, port: int) -> bool:
    try:
        with socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            return True
    except OSError:
        return False


def _free_port(address: str) -> int:
    for port in range(PORT, PORT + 100):
        if _free(address, port):
            return port
    raise InterpError(f"no port from {PORT} to {PORT + 99} of {address} is free; choose one with --port.")
