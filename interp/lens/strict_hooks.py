"""TransformerLens' `HookedRootModule`, made strict.

A name or filter that selects no hook point raises and suggests the nearest one; `pos_slice` cuts each activation along
its own position axis; only hook points get a `.name`, so the model inside keeps its modules as they are.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from interp.errors import InterpError, UnknownNameError
from interp.lens.activations import LensActivations
from interp.lens.habits import point_instead
from interp.lens.hook_arguments import cut_out, pairs, positions, selectors
from interp.lens.hook_values import Held, fitting
from interp.lens.packed_rows import PackedPoint, in_one_row
from interp.lens.patterns_later import Changed, LaterPatterns, of_one_text
from interp.lens.stacks import VISION
from interp.lens.turns import Calls, whole
from interp.seam.points import Point, live
from interp.undoing import Gate, Undo, undoing

with warnings.catch_warnings():  # the import adds filters that would hide other libraries' warnings from the user
    from transformer_lens.hook_points import HookPoint as HookPoint
    from transformer_lens.HookedRootModule import HookedRootModule

Hook = Callable[..., Any]
"""Called as `hook(value, hook=point)`; what it returns, unless None, replaces the value."""
Hooks = Sequence[tuple[str | Callable[[str], bool], Hook]]
"""Hooks with the names of their points, or with a filter of names."""
Direction = Literal["fwd", "bwd"]


class HookTree(nn.Module):
    """A named place in the tree of hook points (`blocks.0`, `blocks.0.attn`, `ln_final`)."""

    if TYPE_CHECKING:  # hook points are added by name
        __call__: Callable[..., Any]

        def __getattr__(self, name: str) -> Any: ...


def drop_strays(point: HookPoint) -> None:
    """Drop hooks that an interrupt kept TransformerLens from noting: they would act, and nobody could remove them."""
    noted = {handle.hook.id for handle in (*point.fwd_hooks, *point.bwd_hooks)}
    for held in (point._forward_hooks, point._backward_hooks):
        for number in [n for n, hook in held.items() if hook.__module__ == HookPoint.__module__ and n not in noted]:
            held.pop(number, None)


class HookedLens(HookedRootModule):
    """Hook points by name, with TransformerLens' methods and no silent misses."""

    def __init__(self) -> None:
        super().__init__()
        self._gate, self._calls_of = Gate(), Calls()
        self.point_table: dict[str, Point] = {}
        self.absent: dict[str, str] = {}
        """Points that this model cannot have, with the reason."""
        self.elsewhere: dict[str, str] = {}
        """Points that single blocks are not built to have, with the reason: those of an MLP where there is none."""
        self._calls = 0
        """How often this lens ran its model with an eye on hooks."""

    hooks_need_lens = False
    """Whether hooks act in calls of the lens alone, and not where the model inside is run by itself."""

    def _place(self, point: Point, name: str) -> HookPoint:
        """A hook point that knows its full name and its row of the table; one of that name keeps its hooks."""
        made = getattr(self, "hook_dict", {}).get(name) or (PackedPoint() if name.startswith(VISION) else HookPoint())
        made.name = name
        made.pos_dim = point.position_axis
        self.point_table[name] = point
        return made

    @whole
    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens: what the model returns with hooks that are there for this call alone."""
        return super().run_with_hooks(*args, **kwargs)

    @contextmanager
    def hooks(
        self, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), reset_hooks_end: bool = True, clear_contexts: bool = False
    ) -> Iterator[Any]:
        """As in TransformerLens; while the block runs, other threads that call this Lens wait.

        Warns on leaving where no call of this Lens ran inside: hooks do nothing to `lens.model` by itself.
        """
        with undoing(self._calls_of.now if self._calls_of.depth else None) as undo:
            self._gate.hold(undo)
            level, before = self.context_level + 1, self._calls
            undo.later(self._close, level, reset_hooks_end, clear_contexts)
            self.context_level = level
            for dir, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, hook in pairs(hooks, f"{dir}_hooks"):
                    self._enable_hook(name, hook, cast(Direction, dir))
            yield self
            if self.hooks_need_lens and (fwd_hooks or bwd_hooks) and self._calls == before:
                warnings.warn(
                    "the hooks of this block never fired: nothing ran through the Lens inside it, and lens.model alone "
                    "(in a pipeline, say) passes them by; call lens(...) or lens.generate(...).",
                    stacklevel=3,  # the line of the `with`
                )

    def _close(self, level: int, reset_hooks: bool, clear_contexts: bool) -> None:
        """End the block of that level."""
        for point in self.hook_dict.values():
            drop_strays(point)
        if reset_hooks:
            self.reset_hooks(clear_contexts, including_permanent=False, level=level)
        self.context_level = level - 1

    @contextmanager
    def _watching(self) -> Iterator[dict[str, HookPoint]]:
        """The points that are hooked now; checks what hooks return while the block runs, and warns at its end of those
        that never fired."""
        self._calls += 1
        watched = {name: point for name, point in self.hook_dict.items() if live(point)}
        fired: set[str] = set()
        with undoing(self._calls_of.now) as undo:
            for name, point in watched.items():
                undo.hook(point, lambda *_, name=name: fired.add(name), pre=True)
                if self.point_table[name].mode == "edit":
                    self._check_values(name, point, undo)
            yield watched
        asked = {name for name, point in watched.items() if not getattr(point, "where_it_can", False)}
        if silent := sorted(asked - fired):
            warnings.warn(f"hooks on {', '.join(silent)} did not fire in this call.", stacklevel=6)

    def _check_values(self, name: str, point: HookPoint, undo: Undo) -> None:
        """Let what the hooks of a point return be checked, and stretched to its shape, until the end of `undo`."""
        held: list[Held] = []

        def enter(point: nn.Module, args: tuple[Any, ...]) -> None:
            held[:] = [Held.of(args[0])]

        def leave(point: nn.Module, args: tuple[Any, ...], value: Any) -> Any:
            return fitting(name, self.point_table[name].shape, held[0], value)

        undo.hook(point, enter, pre=True)
        undo.hook(point, leave)

    @whole
    def run_with_cache(self, *args: Any, return_cache_object: bool = True, **kwargs: Any) -> Any:
        """As in TransformerLens: `(output, ActivationCache)`; `cache["pattern", 0]` works.

        Without `names_filter` everything that the model computes anyway and that grows with positions is stored;
        scores, patterns and observables only when named. Of such a cache `cache["pattern", 0]` is computed from queries
        and keys. `pos_slice` slices each point along its own position axis.

        Examples:
            >>> logits, cache = lens.run_with_cache(prompt, names_filter=lambda name: name.endswith("hook_pattern"))
            >>> cache["pattern", 0].shape  # [batch, head, query, key]
            torch.Size([1, 8, 40, 40])
        """
        if kwargs.get("incl_bwd") and not torch.is_grad_enabled():
            raise InterpError("incl_bwd stores gradients, and torch computes none here; leave torch.no_grad() out.")
        positions(kwargs.get("pos_slice"))
        first = args[0] if args else None
        if kwargs.get("remove_batch_dim") and isinstance(first, torch.Tensor) and first.ndim > 1 and len(first) != 1:
            raise InterpError(f"remove_batch_dim goes with one text, and these are {len(first)}; leave it out.")
        if not return_cache_object:
            return super().run_with_cache(*args, **kwargs)
        later = LaterPatterns()
        # of edits and evictions an event would hold on to what they need
        acting = getattr(self, "policies_in_force", ()) or getattr(self, "edits_in_force", ())
        with nullcontext() if acting else later.collected(self.hook_dict, self.hooks, kwargs):
            out, cached = super().run_with_cache(*args, **kwargs)
        alone = bool(kwargs.get("remove_batch_dim", False))
        return out, LensActivations(cached, self, not alone, Changed(later, of_one_text) if alone else later)

    def _look(self) -> None:
        """Make sure that the points are those of the model as it is; a `Lens` knows how."""

    def setup(self) -> None:
        self.hook_dict = {m.name: m for m in self.modules() if isinstance(m, HookPoint) and m.name in self.point_table}
        self.mod_dict = dict(self.hook_dict)

    def take_mode_of(self, model: nn.Module) -> None:
        """Be in training mode where `model` is, of all that is not the model's: torch makes every module in training
        mode, and who asks whether a lens is ready to measure asks all of them."""
        for module in set(self.modules()) - set(model.modules()):
            module.training = model.training

    def why_absent(self, name: str) -> str | None:
        """Why there is no hook point of that name; None where there is one, or no model has one of that name."""
        if name in self.hook_dict:
            return None
        return self.absent.get(name, self.elsewhere.get(name))

    def point_names(self, name: Any) -> list[str]:
        """Names of the hook points that a name, a list of names, or a filter function selects.

        None selects what `run_with_cache` stores by default: all that the model computes anyway and that grows with
        positions, not with their square. Raises UnknownNameError when a name does not exist (with the reason, where the
        architecture has none) or a filter matches nothing.
        """
        self._look()
        if name is None:
            return [n for n, point in self.point_table.items() if point.cached_by_default and n in self.hook_dict]
        if isinstance(name, str):
            if (reason := self.why_absent(name)) is not None:
                raise UnknownNameError(f"this model has no {name}: {reason}.")
            if name not in self.hook_dict:
                if (told := point_instead(name)) is not None:
                    raise UnknownNameError(f"there is no hook point {name!r}; {told}.")
                near = difflib.get_close_matches(name, self.hook_dict, n=1, cutoff=0.0)
                raise UnknownNameError(f"there is no hook point {name!r}; did you mean {near[0]!r}?")
            return [name]
        if callable(name):
            if not (matching := [n for n in self.hook_dict if name(n)]):
                raise UnknownNameError(f"the filter matches none of the {len(self.hook_dict)} hook points.")
            return matching
        return [found for one in selectors(name) for found in self.point_names(one)]

    def _enable_hook(self, name: Any, hook: Hook, dir: Direction) -> None:
        for found in self._hookable(name, dir):
            self.hook_dict[found].add_hook(hook, dir=dir, level=self.context_level)

    def add_hook(self, name: Any, hook: Hook, dir: Direction = "fwd", *args: Any, **kwargs: Any) -> None:
        pairs([(name, hook)], "a hook")
        with self._gate.held():
            for found in self._hookable(name, dir):
                super().add_hook(found, hook, dir, *args, **kwargs)

    def _hookable(self, name: Any, dir: Direction) -> list[str]:
        names = self.point_names(name)
        if dir == "bwd" and (without := [n for n in names if self.point_table[n].mode != "edit"]):
            raise InterpError(f"{without[0]} is computed outside the model's graph, so no gradient passes it.")
        return names

    def add_caching_hooks(
        self, names_filter: Any = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        cache, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, hook in fwd:
            self.hook_dict[name].add_hook(hook, dir="fwd")
        for name, hook in bwd:
            self.hook_dict[name].add_hook(hook, dir="bwd")
        return cache

    def get_caching_hooks(
        self, names_filter: Any = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, Any] | None = None, pos_slice: Any = None,
    ) -> tuple[dict[str, Any], list[tuple[str, Hook]], list[tuple[str, Hook]]]:  # fmt: skip
        """As in TransformerLens: a dictionary to be filled, and the forward and backward hooks that fill it."""
        store: dict[str, Any] = {} if cache is None else cache
        cut = positions(pos_slice)

        def save(value: Any, hook: HookPoint, *, name: str, suffix: str = "") -> None:
            if not isinstance(value, torch.Tensor):
                store[name + suffix] = value  # an attention event
                return
            kept = value.detach().to(device)
            axis = self.point_table[name].position_axis
            kept = kept if axis is None else cut_out(cut, kept, axis, name)
            kept = kept[0] if remove_batch_dim and kept.shape[0] == 1 else kept
            if name.startswith(VISION) and name + suffix in store:
                kept = in_one_row(name, self.point_table[name], store[name + suffix], kept, cut.mode)
            store[name + suffix] = kept

        names = self.point_names(names_filter)
        self.is_caching = True
        backward = [n for n in names if self.point_table[n].mode == "edit"] if incl_bwd else []
        return (
            store,
            [(n, partial(save, name=n)) for n in names],
            [(n, partial(save, name=n, suffix="_grad")) for n in backward],
        )
