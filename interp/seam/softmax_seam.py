"""The other way into a model's attention: the softmax, or the call of torch's SDPA, in its own modelling file.

Modelling files that do not look their attention up by a name (Bloom, Falcon, GPT-J, MPT, ...) still call torch. While a
Lens call is on, a torch function mode sees what is called inside the forward pass of an attention module. A call of
`scaled_dot_product_attention` has queries, keys, values and mask for arguments, so it goes to an ordinary `Site` and
lacks nothing. Of a softmax there are the scores, the pattern, and the product with values that follows: these have hook
points, and everything else the module keeps to itself. What no hook touches runs as the model wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from interp.errors import UnsupportedModelError
from interp.seam.attention import show
from interp.seam.call import AttentionCall
from interp.seam.points import live
from interp.seam.routing import Attending
from interp.undoing import undoing

Tensor = torch.Tensor
Softmax = Callable[[Tensor], Tensor]
Axes = tuple[int, ...] | None

SDPA = functional.scaled_dot_product_attention
SOFTMAX = {functional.softmax, torch.softmax, Tensor.softmax}
LOGSUMEXP = {torch.logsumexp, Tensor.logsumexp}  # a softmax written out, as Reformer does
PRODUCT = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum}


class Opening(Protocol):
    """What stands where a module computes a softmax over keys: a `SoftmaxSite`, or what looks on while a model is taken
    apart."""

    def probabilities(self, module: nn.Module, scores: Tensor, softmax: Softmax, real: Tensor | None) -> Tensor:
        """The softmax of scores; `real` tells the tokens from the padding, where the model was given a mask."""

    def mixed(self, module: nn.Module, mixing: Tensor, values: Tensor | None, z: Tensor, axes: Axes) -> Tensor | None:
        """The product z of `mixing`, which has the probabilities' size, and values; None where it is another product.

        values: `[batch, head, key, channel]`, or with batch and heads as one axis; None where they lie otherwise.
        axes: where batch, position, head and channel lie in z; None where batch and heads are one axis, the first.
        """


def only_open(module: nn.Module) -> str:
    """Why a layer that calls softmax itself lacks what other layers have."""
    return f"{type(module).__name__} computes its attention itself; only scores, pattern, values and z can be reached"


@contextmanager
def own_attention_through(model: nn.Module, sites: Mapping[nn.Module, Opening | Attending]) -> Iterator[None]:
    """Let the `sites` of modules see the softmax and SDPA calls in those modules' own code while the block runs.

    Of modules inside one another, the innermost has the call.
    """
    if not sites:
        yield
        return
    mode = _Mode(sites)
    with undoing() as undo:
        undo.hook(model, mode.arrive, pre=True, with_kwargs=True)
        for module in sites:
            undo.hook(module, mode.enter, pre=True)
            undo.hook(module, mode.leave, always_call=True)
        undo.later(_take_off, mode)
        _push_mode(mode)
        yield


def _take_off(mode: TorchFunctionMode) -> None:
    """Leave a mode, and those that were entered after it."""
    while any(other is mode for other in _get_current_function_mode_stack()):
        _pop_mode()


class _Mode(TorchFunctionMode):
    """Sees all calls of torch's functions in this thread, and takes those that are attention."""

    def __init__(self, sites: Mapping[nn.Module, Opening | Attending]) -> None:
        super().__init__()
        self.sites = sites
        self.inside: list[nn.Module] = []
        self.awaited: tuple[nn.Module, int, int] | None = None
        """The module whose probabilities have yet to meet values, how many these probabilities are, and over how many
        keys."""
        self.attended: set[nn.Module] = set()
        """Modules that computed a softmax since they were entered last."""
        self.real: dict[str, Tensor] = {}
        """The padding masks that the model was given, by the name of their argument."""

    def arrive(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        masks = {name: kwargs.get(name) for name in ("attention_mask", "decoder_attention_mask")}
        self.real = {name: mask for name, mask in masks.items() if isinstance(mask, Tensor) and mask.ndim == 2}

    def enter(self, module: nn.Module, args: Any) -> None:
        self.inside.append(module)
        self.attended.discard(module)
        self.awaited = None

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if module in self.inside:
            while self.inside.pop() is not module:  # of one that failed inside another
                pass

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            module = self.inside[-1]
            site: Any = self.sites[module]
            if func in LOGSUMEXP and isinstance(site, SoftmaxNotes):
                site.unread.add(module)
            if func in SOFTMAX and hasattr(site, "probabilities"):
                return self._softmax(module, site, func, args, kwargs)
            if func is SDPA and hasattr(site, "attend") and args and args[0].ndim == 4:
                return site.attend(_call(module, *args, **kwargs))[0].transpose(1, 2)
            if func in PRODUCT and self.awaited is not None and self.awaited[0] is module:
                return self._product(module, site, func, args, kwargs)
        return func(*args, **kwargs)

    def _softmax(self, module: nn.Module, site: Opening, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        scores, rest, options = (args[0], args[1:], kwargs) if args else (kwargs["input"], (), without(kwargs, "input"))
        dim = rest[0] if rest else options.get("dim")
        if scores.ndim < 3 or dim not in (-1, scores.ndim - 1):
            own: Tensor = func(*args, **kwargs)
            return own
        if module in self.attended and not isinstance(site, SoftmaxNotes):
            raise UnsupportedModelError(
                f"{type(module).__name__} attends several times in this call, and a Lens has one set of points for a "
                "layer's attention; leave its hooks out here."
            )
        self.attended.add(module)
        pattern = site.probabilities(module, scores, lambda x: func(x, *rest, **options), self._real(site))
        self.awaited = module, pattern.numel(), pattern.shape[-1]
        return pattern

    def _real(self, site: Any) -> Tensor | None:
        return self.real.get(getattr(site, "mask", "attention_mask"))

    def _product(self, module: nn.Module, site: Opening, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        given: Any = args[0] if args else None
        values: Any = args[1] if len(args) > 1 else None
        axes: Axes = (0, 2, 1, 3)
        if func is torch.einsum:
            given, values = args[1] if isinstance(args[1], (tuple, list)) else args[1:3]
            axes, values = axes_of(args[0]), values_of(args[0], values)
        assert self.awaited is not None
        if not isinstance(given, Tensor) or (module, given.numel(), given.shape[-1]) != self.awaited:
            return out
        if out.ndim not in (3, 4) or axes is None:
            return out
        values = values if isinstance(values, Tensor) and values.ndim == out.ndim else None
        z = site.mixed(module, given, values, out, axes if out.ndim == 4 else None)
        if z is None:
            return out
        self.awaited = None
        return z


def without(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != name}


def axes_of(equation: str) -> tuple[int, int, int, int] | None:
    """Where batch, position, head and channel lie in what an einsum of probabilities `bhqk` and values makes."""
    asked, _, out = equation.replace(" ", "").partition("->")
    rows = asked.partition(",")[0][:3]
    channel = "".join(letter for letter in out if letter not in rows)
    if len(out) != 4 or len(rows + channel) != 4 or not set(rows) < set(out):
        return None
    at = [out.index(letter) for letter in rows + channel]
    return at[0], at[2], at[1], at[3]


def values_of(equation: str, values: Tensor) -> Tensor | None:
    """The second operand of such an einsum as `[batch, head, key, channel]`; None where it has other axes."""
    rows, _, own = equation.replace(" ", "").partition("->")[0].partition(",")
    channel = "".join(letter for letter in own if letter not in rows)
    wanted = rows[0] + rows[1] + rows[3:4] + channel
    return values.permute([own.index(letter) for letter in wanted]) if sorted(wanted) == sorted(own) else None


def _call(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> AttentionCall:  # fmt: skip
    """A module's own call of SDPA, as one that had come through transformers' registry."""
    rest = {"is_causal": is_causal, "dropout": dropout_p}
    own = partial(_sdpa, enable_gqa=enable_gqa)
    return AttentionCall(module, query, key, value, attn_mask, scale, rest, "sdpa", own)


def _sdpa(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, is_causal: bool,
    dropout: float, enable_gqa: bool,
) -> tuple[Tensor, None]:  # fmt: skip
    z = SDPA(q, k, v, mask, dropout, is_causal, scale=scaling, enable_gqa=enable_gqa)
    return z.transpose(1, 2), None


def by_head(x: Tensor, heads: int) -> Tensor:
    """Scores or probabilities as `[batch, head, query, key]`; of some models batch and heads are one axis."""
    return x if x.ndim == 4 else x.unflatten(0, (-1, heads))


class SoftmaxSite:
    """One attention module that calls softmax itself: its hook points around that, and around the product with values.

    `points` maps names relative to the block to hook points. Observables are made of the pattern that passes, as hooks
    left it. `mask`: the model's argument that says which queries are padding.
    """

    def __init__(self, heads: int, points: Mapping[str, nn.Module], mask: str = "attention_mask") -> None:
        self.heads, self.points, self.mask = heads, points, mask

    def probabilities(self, module: nn.Module, scores: Tensor, softmax: Softmax, real: Tensor | None) -> Tensor:
        pattern = self._fire("pattern", softmax(self._fire("attn_scores", scores)))
        self._show(by_head(pattern, self.heads), real)
        return pattern

    def _fire(self, name: str, x: Tensor) -> Tensor:
        point = self.points[f"attn.hook_{name}"]
        return point(by_head(x, self.heads)).reshape(x.shape) if live(point) else x

    @torch.no_grad()
    def _show(self, pattern: Tensor, real: Tensor | None) -> None:
        wanted = {name: point for name in FROM_PATTERN if live(point := self.points[f"attn.hook_{name}"])}
        if not wanted:
            return
        seen = pattern.float().nan_to_num()  # a row that may see no key is no number in some models
        if real is not None and real.shape[1] >= pattern.shape[2]:
            seen = seen * real[:, None, -pattern.shape[2] :, None]
        for name, point in wanted.items():
            show(point, FROM_PATTERN[name](seen))

    def mixed(self, module: nn.Module, mixing: Tensor, values: Tensor | None, z: Tensor, axes: Axes) -> Tensor | None:
        if values is not None and live(point := self.points.get("attn.hook_cached_v")):
            show(point, by_head(values, self.heads).transpose(1, 2))
        point = self.points.get("attn.hook_z")
        if not live(point):
            return z
        if axes is None:
            flat: Tensor = point(by_head(z, self.heads).transpose(1, 2)).transpose(1, 2).reshape(z.shape)
            return flat
        back: Tensor = point(z.permute(axes)).permute([axes.index(axis) for axis in range(4)])
        return back


FROM_PATTERN: dict[str, Callable[[Tensor], Tensor]] = {
    "column_mass": lambda pattern: pattern.sum(2),
    "row_entropy": lambda pattern: torch.special.entr(pattern).sum(-1),
}


class SoftmaxNotes:
    """Stands in as the site of every module while a model is taken apart: notes what attention it computes itself."""

    def __init__(self, crossing: Collection[tuple[int, int]] = ()) -> None:
        self.crossing = crossing
        """How many queries and keys a softmax may be over that is no self-attention."""
        self.calls: dict[nn.Module, list[dict[str, Any]]] = {}
        """Facts of each call of attention, in the order in which modules first attend."""
        self.unread: set[nn.Module] = set()
        """Modules that seem to attend in a way that has no points here."""
        self._pattern: Tensor | None = None

    def probabilities(self, module: nn.Module, scores: Tensor, softmax: Softmax, real: Tensor | None) -> Tensor:
        pattern = softmax(scores)
        size = queries, keys = scores.shape[-2:]
        strange = queries != keys and size not in self.crossing
        if scores.ndim > 4 or strange or (scores.ndim == 4 and scores.shape[0] != 1):
            if scores.ndim > 3:  # of three axes it may be a router's, over experts
                self.unread.add(module)
            return pattern
        facts = {
            "seam": "softmax",
            "n_heads": scores.shape[-3],
            "n_key_value_heads": scores.shape[-3],
            "n_keys": scores.shape[-1],
            "softcap": None,
            "sinks": False,
            "window": None,
            "z": None,
            "k": None,
        }
        self.calls.setdefault(module, []).append(facts)
        self._pattern = pattern
        return pattern

    def mixed(self, module: nn.Module, mixing: Tensor, values: Tensor | None, z: Tensor, axes: Axes) -> Tensor | None:
        if self._pattern is None or mixing.shape[-1] != self._pattern.shape[-1]:
            return None
        if not torch.allclose(mixing.flatten().float(), self._pattern.flatten().float(), rtol=1e-2, atol=1e-6):
            return None
        heads = self.calls[module][-1]["n_heads"]
        opened = by_head(z, heads).transpose(1, 2) if axes is None else z.permute(axes)
        self.calls[module][-1] |= {"z": opened.flatten(2), "d_head": z.shape[-1], "d_value": z.shape[-1]}
        self.calls[module][-1]["values"] = values is not None
        return z
