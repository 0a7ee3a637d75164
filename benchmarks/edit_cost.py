"""What attention edits cost while a model that reads images generates: none, `VAR`, `KnockOut`, `GroupKnockOut`.

LLaVA at SmolLM2-135M's shape with a tower of two blocks that makes 576 tokens of a picture; random weights, since the
time of an edit does not depend on what they are, as long as rows are really changed. That they are is looked up before
anything is timed: each edit has to change the logits.

Seconds are ratios within one process: in each round every variant generates the same number of tokens once, in turn,
and the median over rounds of (variant / none in the same round) is reported with the quartiles, because machines are
shared and noisy. Edits stand on all layers, `VAR` on all but the last.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.table import publish

IMAGE_TOKENS, NEW_TOKENS, ROUNDS = 576, 64, 5
WORDS_BEFORE, WORDS_AFTER = 8, 24
IMAGE = 49_151
SINKS: dict[str, Any] = {"channels": (3, 7), "tau_rel": 0.1}
"""Of random weights some tokens in a hundred pass this threshold."""


def model() -> Any:
    """LLaVA whose language model has the shape of SmolLM2-135M."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=IMAGE, image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval()


def prompt() -> dict[str, torch.Tensor]:
    """Words, a picture and words."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(IMAGE, (1, WORDS_BEFORE + WORDS_AFTER), generator=draw)
    image = torch.full((1, IMAGE_TOKENS), IMAGE)
    ids = torch.cat([words[:, :WORDS_BEFORE], image, words[:, WORDS_BEFORE:]], 1)
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336, generator=draw)}


def variants() -> dict[str, Any]:
    import interp

    return {
        "none": None,
        "VAR": interp.VAR(**SINKS),
        "KnockOut of an image's 64 first tokens": interp.KnockOut(keys=tuple(range(WORDS_BEFORE, WORDS_BEFORE + 64))),
        "GroupKnockOut of visual sinks": interp.GroupKnockOut(**SINKS),
    }


class Clock:
    """Notes when the logits of each step are there."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


def generated(lens: Any, edit: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, float, float]:
    """Seconds of all, of the prompt, and of a step of decoding."""
    with lens.apply(edit) if edit is not None else nullcontext():
        clock = Clock()
        lens.generate(inputs, NEW_TOKENS, min_new_tokens=NEW_TOKENS, logits_processor=[clock])
        total = time.perf_counter() - clock.times[0]
    steps = [after - before for before, after in zip(clock.times[1:], clock.times[2:], strict=False)]
    return total, clock.times[1] - clock.times[0], statistics.median(steps)


@torch.no_grad()
def expect_changed_logits(lens: Any, edits: dict[str, Any], inputs: dict[str, torch.Tensor]) -> None:
    """Stop where an edit changes nothing: its time would mean nothing."""
    own = lens(**inputs)
    for name, edit in edits.items():
        if edit is None:
            continue
        with lens.apply(edit):
            if torch.allclose(lens(**inputs)[:, -1], own[:, -1], atol=1e-4):
                sys.exit(f"{name} changes no logits here; timings would mean nothing")


def main() -> None:
    import interp

    lens, inputs, edits = interp.Lens(model()), prompt(), variants()
    expect_changed_logits(lens, edits, inputs)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in edits}
    for round_ in range(ROUNDS + 1):
        for name, edit in edits.items():
            measured = generated(lens, edit, inputs)
            if round_:  # the first one warms up
                taken[name].append(measured)
    rows = []
    for name, times in taken.items():
        ratios = [own[0] / none[0] for own, none in zip(times, taken["none"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({
            "edit": name, "image tokens": IMAGE_TOKENS, "new tokens": NEW_TOKENS,
            "prompt ms (median)": round(statistics.median(t[1] for t in times) * 1e3),
            "step ms (median)": round(statistics.median(t[2] for t in times) * 1e3, 1),
            "x none (median of pairs)": round(middle, 3), "lower quartile": round(low, 3),
            "upper quartile": round(high, 3), "pairs": len(ratios),
        })  # fmt: skip
    publish("edit_cost", rows)


if __name__ == "__main__":
    main()
