"""The transformers model inside what other libraries put around one: adapters, compiled and parallel models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from interp.errors import InterpError, UnsupportedModelError


def unwrapped(model: Any) -> Any:
    """The model that a wrapper runs: attention, hooks and interventions are the same there.

    `torch.compile(model)` leaves the model itself as it is, DataParallel and DistributedDataParallel hold it, and peft
    puts its adapters inside it: they stay active. Raises UnsupportedModelError for prompts that peft keeps outside.
    """
    seen: list[Any] = []
    while all(model is not other for other in seen):
        seen.append(model)
        model = _inside(model)
    return model


def _inside(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        return model
    if hasattr(model, "_orig_mod"):
        return model._orig_mod
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    if not _is_peft(model):
        return model
    kinds = getattr(model, "peft_config", {})
    if outside := sorted(name for name, kind in kinds.items() if getattr(kind, "is_prompt_learning", False)):
        raise UnsupportedModelError(
            f"the adapter {outside[0]!r} is a learned prompt, which peft keeps outside the model, out of reach of a "
            "Lens; take an adapter that changes modules (LoRA, IA3), or load model.get_base_model() without it."
        )
    inside: Any = model
    return inside.get_base_model()


def _is_peft(model: nn.Module) -> bool:
    """Whether peft wraps a model, told without importing it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, getattr(peft, "PeftModel", ()))


def refuse_adapter(folder: Path) -> None:
    """Raise InterpError for a folder that holds an adapter and no model, with the lines that load both."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    base = base or "the model that it was trained on"
    raise InterpError(
        f"the folder {folder} holds an adapter (adapter_config.json) of {base} and no model; put the two together with "
        f"peft.PeftModel.from_pretrained(model, {str(folder)!r}), model being that one, and pass the result."
    )
