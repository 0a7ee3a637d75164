"""Makes kvpress_think.npz: what kvpress' ThinKPress leaves in the cache of two tiny random models.

Run by hand, with kvpress 0.5.5, which needs transformers older than 5.3 and so an environment of its own:

    pip install torch transformers==5.2.* numpy requests datasets accelerate cachetools fire peft
    pip install --no-deps kvpress==0.5.5
    python tests/interventions/kvpress_fixtures.py

The file holds, for each model, its config and weights, a prompt `[batch, token]`, one more token, and for each pair of
ratio and window: the key cache after the prompt `[layer, batch, kv_head, token, d_head]`, where ThinKPress wrote zeros
over pruned channels, its scores `[layer, batch, kv_head, d_head]`, and the logits of the next step.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from kvpress import ThinKPress

SHAPE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SHAPE)),
}
SETTINGS = [(0.3, 8), (0.5, 32), (0.5, 1), (0.8, 5)]
"""(ratio, window) pairs."""


class Recording(ThinKPress):
    """ThinKPress that also remembers the scores from which it prunes, put together from its own parts."""

    def compress(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        queries = self.compute_window_queries(module, kwargs["hidden_states"], kwargs["position_embeddings"])
        energy = queries.pow(2).mean(2).view(*keys.shape[:2], -1, keys.shape[-1]).mean(2)
        self.scores.append((energy * keys.pow(2).mean(2)).numpy())
        return super().compress(module, hidden_states, keys, values, attentions, kwargs)


@torch.no_grad()
def fixtures(name: str) -> dict[str, np.ndarray]:
    """Arrays of one model, by name."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8)  # attention far from uniform
    ids = torch.randint(0, SHAPE["vocab_size"], (2, 33))
    found = {f"{name}/weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    found[f"{name}/tokens"] = ids.numpy()
    for ratio, window in SETTINGS:
        press = Recording(key_channel_compression_ratio=ratio, window_size=window)
        press.scores = []
        cache = hf.DynamicCache(config=model.config)
        with press(model):
            model(ids[:, :32], past_key_values=cache, use_cache=True)
        case = f"{name}/{ratio}/{window}"
        found[f"{case}/scores"] = np.stack(press.scores)
        found[f"{case}/keys"] = torch.stack([layer.keys for layer in cache.layers]).numpy().copy()
        found[f"{case}/logits"] = model(ids[:, 32:], past_key_values=cache, use_cache=True).logits[:, 0].numpy()
    return found


def main() -> None:
    made_with = {package: version(package) for package in ("kvpress", "transformers", "torch")}
    arrays = {"about": np.array(json.dumps({"made_with": made_with, "shape": SHAPE, "settings": SETTINGS}))}
    for name in MODELS:
        arrays |= fixtures(name)
    path = Path(__file__).with_name("kvpress_think.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, made with {made_with}")


if __name__ == "__main__":
    main()
