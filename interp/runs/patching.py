"""`interp.patch`: which activation carries the difference between two prompts.

Run a corrupted prompt, put what a hook point held in a clean run in its place, and read how much of the clean result
comes back (activation patching, also called causal tracing or interchange intervention).
"""

from __future__ import annotations

import difflib
import hashlib
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import InterpError, UnknownNameError
from interp.lens.anatomy import config_of_stack
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.finite import LostError, Numbers, finite
from interp.lens.reading_input import without_padding
from interp.lens.stacks import ENCODER
from interp.seam.points import in_block
from interp.settings.checking import checked
from interp.settings.reading import several

if TYPE_CHECKING:
    import xarray as xr

    from interp.lens.protocol import TextLens
    from interp.seam.config import LensConfig

Tensor = torch.Tensor
Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Any]
Axis = Literal["head", "position"]
HEADS = ("head", "kv_head")


def logit_difference(answer: int | Sequence[int], wrong: int | Sequence[int], position: int = -1) -> Metric:
    """A metric: the logit of token `answer` minus that of token `wrong` at one position, mean over the batch.

    Of several sequences each may have tokens of its own: then both are lists with one id a sequence.

    Examples:
        >>> from interp.patching import logit_difference
        >>> logits = torch.zeros(1, 3, 10)
        >>> logits[0, -1, 4] = 2.0
        >>> logit_difference(answer=4, wrong=5)(logits)
        2.0
    """

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> float:
        batch, tokens, vocabulary = logits.shape
        if not -tokens <= position < tokens:
            raise InterpError(f"logit_difference: there is no position {position} among {tokens} tokens.")
        ids = [torch.atleast_1d(torch.as_tensor(given, device=logits.device)) for given in (answer, wrong)]
        for given in ids:
            if given.is_floating_point() or len(given) not in (1, batch):
                raise InterpError(
                    f"logit_difference: pass one token id, or one for each of {batch} texts; found {given.tolist()}."
                )
            if int(given.min()) < 0 or int(given.max()) >= vocabulary:
                raise InterpError(f"logit_difference: {given.tolist()} is outside the vocabulary of {vocabulary}.")
        there = logits[:, position].float()
        picked = [there.gather(1, given.expand(batch)[:, None]) for given in ids]
        return float((picked[0] - picked[1]).mean())

    metric.__name__ = f"logit_difference(answer={answer}, wrong={wrong}, position={position})"
    return metric


@in_evaluation_mode
@torch.no_grad()
def patch(
    lens: TextLens,
    clean: Any,
    corrupted: Any,
    where: str | Iterable[str] | Callable[[str], bool],
    metric: Metric,
    *,
    by: Axis | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    together: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Patch activations of a clean prompt into a corrupted one and measure what comes back.

    Args:
        lens: from `interp.load`.
        clean, corrupted: two prompts of the same length in tokens: texts, tokens `[pos]` or `[batch, pos]`, or anything
            else that a Lens reads.
        where: hook points: a name of `lens.hook_dict`; a name without its block, such as "attn.hook_z", for that point
            in every layer; several of them; or a filter function, of whose matches those are taken that can be edited.
        metric: a function of the logits `[batch, pos, d_vocab]` that returns one number; see `logit_difference`.
        by: patch every "head" (key/value head, where the point has those) or every "position" by itself. None patches
            the point as a whole.
        heads, positions: patch these only; negative ones count from the end. Of scores and patterns, which are
            `[batch, head, pos, key]`, positions are those of the queries.
        together: patch all points at once instead of one after the other.
        progress: called as `progress(runs done, runs in all)`.

    Returns:
        `metric` and `recovered` = (metric - corrupted) / (clean - corrupted), over `layer`, or over `point` where the
        points are not one kind in several layers, and over `head`, `kv_head` or `position` where asked for. 1 is all of
        the difference, 0 none; below 0 or above 1 is possible. `attrs` hold the metric of both unpatched runs.

    All runs compute the chosen points in the same way (in the open, for scores and patterns), so that patching nothing
    is exactly the corrupted run. Raises InterpError for prompts that do not line up, points that do not exist or cannot
    be edited, and a metric that is no finite number or the same for both prompts; NonFiniteError for logits that are
    not.

    Examples:
        >>> from interp.patching import logit_difference
        >>> back = interp.patch(lens, "w4 w5 w6", "w4 w9 w6", "hook_resid_pre", logit_difference(7, 8), by="position")
        >>> back.recovered.dims
        ('layer', 'position')
    """
    if lens.policies_in_force:
        raise InterpError("patch reads whole prompts without a cache: leave the block of lens.apply first.")
    checked("patch", "together", together, bool)
    points = _points(lens, where)
    tokens, masks = _prompts(lens, clean, corrupted)
    selection = _Selection.of(lens, points, by, heads, positions, tokens[0].shape[1])
    told, numbers = _number(metric), Numbers()

    def run(ids: int, edit: Callable[[str, Tensor], Tensor | None]) -> float:
        hooks = [(name, lambda value, hook, name=name: edit(name, value)) for name in points]
        logits = lens.run_with_hooks(tokens[ids], return_type="logits", attention_mask=masks[ids], fwd_hooks=hooks)
        numbers.take_logits(_counting(logits, masks[ids]))
        if numbers.lost_last:
            raise LostError
        return told(logits)

    held: dict[str, Tensor] = {}
    groups: list[tuple[str, ...]] = [tuple(points)] if together else [(name,) for name in points]
    steps = selection.steps(by)
    values = np.empty((len(groups), len(steps)))
    rows = (row for pair in zip(tokens, masks, strict=True) for row in without_padding(*pair))
    with finite(lens, rows, numbers):
        before = run(0, lambda name, value: held.update({name: value.detach().clone()}))
        after = run(1, lambda name, value: None)
        _comparable(before, after)
        for i, group in enumerate(groups):
            for j, (some_heads, some_positions) in enumerate(steps):

                def put(
                    name: str, value: Tensor, group: Any = group, h: Any = some_heads, p: Any = some_positions
                ) -> Any:
                    return _mixed(value, held[name], selection.axes[name], h, p) if name in group else None

                values[i, j] = run(1, put)
                if progress is not None:
                    progress(i * len(steps) + j + 1, values.size)
    dataset = _dataset(lens, groups, values, (before, after), selection, by, tokens)
    return dataset.assign_attrs(metric=getattr(metric, "__name__", repr(metric)), together=int(together))


def _counting(logits: Tensor, mask: Tensor | None) -> Tensor:
    """The logits of what is no padding; those of a decoder are of its own text."""
    return logits if mask is None or mask.shape != logits.shape[:2] else logits[mask.bool()]


@dataclass(frozen=True)
class _Selection:
    """Which heads and positions are patched, and where a point's tensor has those axes (from the end, or None)."""

    axes: dict[str, tuple[int | None, int | None]]
    heads: list[int] | None
    positions: list[int] | None
    head_name: str

    @classmethod
    def of(
        cls, lens: TextLens, points: list[str], by: Axis | None, heads: Any, positions: Any, n_tokens: int
    ) -> _Selection:
        if by not in (None, "head", "position"):
            raise InterpError(f"patch: by is 'head', 'position' or None, not {by!r}.")
        if by == "position" or positions is not None:
            _refuse_positions_of_a_decoder(lens, points)
        axes, kinds = {}, set()
        for name in points:
            names = lens.point_table[name].shape.split()
            head = next((i - len(names) for i, axis in enumerate(names) if axis in HEADS), None)
            axes[name] = (head, lens.point_table[name].position_axis)
            kinds.add("none" if head is None else names[head])
            if head is None and (by == "head" or heads is not None):
                raise InterpError(f"patch: {name} is [{', '.join(names)}] and has no heads; try attn.hook_z.")
        if (by == "head" or heads is not None) and len(kinds) > 1:
            raise InterpError("patch: some of these points have query heads and some key/value heads; patch one kind.")
        (kind,) = kinds if len(kinds) == 1 else ("head",)
        cfg = _shape_of(lens, points)
        count = cfg.n_key_value_heads if kind == "kv_head" else cfg.n_heads
        chosen = _chosen("head", heads, count, by == "head")
        return cls(axes, chosen, _chosen("position", positions, n_tokens, by == "position"), kind)

    def steps(self, by: Axis | None) -> list[tuple[list[int] | None, list[int] | None]]:
        """(heads, positions) that each run patches; None stands for all."""
        if by == "head":
            return [([head], self.positions) for head in self.heads or ()]
        if by == "position":
            return [(self.heads, [position]) for position in self.positions or ()]
        return [(self.heads, self.positions)]


def _chosen(what: str, given: Any, count: int, each: bool) -> list[int] | None:
    """Indices as non-negative numbers; all of them where each is patched by itself and none was chosen."""
    if given is None:
        return list(range(count)) if each else None
    plain = given.tolist() if hasattr(given, "tolist") else given  # a tensor or an array
    chosen = list(checked("patch", f"{what}s", plain, tuple[int, ...]))
    if wrong := [index for index in chosen if not -count <= index < count]:
        raise InterpError(f"patch: there is no {what} {wrong[0]}; there are {count}.")
    if each and not chosen:
        raise InterpError(f"patch: no {what} is left to patch; name some, or leave {what}s out for all.")
    return list(dict.fromkeys(index % count for index in chosen))


def _mixed(
    value: Tensor, clean: Tensor, axes: tuple[int | None, int | None], heads: list[int] | None, at: list[int] | None
) -> Tensor:
    """`value` with clean's entries at the chosen heads and positions."""
    chosen = torch.ones((), dtype=torch.bool, device=value.device)
    for axis, picked in zip(axes, (heads, at), strict=True):
        if axis is not None and picked is not None:
            line = torch.zeros(value.shape[axis], dtype=torch.bool, device=value.device)
            line[picked] = True
            chosen = chosen & line.view(-1, *[1] * (-axis - 1))
    return torch.where(chosen, clean, value)


def _points(lens: TextLens, where: Any) -> list[str]:
    """Full names of the hook points that `where` selects; raises where there is none or one cannot be edited."""
    if isinstance(where, str):
        names = _named(lens, where)
    elif callable(where):
        names = [name for name in lens.point_names(where) if lens.point_table[name].mode == "edit"]
    else:
        names = [name for one in several(where) for name in _named(lens, one)]
    if not names:
        raise InterpError("patch: where selects no hook point that can be edited; name one, such as 'hook_resid_pre'.")
    for name in names:
        if (mode := lens.point_table[name].mode) != "edit":
            edits = [n for n in lens.hook_dict if lens.point_table[n].mode == "edit"]
            (near,) = difflib.get_close_matches(name, edits, n=1, cutoff=0.0)
            kind = "is computed for looking only (an observable)" if mode == "observable" else "is read-only"
            raise InterpError(
                f"patch: {name} {kind}, so nothing can be put there; the nearest that can be is {near!r}."
            )
    return list(dict.fromkeys(names))


def _refuse_positions_of_a_decoder(lens: TextLens, points: list[str]) -> None:
    """Raise InterpError where positions are asked for at points of a decoder, which reads its start token here."""
    own = [name for name in points if "pos" in lens.point_table[name].shape.split() and not name.startswith(ENCODER)]
    if own and lens.anatomy.decoder is not None:
        raise InterpError(
            f"patch: {own[0]} is of the decoder, which reads its start token alone, and positions are the encoder's; "
            f"name points of that, such as '{ENCODER}hook_resid_pre'."
        )


def _shape_of(lens: TextLens, points: list[str]) -> LensConfig:
    """The shape of the stack that points are in. Raises InterpError where they are in several."""
    reads = {name.startswith(ENCODER) for name in points}
    if len(reads) > 1:
        raise InterpError("patch: some of these points are the encoder's and some the decoder's; patch one of them.")
    return config_of_stack(lens.cfg, lens.anatomy.further[0]) if True in reads else lens.cfg


def _named(lens: TextLens, name: str) -> list[str]:
    """A point by its full name, or by its name within the block in every layer."""
    if not isinstance(name, str):
        raise InterpError(f"patch: where is a name, several names or a function of names, and holds {name!r}.")
    if name in lens.hook_dict or name in lens.absent:
        return lens.point_names(name)
    everywhere = [
        f"{stack.prefix}blocks.{layer}.{name.removeprefix(stack.prefix)}"
        for stack in lens.anatomy.stacks
        if name.startswith(stack.prefix)
        for layer in range(len(stack.blocks))
    ]
    if any(full in lens.hook_dict or full in lens.absent for full in everywhere):
        return lens.point_names([full for full in everywhere if full in lens.hook_dict or full in lens.absent])
    relative = {within[0] + within[2] for full in lens.hook_dict if (within := in_block(full)) is not None}
    (near,) = difflib.get_close_matches(str(name), [*lens.hook_dict, *sorted(relative)], n=1, cutoff=0.0)
    raise UnknownNameError(f"there is no hook point {name!r}; did you mean {near!r}?")


def _prompts(lens: TextLens, clean: Any, corrupted: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    """Tokens `[batch, pos]` and padding masks of both prompts, position by position comparable."""
    (ids, mask), (other, other_mask) = (lens.tokens_and_mask(given) for given in (clean, corrupted))
    if ids.shape != other.shape:
        raise InterpError(
            f"patch: the clean prompt has {ids.shape[1]} tokens{_batch(ids)} and the corrupted one {other.shape[1]}"
            f"{_batch(other)}; positions must match, so change words for others of as many tokens."
        )
    masks = [torch.ones_like(ids) if given is None else given for given in (mask, other_mask)]
    if not torch.equal(*masks):
        lengths = [given.sum(1).tolist() for given in masks]
        raise InterpError(f"patch: the texts pair up as {lengths[0]} and {lengths[1]} tokens; each pair must be equal.")
    lens.check_length(ids.shape[1])
    return [ids, other], [mask, other_mask]


def _batch(ids: Tensor) -> str:
    return "" if len(ids) == 1 else f" in {len(ids)} sequences"


def _number(metric: Metric) -> Callable[[Tensor], float]:
    """The metric, checked to return one number."""
    if not callable(metric):
        raise InterpError(
            f"patch: metric is a function of logits such as interp.patching.logit_difference(1, 2), not {metric!r}."
        )

    def told(logits: Tensor) -> float:
        value = metric(logits)
        if isinstance(value, (Tensor, np.ndarray)):
            if int(np.prod(value.shape)) != 1:
                raise InterpError(f"patch: the metric should return one number, found shape {tuple(value.shape)}.")
            value = value.item()
        if not isinstance(value, numbers.Real):
            raise InterpError(f"patch: the metric should return one number, found {type(value).__name__} {value!r}.")
        return float(value)

    return told


def _comparable(clean: float, corrupted: float) -> None:
    if not (np.isfinite(clean) and np.isfinite(corrupted)):
        raise InterpError(f"patch: the metric should be finite, found {clean} on clean and {corrupted} on corrupted.")
    if clean == corrupted:
        raise InterpError(
            f"patch: the metric is {clean:g} for both prompts, so there is nothing to recover; choose prompts or a "
            "metric that tell them apart."
        )


def _dataset(
    lens: TextLens,
    groups: list[tuple[str, ...]],
    values: np.ndarray,
    unpatched: tuple[float, float],
    selection: _Selection,
    by: Axis | None,
    tokens: list[Tensor],
) -> xr.Dataset:
    from interp.results.described import described
    from interp.results.provenance import provenance

    clean, corrupted = unpatched
    places = {name: in_block(name) for group in groups for name in group}
    kinds = {None if place is None else (place[0], place[2]) for place in places.values()}
    by_layer = len(kinds) == 1 and None not in kinds and all(len(group) == 1 for group in groups)
    first = "layer" if by_layer else "point"
    second = {"head": selection.head_name, "position": "position"}.get(by or "")
    dims = (first, second) if second else (first,)
    labels = np.array([" + ".join(group) for group in groups], dtype=object)
    coordinates: dict[str, Any] = {"point": (first, labels)}
    if by_layer:
        coordinates["layer"] = [place[1] for place in places.values() if place is not None]
    if by == "head":
        coordinates[selection.head_name] = selection.heads
    if by == "position":
        coordinates["position"] = selection.positions
        if len(tokens[0]) == 1:
            for name, ids in zip(("clean_token", "corrupted_token"), tokens, strict=True):
                texts = lens.to_str_tokens(ids)
                coordinates[name] = ("position", np.array([texts[p] for p in selection.positions or ()], dtype=object))
    values = values if second else values[:, 0]
    about = {
        "title": "Activation patching",
        "description": "The metric of a corrupted prompt with activations of a clean one put in its place",
        "model": lens.cfg.model_name,
        "architecture": lens.cfg.architecture,
        "dtype": lens.cfg.dtype,
        "n_tokens": int(tokens[0].shape[1]),
        "clean_tokens_sha256": _sha256(tokens[0]),
        "corrupted_tokens_sha256": _sha256(tokens[1]),
        "clean_metric": clean,
        "corrupted_metric": corrupted,
        "heads": "all" if selection.heads is None or by == "head" else str(selection.heads),
        "positions": "all" if selection.positions is None or by == "position" else str(selection.positions),
        **provenance(lens.device),
    }
    recovered = (values - corrupted) / (clean - corrupted)
    data = {
        "metric": (dims, values, "1", "metric of the patched run"),
        "recovered": (dims, recovered, "1", "(metric - corrupted) / (clean - corrupted): 1 is all, 0 is nothing"),
    }
    return described(data, coordinates, about)


def _sha256(ids: Tensor) -> str:
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()
