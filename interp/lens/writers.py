"""Which modules of a block write to the residual stream, told by arithmetic from one run on two tokens.

The module u whose output, times a constant α, separates the block's input from what a later module reads is what
attention (or another mixer) adds; the module m whose output closes the gap to the block's output is what the MLP adds.
That holds for pre-norm, post-norm (Gemma), reordered (OLMo-2) and scaled residuals (Granite) alike, whatever the
modules are called and however deep they lie. In parallel blocks (GPT-NeoX, Phi, Cohere) both are added to the same
input and there is no residual stream in between; some blocks have one writer only (Nemotron-H). Where norms follow the
sums (BERT) nothing is added to the stream as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class ModuleCall:
    """One module's call in the two-token run."""

    name: str
    given: Tensor | None
    out: Tensor | None
    kwargs: dict[str, Any]
    left: Tensor | None = None
    """What the model had made of `out` when it was done with it."""

    @property
    def overwritten(self) -> bool:
        """Whether the model changed the output in place after the module had handed it over."""
        return self.left is not None and self.out is not None and not torch.equal(self.left, self.out)

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Writer:
    """A module whose output, times `scale`, is added to the residual stream."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class Writers:
    """What writes to the residual stream in one block, and why what is None could not be found."""

    mixer: Writer | None = None
    """What attention adds, or what stands in its place."""
    mlp: Writer | None = None
    parallel: bool = False
    """Mixer and MLP are added to the same input."""
    alone: bool = False
    """The mixer is all there is."""
    rest: bool = False
    """After the mixer several modules add to the stream (an MLP and a per-layer embedding in Gemma 4): their sum is
    what the MLP's part stands for."""
    reason: str = "its output could not be identified"
    """Why the MLP's part, or both, are unknown."""
    middle: str | None = None
    """The norm whose output is what goes on after the mixer, where norms follow sums (BERT, OPT-350m): then nothing is
    added to the stream as it is."""
    cross: Writer | None = None
    """What attention to an encoder's tokens adds, between mixer and MLP."""
    middle2: str | None = None
    """The norm whose output is what goes on after that attention, where norms follow sums (BART)."""
    one_stream: bool = True
    """Whether blocks hand on one vector a token; Gemma 3n's carry several."""

    @property
    def complete(self) -> bool:
        """Whether the block's output is its input and what these write."""
        return self.mixer is not None and (self.mlp is not None or self.alone or self.rest)


def writers(
    calls: list[ModuleCall], resid_pre: Tensor, resid_post: Tensor, mixer: str | None, scale: float,
    tokens: int | None = 2, crossing: str | None = None,
) -> Writers:  # fmt: skip
    """Find the writers of one block.

    calls: of the modules inside, in the order in which they finished. mixer: name of the attention module, None where
    the block has none. scale: the config's residual scale. tokens: how many the block got, None where they are patches
    of images, which some towers pack into one row without a batch. crossing: name of the module that attends to an
    encoder's tokens, if there is one.
    """
    if tokens is None and resid_pre.ndim == 2 == resid_post.ndim:
        resid_pre, resid_post = resid_pre[None], resid_post[None]
    if resid_pre.ndim != 3 or resid_pre.shape != resid_post.shape:
        shape = list(resid_pre.shape)
        return Writers(reason=f"its blocks hand on {shape} numbers, not one vector a token", one_stream=False)
    if tokens is not None and resid_pre.shape[:2] != (1, tokens):
        shape = list(resid_pre.shape)
        return Writers(reason=f"for {tokens} tokens of one text its blocks hand on {shape} numbers", one_stream=False)
    names = [call.name for call in calls]
    once = [call for call in calls if names.count(call.name) == 1]  # Phi's one dropout serves attention and MLP
    stream = [_shaped(call, resid_pre) for call in once]
    at = 0 if mixer is None else next((i for i, call in enumerate(once) if call.name == mixer), len(once))
    if crossing is not None:
        second = next((i for i, call in enumerate(once) if call.name == crossing), len(once))
        return (
            _sequential(stream, resid_pre, resid_post, at, scale, second=second)
            or _post_norm(stream, resid_pre, resid_post, at, scale, second)
            or Writers()
        )
    inner = next((i for i, call in enumerate(once) if call.name.startswith(f"{mixer}.")), at)
    return (
        _sequential(stream, resid_pre, resid_post, at, scale)
        or _alone(stream, resid_pre, resid_post, at, scale)
        or _parallel(stream, resid_pre, resid_post, mixer)
        or _sequential(stream, resid_pre, resid_post, at, scale, inner)
        or _post_norm(stream, resid_pre, resid_post, at, scale)
        or Writers()
    )


def _shaped(call: ModuleCall, like: Tensor) -> ModuleCall:
    """The call with its tensors in the stream's shape, or None where they hold something else; OPT's are flat."""

    def fit(x: Tensor | None) -> Tensor | None:
        if x is None or x.numel() != like.numel() or x.shape[-1] != like.shape[-1]:
            return None
        return x.reshape(like.shape)

    return ModuleCall(call.name, fit(call.given), fit(call.out), call.kwargs)


def _sequential(
    calls: list[ModuleCall], pre: Tensor, post: Tensor, mixer_at: int, scale: float, start: int | None = None,
    second: int | None = None,
) -> Writers | None:  # fmt: skip
    """The mixer leads from resid_pre to what a later module reads (resid_mid), the MLP from there to resid_post.

    start: the first module that may be what the mixer adds, where that is one inside it (Bloom's attention adds its
    input itself). second: the attention to an encoder, where there is one, which comes between the two.
    """
    for at, middle in _middles(calls, pre, mixer_at):
        if mixer := _adds(pre, middle, calls[mixer_at if start is None else start : at], scale):
            if second is not None:
                rest = _sequential(calls, middle, post, second, scale)
                return rest and replace(rest, mixer=mixer, cross=rest.mixer)
            later = [call for call in calls[at:] if call.name != mixer.name]
            if mlp := _adds(middle, post, later, scale):
                return Writers(mixer, mlp)
            if _together(middle, post, later, scale):
                return Writers(mixer, rest=True)
    return None


def _middles(calls: list[ModuleCall], pre: Tensor, mixer_at: int) -> list[tuple[int, Tensor]]:
    """What modules after the mixer read, other than the block's input, with the place of the first that does."""
    found: list[tuple[int, Tensor]] = []
    for at, call in enumerate(calls[mixer_at + 1 :], mixer_at + 1):
        known = [pre, *(middle for _, middle in found)]
        if call.given is not None and not any(torch.equal(call.given, seen) for seen in known):
            found.append((at, call.given))
    return found


def _alone(calls: list[ModuleCall], pre: Tensor, post: Tensor, mixer_at: int, scale: float) -> Writers | None:
    mixer = _adds(pre, post, calls[mixer_at:], scale)
    return None if mixer is None else Writers(mixer, alone=True)


def _parallel(calls: list[ModuleCall], pre: Tensor, post: Tensor, mixer: str | None) -> Writers | None:
    """resid_post = resid_pre + u + m, with u what the attention module puts out, or a module that passes it on."""
    if mixer is None:
        return None
    own = next((call.out for call in calls if call.name == mixer), None)
    for call in reversed(calls):
        if own is None or call.out is None or not torch.equal(call.out, own):
            continue
        if mlp := _adds(pre + call.out, post, [c for c in calls if c.name != call.name], 1.0):
            return Writers(Writer(call.name), mlp, parallel=True)
    return None


def _post_norm(
    calls: list[ModuleCall], pre: Tensor, post: Tensor, mixer_at: int, scale: float, second: int | None = None
) -> Writers | None:
    """A norm reads the input and what the mixer wrote, added up; another one reads what that norm puts out and what the
    MLP wrote, and puts out the block's output. In between is `second`, an attention to an encoder, with its norm, where
    there is one."""
    for at, middle in _middles(calls, pre, mixer_at):
        norm, later = calls[at], calls[at + 1 :]
        if norm.out is None or not _adds(pre, middle, calls[mixer_at:at], scale):
            continue
        if second is not None:
            rest = _post_norm(calls, norm.out, post, second, scale)
            return rest and replace(rest, middle=norm.name, middle2=rest.middle)
        for last in later:
            if last.out is None or last.given is None or not torch.equal(last.out, post):
                continue
            if _adds(norm.out, last.given, later, scale):
                reason = "norms follow its sums, so nothing is added to the stream as it is"
                return Writers(middle=norm.name, reason=reason)
    return None


def _adds(start: Tensor, target: Tensor, among: list[ModuleCall], scale: float) -> Writer | None:
    """The module with target = start + α·output, where α is 1, the config's residual scale, or any one number.

    The sum is done in the model's own dtype, so the right module fits to a few roundings and leaves far less than it
    adds. Of several that fit the last is taken, since a dropout repeats its input and a module its last child's output.
    """
    gap = (target - start).float()
    rounding = 4 * torch.finfo(start.dtype).eps * float(target.float().norm())
    for call in reversed(among):
        if call.out is None:
            continue
        size = float(call.out.float().norm())
        if size == 0:
            continue
        fitted = float((gap * call.out.float()).sum()) / size**2
        for alpha in dict.fromkeys((1.0, scale, fitted)):
            left = float((target - (start + alpha * call.out)).float().norm())
            if left <= rounding and left <= 0.1 * abs(alpha) * size:
                return Writer(call.name, alpha)
    return None


def _together(start: Tensor, target: Tensor, among: list[ModuleCall], scale: float) -> bool:
    """Whether target = start + the outputs of two modules, times 1 or the config's residual scale."""
    rounding = 8 * torch.finfo(start.dtype).eps * float(target.float().norm())
    gap = (target - start).float()
    outs: list[Tensor] = []
    for call in among:
        if call.out is not None and not any(torch.equal(call.out, out) for out in outs):
            outs.append(call.out)
    scales = dict.fromkeys((1.0, scale))
    pairs = [a.float() + b.float() for a, b in combinations(outs, 2)]
    return any(float((gap - alpha * pair).norm()) <= rounding for pair in pairs for alpha in scales)


def same_tensor(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)
