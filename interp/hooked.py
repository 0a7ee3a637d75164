"""TransformerLens' `HookedRootModule`, made strict.

A name or filter that selects no hook point raises and suggests the nearest one; `pos_slice` cuts each activation along its
own position axis; only hook points get a `.name`, so the model inside keeps its modules as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice

from interp.errors import UnknownNameError
from interp.points import Point


class Room(nn.Module):
    """A named place in the tree of hook points (`blocks.0`, `blocks.0.attn`, `ln_final`)."""


class HookedLens(HookedRootModule):
    """Hook points by name, with TransformerLens' methods and no silent misses."""

    def __init__(self) -> None:
        super().__init__()
        self.point_table: dict[str, Point] = {}

    def _place(self, point: Point, name: str) -> HookPoint:
        """A new hook point that knows its full name and its row of the table."""
        made = HookPoint()
        made.name = name
        made.pos_dim = point.position_axis
        self.point_table[name] = point
        return made

    def setup(self) -> None:
        self.hook_dict = {m.name: m for m in self.modules() if isinstance(m, HookPoint) and m.name in self.point_table}
        self.mod_dict = dict(self.hook_dict)

    def point_names(self, name: Any) -> list[str]:
        """Names of the hook points that a name, a list of names, or a filter function selects.

        Raises UnknownNameError when a name does not exist or a filter matches nothing.
        """
        if isinstance(name, str):
            if name not in self.hook_dict:
                near = difflib.get_close_matches(name, self.hook_dict, n=1, cutoff=0.0)
                raise UnknownNameError(f"there is no hook point {name!r}; did you mean {near[0]!r}?")
            return [name]
        if callable(name):
            if not (matching := [n for n in self.hook_dict if name(n)]):
                raise UnknownNameError(f"the filter matches none of the {len(self.hook_dict)} hook points.")
            return matching
        return [found for one in name for found in self.point_names(one)]

    def _enable_hook(self, name: Any, hook: Callable, dir: Any) -> None:
        for found in self.point_names(name):
            self.hook_dict[found].add_hook(hook, dir=dir, level=self.context_level)

    def add_hook(self, name: Any, hook: Callable, dir: Any = "fwd", **kwargs: Any) -> None:
        for found in self.point_names(name):
            super().add_hook(found, hook, dir=dir, **kwargs)

    def add_caching_hooks(
        self, names_filter: Any = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict | None = None,
    ) -> dict:  # fmt: skip
        cache, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for dir, hooks in (("fwd", fwd), ("bwd", bwd)):
            for name, hook in hooks:
                self.hook_dict[name].add_hook(hook, dir=dir)
        return cache

    def get_caching_hooks(
        self, names_filter: Any = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict | None = None, pos_slice: Any = None,
    ) -> tuple[dict, list, list]:  # fmt: skip
        """As in TransformerLens: a dictionary to be filled, and the forward and backward hooks that fill it."""
        store: dict[str, Any] = {} if cache is None else cache
        cut = Slice.unwrap(pos_slice)

        def save(value: Any, hook: HookPoint, suffix: str = "") -> None:
            assert hook.name is not None
            if not isinstance(value, torch.Tensor):
                store[hook.name + suffix] = value  # an attention event, or None where a layer has no such tensor
                return
            kept = value.detach().to(device)
            axis = self.point_table[hook.name].position_axis
            kept = kept if axis is None else cut.apply(kept, dim=axis)
            store[hook.name + suffix] = kept[0] if remove_batch_dim and kept.shape[0] == 1 else kept

        def save_gradient(value: Any, hook: HookPoint) -> None:
            save(value, hook, "_grad")

        names = self.point_names(names_filter)
        self.is_caching = True
        backward = [n for n in names if self.point_table[n].mode == "edit"] if incl_bwd else []
        return store, [(n, save) for n in names], [(n, save_gradient) for n in backward]
