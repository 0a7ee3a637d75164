"""What a number depends on besides model and text: versions, machine, commit and time."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch


def provenance(device: torch.device | str = "cpu") -> dict[str, str | int | float]:
    """What a number depends on besides model and text: versions, machine, commit and time (UTC), for `Dataset.attrs`.

    `commit` is present when the library runs from a git checkout, and ends in `-dirty` where that has local changes.
    """
    facts: dict[str, str | int | float] = {
        "interp": importlib.metadata.version("interp"),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "transformer_lens": importlib.metadata.version("transformer-lens"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": _device_name(torch.device(device)),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    commit = _git_commit()
    return {**facts, "commit": commit} if commit else facts


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _cpu_model() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git_commit() -> str:
    """The commit of the checkout that this file is tracked in; empty where it is not, or git is absent."""
    here = Path(__file__)
    try:
        _git("ls-files", "--error-unmatch", here.name)  # an environment inside somebody's repository is not ours
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True, timeout=5
    )
    return run.stdout.strip()
