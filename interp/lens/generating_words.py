"""Settings of TransformerLens' `generate` in transformers' words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from interp.errors import InterpError
from interp.lens.habits import OF_GENERATION

SAYS_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "freq_penalty": (0, None),
    "return_type": ("input", None),
    "return_cache": (False, None),
    "return_input_tokens": (False, None),
    "device": (None,),
    "pixel_values": (None,),
    "input_values": (None,),
}
"""Values with which a setting that transformers does not know asks for what happens anyway."""


def in_their_words(said: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
    """The keywords of a call of `generate` as transformers knows them; `known` are the model's own.

    `temperature=0` is greedy search there too, `stop_at_eos=False` writes on, `use_past_kv_cache` is `use_cache`;
    `verbose` asks for a progress bar, of which there is none. Raises InterpError for what would be ignored.
    """
    told = dict(said)
    told.pop("verbose", None)
    for name, nothing in SAYS_NOTHING.items():
        if name in known:
            continue
        value = told.pop(name, None)
        if not any(value is one or value == one for one in nothing):
            raise InterpError(f"generate takes no {name} here: {OF_GENERATION[name]}.")
    if "use_past_kv_cache" in told:
        told["use_cache"] = told.pop("use_past_kv_cache")
    if told.pop("stop_at_eos", True) is False:
        told["eos_token_id"] = None
    if told.get("temperature", 1.0) == 0 and not told.get("do_sample"):
        told |= {"temperature": None, "do_sample": False}
    if told.get("output_logits"):
        told.setdefault("return_dict_in_generate", True)
    return told
