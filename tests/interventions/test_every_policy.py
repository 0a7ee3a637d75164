"""What holds for every cache policy, whoever wrote it: it is crossed with all this by being found.

What it keeps and why is its own test's matter.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import interp
from interp import InterpError, interventions
from interp.interventions import CachePolicy, available
from interp.results.storage import load, save
from tests.interventions.edited_by_hand import in_pieces
from tests.interventions.examples import POLICIES, PROMPT, changing_nothing, counted, refusal, sees_the_text_only
from tests.interventions.live_cache import close, left_padded, prefill
from tests.models import LATENT, shared, tokens

Tensor = torch.Tensor

KINDS = ("llama", "gpt2", "gpt_oss", *LATENT)
"""Grouped queries; a head for each, not rotated; a window in some layers and learned sinks; latents."""
HOW: dict[str, Any] = {
    "max_new_tokens": 6, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True
}  # fmt: skip
PADDING = 11
grouped = pytest.mark.parametrize("kind", ["llama", "gpt_oss"])  # where a third kind would tell nothing more
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are"),
    pytest.mark.filterwarnings("ignore:.*dropped nothing.*ended before it acts"),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def lens(kind: str, policy: CachePolicy) -> Any:
    if refusal(policy, kind):
        assert kind != "llama", "it acts on something"
        pytest.skip(f"{policy.name} refuses {kind}, and test_baselines sees to it")
    lens = interp.load(shared(kind))
    if lens.cfg.latent_layers and policy.unfit_for_latents(lens.cfg):
        pytest.skip(f"{policy!r} refuses latents, and test_latent sees to it")
    return lens


def held(cache: Any) -> dict[int, list[list[list[int]]]]:
    """Positions that each layer holds, by text and head, rising."""
    places = {}
    for layer, stored in cache.stored.items():
        shape = stored.keys.shape[:2]
        at = torch.cat([segment.at().expand(*shape, -1) for segment in stored.segments], 2)
        places[layer] = at.sort(-1).values.tolist()
    return places


def stepping(cache: Any) -> bool:
    return any(plan.each_step for plan in cache.keeper.plans.values())


def summarises(cache: Any) -> bool:
    """Whether something stored is no token of the text."""
    return any(s.log_count is not None for stored in cache.stored.values() for s in stored.segments)


@every_policy
def test_a_chunked_prompt_is_the_whole_prompt(policy: CachePolicy, lens: Any) -> None:
    ids, mask = left_padded(PROMPT, PADDING)
    runs = []
    with lens.apply(policy):
        for chunk in (None, 16, 7):
            out = lens.generate(ids, attention_mask=mask, prefill_chunk_size=chunk, **HOW)
            runs.append((torch.stack(out.logits, 1), held(lens.last_cache), lens.last_cache.nbytes()))
    for logits, places, nbytes in runs[1:]:
        close(logits, runs[0][0], 1e-4)
        assert (places, nbytes) == runs[0][1:]


@every_policy
def test_later_tokens_one_by_one_or_at_once(policy: CachePolicy, lens: Any) -> None:
    """The same for a policy that acts once; one that acts at every step drops as much either way."""
    ids, first, later = tokens(2, PROMPT), tokens(2, 1, seed=4), tokens(2, 5, seed=3)
    one, other = (prefill(lens, policy, ids) for _ in range(2))
    for cache in (one, other):
        lens(first, past_key_values=cache, use_cache=True)  # some wait for it
    steps = torch.cat([lens(part, past_key_values=one, use_cache=True) for part in later.split(1, 1)], 1)
    at_once = lens(later, past_key_values=other, use_cache=True)
    assert [stored.kept for stored in one.stored.values()] == [stored.kept for stored in other.stored.values()]
    if not stepping(one):
        close(steps, at_once, 1e-4)
        assert held(one) == held(other)


@every_policy
def test_what_stands_in_the_padding_does_not_matter(policy: CachePolicy, lens: Any) -> None:
    ids, mask = left_padded(PROMPT + 6, PADDING)
    sizes, real, runs = (PROMPT, 1, 1, 4), mask.bool(), []
    for filled in (ids, torch.where(real, ids, tokens(2, PROMPT + 6, seed=9))):
        with lens.apply(policy):
            logits = in_pieces(lens, filled, sizes, mask)
        runs.append((logits[real], held(lens.last_cache)))
    assert bool(runs[0][0].isfinite().all())
    close(runs[0][0], runs[1][0], 1e-4)
    assert runs[0][1] == runs[1][1]


ALONE = {name: policy for name, policy in POLICIES.items() if sees_the_text_only(policy)}
COUNTED = {f"{name}, counted": counted(policy, PROMPT) for name, policy in ALONE.items()}
ALONE |= {name: policy for name, policy in COUNTED.items() if policy is not None}


@pytest.mark.parametrize("policy", ALONE.values(), ids=ALONE)
def test_a_padded_text_is_what_it_is_alone(policy: CachePolicy, lens: Any) -> None:
    """Whether the budget is a share of the text or a number of tokens."""
    (ids, mask), sizes = left_padded(PROMPT + 6, PADDING), (PROMPT, 1, 1, 4)
    with lens.apply(policy):
        logits = in_pieces(lens, ids, sizes, mask)
        both = held(lens.last_cache)
        alone = in_pieces(lens, ids[1:, PADDING:], (PROMPT - PADDING, *sizes[1:]))
    close(logits[1:, PADDING:], alone, 1e-4)
    if not summarises(lens.last_cache):
        for layer, by_text in held(lens.last_cache).items():
            assert [[p - PADDING for p in head if p >= PADDING] for head in both[layer][1]] == by_text[0]


@grouped
@every_policy
def test_beams_score_what_reading_them_back_scores(policy: CachePolicy, lens: Any) -> None:
    """A cache whose rows were reordered at every step, beside one of the text that won, token by token."""
    ids = tokens(2, PROMPT)
    with lens.apply(policy):
        out = lens.generate(ids, num_beams=3, length_penalty=0.0, output_scores=True, **HOW)
        loss = lens.score(ids, out.sequences[:, PROMPT:], chunk=1)
    assert out.sequences.shape == (2, PROMPT + 6)
    if sees_the_text_only(policy):
        close(-loss.sum(1), out.sequences_scores, 1e-3)


@every_policy
def test_rows_of_a_cache_go_on_by_themselves(policy: CachePolicy, lens: Any) -> None:
    """Copied, reordered, taken and repeated, in the middle of a text."""
    ids, later = tokens(3, PROMPT), tokens(3, 4, seed=3)
    cache = prefill(lens, policy, ids)
    lens(later[:, :1], past_key_values=cache, use_cache=True)
    copies = [copy.deepcopy(cache) for _ in range(3)]
    copies[0].reorder_cache(torch.tensor([2, 0, 1]))
    copies[1].batch_select_indices(torch.tensor([1]))
    copies[2].batch_repeat_interleave(2)
    steps = later[:, 1:].split(1, 1)
    wanted = torch.cat([lens(part, past_key_values=cache, use_cache=True) for part in steps], 1)
    for other, rows in zip(copies, ([2, 0, 1], [1], [0, 0, 1, 1, 2, 2]), strict=True):
        parts = [lens(part[rows], past_key_values=other, use_cache=True) for part in steps]
        close(torch.cat(parts, 1), wanted[rows], 1e-4)


@grouped
@every_policy
def test_looking_changes_nothing(policy: CachePolicy, lens: Any) -> None:
    """Steps with the pattern in the open, and by whatever kernel does without it."""
    look = [(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)]
    ids, sizes, runs = tokens(2, PROMPT + 5), (PROMPT, 1, 1, 1, 2), []
    for hooks in ([], look):
        with lens.apply(policy), lens.hooks(fwd_hooks=hooks):
            runs.append((in_pieces(lens, ids, sizes), held(lens.last_cache)))
    close(runs[0][0], runs[1][0], 1e-4)
    assert runs[0][1] == runs[1][1]


@every_policy
def test_bytes_are_those_of_the_tensors_held(policy: CachePolicy, lens: Any) -> None:
    ids = tokens(2, PROMPT)
    lens.generate(ids, **HOW)
    dense = lens.last_cache.nbytes()
    with lens.apply(policy):
        lens.generate(ids, **HOW)
    cache = lens.last_cache
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, _, t in cache.parts()}
    report = cache.report()
    assert cache.nbytes() == sum(storages.values()) == report["bytes"].sum() < dense
    assert (report.drop(columns=["tokens", "kept", "bytes"]).sum(axis=1) == report["bytes"]).all()
    assert (report["kept"] <= report["tokens"]).all()


@grouped
@every_policy
def test_an_exception_inside_restores_everything(policy: CachePolicy, lens: Any) -> None:
    ids, model = tokens(2, PROMPT), lens.model
    before = model(ids).logits

    def fail(value: Tensor, hook: Any) -> None:
        if value.shape[1] == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), lens.apply(policy), lens.hooks(fwd_hooks=[("blocks.1.attn.hook_z", fail)]):
        lens.generate(ids, **HOW)
    assert torch.equal(lens(ids), before)
    assert torch.equal(model(ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    lens(ids, use_cache=True)
    assert lens.last_cache.keeper is None
    with lens.apply(policy):  # and it can be used again
        lens.generate(ids, max_new_tokens=2, eos_token_id=None)
    assert lens.last_cache.keeper.policies == (policy,)


PLAINEST = {policy.name: policy for policy in reversed(POLICIES.values())}
IDLE = {name: changing_nothing(policy) for name, policy in PLAINEST.items()}
IDLE = {name: policy for name, policy in IDLE.items() if policy is not None}


@grouped
@pytest.mark.parametrize("policy", IDLE.values(), ids=IDLE)
def test_a_policy_that_keeps_all_changes_no_bit(policy: CachePolicy, lens: Any) -> None:
    ids = tokens(2, PROMPT)
    plain = lens.generate(ids, **HOW)
    with pytest.warns(UserWarning, match=f"{policy.name} dropped nothing"), lens.apply(policy):
        out = lens.generate(ids, **HOW)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


TOKENS = {name: policy for name, policy in POLICIES.items() if policy.stage == "tokens"}


@grouped
@pytest.mark.parametrize("policy", TOKENS.values(), ids=TOKENS)
def test_the_ledger_and_the_cache_share_the_text_out(policy: CachePolicy, lens: Any) -> None:
    """Every token is held or was evicted, once; summaries are neither."""
    ids, mask = left_padded(PROMPT, PADDING)
    with lens.apply(policy, ledger=True):
        lens.generate(ids, attention_mask=mask, **HOW)
    cache = lens.last_cache
    for layer, stored in cache.stored.items():
        shape = stored.keys.shape[:2]
        plain = [s.at().expand(*shape, -1) for s in stored.segments if s.summary is None]
        at, entries = torch.cat(plain, 2), [entry for entry in cache.keeper.ledger if entry.layer == layer]
        for text, first in enumerate((0, PADDING)):
            for head in range(shape[1]):
                gone = [p for entry in entries for p in entry.evicted[text, head].tolist() if p >= 0]
                stays = [p for p in at[text, head].tolist() if p >= first]
                assert sorted(gone + stays) == list(range(first, stored.seen))
        assert all(bool(entry.score[entry.evicted >= 0].isfinite().all()) for entry in entries)
    assert cache.keeper.ledger


@grouped
@every_policy
def test_it_goes_together_with_a_policy_of_the_other_stage(policy: CachePolicy, lens: Any) -> None:
    of_heads = getattr(policy, "granularity", "kv_head")
    other: CachePolicy = interp.ThinK(0.5, window=8, recent=4, granularity=of_heads)
    if policy.stage == "channels":
        other = interp.RandomTokens(budget=0.75)
    ids, found = tokens(2, PROMPT), []
    for together in (policy | other, other | policy):
        with lens.apply(together):
            found.append(torch.stack(lens.generate(ids, **HOW).logits))
    assert torch.equal(*found)
    both = lens.last_cache.nbytes()
    for one in (policy, other):
        with lens.apply(one):
            lens.generate(ids, **HOW)
        assert both < lens.last_cache.nbytes()
    with pytest.raises(InterpError, match=f"both decide about {policy.stage} of the cache"):
        policy | policy


@every_policy
def test_settings_survive_a_file(policy: CachePolicy, tmp_path: Any) -> None:
    assert interventions.load(interventions.save(policy, tmp_path / "policy.toml")) == policy
    assert eval(repr(policy), {cls.__name__: cls for cls in available().values()}) == policy
    assert hash(policy) == hash(copy.deepcopy(policy))


@every_policy
def test_what_it_did_can_be_explained(policy: CachePolicy, tmp_path: Any) -> None:
    lens = interp.load(shared("llama"))
    questions = [question for question in interp.explaining.available().values() if policy.stage in question.stages]
    few = [q(samples=10) if hasattr(q, "samples") else q() for q in questions]  # putting one back takes a run
    answers = interp.explain(lens, policy, tokens(1, PROMPT), tokens(1, 9, seed=5), few)
    assert set(answers) == {question.name for question in questions}
    for name, ds in answers.items():
        assert all(v.attrs["units"] and v.attrs["description"] for v in ds.data_vars.values())
        assert set(load(save(ds, tmp_path / f"{name}.nc")).variables) == set(ds.variables)
    told = interp.explaining.findings(answers)
    assert len(told) >= len(answers)
    assert not any("nan" in sentence for sentence in told)


@grouped
@every_policy
def test_what_is_lost_is_finite(policy: CachePolicy, lens: Any) -> None:
    """The loss of a text under the policy, whose first token no policy changes."""
    ids, rest = tokens(2, PROMPT), tokens(2, 6, seed=5)
    plain = lens.score(ids, rest)
    with lens.apply(policy):
        loss = lens.score(ids, rest, chunk=1)
    assert torch.equal(loss[:, 0], plain[:, 0])
    assert all(math.isfinite(x) for x in loss.flatten().tolist())
