"""ThinK against kvpress' ThinKPress, from data that kvpress_fixtures.py made with kvpress 0.5.5.

kvpress writes zeros over pruned channels of all tokens, so it is ThinK without recent tokens, with one mask a
key/value head.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import interp
from tests.interventions.zero_fill import Plain, channel_scores

DATA = np.load(Path(__file__).with_name("kvpress_think.npz"))
ABOUT = json.loads(str(DATA["about"]))
CASES = [(name, ratio, window) for name in ("llama", "qwen3") for ratio, window in ABOUT["settings"]]
CLASSES = {"llama": (hf.LlamaForCausalLM, hf.LlamaConfig), "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config)}


@cache
def model(name: str) -> Any:
    """The model that kvpress ran, from its stored weights."""
    build, config = CLASSES[name]
    made = build(config(**ABOUT["shape"])).eval()
    prefix = f"{name}/weights/"
    weights = {key.removeprefix(prefix): torch.from_numpy(DATA[key]) for key in DATA.files if key.startswith(prefix)}
    made.load_state_dict(weights)
    return made


def test_the_data_says_what_made_it() -> None:
    assert ABOUT["made_with"]["kvpress"] == "0.5.5"


@pytest.mark.parametrize(("name", "ratio", "window"), CASES)
@torch.no_grad()
def test_keys_and_next_logits_are_those_of_kvpress(name: str, ratio: float, window: int) -> None:
    """The cache after the prompt with zeros where nothing is stored, and the step that attends to it."""
    case, ids = f"{name}/{ratio}/{window}", torch.from_numpy(DATA[f"{name}/tokens"])
    theirs = torch.from_numpy(DATA[f"{case}/keys"])
    lens = interp.load(model(name))
    with lens.apply(interp.ThinK(ratio=ratio, window=window, recent=0)):
        lens(ids[:, :32], use_cache=True)
    layers = lens.last_cache.stored
    for layer, keys in enumerate(theirs):
        kept = (keys != 0).any(2).nonzero()[:, -1].view(2, 2, -1)
        assert torch.equal(layers[layer].segments[0].channels.long(), kept)
        torch.testing.assert_close(layers[layer].keys, keys, rtol=1e-5, atol=1e-5)
    logits = lens(ids[:, 32:], past_key_values=lens.last_cache, use_cache=True)[:, 0]
    torch.testing.assert_close(logits, torch.from_numpy(DATA[f"{case}/logits"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "ratio", "window"), CASES)
@torch.no_grad()
def test_its_scores_are_the_squared_norms_of_the_outer_products(name: str, ratio: float, window: int) -> None:
    """mean(q²) mean(k²) over a group of g heads is ‖Q_j K_jᵀ‖_F² of the group's stacked queries over g W S."""
    ids = torch.from_numpy(DATA[f"{name}/tokens"])[:, :32]
    read, scores = Plain.reads(model(name), ids), DATA[f"{name}/{ratio}/{window}/scores"]
    for layer in range(2):
        for b in range(2):
            for h in range(2):
                queries = read.q[layer][b, 2 * h : 2 * h + 2, -window:].flatten(0, 1)
                norms = np.array(channel_scores(queries, read.cache.layers[layer].keys[b, h]))
                np.testing.assert_allclose(norms**2 / (len(queries) * 32), scores[layer, b, h], rtol=1e-4)
