"""ThinK on live caches against zeros written by hand into a plain model's cache, and its promises one by one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers as hf

import interp
from interp import ThinK
from tests.interventions.live_cache import close
from tests.interventions.zero_fill import ARCHITECTURES, LOCAL_LAYERS, Plain, full_layers, plain
from tests.models import shared, tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are")
POLICY = ThinK(ratio=0.5, window=8, recent=6)
EXAMPLES = [
    ThinK(window=8, recent=4),
    ThinK(0.5, window=8, recent=6, sinks=2, compensate=True, selector="gram", value_ratio=0.3),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def prefill(lens: Any, policy: ThinK, ids: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
    """(logits of the prompt, the cache under the policy)."""
    with lens.apply(policy):
        logits = lens(ids, use_cache=True, **kwargs)
    return logits, lens.last_cache


@pytest.mark.parametrize("prunable_only", [False, True])
@pytest.mark.parametrize(("ratio", "recent", "sinks"), [(0.4, 6, 0), (0.75, 0, 0), (0.9, 3, 2)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_truncated_storage_is_zero_filled_storage(
    name: str, ratio: float, recent: int, sinks: int, prunable_only: bool
) -> None:
    """Prompt untouched, then four tokens one at a time and three at once, each against the plain model's logits."""
    ids, later = tokens(length=30), tokens(length=7, seed=2)
    wanted = plain(name, ids)
    d_head = wanted.cache.layers[1].keys.shape[-1]
    k = int(d_head * ratio)
    wanted.prune(full_layers(name), k, 8, recent, sinks, prunable_only)
    policy = ThinK(ratio, 8, recent, sinks, score_tokens="prunable" if prunable_only else "all")
    lens = interp.load(shared(name))
    first, cache = prefill(lens, policy, ids)
    assert torch.equal(first, wanted.logits)
    for new in (*later[:, :4].split(1, 1), later[:, 4:]):
        close(lens(new, past_key_values=cache, use_cache=True), wanted.step(new))
    for layer in full_layers(name):
        stored = cache.stored[layer]
        assert stored.segments[0].keys.shape[2:] == (30 - recent - sinks, d_head - k)
        order = [*range(sinks, 30 - recent), *range(sinks), *range(30 - recent, 37)]
        close(stored.keys, wanted.cache.layers[layer].keys[:, :, order])
        close(stored.values, wanted.cache.layers[layer].values[:, :, order])


@pytest.mark.parametrize("window", [8, None])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_means_in_place_of_zeros_and_all_queries_as_judges(name: str, window: int | None) -> None:
    ids, later = tokens(length=30), tokens(length=5, seed=2)
    wanted = plain(name, ids)
    wanted.prune(full_layers(name), 4, window or 30, 6, 2, mean=True)
    lens = interp.load(shared(name))
    _, cache = prefill(lens, ThinK(0.5, window, 6, 2, fill="mean"), ids)
    for new in later.split((1, 1, 3), 1):
        close(lens(new, past_key_values=cache, use_cache=True), wanted.step(new))
    layer = full_layers(name)[0]
    assert cache.report().key_mean[layer] == 4 * cache.stored[layer].segments[0].keys.shape[1] * 2 * 4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_prompt_and_the_first_token_are_the_models_own(name: str) -> None:
    ids, lens = tokens(length=30), interp.load(shared(name))
    own, token = lens(ids), lens.generate(ids, max_new_tokens=1)
    for ratio in (0.3, 0.6, 0.95):
        logits, _ = prefill(lens, ThinK(ratio, 8, 2), ids)
        assert torch.equal(logits, own)
        with lens.apply(ThinK(ratio, 8, 2)):
            assert torch.equal(lens.generate(ids, max_new_tokens=1), token)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ratio_zero_is_no_policy(name: str) -> None:
    """Bit-identical logits at every step of a generation, and a warning that nothing was done."""
    ids, lens = tokens(length=30), interp.load(shared(name))
    asked = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True}
    own = lens.generate(ids, **asked)
    with pytest.warns(UserWarning, match="think dropped nothing"), lens.apply(ThinK(ratio=0.0, window=8)):
        found = lens.generate(ids, **asked)
    assert torch.equal(found.sequences, own.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, own.logits, strict=True))


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_recent_first_and_new_tokens_keep_all_they_have(name: str, sinks: int) -> None:
    """Bit for bit what a plain cache holds; the prompt's values too, for every token."""
    ids, layer = tokens(length=30), full_layers(name)[0]
    own = plain(name, ids).cache.layers[layer]
    lens = interp.load(shared(name))
    policy = ThinK(0.5, 8, 6, sinks)
    _, cache = prefill(lens, policy, ids)
    lens(tokens(length=3, seed=2), past_key_values=cache, use_cache=True)
    segments = cache.stored[layer].segments
    assert segments[-1].channels is None
    assert torch.equal(segments[-1].keys[:, :, :6], own.keys[:, :, 24:])
    assert torch.equal(segments[-1].values[:, :, :6], own.values[:, :, 24:])
    assert segments[-1].keys.shape == (*own.keys.shape[:2], 9, own.keys.shape[3])
    assert torch.equal(segments[0].values, own.values[:, :, sinks:24])
    if sinks:
        assert torch.equal(segments[1].keys, own.keys[:, :, :3])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("value_ratio", "sinks"), [(0.0, 0), (0.0, 3), (0.3, 0), (0.3, 3)])
def test_bytes_are_the_memory_formula(name: str, value_ratio: float, sinks: int) -> None:
    """Prompt S, generated G, T channels stored: (S-R-s) T + (R+s+G) D a head for keys, likewise for values, and 16-bit
    channel indices. Nothing for positions."""
    lens, prompt, recent, batch, made = interp.load(shared(name)), 30, 6, 2, 5
    policy = ThinK(0.4, 8, recent, sinks, value_ratio=value_ratio, value_score="magnitude")
    with lens.apply(policy):
        lens.generate(tokens(length=prompt), max_new_tokens=made + 1, min_new_tokens=made + 1)
    cache, cfg = lens.last_cache, lens.cfg
    d, heads = cfg.d_head, cfg.n_key_value_heads
    t, tv = d - int(0.4 * d), d - int(value_ratio * d)
    old, dense = prompt - recent - sinks, recent + sinks + made
    keys, values = 4 * (old * t + dense * d), 4 * (old * tv + dense * d)
    indices = 2 * t + (2 * tv if value_ratio else 0)
    layer_bytes = batch * heads * (keys + values + indices)
    report = cache.report()
    for layer in full_layers(name):
        assert report.bytes[layer] == layer_bytes
        assert report.tokens[layer] == report.kept[layer] == prompt + made
    local = 0  # transformers' own sliding layers, slack included
    for layer in LOCAL_LAYERS.get(name, ()):
        held = (cache.layers[layer].keys, cache.layers[layer].values)
        local += sum(tensor.untyped_storage().nbytes() for tensor in held)
    assert cache.nbytes() == report.bytes.sum() == len(full_layers(name)) * layer_bytes + local


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cache_that_lost_nothing_costs_what_transformers_costs(name: str) -> None:
    ids = tokens(length=30)
    own = sum(2 * layer.keys.numel() * 4 for layer in plain(name, ids).cache.layers)
    lens = interp.load(shared(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, cache = prefill(lens, ThinK(0.0, 8), ids)
    assert cache.nbytes() == own


def multi_head_twin(model: Any) -> Any:
    """The same function without groups: every query head has a copy of its key/value head."""
    config = hf.LlamaConfig(**{**model.config.to_dict(), "num_key_value_heads": model.config.num_attention_heads})
    twin = hf.LlamaForCausalLM(config).eval()
    weights = model.state_dict()
    times = model.config.num_attention_heads // model.config.num_key_value_heads
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.unflatten(0, (model.config.num_key_value_heads, -1))
            weights[name] = heads.repeat_interleave(times, 0).flatten(0, 1)
    twin.load_state_dict(weights)
    return twin


@pytest.mark.parametrize("sinks", [0, 3])
def test_query_head_granularity_is_think_on_the_multi_head_twin(sinks: int) -> None:
    """As released: each query head prunes its own copy of the keys, and the cache grows by the group's size."""
    ids, later = tokens(length=30), tokens(length=3, seed=2)
    wanted = Plain.reads(multi_head_twin(shared("llama")), ids)
    wanted.prune([0, 1, 2], 4, 8, 6, sinks)
    lens = interp.load(shared("llama"))
    policy = ThinK(0.5, 8, 6, sinks, granularity="query_head")
    _, cache = prefill(lens, policy, ids)
    for new in later.split(1, 1):
        close(lens(new, past_key_values=cache, use_cache=True), wanted.step(new))
    grouped = prefill(lens, ThinK(0.5, 8, 6, sinks), ids)[1]
    lens(later, past_key_values=grouped, use_cache=True)
    assert cache.nbytes() == 4 * grouped.nbytes()


@pytest.mark.parametrize("selector", ["think", "gram", "key_norm", "random"])
def test_without_groups_both_granularities_are_one(selector: Any) -> None:
    ids, lens = tokens(length=30), interp.load(shared("gpt2"))
    kv, query = (
        prefill(lens, ThinK(0.5, 8, 6, selector=selector, granularity=g, compensate=True), ids)[1]
        for g in ("kv_head", "query_head")
    )
    for layer in range(3):
        one, other = kv.stored[layer].segments[0], query.stored[layer].segments[0]
        assert torch.equal(one.channels, other.channels)
        assert torch.equal(one.keys, other.keys)


@pytest.mark.parametrize("selector", ["think", "gram", "key_norm"])
@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("value_score", ["magnitude", "attn", "attn_wo"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_oss"])
def test_left_padding_is_each_text_alone(name: str, selector: Any, compensate: bool, value_score: Any) -> None:
    """A batch of texts of 30 and 19 tokens: same logits, same channels, same number of sinks and recent tokens."""
    lens, ids, later = interp.load(shared(name)), tokens(length=30), tokens(length=4, seed=2)
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    ids = ids.masked_fill(mask == 0, 2)
    policy = ThinK(0.5, 8, 6, 2, selector=selector, compensate=compensate, value_ratio=0.3, value_score=value_score)
    _, batch = prefill(lens, policy, ids, attention_mask=mask)
    _, short = prefill(lens, policy, ids[1:, 11:])
    _, long = prefill(lens, policy, ids[:1])
    for layer in full_layers(name):
        for row, alone in enumerate((long, short)):
            one, other = batch.stored[layer].segments[0], alone.stored[layer].segments[0]
            assert torch.equal(one.channels[row], other.channels[0])
            assert torch.equal(one.value_channels[row], other.value_channels[0])
            close(one.keys[row, :, -len(other) :], other.keys[0], 1e-4)
    for new in later.split((1, 1, 2), 1):
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        found = lens(new, attention_mask=mask, past_key_values=batch, use_cache=True)
        close(found[:1], lens(new[:1], past_key_values=long, use_cache=True))
        close(found[1:], lens(new[1:], past_key_values=short, use_cache=True))


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_padding_against_zeros_or_means_written_by_hand(fill: Any) -> None:
    ids, later = tokens(length=30), tokens(length=4, seed=2)
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    wanted = plain("qwen3", ids, mask)
    wanted.prune([0, 1, 2], 8, 8, 6, 2, mean=fill == "mean")
    lens = interp.load(shared("qwen3"))
    _, cache = prefill(lens, ThinK(0.5, 8, 6, 2, fill=fill), ids, attention_mask=mask)
    for new in later.split(1, 1):
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        close(lens(new, attention_mask=mask, past_key_values=cache, use_cache=True), wanted.step(new))


@pytest.mark.parametrize(("length", "recent", "sinks"), [(8, 8, 0), (8, 32, 0), (8, 6, 4), (8, 0, 8)])
def test_a_prompt_that_is_all_recent_or_sinks_loses_nothing(length: int, recent: int, sinks: int) -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=length)
    own = lens.generate(ids, max_new_tokens=6)
    with pytest.warns(UserWarning, match="dropped nothing"), lens.apply(ThinK(0.5, 4, recent, sinks)):
        assert torch.equal(lens.generate(ids, max_new_tokens=6), own)


@pytest.mark.parametrize("selector", ["think", "gram", "key_norm", "random"])
@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize(("ratio", "rounding", "kept"), [(0.99, "code", 1), (0.95, "paper", 0), (0.4, "paper", 4)])
def test_next_to_nothing_kept(selector: Any, compensate: bool, ratio: float, rounding: Any, kept: int) -> None:
    """At most one of eight channels: what is left must still decode, and to what zeros by hand give."""
    ids, later = tokens(length=30), tokens(length=3, seed=2)
    lens = interp.load(shared("llama"))
    policy = ThinK(ratio, 8, 6, selector=selector, compensate=compensate, rounding=rounding)
    _, cache = prefill(lens, policy, ids)
    assert cache.stored[1].segments[0].keys.shape[-1] == kept
    found = lens(later, past_key_values=cache, use_cache=True)
    assert found.isfinite().all()
    if kept == 0 or (selector == "think" and not compensate):
        wanted = plain("llama", ids)
        wanted.prune([0, 1, 2], 8 - kept, 8, 6)
        close(found, wanted.step(later))


def test_a_channel_without_energy_goes_first() -> None:
    """Key channel 3 of every head zeroed in the weights (GPT-2 rotates nothing): one channel pruned, none missed."""
    model = tiny("gpt2")
    for block in model.transformer.h:
        for weight in (block.attn.c_attn.weight, block.attn.c_attn.bias):
            weight[..., 64 + 3 : 128 : 8] = 0
    ids, later = tokens(length=30), tokens(length=3, seed=2)
    lens = interp.load(model)
    own = Plain.reads(model, ids)
    for selector in ("think", "gram", "key_norm"):
        _, cache = prefill(lens, ThinK(1 / 8, 8, 6, selector=selector), ids)
        for layer in range(3):
            assert (cache.stored[layer].segments[0].channels == torch.tensor([0, 1, 2, 4, 5, 6, 7])).all()
    close(lens(later, past_key_values=cache, use_cache=True), own.step(later))


def test_random_channels_follow_the_seed() -> None:
    ids, lens = tokens(length=30), interp.load(shared("qwen3"))

    def drawn(seed: int) -> list[torch.Tensor]:
        _, cache = prefill(lens, ThinK(0.5, 8, 6, selector="random", seed=seed), ids)
        return [cache.stored[layer].segments[0].channels for layer in range(3)]

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])  # layers do not share a draw


def test_half_precision_scores_do_not_overflow() -> None:
    """Keys beyond 255 have squares beyond fp16."""
    model = tiny("llama").half()
    model.model.layers[0].self_attn.k_proj.weight.mul_(300)
    ids, lens = tokens(length=30), interp.load(model)
    wanted = Plain.reads(model, ids)
    assert wanted.cache.layers[0].keys.abs().max() > 256
    pruned = wanted.prune([0, 1, 2], 4, 8, 6)
    _, cache = prefill(lens, POLICY, ids)
    for layer in range(3):
        kept = (~pruned[layer]).nonzero()[:, -1].view(2, 2, 4)
        assert torch.equal(cache.stored[layer].segments[0].channels.long(), kept)
