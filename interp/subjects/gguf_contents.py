"""What a GGUF file holds and transformers' reader leaves behind: tensors that it has no name for, settings it skips.

The reader drops both without a word, and the model that comes out computes something else: without its biases, or with
keys rotated as for a shorter context. So what was dropped is found out while the file is read, and named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.subjects.claimed_size import Held
from interp.subjects.quiet import LOADING
from interp.undoing import undoing

# Settings of a file, in the words of llama.cpp, with the places in a config that say the same and the values that
# change nothing.
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "rope.scaling.type": (("rope_parameters.rope_type",), ("none",)),
    "rope.scaling.factor": (("rope_parameters.factor",), (0, 1)),
    "rope.scaling.attn_factor": (("rope_parameters.attention_factor",), (0, 1)),
    "rope.scaling.alpha": (("rope_parameters.alpha",), (0, 1)),
    "rope.scale_linear": (("rope_parameters.factor",), (0, 1)),
    "rope.freq_base": (("rope_parameters.rope_theta", "rope_theta"), ()),
    "attention.sliding_window": (("sliding_window",), (0,)),
    "attention.scale": (("attention_multiplier",), (0,)),
    "attention.clamp_kqv": (("clip_qkv",), (0,)),
    "attention.max_alibi_bias": (("alibi_bias_max",), (0,)),
    "attention.causal": (("is_causal",), (True,)),
    "attention.temperature_scale": (("attn_scale",), (0,)),
    "attention.key_length": (("head_dim",), ()),
    "attention.value_length": (("head_dim", "v_head_dim"), ()),
    "attention.layer_norm_rms_epsilon": (("rms_norm_eps", "layer_norm_eps"), ()),
    "attn_logit_softcapping": (("attn_logit_softcapping",), (0,)),
    "final_logit_softcapping": (("final_logit_softcapping",), (0,)),
    "logit_scale": (("logit_scale", "logits_scaling"), (0, 1)),
    "residual_scale": (("residual_multiplier",), (0, 1)),
    "embedding_scale": (("embedding_multiplier",), (0, 1)),
}  # fmt: skip


@contextmanager
def noting_dropped_tensors() -> Iterator[list[str]]:
    """Names of the tensors that transformers' GGUF reader drops while the block runs; other loads wait."""
    from transformers import modeling_gguf_pytorch_utils as reader

    with undoing() as undo:
        LOADING.hold(undo)
        undo.later(setattr, reader, "TENSOR_PROCESSORS", reader.TENSOR_PROCESSORS)
        dropped: list[str] = []
        reader.TENSOR_PROCESSORS = _noting(reader, dropped)
        yield dropped


def _noting(reader: Any, dropped: list[str]) -> Any:
    """The reader's processors of tensors, which tell `dropped` what has no name in the model."""
    processors, plain = reader.TENSOR_PROCESSORS, reader.TensorProcessor

    class Noting(dict[str, Any]):
        """Every architecture's processor, which renames tensors, with somebody looking over its shoulder."""

        def get(self, architecture: str, default: Any = None) -> Any:
            made = processors.get(architecture, plain)

            def processor(config: Any = None) -> Any:
                own = made(config=config)
                process = own.process

                def noted(weights: Any, name: str, **rest: Any) -> Any:
                    result = process(weights=weights, name=name, **rest)
                    # no name: the processor has put the tensor away itself, as one of several experts
                    if result.name is not None and result.name not in rest["tensor_key_mapping"]:
                        dropped.append(name)
                    return result

                own.process = noted
                return own

            return processor

    return Noting(processors)


def held_in_gguf(source: Path) -> Held:
    """What a file holds, by its header. Raises InterpError where it counts more blocks than it has tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    held = Held(len(reader.tensors), sum(int(tensor.n_elements) for tensor in reader.tensors))
    for name, field in reader.fields.items():
        if not name.endswith(".block_count"):
            continue
        blocks = field.contents()
        if not isinstance(blocks, int) or not 0 < blocks <= held.tensors:
            raise InterpError(f"{source} says {name} = {blocks} and has {held.tensors} tensors; fetch the file again.")
    return held


def skipped_settings(source: Path, config: Any) -> list[str]:
    """Settings of a file that a model's config does not have, as `name = value`."""
    from gguf import GGUFReader

    fields = GGUFReader(source).fields
    architecture = fields["general.architecture"].contents()
    there = config.to_dict()
    if there.get("head_dim") is None:  # then models divide their width among their heads
        there["head_dim"] = config.hidden_size // config.num_attention_heads
    skipped = []
    for name, (places, neutral) in SETTINGS.items():
        if (field := fields.get(f"{architecture}.{name}")) is None:
            continue
        value = field.contents()
        found = [_at(there, place) for place in places]
        if value not in neutral and not any(_same(value, other) for other in found):
            skipped.append(f"{architecture}.{name} = {value}")
    return skipped


def _at(config: dict[str, Any], place: str) -> Any:
    value: Any = config
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, int | float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-5)
    return bool(value == other)
