"""Generation with its account: the text, what the cache holds, how fast decoding was, and how much memory it took.

Bytes, seconds and memory are measured on the run itself. The one computed number is what a dense cache of as many
tokens would hold, and that is arithmetic on shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from interp.cache.lens_cache import LensCache
from interp.cache.paired import of_own_tokens
from interp.cache.stored_layer import StoredLayer
from interp.errors import InterpError
from interp.interventions import Intervention, parts
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.foreign import text_of
from interp.lens.generation import at_least
from interp.lens.spelling import AS_THE_TOKENIZER_DOES
from interp.runs.noting import noting

if TYPE_CHECKING:
    from interp.lens.protocol import InterventionLens


@in_evaluation_mode
def generate(
    lens: InterventionLens,
    prompt: Any,
    intervention: Intervention | None = None,
    max_new_tokens: int = 64,
    *,
    chat: bool = False,
    images: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Continue `prompt` greedily, with an intervention in force; returns plain values, ready for JSON.

    `prompt` is one text, or one of anything else that a Lens reads; `images` stand where it has `<image>`.

    prompt_tokens, new_tokens: how many. The last new token is never stored: nothing comes after it.
    new_token_ids: what was generated, special tokens too.
    text: the continuation, without special tokens; empty where there is no tokenizer.
    interventions: name and every setting, in order.
    cache: `bytes` held at the end, `dense_bytes` that as many tokens would take uncompressed (`dense_cache_bytes`),
        `tokens` seen, and `kept_tokens` of each head in every layer.
    prefill_seconds: reading the prompt, and compressing where a policy does that at once.
    decode_seconds, decode_tokens_per_second: from the first new token to the last; None where there is only one.
    peak_resident_bytes: of the whole process so far, the loading of the model included; `_before` is the same before
        generation. Both None where the system does not tell.
    notes: warnings given on the way, such as that a policy dropped nothing.

    Examples:
        >>> from interp.runs.generating import generate
        >>> told = generate(lens, prompt, interp.SnapKV(budget=0.5, window=8), max_new_tokens=4)
        >>> told["cache"]["bytes"] < told["cache"]["dense_bytes"]
        True
    """
    at_least(1, "max_new_tokens", max_new_tokens)
    seen: dict[str, Any] = {} if images is None else {"images": images}
    if seen:
        read = lens.read_arguments(prompt, None, seen, AS_THE_TOKENIZER_DOES, chat, goes_on=True)
        tokens, mask = read.tokens, read.mask
    else:
        tokens, mask = lens.tokens_and_mask(prompt, chat=chat)
    if tokens.shape[0] != 1:
        raise InterpError(f"one prompt is continued at a time, and these are {tokens.shape[0]}; pass one of them.")
    watch = _Stopwatch(max_new_tokens, progress)
    before = peak_resident_bytes()
    with noting() as notes, nullcontext() if intervention is None else lens.apply(intervention):
        # a cache whatever the model's own default is: the account is about it
        how: dict[str, Any] = {"use_cache": True, "num_return_sequences": 1, "return_dict_in_generate": False}
        out = lens.generate(tokens, max_new_tokens, attention_mask=mask, streamer=watch, **seen, **how)
    prompt = 1 if lens.anatomy.decoder is not None else tokens.shape[1]  # a decoder's own text is its start token
    new = out[0, prompt:]
    cache = lens.last_cache
    assert cache is not None
    own = of_own_tokens(cache)
    return {
        "prompt_tokens": int(tokens.shape[1]),
        "new_tokens": len(new),
        "new_token_ids": new.tolist(),
        "text": "" if lens.tokenizer is None else text_of(lens.tokenizer, new),
        "interventions": [] if intervention is None else [part.settings() for part in parts(intervention)],
        "cache": {
            "bytes": cache.nbytes(),
            "dense_bytes": dense_cache_bytes(own) + cache.nbytes() - own.nbytes(),
            "tokens": cache.get_seq_length(),
            "kept_tokens": own.report()["kept"].tolist(),
        },
        **watch.seconds(),
        "peak_resident_bytes_before": before,
        "peak_resident_bytes": peak_resident_bytes(),
        "notes": notes,
    }


def dense_cache_bytes(cache: LensCache) -> int:
    """Bytes that keys and values of all tokens seen would take, each stored once in the cache's dtype.

    Layers that a policy acts on: batch * key/value heads * tokens * (d_head + d_value) * bytes a number; of latent
    attention, whose values are in the keys, without d_value, and with the keys of an index. Others, such as layers with
    a sliding window, are dense already and count as what they hold.
    """
    total = 0
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, StoredLayer):
            if not layer.is_initialized:
                continue
            batch, width = layer.segments[0].keys.shape[0], layer.d_head + (layer.d_value if layer.tied is None else 0)
            total += batch * layer.kv_heads * layer.seen * width * layer.dtype.itemsize
            total += sum(tensor.nbytes for at, part, tensor in cache.parts() if (at, part) == (i, "indexer_keys"))
        else:
            held = (tensor.untyped_storage() for at, _, tensor in cache.parts() if at == i)
            total += sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())
    return total


def peak_resident_bytes() -> int | None:
    """The most physical memory that this process ever held, in bytes; None where the system does not tell.

    Linux' own record comes first: what `resource` reports there is inherited from the process that started this one, if
    that was larger.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            kibibytes = next((line.split()[1] for line in status if line.startswith("VmHWM:")), None)
        if kibibytes is not None:
            return int(kibibytes) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Stopwatch:
    """transformers' streamer interface: called with the prompt before prefill, then with every new token."""

    def __init__(self, expected: int, progress: Callable[[int, int], None] | None) -> None:
        self.expected, self.progress = expected, progress
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        if self.progress is not None:
            self.progress(len(self.times) - 1, self.expected)

    def end(self) -> None:
        pass

    def seconds(self) -> dict[str, float | None]:
        start, first, last = self.times[0], self.times[1], self.times[-1]
        steps = len(self.times) - 2
        return {
            "prefill_seconds": first - start,
            "decode_seconds": last - first if steps else None,
            "decode_tokens_per_second": steps / (last - first) if steps else None,
        }
