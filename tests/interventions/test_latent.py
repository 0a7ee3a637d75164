"""Cache policies on multi-head latent attention: one latent and one rotated key a token are what is kept and dropped.

What is expected is the model's own attention over its own cache of what was kept: nothing here knows how queries meet
latents.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import interp
from interp import InterpError
from interp.cache.latent import StoredIndexed, StoredLatent
from interp.interventions import CachePolicy, Plan, Prompt
from interp.runs.generating import generate
from interp.seam.latent import makes
from tests.interventions.live_cache import close, prefill
from tests.lens.many import RECENT, ids, lens_of

Tensor = torch.Tensor

DENSE = ("deepseek_v3", "minicpm3", "kimi_linear")
"""All layers, two of which rotate otherwise; one layer, not rotated, behind linear attention."""
SPARSE = ("deepseek_v32", "glm_moe_dsa")
"""With an index that chooses 6 tokens a query: of each layer, or shared by layers."""
KINDS = (*DENSE, *SPARSE)
LENGTH = 24
pytestmark = [
    pytest.mark.skipif(not RECENT, reason="older releases of transformers cache keys and values of all heads"),
    pytest.mark.filterwarnings("ignore:.*have no attention and stay as they are"),
    pytest.mark.filterwarnings("ignore:.*dropped nothing"),
    pytest.mark.filterwarnings("ignore:d2o. a layer has one share"),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def stored_of(cache: Any) -> dict[int, StoredLatent]:
    stored = cache.stored
    assert stored
    assert all(isinstance(layer, StoredLatent) for layer in stored.values())
    return stored


def bare_cache(lens: Any, tokens: Tensor) -> DynamicCache:
    """The model's own cache of a text."""
    cache = DynamicCache(config=lens.model.config)
    lens.model(tokens, past_key_values=cache, use_cache=True)
    return cache


def bare_step(lens: Any, token: Tensor, cache: DynamicCache, at: int) -> Tensor:
    """The bare model's logits for a token at a position, over whatever its cache holds by now."""
    return lens.model(token, position_ids=torch.full_like(token, at), past_key_values=cache, use_cache=True).logits


def kept_alone(cache: DynamicCache, lens_cache: Any) -> DynamicCache:
    """The model's own cache with nothing but the latents and rotated keys of what a policy kept."""
    made = copy.deepcopy(cache)
    for i, stored in stored_of(lens_cache).items():
        at = stored.places().sort(-1).values.long()
        for part in ("keys", "values"):
            whole = getattr(made.layers[i], part)
            setattr(made.layers[i], part, whole.gather(2, at[..., None].expand(-1, -1, -1, whole.shape[-1])))
    return made


# what a Lens learns


@pytest.mark.parametrize("kind", KINDS)
def test_layers_whose_latents_make_their_keys_are_found(kind: str) -> None:
    lens = lens_of(kind)
    latent = (2,) if kind == "kimi_linear" else (0, 1, 2)
    assert lens.cfg.latent_layers == lens.cfg.full_attention_layers == latent
    assert lens.cfg.latent_widths == (16, 8)
    assert lens.cfg.indexed_layers == (latent if kind in SPARSE else ())


def module_that(expand: Any) -> Any:
    weights = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(expand_kv=lambda c, r: expand(weights, c, r))


def plain(w: Tensor, c: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([c @ w[:, :3].mT, r.expand(-1, 2, -1, -1)], -1), c @ w[:, 3:].mT


@pytest.mark.parametrize(("expand", "linear"), [
    (plain, True),
    (lambda w, c, r: (plain(w, c, r)[0], plain(w, c, r)[1] + 0.1), False),  # a constant that no latent explains
    (lambda w, c, r: (plain(w, c, r)[0] + 0.1, plain(w, c, r)[1]), False),
    (lambda w, c, r: (plain(w, c, r)[0], plain(w, c, r)[1] + r.sum(-1, keepdim=True)), False),
    (lambda w, c, r: (plain(w, c.tanh(), r)[0], plain(w, c, r)[1]), False),
])  # fmt: skip
def test_only_what_is_linear_in_latents_is_taken_for_it(expand: Any, linear: bool) -> None:
    random = torch.Generator().manual_seed(1)
    latents, rotated = (torch.randn(2, 1, 5, n, generator=random) for n in (4, 2))
    module = module_that(expand)
    made = module.expand_kv(latents, rotated)
    assert makes(module, latents, rotated, *made, 1e-5) == linear
    assert not makes(module, latents, rotated, made[0] * 1.01, made[1], 1e-5)
    assert not makes(SimpleNamespace(), latents, rotated, *made, 1e-5)


# hooks without a policy


@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v32"])
def test_hooks_see_keys_and_values_of_all_heads_with_a_cache_and_without(kind: str) -> None:
    lens, tokens = lens_of(kind), ids(12)
    names = ["blocks.1.attn.hook_rot_k", "blocks.1.attn.hook_v"]
    _, whole = lens.run_with_cache(tokens, names_filter=names)
    _, cached = lens.run_with_cache(tokens[:, :-1], names_filter=names, use_cache=True)
    past = lens.last_cache
    _, last = lens.run_with_cache(tokens[:, -1:], names_filter=names, past_key_values=past, use_cache=True)
    for name in names:
        assert whole[name].shape[2] == lens.cfg.n_heads
        close(torch.cat([cached[name], last[name]], 1), whole[name])
    with pytest.raises(InterpError, match="that point is read-only"):
        lens.run_with_hooks(tokens, fwd_hooks=[(names[0], lambda k, hook: k * 2)], use_cache=True)


# what policies see and leave


@dataclass(frozen=True)
class Watching(CachePolicy):
    """Keeps all, and the events that it was shown."""

    name: ClassVar[str] = "watching"
    stage: ClassVar = "tokens"

    def begin(self, prompt: Prompt) -> Plan:
        return _Watching()


class _Watching(Plan):
    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def observe(self, layer: int, event: Any) -> None:
        self.seen[layer] = event

    def compress(self, layer: int, stored: Any) -> None:
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_shown_the_models_own_pattern_over_one_stored_head(kind: str) -> None:
    lens, tokens = lens_of(kind), ids(LENGTH)
    _, shown = lens.run_with_cache(tokens, names_filter=lambda name: name.endswith(("hook_pattern", "hook_z")))
    for i, event in prefill(lens, Watching(), tokens).keeper.plans["tokens"].seen.items():
        assert (event.k.shape, event.v.shape, event.tied) == ((1, 1, LENGTH, 24), (1, 1, LENGTH, 16), 16)
        close(event.pattern(), shown[f"blocks.{i}.attn.hook_pattern"])
        close(event.column_mass, shown[f"blocks.{i}.attn.hook_pattern"].sum(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [
    interp.SnapKV(budget=100, window=4), interp.H2O(budget=100), interp.ThinK(ratio=0.0),
], ids=["snapkv", "h2o", "think"])  # fmt: skip
def test_what_keeps_all_changes_nothing(kind: str, policy: Any) -> None:
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    lens, tokens = lens_of(kind), ids(LENGTH, batch=2)
    bare = lens.generate(tokens, **how)
    with lens.apply(policy):
        out = lens.generate(tokens, **how)
    assert torch.equal(out.sequences, bare.sequences)
    close(torch.stack(out.logits), torch.stack(bare.logits))


TOKENS = [interp.SnapKV(budget=9, window=3), interp.H2O(budget=9), interp.RandomTokens(budget=9)]


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("policy", TOKENS, ids=lambda policy: policy.name)
def test_a_step_is_the_bare_models_over_what_was_kept(kind: str, policy: Any) -> None:
    lens, tokens, new = lens_of(kind), ids(LENGTH), ids(1, seed=5)
    cache = prefill(lens, policy, tokens)
    alone = kept_alone(bare_cache(lens, tokens), cache)
    assert {layer.get_seq_length() for i, layer in enumerate(alone.layers) if i in cache.stored} == {9}
    close(lens(new, past_key_values=cache, use_cache=True), bare_step(lens, new, alone, LENGTH))


@contextmanager
def attending_to(lens: Any, places: dict[int, Tensor]):
    """The bare model, whose layers attend to some columns of their keys and mask alone."""
    layers = {block.attention: i for i, block in lens.anatomy.attending}
    name = lens.model.config._attn_implementation

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **rest: Any) -> Any:
        at = places[layers[module]]
        hidden = mask if mask.dtype == torch.bool else mask == 0
        visible = hidden[..., at]
        visible = visible | (~visible.any(-1, keepdim=True) & (at == k.shape[2] - 1))  # nothing is left but itself
        scores = (q @ k[:, :, at].mT * scaling).masked_fill(~visible, -torch.inf)
        return (scores.softmax(-1) @ v[:, :, at]).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS._local_mapping[name] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS._local_mapping.pop(name)  # the library's own is behind it


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("policy", TOKENS, ids=lambda policy: policy.name)
def test_where_an_index_chooses_a_step_attends_to_what_is_left_of_its_choice(kind: str, policy: Any) -> None:
    lens, tokens, new = lens_of(kind), ids(LENGTH), ids(1, seed=5)
    bare, cache = bare_cache(lens, tokens), prefill(lens, policy, tokens)
    itself = torch.tensor([LENGTH])
    places = {i: torch.cat([stored.places()[0, 0].long(), itself]) for i, stored in stored_of(cache).items()}
    with attending_to(lens, places):
        wanted = lens.model(new, past_key_values=bare, use_cache=True).logits
    for opened in (False, True):
        hooks = [("blocks.1.attn.hook_pattern", lambda pattern, hook: None)] if opened else []
        with lens.hooks(fwd_hooks=hooks):
            close(lens(new, past_key_values=copy.deepcopy(cache), use_cache=True), wanted)
    assert all(stored.indexer_keys.shape[1] == LENGTH for stored in cache.stored.values())


@pytest.mark.parametrize("kind", SPARSE)
def test_keys_of_an_index_go_with_their_tokens(kind: str) -> None:
    """A crop takes them back, rows of a batch keep their own, and a reset leaves none."""
    lens, tokens, new = lens_of(kind), ids(LENGTH, batch=2), ids(2, batch=2, seed=5)
    cache = prefill(lens, interp.SnapKV(budget=9, window=3), tokens)
    wanted = lens(new[:, :1], past_key_values=copy.deepcopy(cache), use_cache=True)
    lens(new[:, 1:], past_key_values=cache, use_cache=True)
    cache.crop(-1)
    cache.reorder_cache(torch.tensor([1, 0]))
    close(lens(new[[1, 0], :1], past_key_values=cache, use_cache=True), wanted[[1, 0]])
    cache.reset()
    assert all(isinstance(layer, StoredIndexed) and layer.indexer_keys is None for layer in cache.layers)


# channels


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("settings", [{}, {"selector": "gram"}, {"selector": "key_norm", "sinks": 2}], ids=str)
def test_think_prunes_rotated_channels_alone(kind: str, settings: dict[str, Any]) -> None:
    """A step is the bare model's over rotated keys with zeros for what was pruned."""
    lens, tokens, new = lens_of(kind), ids(LENGTH), ids(1, seed=5)
    policy = interp.ThinK(ratio=0.5, window=4, recent=5, **settings)
    cache, bare = prefill(lens, policy, tokens), bare_cache(lens, tokens)
    for i, stored in stored_of(cache).items():
        kept = stored.kept_channels("keys")
        assert kept[0].tolist()[:16] == [True] * 16
        assert int(kept.sum()) == 16 + 4
        packed = slice(settings.get("sinks", 0), LENGTH - 5)
        bare.layers[i].values[:, :, packed] *= kept[0, 16:]
    close(lens(new, past_key_values=cache, use_cache=True), bare_step(lens, new, bare, LENGTH))


def test_the_rotated_channels_that_think_drops_have_the_smallest_scores() -> None:
    lens, tokens = lens_of("deepseek_v3"), ids(LENGTH)
    seen = prefill(lens, Watching(), tokens).keeper.plans["tokens"].seen
    with lens.apply(interp.ThinK(ratio=0.5, window=4, recent=5), ledger=True):
        lens(tokens, use_cache=True)
    cache = lens.last_cache
    for entry in cache.keeper.channel_ledger:
        event = seen[entry.layer]
        q, k = event.q[0, :, -4:, 16:], event.k[0, 0, :, 16:]
        score = q.square().mean((0, 1)) * k.square().mean(0)
        assert bool(entry.score[0, 0, :16].isnan().all())
        close(entry.score[0, 0, 16:], score)
        kept = cache.stored[entry.layer].kept_channels("keys")[0, 16:]
        assert bool(score[kept].min() >= score[~kept].max())


def test_what_channels_take_over_leaves_latents_alone() -> None:
    lens, tokens = lens_of("deepseek_v3"), ids(LENGTH)
    bare = bare_cache(lens, tokens)
    for settings in ({"compensate": True}, {"fill": "mean"}, {"selector": "surgeon", "weigh": "attention"}):
        cache = prefill(lens, interp.ThinK(ratio=0.5, window=4, recent=0, **settings), tokens)
        for i, stored in stored_of(cache).items():
            assert torch.equal(stored.values, bare.layers[i].keys)


# merging


@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v32"])
def test_a_merge_averages_latents_and_rotated_keys_together(kind: str) -> None:
    """Against means made by hand of the model's own cache, with the weights of D2O's equations."""
    lens, tokens = lens_of(kind), ids(LENGTH)
    policy = interp.D2O(budget=0.4, variant="paper", metric="uniform", sinks=1)
    with lens.apply(policy, ledger=True):
        lens(tokens, use_cache=True)
    cache, bare, merges = lens.last_cache, bare_cache(lens, tokens), 0
    for entry in cache.keeper.ledger:
        own, stored = bare.layers[entry.layer], stored_of(cache)[entry.layer]
        whole = torch.cat([own.keys, own.values], -1)[0, 0]
        weight, total = torch.full((LENGTH, 1), torch.e), torch.full((LENGTH, 1), torch.e)
        wanted = weight * whole
        told = (x[0, 0].tolist() for x in (entry.evicted, entry.target, entry.merged))
        for gone, into, merged in zip(*told, strict=True):
            if merged:
                similar = torch.cosine_similarity(whole[gone], whole[into], 0).exp()
                wanted[into] += similar * whole[gone]
                total[into] += similar
                merges += 1
        at = stored.places()[0, 0].long()
        close(stored.dense()[0][0, 0], (wanted / total)[at])
    assert merges


def test_a_merge_at_a_step_is_the_same_in_slots_and_out_of_them() -> None:
    """In one kernel, which writes keys and their first channels as values, and by segments."""
    lens, tokens, new = lens_of("deepseek_v3"), ids(LENGTH), ids(5, seed=5)
    policy, held = interp.D2O(budget=0.4, variant="paper", metric="uniform", sinks=1), []
    for opened in (False, True):
        cache = prefill(lens, policy, tokens)
        hooks = [(f"blocks.{i}.attn.hook_pattern", lambda pattern, hook: None) for i in range(3)] if opened else []
        with lens.hooks(fwd_hooks=hooks):
            logits = torch.cat([lens(token, past_key_values=cache, use_cache=True) for token in new.split(1, 1)], 1)
        assert all(layer.in_slots for layer in cache.stored.values())
        order = {i: stored.places().argsort(-1)[..., None] for i, stored in cache.stored.items()}
        keys = [stored.dense()[0].gather(2, order[i].expand(-1, -1, -1, 24)) for i, stored in cache.stored.items()]
        held.append((logits, torch.stack(keys)))
    for one, other in zip(*held, strict=True):
        close(one, other)


# memory


def owned(cache: DynamicCache) -> int:
    """Bytes of latents, rotated keys and keys of an index."""
    parts = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values", "indexer_keys")]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))


@pytest.mark.parametrize("kind", ["deepseek_v3", "minicpm3", *SPARSE])
def test_bytes_are_those_of_the_latents_that_are_left(kind: str) -> None:
    lens, tokens = lens_of(kind), ids(64)
    whole = owned(bare_cache(lens, tokens))
    assert prefill(lens, Watching(), tokens).nbytes() == whole
    index = sum(x.numel() * 4 for _, name, x in lens.last_cache.parts() if name == "indexer_keys")
    cache = prefill(lens, interp.SnapKV(budget=0.25, window=4), tokens)
    positions = sum(x.numel() * x.element_size() for _, name, x in cache.parts() if name == "positions")
    assert cache.nbytes() == (whole - index) // 4 + index + positions
    assert cache.report()["bytes"].sum() == cache.nbytes()
    assert (index > 0) == (kind in SPARSE)


@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v32"])
def test_what_generation_says_of_bytes_is_the_models_own_cache(kind: str) -> None:
    lens, tokens = lens_of(kind), ids(LENGTH)
    told = generate(lens, tokens, interp.SnapKV(budget=9, window=3), max_new_tokens=4)["cache"]
    assert told["dense_bytes"] == owned(bare_cache(lens, ids(told["tokens"])))
    assert told["bytes"] < told["dense_bytes"]


@pytest.mark.parametrize("policy", [
    interp.SnapKV(budget=9, window=3), interp.H2O(budget=9), interp.D2O(budget=0.4, variant="paper"),
    interp.H2O(budget=9) | interp.ThinK(ratio=0.5, window=4, recent=3),
], ids=["snapkv", "h2o", "d2o", "both"])  # fmt: skip
def test_values_stay_a_view_of_keys(policy: Any) -> None:
    lens = lens_of("deepseek_v3")
    with lens.apply(policy):
        lens.generate(ids(LENGTH, batch=2), max_new_tokens=5, min_new_tokens=5, num_beams=2)
    for stored in stored_of(copy.deepcopy(lens.last_cache)).values():
        for segment in stored.segments:
            assert segment.values.untyped_storage().data_ptr() == segment.keys.untyped_storage().data_ptr()
            assert torch.equal(segment.values, segment.keys[..., :16])


# refusals


@pytest.mark.parametrize(("kind", "policy", "reason"), [
    ("deepseek_v3", interp.D2O(budget=0.4, granularity="query_head"), "d2o cannot act on the latent attention of "
     "DeepseekV3ForCausalLM: it stores one head, so nothing is kept by query head"),
    ("deepseek_v3", interp.ThinK(granularity="query_head"), "it stores one head"),
    ("deepseek_v3", interp.ThinK(value_ratio=0.5), "its values are latents, which are keys too"),
    ("deepseek_v3", interp.D2O(budget=0.4, merge="value"), "no value is merged without its key"),
    ("deepseek_v3", interp.Recall() | interp.ThinK(), "recall with think cannot act"),
    ("deepseek_v3", interp.AttentionMatching(), "it fits a value apart from its key, and a latent is both"),
    ("deepseek_v32", interp.Recall(), "a summary is none that could be chosen"),
])  # fmt: skip
def test_what_one_latent_head_cannot_do_is_refused(kind: str, policy: Any, reason: str) -> None:
    lens = lens_of(kind)
    with pytest.raises(InterpError, match=reason), lens.apply(policy):
        pass


def test_think_has_nothing_to_prune_where_keys_are_latents_alone() -> None:
    lens = lens_of("glm5_next", "vl")
    assert lens.cfg.latent_widths == (16, 0)
    with pytest.raises(InterpError, match="its keys are latents alone"), lens.apply(interp.ThinK()):
        pass
    cache = prefill(lens, interp.SnapKV(budget=9, window=3), ids(LENGTH))
    assert [stored.kept for stored in cache.stored.values()] == [9]
