"""Hooks on a model's own modules for the time of one Lens call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from interp.lens.anatomy import Anatomy, BlockParts, first
from interp.lens.strict_hooks import Hook, HookPoint
from interp.seam import points as table
from interp.seam.attention import Site
from interp.seam.points import live
from interp.seam.routing import Attending
from interp.seam.softmax_seam import Opening, SoftmaxSite
from interp.undoing import Undo

Tensor = torch.Tensor
Args = tuple[Any, ...]


def forward_hook(undo: Undo, module: nn.Module | None, hook: Hook) -> None:
    """A forward hook of this call alone, until the end of `undo`."""
    assert module is not None  # a point exists only where its module was found
    undo.hook(module, hook)


def attach_residual(part: BlockParts, room: Any, undo: Undo) -> None:
    """Hooks on a block's modules for its hooked points along the residual stream, until the end of `undo`."""
    on = partial(forward_hook, undo)

    def point(name: str) -> HookPoint | None:
        return getattr(room, name, None)

    rest = point("hook_mlp_out") if part.writers.rest else None
    if live(point("hook_resid_pre")) or live(point("hook_resid_mid")) or live(rest):
        resid: dict[str, Tensor] = {}

        def enter(module: nn.Module, args: Args, kwargs: dict[str, Any]) -> tuple[Args, dict[str, Any]]:
            given = args[0] if args else kwargs["hidden_states"]
            resid["pre"] = given = room.hook_resid_pre(given)
            return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

        undo.hook(part.block, enter, pre=True, with_kwargs=True)
    for name in ("hook_attn_out", "hook_mixer_out"):
        if live(point(name)):
            on(part.attn_out, written_through(getattr(room, name), part.residual_scale))
    if part.middle is not None and live(point("hook_resid_mid")):
        on(part.middle, lambda m, a, out: replaced(out, room.hook_resid_mid(first(out))))
    elif live(point("hook_resid_mid")):
        on(part.attn_out, written_through(room.hook_resid_mid, part.residual_scale, lambda: resid["pre"]))
    if live(rest):

        def leave(module: nn.Module, args: Args, out: Any) -> None:
            resid["mid"] = resid["pre"] + part.residual_scale * first(out).view_as(resid["pre"])

        on(part.attn_out, leave)  # after the hooks above, so that it sees what they left
        on(part.block, lambda m, a, out: replaced(out, moved(room.hook_mlp_out, resid["mid"], first(out))))
    elif part.writers.mlp is not None and live(point("hook_mlp_out")):
        on(part.mlp_out, written_through(room.hook_mlp_out, part.writers.mlp.scale))
    if any(live(point(name)) for name in ("hook_attn_out", "hook_mixer_out", "hook_mlp_out")):
        for module in part.overwritten:  # after the hooks above, which may have kept what they saw
            on(module, lambda m, a, out: replaced(out, first(out).clone()))
    if live(point("hook_resid_post")):
        on(part.block, lambda m, a, out: replaced(out, room.hook_resid_post(first(out))))


def site_of(layer: int, part: BlockParts, points: Mapping[str, HookPoint], undo: Undo) -> Site:
    """The site of a block's attention for one call, with what it has to be told while the call runs.

    points: all hook points of the Lens by name.
    """
    offered = table.attention_points(part.seen["rotary"], part.gated)
    names = {p.name: points.get(f"blocks.{layer}.{p.name}") for p in offered}
    site = Site(layer, {n: p for n, p in names.items() if p is not None}, part.rotation)

    def note(module: nn.Module, args: Args, kwargs: dict[str, Any]) -> None:
        site.position_embeddings = kwargs.get("position_embeddings")

    assert part.attention is not None
    undo.hook(part.attention, note, pre=True, with_kwargs=True)
    if part.gated and live(gated := names.get("attn.hook_gated_z")):
        assert part.out_projection is not None
        heads = part.seen["n_heads"]

        def read(module: nn.Module, args: Args) -> Args:
            return (gated(args[0].unflatten(-1, (heads, -1))).flatten(-2), *args[1:])

        undo.hook(part.out_projection, read, pre=True)
    return site


def own_sites(
    anatomy: Anatomy, sites: Mapping[int, Site], points: Mapping[str, nn.Module]
) -> dict[nn.Module, Opening | Attending]:
    """What stands where modules compute attention in their own code: `sites`, by layer, where that calls SDPA, and new
    ones around each softmax."""
    own: dict[nn.Module, Opening | Attending] = {}
    for layer, part in anatomy.attending:
        assert part.attention is not None
        if part.seam == "sdpa":
            own[part.attention] = sites[layer]
        elif part.seam == "softmax":
            at = {p.name: points[n] for p in table.softmax_points() if (n := f"blocks.{layer}.{p.name}") in points}
            own[part.attention] = SoftmaxSite(part.seen["n_heads"], at)
    return own


def replaced(out: Any, value: Tensor) -> Any:
    """A module's output with its tensor replaced; the rest of a tuple or list stays."""
    if isinstance(out, list):
        return [value, *out[1:]]
    return (value, *out[1:]) if isinstance(out, tuple) else value


def written_through(point: HookPoint, scale: float, start: Callable[[], Any] | None = None) -> Callable[..., Any]:
    """A forward hook on a module whose output, times `scale`, is added to the residual stream.

    The point sees what the module writes or, given `start`, the residual stream `start()` + what it writes. An edit (a
    returned value or a change in place) becomes a change of the module's output, so it moves the residual stream.
    """

    def hook(module: nn.Module, args: Args, out: Any) -> Any:
        own = first(out)
        if start is None and scale == 1:
            return replaced(out, point(own))
        before = scale * own if start is None else start() + scale * own.view_as(start())
        version = before._version
        after = point(before)
        if after is before and before._version == version and not before.requires_grad:
            return out
        if start is None:
            return replaced(out, after / scale)
        return replaced(out, own + (after - (start() + scale * own)) / scale)

    return hook


def moved(point: HookPoint, mid: Tensor, post: Tensor) -> Tensor:
    """A block's output after a point has seen what leads from `mid` to it; an edit moves the output."""
    before = post - mid
    version = before._version
    after: Tensor = point(before)
    if after is before and before._version == version and not before.requires_grad:
        return post
    return post + (after - (post - mid))
