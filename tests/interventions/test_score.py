"""`lens.score` against the cross entropy of one whole pass, and against generation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

import interp
from interp import D2O, InterpError, ThinK
from tests.interventions.d2o_reference import close, deep
from tests.interventions.zero_fill import ARCHITECTURES, full_layers, plain
from tests.models import shared, tokenizer, tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are")
POLICY = ThinK(ratio=0.5, window=8, recent=6)


def nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p of every target `[batch, token]` from logits `[batch, token, vocabulary]` in fp64."""
    chosen = logits.double().gather(-1, targets[..., None])[..., 0]
    return logits.double().logsumexp(-1) - chosen


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_without_a_policy_it_is_the_cross_entropy_of_one_pass(name: str, chunk: int) -> None:
    text = tokens(length=40)
    wanted = nll(shared(name)(text).logits[:, 29:-1], text[:, 30:])
    found = interp.load(shared(name)).score(text[:, :30], text[:, 30:], chunk=chunk)
    assert found.shape == (2, 10)
    assert found.dtype == torch.float32
    close(found, wanted)


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_under_think_it_is_that_of_a_zero_filled_cache(name: str, chunk: int) -> None:
    text, lens = tokens(length=40), interp.load(shared(name))
    read = plain(name, text[:, :30])
    d_head = read.cache.layers[1].keys.shape[-1]
    read.prune(full_layers(name), d_head // 2, 8, 6)
    logits = torch.cat([read.logits[:, -1:], *(read.step(new) for new in text[:, 30:-1].split(1, 1))], 1)
    with lens.apply(POLICY):
        found = lens.score(text[:, :30], text[:, 30:], chunk=chunk)
    close(found, nll(logits, text[:, 30:]))
    own = lens.score(text[:, :30], text[:, 30:])
    assert torch.equal(found[:, 0], own[:, 0])  # the first token is read from the prompt alone
    assert (found[:, 1:] - own[:, 1:]).abs().max() > 1e-3


@pytest.mark.parametrize("policy", [POLICY, ThinK(0.75, 8, 0, 2, True, value_ratio=0.5)], ids=["think", "more"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
@torch.no_grad()
def test_it_scores_what_generation_gave(name: str, policy: ThinK) -> None:
    lens, ids = interp.load(shared(name)), tokens(length=30)
    asked = {"min_new_tokens": 9, "max_new_tokens": 9, "return_dict_in_generate": True, "output_logits": True}
    with lens.apply(policy):
        out = lens.generate(ids, **asked)
        new = out.sequences[:, 30:]
        for chunk in (1, 4, 256):
            close(lens.score(ids, new, chunk=chunk), nll(torch.stack(out.logits, 1), new))


@pytest.mark.parametrize("policy", [None, POLICY], ids=["none", "think"])
@torch.no_grad()
def test_texts_are_tokens_and_padding_changes_nothing(policy: Any) -> None:
    """Prompts of 31 and 20 tokens with a beginning-of-text token each; the continuation gets none."""
    lens = interp.load(shared("llama"), tokenizer())
    long, short, rest = tokens(1, 30), tokens(1, 19, seed=2), tokens(2, 5, seed=3)

    def text(row: torch.Tensor) -> str:
        return " ".join(f"w{i}" for i in row[0].tolist())

    def scores(*args: Any) -> torch.Tensor:
        if policy is None:
            return lens.score(*args)
        with lens.apply(policy):
            return lens.score(*args)

    with_bos = [torch.cat([torch.zeros(1, 1, dtype=torch.long), row], 1) for row in (long, short)]
    one, other = (scores(row, rest[i : i + 1]) for i, row in enumerate(with_bos))
    assert torch.equal(scores(text(long), text(rest[:1])), one)
    close(scores([text(long), text(short)], rest), torch.cat([one, other]))


@pytest.mark.parametrize("chunk", [1, 4, 256])
@torch.no_grad()
def test_a_policy_that_waits_for_the_first_token_has_acted_before_the_others(chunk: int) -> None:
    """Against calls by hand: that token alone, which still sees everything, then `chunk` at a time."""
    lens, text = interp.load(deep("llama")), tokens(length=60)
    policy = D2O(budget=0.2, compress_at="first_decode")
    with lens.apply(policy):
        found = lens.score(text[:, :40], text[:, 40:], chunk=chunk)
        logits = [lens(text[:, :40], use_cache=True)[:, -1:]]
        cache = lens.last_cache
        for part in (text[:, 40:41], *text[:, 41:-1].split(chunk, 1)):
            logits.append(lens(part, past_key_values=cache, use_cache=True))
    close(found, nll(torch.cat(logits, 1), text[:, 40:]))
    own = lens.score(text[:, :40], text[:, 40:])
    close(found[:, :2], own[:, :2])
    assert (found[:, 2:] - own[:, 2:]).abs().amin(1).max() > 1e-4


@pytest.mark.filterwarnings("ignore:d2o dropped nothing.*ended before it acts")
@pytest.mark.parametrize("policy", [None, POLICY, D2O(budget=0.2)], ids=["none", "think", "d2o"])
def test_one_token_is_scored_from_the_prompt_alone(policy: Any) -> None:
    lens, text = interp.load(deep("llama")), tokens(length=41)
    with nullcontext() if policy is None else lens.apply(policy):
        found = lens.score(text[:, :40], text[:, 40:])
    close(found, nll(lens(text).detach()[:, 39:40], text[:, 40:]))


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((tokens(length=9), tokens(length=3)), {"chunk": 0}, "chunk should be at least 1, found 0"),
        ((tokens(length=9), tokens(length=0)), {}, "the continuation is empty"),
        ((tokens(1, 9), ""), {}, "the continuation is empty"),
        ((tokens(length=9), tokens(3, 3)), {}, "2 prompts and 3 continuations do not pair up"),
        ((tokens(length=510), tokens(length=3)), {}, "512"),
    ],
    ids=["chunk", "no tokens", "no text", "pairs", "too long"],
)
def test_mistakes_are_told_before_the_model_runs(arguments: Any, keywords: Any, message: str) -> None:
    lens, calls = interp.load(shared("llama"), tokenizer()), []
    hook = shared("llama").register_forward_pre_hook(lambda *args: calls.append(1))
    try:
        with pytest.raises(InterpError) as caught:
            lens.score(*arguments, **keywords)
    finally:
        hook.remove()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not calls
