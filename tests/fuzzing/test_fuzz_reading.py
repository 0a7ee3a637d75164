"""What a model is asked: texts, tokens, masks, hooks,
filters and settings of runs; and nothing stays on the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import interp
from interp.patching import logit_difference
from interp.runs.generating import generate
from tests.fuzzing.drawing import Draw
from tests.fuzzing.trying import fuzz, inputs
from tests.lens.interrupts import hooked
from tests.models import GROUPED, tokenizer

WORDS = "w4 w5 w6 w7 w8 w9 w10 w11 w12 w13"
IDS = [4, 5, 6, 7, 8, 9, 10]
CHAT = [{"role": "user", "content": "w4 w5"}]
NAMES = [
    "hook_embed", "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.0.attn.hook_q",
    "blocks.0.attn.hook_k",
    "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern", "blocks.0.attn.hook_attn_scores", "blocks.0.mlp.hook_post",
    "blocks.0.attn.hook_column_mass", "blocks.0.attn.hook_event", "ln_final.hook_normalized", "blocks.1.hook_mlp_out",
]  # fmt: skip
POLICIES = [
    interp.SnapKV(budget=6, window=2), interp.H2O(budget=6), interp.StreamingLLM(budget=6),
    interp.KnockOut(keys=0), interp.Temperature(temperature=2.0), interp.ThinK(window=2, recent=2),
    interp.TOVA(budget=5),
]  # fmt: skip


@cache
def lens_of() -> interp.Lens:
    torch.manual_seed(0)
    small = {**GROUPED, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return interp.load(hf.LlamaForCausalLM(hf.LlamaConfig(**small)).eval(), tokenizer())


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def reading(draw: Draw) -> Any:
    """Something to read: as people pass it, or nearly."""
    text = draw.choice((WORDS, WORDS[:14], "w4", "w4 w5 w200", draw.word(), draw.text(WORDS)))
    row = list(IDS[: draw.randrange(1, 8)])
    if draw.often(0.3):
        row[draw.randrange(len(row))] = draw.value(1)
    kinds: list[Callable[[], Any]] = [
        lambda: text,
        lambda: text,
        lambda: [text, WORDS[: draw.choice((0, 2, 8, 14))]],
        lambda: row,
        lambda: [row, IDS[:3]],
        lambda: [[row]],
        lambda: torch.tensor([draw.choice(IDS) for _ in range(draw.randrange(5))]),
        lambda: torch.tensor([IDS, IDS[::-1]], dtype=draw.choice((torch.int64, torch.int32, torch.uint8, torch.int16))),
        lambda: torch.tensor([IDS]).to(draw.choice((torch.float32, torch.bool, torch.complex64, torch.float16))),
        lambda: torch.tensor([[draw.choice((4, -1, 127, 128, 2**40))]]),
        lambda: torch.zeros(draw.choice(((0,), (1, 0), (0, 3), (1, 2, 3), ())), dtype=torch.long),
        lambda: np.array([IDS], dtype=draw.choice(("int64", "uint16", "float64", "bool", "object", "uint64", ">i4"))),
        lambda: np.array(draw.choice(([], [[]], ["w4", "w5"], 4, [[1], [2]], [b"w4"]))),
        lambda: {"input_ids": draw.choice((IDS, [IDS], torch.tensor([IDS]), None)), "attention_mask": mask(draw)},
        lambda: {draw.word(): row},
        lambda: draw.choice((CHAT, [CHAT], [{"role": "user"}], [{}], [{"content": "a"}], [[{}]], [CHAT[0], "a"])),
        lambda: draw.value(),
        lambda: lens_of().tokenizer(draw.choice((WORDS, [WORDS, "w4"]))),
        lambda: (one for one in [text]),
        lambda: {text},
    ]
    return draw.choice(kinds)()


def mask(draw: Draw) -> Any:
    if draw.often(0.4):
        return None
    return draw.choice((
        [1] * 7, [[1] * 7], torch.ones(1, 7), torch.ones(2, 7), torch.ones(7), torch.zeros(1, 7),
        torch.tensor([[0] * 3 + [1] * 4]),
        torch.tensor([[1] * 3 + [0] * 4]), torch.full((1, 7), 0.5), torch.ones(1, 1, 7, 7), torch.ones(1, 7, 7),
        "a", [["a"]], 1,
        np.ones((1, 7)), torch.full((1, 7), torch.nan), torch.ones(1, 5), [[1], [1, 1]], {}, [], torch.ones(1,
        7).bool(),
        torch.zeros(1, 1, 7, 7), draw.value(1),
    ))  # fmt: skip


def clean(lens: interp.Lens) -> None:
    assert not hooked([*lens.model.named_modules(), *lens.hook_dict.items()])
    assert lens.context_level == 0
    assert not lens.edits_in_force
    assert not lens.policies_in_force


def told_apart(draw: Draw) -> None:
    lens, given, how = lens_of(), reading(draw), {}
    if draw.often(0.3):
        how = {
            draw.choice(("prepend_bos", "padding_side", "truncate")): draw.choice(
                (None, "left", "right", True, 3, draw.value(0))
            )
        }
    ask = draw.choice((lens.to_tokens, lens.to_str_tokens, lens.tokens_and_mask, lens.to_string))
    draw.trying(ask.__name__, given, how)
    if ask in (lens.tokens_and_mask, lens.to_string):
        how = {}
    if ask == lens.to_str_tokens:
        how.pop("truncate", None)
    ask(given, **how)


@inputs(700)
def test_what_is_read(count: int) -> None:
    fuzz("what is read", count, told_apart)


def called(draw: Draw) -> None:
    lens, given, how = lens_of(), reading(draw), {}
    if draw.often(0.4):
        how["attention_mask"] = mask(draw)
    for name, values in {
        "return_type": ("loss", "both", None, "a", 1), "use_cache": (True, False, None, "a"),
        "loss_per_token": (True, False, "a"), "stop_at_layer": (0, 1, 2, -1, 9, "a", 1.5),
        "prepend_bos": (True, False, None, 3), "padding_side": ("left", "right", "a", 3),
        "position_ids": (None, "a", [[0, 1]], torch.arange(7)[None], torch.tensor([[-5] * 7])),
        "past_key_values": (None, "a", (), {}, lens.last_cache), "other": (1,), "inputs_embeds": (None,
        torch.zeros(1, 3, 32), "a", torch.zeros(3)),
    }.items():  # fmt: skip
        if draw.often(0.1):
            how[name] = draw.choice(values) if draw.often(0.8) else draw.value(1)
    draw.trying("lens", given, how)
    try:
        lens(given, **how)
    finally:
        clean(lens)


@inputs(600)
def test_calls(count: int) -> None:
    fuzz("calls", count, called)


def selection(draw: Draw) -> Any:
    """What selects hook points, or nearly."""
    name = draw.choice(NAMES)
    kind = draw.randrange(8)
    if kind < 3:
        return name
    if kind == 3:
        return draw.text(name)
    if kind == 4:
        return [draw.choice(NAMES), draw.choice((name, draw.text(name), draw.number()))]
    if kind == 5:
        return draw.choice((lambda found: found.endswith("hook_z"), lambda found: False, lambda found: "attn" in found))
    other = draw.value(1)
    return draw.choice((None, None if callable(other) else other, name.split(".")[-1]))  # what int raises is its own


def returned(draw: Draw, value: Any) -> Any:
    """What a hook may answer."""
    if not isinstance(value, torch.Tensor) or not value.ndim:
        return draw.choice((None, value, 1))
    return draw.choice((
        None, None, value, value * 0.5, value[..., :1], value[:1], value.double(), value.long(), value.flatten(),
        0.0, "a",
        value.new_zeros(()), value.expand_as(value), [value], value.new_zeros(0), value.unsqueeze(0),
        value.to("meta"),
    ))  # fmt: skip


def hooks(draw: Draw) -> None:
    lens, where = lens_of(), selection(draw)
    ask = draw.choice(("cache", "hooks", "with", "points"))
    draw.trying(ask, where)
    how: dict[str, Any] = {}
    hook = lambda value, hook: returned(draw, value)  # noqa: E731
    try:
        if ask == "points":
            lens.point_names(where)
        elif ask == "cache":
            if draw.often(0.4):
                how["pos_slice"] = draw.choice((0, -1, (0, 2), [0, 1], slice(1, 3), None, 99, (5, 1), "a", 1.5, [99]))
            if draw.often(0.3):
                how["remove_batch_dim"] = draw.choice((True, False, "a"))
            draw.trying(ask, where, how)
            lens.run_with_cache(IDS, names_filter=where, **how)
        elif ask == "hooks":
            how["fwd_hooks"] = draw.choice(
                ([(where, hook)], [(where, hook)] * 2, where, [where], [(where,)], [(where, 3)])
            )
            how["return_type"] = draw.choice(("logits", "loss", None, "a"))
            draw.trying(ask, where, how)
            lens.run_with_hooks(IDS, **how)
        else:
            with lens.hooks(fwd_hooks=[(where, hook)]):
                lens(IDS)
    finally:
        clean(lens)


@inputs(450)
def test_hooks(count: int) -> None:
    fuzz("hooks", count, hooks)


def some_policy(draw: Draw) -> Any:
    kind = draw.randrange(6)
    if kind < 4:
        return draw.choice(POLICIES)
    return draw.choice(POLICIES) | draw.choice(POLICIES) if kind == 4 else draw.value(0)


def lengths(draw: Draw) -> Any:
    return draw.choice((1, 2, 3, draw.choice((0, -1, None, 2.5, "a", True, [1], np.int64(2), torch.tensor(2)))))


def continued(draw: Draw) -> None:
    lens, given, policy = lens_of(), reading(draw), some_policy(draw)
    ask = draw.choice(("generate", "account", "score", "apply", "side_by_side"))
    n = lengths(draw)
    draw.trying(ask, given, policy, n)
    try:
        if ask == "generate":
            how = {} if draw.often(0.5) else {"names_filter": selection(draw)}
            lens.generate(given, n, **how)
        elif ask == "account":
            generate(lens, given, policy if draw.often(0.8) else None, n)
        elif ask == "score":
            how = {} if draw.often(0.5) else {"chunk": draw.choice((1, 2, draw.value(0)))}
            rest = reading(draw)
            draw.trying(ask, given, rest, how)
            lens.score(given, rest, **how)
        elif ask == "apply":
            with lens.apply(policy):
                lens(given, use_cache=draw.often(0.8))
        elif draw.often(0.3):
            interp.side_by_side(lens, given, policy, n)
    finally:
        clean(lens)


@inputs(200)
def test_continuations(count: int) -> None:
    fuzz("continuations", count, continued)


def probed(draw: Draw) -> None:
    lens, given = lens_of(), reading(draw)
    wanted = draw.choice(
        (
            "text_sinks",
            ["text_sinks"],
            "text_sinks:epsilon=[0.3]",
            interp.TextSinks(),
            draw.value(1),
            [],
            "channel_imbalance",
        )
    )
    how: dict[str, Any] = {}
    if draw.often(0.4):
        how["tokens"] = draw.choice((1, 2, 5, 100, draw.value(0)))
    if draw.often(0.2):
        how["attention_mask"] = mask(draw)
    draw.trying(given, wanted, how)
    try:
        interp.probe(lens, given, wanted, **how)
    finally:
        clean(lens)


@inputs(50)
def test_probes(count: int) -> None:
    fuzz("probes", count, probed)


def patched(draw: Draw) -> None:
    lens = lens_of()
    good = ("w4 w5 w6", "w4 w9 w6", [4, 5, 6], torch.tensor([[4, 9, 6]]))
    clean_one, other = (draw.choice(good) if draw.often(0.8) else reading(draw) for _ in range(2))
    where = draw.choice(("hook_resid_pre", "attn.hook_z", "attn.hook_pattern", selection(draw)))
    metric = draw.choice(
        (logit_difference(7, 8), logit_difference(7, 8), logit_difference([7], [8], -2), lambda logits: draw.value(0))
    )
    how: dict[str, Any] = {}
    for name, values in {
        "by": ("head", "position", "a", 1), "heads": ([0], [0, 1], [-1], [9], 0, "a", [0.5]),
        "positions": ([0], [0, 1], [-1], [9], "a", None, 0), "together": (True, False, "a"),
    }.items():  # fmt: skip
        if draw.often(0.3):
            how[name] = draw.choice(values) if draw.often(0.8) else draw.value(1)
    draw.trying("patch", clean_one, other, where, how)
    try:
        interp.patch(lens, clean_one, other, where, metric, **how)
    finally:
        clean(lens)


@inputs(130)
def test_patches(count: int) -> None:
    fuzz("patches", count, patched)


def explained(draw: Draw) -> None:
    lens, policy = lens_of(), some_policy(draw)
    given = WORDS if draw.often(0.7) else reading(draw)
    rest = "w4 w5 w6" if draw.often(0.6) else reading(draw)
    wanted = draw.choice(
        (None, "ledger", ["masks"], "perturbation", "missed_mass", "attribution:samples=3", draw.value(1))
    )
    draw.trying("explain", policy, given, rest, wanted)
    try:
        interp.explain(lens, policy, given, rest, wanted)
    finally:
        clean(lens)


@inputs(60)
def test_explanations(count: int) -> None:
    fuzz("explanations", count, explained)
