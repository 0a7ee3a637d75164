"""Hooks on a model's own modules for the time of one Lens call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from interp.lens.first_look import first
from interp.lens.offered import ADDED
from interp.lens.parts import Anatomy, BlockParts
from interp.lens.strict_hooks import Hook, HookPoint
from interp.seam import points as table
from interp.seam.attention import Site
from interp.seam.points import Point, live
from interp.seam.routing import Attending, attention_through
from interp.seam.softmax_seam import Opening, SoftmaxSite, own_attention_through
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
    second = point("hook_resid_mid2") if part.middle2 is None else None
    if live(point("hook_resid_pre")) or live(point("hook_resid_mid")) or live(rest) or live(second):
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
    if live(rest) or live(second):

        def leave(module: nn.Module, args: Args, out: Any) -> None:
            resid["mid"] = resid["pre"] + part.residual_scale * first(out).view_as(resid["pre"])

        on(part.attn_out, leave)  # after the hooks above, so that it sees what they left
    if part.writers.cross is not None:
        attach_crossing(part, room, part.writers.cross.scale, lambda: resid["mid"], undo)
    if part.middle2 is not None and live(point("hook_resid_mid2")):
        on(part.middle2, lambda m, a, out: replaced(out, room.hook_resid_mid2(first(out))))
    if live(rest):
        on(part.block, lambda m, a, out: replaced(out, moved(room.hook_mlp_out, resid["mid"], first(out))))
    elif part.writers.mlp is not None and live(point("hook_mlp_out")):
        on(part.mlp_out, written_through(room.hook_mlp_out, part.writers.mlp.scale))
    if any(live(point(name)) for name in ADDED):
        for module in part.overwritten:  # after the hooks above, which may have kept what they saw
            on(module, lambda m, a, out: replaced(out, first(out).clone()))
    if live(point("hook_resid_post")):
        on(part.block, lambda m, a, out: replaced(out, room.hook_resid_post(first(out))))


def attach_crossing(part: BlockParts, room: Any, scale: float, start: Callable[[], Any], undo: Undo) -> None:
    """Hooks on what cross-attention adds to the residual stream, which before it is `start()`."""
    for name, before in (("hook_cross_attn_out", None), ("hook_resid_mid2", start)):
        if live(getattr(room, name, None)):
            forward_hook(undo, part.cross_out, written_through(getattr(room, name), scale, before))


def attend_through(model: Any, anatomy: Anatomy, points: Mapping[str, HookPoint], undo: Undo) -> dict[int, Site]:
    """Route all attention of a model through hook points until the end of `undo`; the main stack's sites by layer, of
    those layers whose queries and keys can be reached.

    points: all hook points of the Lens by name.
    """
    called = [(at, layer, part) for at, layer, part in anatomy.places if part.seam != "softmax"]
    sites = {at: site_of(at, layer, part, points, undo) for at, layer, part in called}
    main = {layer: sites[at] for at, layer, _ in called if at == f"blocks.{layer}.attn"}
    for layer, site in main.items():
        site.lender = main.get(anatomy.blocks[layer].seen.get("reads", -1))
    whole = [site for site in sites.values() if site.whole]
    if anatomy.decoder is not None and whole:

        def arrive(module: nn.Module, args: Args, kwargs: dict[str, Any]) -> None:
            for site in whole:
                site.real = _newest(kwargs.get("attention_mask"), kwargs.get("input_ids"))

        undo.hook(anatomy.decoder, arrive, pre=True, with_kwargs=True)
    by_module = {part.attention: sites[at] for at, _, part in called if part.attention}
    undo.enter(attention_through(model, by_module))
    undo.enter(own_attention_through(model, own_sites(anatomy, sites, points)))
    return main


def _newest(mask: Any, new: Any) -> Tensor | None:
    """Which of the new tokens are no padding, of a mask of all tokens so far."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not isinstance(new, Tensor):
        return None
    return mask[:, -new.shape[1] :].bool()


def site_of(at: str, layer: int, part: BlockParts, points: Mapping[str, HookPoint], undo: Undo) -> Site:
    """The site of a block's attention for one call, with what it has to be told while the call runs.

    at: what stands before the names of its points, such as `blocks.0.attn`. points: all hook points of the Lens by
    name.
    """
    offered = table.attention_points(part.seen["rotary"], part.gated, part.whole)
    names = {p.name: points.get(named(at, p)) for p in offered}
    site = Site(layer, {n: p for n, p in names.items() if p is not None}, part.rotation, part.whole)
    site.latent = part.seen.get("latent") is not None

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
    anatomy: Anatomy, sites: Mapping[str, Site], points: Mapping[str, nn.Module]
) -> dict[nn.Module, Opening | Attending]:
    """What stands where modules compute attention in their own code: `sites`, by where they are, where that calls SDPA,
    and new ones around each softmax."""
    own: dict[nn.Module, Opening | Attending] = {}
    for at, _, part in anatomy.places:
        assert part.attention is not None
        if part.seam == "sdpa":
            own[part.attention] = sites[at]
        elif part.seam == "softmax":
            offered = {p.name: points[n] for p in table.softmax_points() if (n := named(at, p)) in points}
            writes = anatomy.decoder is not None and at.startswith("blocks.")
            mask = "decoder_attention_mask" if writes else "attention_mask"
            own[part.attention] = SoftmaxSite(part.seen["n_heads"], offered, mask)
    return own


def named(at: str, point: Point) -> str:
    """The full name of a point of the attention at `at`."""
    return f"{at}.{point.name.removeprefix('attn.')}"


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
