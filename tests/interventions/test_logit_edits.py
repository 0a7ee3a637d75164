"""The stage before the softmax: what reaches the kernels and what is computed in the open come to the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import use
from interp_kernels.dispatch import installed
from torch.utils._python_dispatch import TorchDispatchMode

import interp
from interp import AttentionBias, KnockOut, Recall, SnapKV, Temperature
from interp.interventions import LogitChange, LogitEdit, NewTokens
from interp.interventions.edits import _open
from interp.interventions.edits._members import Meeting, Member
from interp.interventions.edits._open import OpenEvent
from interp.interventions.edits._rescoring import ScoredEvent
from interp.interventions.policies import _readers
from interp.interventions.policies._summaries import Readers
from tests.interventions.by_definition import by_definition
from tests.interventions.edited_by_hand import in_pieces
from tests.interventions.live_cache import close, left_padded
from tests.models import shared, tiny, tokens

HEADS, STORED, SIZE = 4, 2, 8
POINTS = ("attn_scores", "pattern", "lse", "column_mass", "row_entropy")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def edit_of(kind: str, amount: float) -> tuple[Any, int]:
    """A logit edit of each kind, and the groups that it tells apart."""
    if kind == "temperature":
        return Temperature(1.0 + abs(amount)), 1
    return AttentionBias(keys=0, bias=amount, mode="set" if kind == "set" else "add"), 2


FACTS = st.fixed_dictionaries(
    {
        "window": st.none() | st.integers(1, 6),
        "softcap": st.none() | st.floats(1.0, 5.0),
        "sinks": st.booleans(),
        "padded": st.booleans(),
        "dense": st.booleans(),
        "counted": st.booleans(),
    }
)
MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(["temperature", "add", "set"]), st.floats(-3, 3), st.booleans(), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(
    members=MEMBERS,
    asked=FACTS,
    queries=st.sampled_from([1, 3, 7]),
    by_head=st.booleans(),
    cells=st.sampled_from([1, 40, 1 << 22]),
    seed=st.integers(0, 2**16),
)
def test_kernels_and_open_scores_agree(
    members: Any, asked: dict[str, Any], queries: int, by_head: bool, cells: int, seed: int
) -> None:
    """Every number of an event, z too, for members with heads and rows of their own, whatever the mask says."""
    keys, make = 9, torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float32)  # noqa: E731
    some = lambda *shape: torch.rand(*shape, generator=make) < 0.6  # noqa: E731
    facts: dict[str, Any] = {"causal": True, "window": asked["window"]}
    if asked["dense"]:
        facts = {"mask": some(2, 1, queries, keys)}
    if asked["padded"]:
        facts["key_mask"] = torch.arange(keys).expand(2, -1) >= torch.tensor([[0], [3]])
        facts["query_mask"] = facts["key_mask"][:, keys - queries :]
    if asked["counted"]:
        facts["bias"] = torch.where(some(2, HEADS, 1, keys), normal(2, HEADS, 1, keys).abs(), -torch.inf)
    edits = [edit_of(kind, amount) for kind, amount, *_ in members]
    own = [torch.randint(count, (2, STORED if by_head else 1, keys), generator=make) for _, count in edits]
    groups, total = torch.zeros_like(own[0]), 1
    for (_, count), of in zip(edits, own, strict=True):
        groups, total = groups * count + of, total * count
    meeting, rest = [], total
    for (edit, count), (*_, all_rows, all_heads, _) in zip(edits, members, strict=True):
        rest //= count
        rows = torch.ones(2, keys, dtype=torch.bool) if all_rows else some(2, keys)
        heads = None if all_heads else some(HEADS)
        of = torch.arange(total) // rest % count
        meeting.append(Member(edit, of, rows, 0, torch.arange(keys).expand(2, -1), heads, lambda changed: None))
    event = ScoredEvent(
        0, normal(2, HEADS, queries, SIZE), normal(2, STORED, keys, SIZE), normal(2, STORED, keys, 5), 0.5, facts,
        asked["softcap"], normal(HEADS) if asked["sinks"] else None, meeting=Meeting(groups, total, meeting),
    )  # fmt: skip
    before, _open.BLOCK_CELLS = _open.BLOCK_CELLS, cells
    try:
        with torch.no_grad():
            opened = event._opened
            pattern, lse = opened.block(slice(0, queries))
            close(event.pattern(), pattern)
            for name, wanted in (("entropy", torch.special.entr(pattern).sum(-1)), ("column_mass", pattern.sum(2))):
                close(getattr(event, name), wanted)
                close(getattr(opened, name), wanted)
            close(event.lse, lse if event._shift is None else lse + event._shift[..., 0])
            x, y = normal(2, HEADS, keys, 3), normal(2, HEADS, queries, 3)
            close(event.apply(x), pattern @ x)
            close(event.transpose_apply(y), pattern.mT @ y)
            close(event.gram_apply(x)[1], pattern.mT @ pattern @ x)
            close(event.attend().transpose(1, 2), pattern @ event.v.repeat_interleave(2, 1))
    finally:
        _open.BLOCK_CELLS = before


@pytest.mark.parametrize(
    ("name", "edit", "opened"),
    [
        ("llama", Temperature(2.0, heads=(1, 2), queries=(3, 5)), False),
        ("gpt_oss", Temperature(2.0, heads=(1, 2), queries=(3, 5)), False),
        ("gemma2", Temperature(2.0), False),
        ("gemma2", Temperature(2.0, queries=(3, 5)), True),
        ("llama", AttentionBias(keys=2), False),
        ("gemma2", AttentionBias(keys=2, heads=3), False),
        ("llama", AttentionBias(keys=2, queries=(3, 5)), False),
        ("gemma2", AttentionBias(keys=2, queries=(3, 5)), True),
        ("llama", AttentionBias(keys=2, mode="set"), True),
        ("gpt_oss", AttentionBias(keys=2, queries=(3, 5)) | Temperature(2.0), False),
    ],
    ids=str,
)
def test_what_kernels_can_do_is_left_to_them(name: str, edit: Any, opened: bool) -> None:
    lens, ids = interp.load(shared(name)), tokens()
    with lens.apply(edit):
        _, cache = lens.run_with_cache(ids, names_filter="blocks.1.attn.hook_event")
    assert isinstance(cache["event", 1]._as_if, OpenEvent) is opened


@pytest.mark.skipif(not installed(), reason="Triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("edit", "all_rows", "softcap"),
    [
        (Temperature(2.0), True, 3.0),
        (Temperature(2.0), False, None),
        (AttentionBias(bias=2.0), True, 3.0),
        (AttentionBias(bias=2.0), False, None),
    ],
    ids=str,
)
def test_triton_computes_the_same(edit: Any, all_rows: bool, softcap: float | None, dtype: torch.dtype) -> None:
    """Queries in fp32 beside keys in half precision, channels besides the model's, one channel to tell what is seen."""

    def numbers() -> list[torch.Tensor]:
        make = torch.Generator().manual_seed(0)
        normal = lambda *shape: torch.randn(*shape, generator=make).to(dtype)  # noqa: E731
        groups = torch.randint(edit.group_count, (2, 1, 20), generator=make)
        rows = torch.ones(2, 20, dtype=torch.bool) if all_rows else torch.rand(2, 20, generator=make) < 0.5
        of, positions = torch.arange(edit.group_count), torch.arange(20).expand(2, -1)
        member = Member(edit, of, rows, 0, positions, None, lambda changed: None)
        event = ScoredEvent(
            0, normal(2, 4, 5, 8), normal(2, 2, 20, 8), normal(2, 2, 20, 6), 0.5, {"causal": True, "window": 9},
            softcap, normal(4), meeting=Meeting(groups, edit.group_count, [member]),
        )  # fmt: skip
        assert not isinstance(event._as_if, OpenEvent)
        told = [event.lse, event.entropy, event.column_mass, event.apply(event.v), event.transpose_apply(event.q)]
        with torch.enable_grad():
            return [*told, event.attend().detach()]

    with use("cpu"):
        wanted = numbers()
    with use("triton"):
        found = numbers()
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


class Largest(TorchDispatchMode):
    """Of all tensors made, how many numbers the largest has."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return out


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("llama", Temperature(2.0, queries=range(3, 200))),
        ("llama", AttentionBias(keys=range(5), queries=range(3, 200))),
        ("llama", AttentionBias(keys=range(5), mode="set")),
        ("llama", AttentionBias(keys=range(5), mode="set") | KnockOut(keys=7)),
        ("gemma2", Temperature(2.0, heads=3)),
    ],
    ids=str,
)
def test_no_array_of_queries_times_keys(name: str, edit: Any, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the open too, where blocks hold few rows, and on the way back."""
    monkeypatch.setattr(_open, "BLOCK_CELLS", 8 * 300 * 16)
    lens, ids = interp.load(tiny(name)), tokens(1, 300)
    event = "blocks.1.attn.hook_event"
    with lens.apply(edit):
        _, cache = lens.run_with_cache(ids, names_filter=event)
        told = cache["event", 1]
        told = told.__class__(**{f: getattr(told, f) for f in told.__dataclass_fields__})  # nothing computed yet
        kept: list[int] = []
        with Largest() as largest, torch.set_grad_enabled(grad):
            told.q.requires_grad_(grad)
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
                z = told.attend()
            if grad:
                torch.autograd.grad(z.square().sum(), told.q)
            told.column_mass, told.entropy  # noqa: B018
    assert largest.numbers <= 8 * 300 * 128  # as kernels have it: a block of 128 rows of every head at most
    assert sum(kept) < 8 * 300 * 300


@dataclass(frozen=True)
class Sharper(LogitEdit):
    """A stand-in for scaling by the length of the text: each row by the log of how many tokens it may see."""

    name: ClassVar[str] = "sharper"
    group_count: ClassVar[int] = 1

    def groups(self, text: NewTokens) -> torch.Tensor:
        return torch.zeros_like(text.positions[:, -text.new :])

    def change(self, positions: torch.Tensor) -> LogitChange:
        return LogitChange(scale=(positions + 2).clamp_min(2).log()[:, None, :, None])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_a_method_may_go_by_where_a_row_stands(name: str) -> None:
    lens, (ids, mask) = interp.load(shared(name)), left_padded(14, 5)
    wanted, real = by_definition(lens, Sharper(), ids, mask), mask.bool()
    size = wanted[real].abs().max()
    with lens.apply(Sharper()):
        for found in (lens(ids, attention_mask=mask), in_pieces(lens, ids, (7, 4, 1, 2), mask)):
            close(found[real] / size, wanted[real] / size)
    assert (lens(ids, attention_mask=mask) - wanted)[real].abs().max() > 0.01


@pytest.mark.parametrize("look", [False, True])
def test_logit_edits_act_in_order_and_before_the_pattern(look: bool) -> None:
    """(s + 1) / 2 is not s / 2 + 1, and what is knocked out is a share of the edited row, wherever it is named."""
    lens, ids = interp.load(shared("llama")), tokens(1, 10)
    _, cache = lens.run_with_cache(ids, names_filter=["blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_v"])
    scores = cache["attn_scores", 0]
    values = cache["v", 0].transpose(1, 2).repeat_interleave(4, 1)
    at, bias, cool, cut = torch.arange(10) == 2, AttentionBias(keys=2), Temperature(2.0), KnockOut(keys=1, strength=0.5)

    def wanted(edited: torch.Tensor) -> torch.Tensor:
        pattern = edited.softmax(-1)
        left = pattern * torch.where(torch.arange(10) == 1, 0.5, 1.0)
        return (left / left.sum(-1, keepdim=True)) @ values

    hooks = [("blocks.0.attn.hook_pattern", lambda value, hook: None)] if look else []
    for edits, edited in (
        (cut | bias | cool, torch.where(at, scores + 1, scores) / 2),
        (bias | cut | cool, torch.where(at, scores + 1, scores) / 2),
        (cool | bias | cut, scores / 2 + at.float()),
    ):
        with lens.apply(edits), lens.hooks(fwd_hooks=hooks):
            _, found = lens.run_with_cache(ids, names_filter="blocks.0.attn.hook_z")
        close(found["z", 0].transpose(1, 2), wanted(edited))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_a_hook_on_scores_sees_edited_ones_and_has_the_last_word(name: str) -> None:
    """What it sees are the logits that enter the softmax, hidden cells at the lowest number; what it returns does."""
    lens, ids, lowest = interp.load(shared(name)), tokens(), torch.finfo(torch.float32).min
    names = [f"blocks.1.attn.hook_{point}" for point in POINTS]
    edit = AttentionBias(keys=(1, 4), bias=2.0, layers=1, queries=range(3, 12)) | Temperature(
        0.5, layers=1, heads=(0, 3)
    )
    _, before = lens.run_with_cache(ids, names_filter=names)
    hidden = before["attn_scores", 1] <= lowest / 2
    wanted = before["attn_scores", 1].clone()
    wanted[:, :, 3:, [1, 4]] += 2.0
    wanted[:, [0, 3]] *= 2.0
    with lens.apply(edit):
        _, found = lens.run_with_cache(ids, names_filter=names)
    close(found["attn_scores", 1][~hidden], wanted[~hidden])
    assert bool((found["attn_scores", 1][hidden] <= lowest / 2).all())
    close(found["lse", 1], found["attn_scores", 1].logsumexp(-1))
    flat = ("blocks.1.attn.hook_attn_scores", lambda scores, hook: torch.where(hidden, scores, 0.0))
    with lens.apply(edit), lens.hooks(fwd_hooks=[flat]):
        _, cache = lens.run_with_cache(ids, names_filter=names[1])
    sinks = getattr(lens.anatomy.blocks[1].attention, "sinks", torch.full((8,), -torch.inf))
    scale = torch.ones(8).index_fill(0, torch.tensor([0, 3]), 2.0)
    count = (~hidden).sum(-1, keepdim=True) + (sinks * scale).exp()[None, :, None, None]
    close(cache["pattern", 1], (~hidden) / count)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_weights_that_a_model_hands_on_are_edited(name: str) -> None:
    """Attention maps of a model that computes them itself, without a hook anywhere."""
    model = tiny(name)
    model.set_attn_implementation("eager")
    lens, (ids, mask), seen = interp.load(model), left_padded(12, 5), {}
    model.model.layers[1].self_attn.register_forward_hook(lambda module, args, out: seen.update(weights=out[1]))
    edit = Temperature(3.0, heads=(1, 2)) | AttentionBias(keys=2, queries=(4, 5, 6)) | KnockOut(keys=0, strength=0.5)
    with lens.apply(edit):
        lens(ids, attention_mask=mask)
        fused = seen["weights"]
        _, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter="blocks.1.attn.hook_pattern")
    rows = mask.bool()[:, None].expand(-1, 8, -1)
    close(fused[rows], cache["pattern", 1][rows])
    lens(ids, attention_mask=mask)
    assert (seen["weights"] - fused)[rows].abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:.*sliding window")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    "edit", [Temperature(4.0), AttentionBias(keys=(2, 9), bias=4.0, queries=range(18, 30))], ids=str
)
def test_a_prompt_in_pieces_is_observed_as_one(name: str, edit: Any) -> None:
    """A policy that looks back at rows of earlier pieces sees them edited, each at its own place."""
    lens, (ids, mask) = interp.load(shared(name)), left_padded(30, 5)
    kept = []
    for chunk in (None, 7):
        with lens.apply(edit | SnapKV(budget=12, window=6)):
            lens.generate(ids, attention_mask=mask, max_new_tokens=2, prefill_chunk_size=chunk)
        kept.append({i: layer.segments[0].at() for i, layer in lens.last_cache.stored.items()})
    assert kept[0].keys() == kept[1].keys()
    for layer, places in kept[0].items():
        assert torch.equal(places, kept[1][layer])


def test_recall_fits_what_the_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its summaries stand for the model's own logits, which are edited when they are attended to."""
    lens, ids, seen = interp.load(shared("llama")), tokens(length=30), []
    monkeypatch.setattr(_readers, "Readers", lambda *given: seen.append(given) or Readers(*given))
    point = "blocks.0.attn.hook_event"
    _, cache = lens.run_with_cache(ids, names_filter=point)
    with lens.apply(Temperature(5.0) | Recall(budget=12)):
        lens.generate(ids, max_new_tokens=2)
    with lens.apply(Temperature(5.0)):
        _, edited = lens.run_with_cache(ids, names_filter=point)
    rows, lse, at = seen[0]
    scores = rows @ cache["event", 0].k.mT
    hidden = torch.arange(30) > at[:, None, :, None]
    close(lse, scores.masked_fill(hidden, -torch.inf).logsumexp(-1))
    assert (edited["event", 0].lse - cache["event", 0].lse).abs().max() > 0.01
    assert torch.equal(edited["event", 0].q, cache["event", 0].q)
