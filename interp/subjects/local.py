"""Models that this machine can load without a network."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from interp.subjects.demo import DemoMissingError, demo_gguf

logger = logging.getLogger(__name__)


def local_models() -> list[dict[str, Any]]:
    """Name, one line about it, path and bytes: the demo models, then those in the hub's local cache."""
    return [_demo(), _emoji(), *_hub_cache()]


def _demo() -> dict[str, Any]:
    about = "SmolLM2-135M-Instruct (Llama architecture, 30 layers, 9 query and 3 key/value heads)"
    try:
        path = demo_gguf()
    except DemoMissingError as error:
        return {"name": "demo", "what": f"{about}: not installed: {error}", "path": None, "bytes": 0}
    return {"name": "demo", "what": about, "path": str(path), "bytes": path.stat().st_size}


def _emoji() -> dict[str, Any]:
    from interp.subjects.emoji.model import WEIGHTS

    about = "the demo model with eyes, for pictures of emoji (LLaVA architecture)"
    return {"name": "emoji-vlm", "what": about, "path": str(WEIGHTS), "bytes": WEIGHTS.stat().st_size}


def _hub_cache() -> list[dict[str, Any]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    except (OSError, RuntimeError, ValueError) as error:  # no home, a folder that is closed to this user, a file
        _say_once(" ".join(str(error).split()))
        return []
    found = [r for r in repositories if r.repo_type == "model"]
    return [
        {
            "name": r.repo_id,
            "what": f"in the hub cache, {r.size_on_disk / 1e6:.0f} MB",
            "path": str(r.repo_path),
            "bytes": r.size_on_disk,
        }
        for r in sorted(found, key=lambda r: r.repo_id)
    ]


@cache
def _say_once(why: str) -> None:
    """Once for each reason: the explorer lists the models with every click."""
    logger.warning("the hub's cache is not looked at: %s", why)
