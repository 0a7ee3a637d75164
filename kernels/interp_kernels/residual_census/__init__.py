"""What stands out in the residual stream: token norms, sink channels and massive activations, without a sort of x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import expect_bool, expect_float, expect_shape
from ..dispatch import choose, kernel
from . import cpu, reference

__all__ = ["ResidualCensus", "residual_census"]

PATHS = {
    "reference": reference.residual_census,
    "cpu": cpu.residual_census,
    "triton": kernel(__name__, "residual_census"),
}
EPS = 1e-6
MOST = 8  # every further entry costs one more search of the token


class ResidualCensus(NamedTuple):
    """What `residual_census` returns: floats in fp32 (fp64 for fp64 inputs), indices int64.

    Padding tokens, and texts without real tokens, have 0 in every float field and -1 in every index field; a text
    without real tokens has psi NaN.
    """

    norm: Tensor
    """Euclidean length of every token, [B, N]."""
    rms: Tensor
    """sqrt(mean over channels of x^2 + 1e-6), [B, N]: what phi is measured in."""
    phi: Tensor | None
    """Largest |x_d| / rms over the given sink channels d, [B, N]; None where no channels are given."""
    token_value: Tensor
    """Each token's `top` largest |x|, descending, [B, N, top]."""
    token_channel: Tensor
    """Their channels, [B, N, top]."""
    median: Tensor
    """Median of |x| over all real tokens and channels of a text, the upper one of two, [B]."""
    psi: Tensor
    """Largest |x| of the text over its median, [B]; inf where the median is 0."""
    text_value: Tensor
    """Each text's `top` largest |x|, descending, [B, top]."""
    text_token: Tensor
    """Their tokens, [B, top]."""
    text_channel: Tensor
    """Their channels, [B, top]."""


@torch.no_grad()
def residual_census(
    x: Tensor, channels: Tensor | Sequence[int] | None = None, top: int = 3, mask: Tensor | None = None
) -> ResidualCensus:
    """Norms, phi and largest entries of all tokens; largest entries, median and psi of all texts.

    Args:
        x: `[B, N, d_model]`, the residual stream, fp64, fp32, bf16 or fp16.
        channels: integers `[C]`, the sink channels D_sink of phi; None: no phi.
        top: how many of the largest |x| to name, 1 to 8. Of equal ones the first token, and then the lowest channel,
            is named first. NaN counts as larger than inf.
        mask: bool `[B, N]`, False for padding, whose content does not matter; None: all tokens are real.

    Values, indices and the median are exact, the same bits on every path; norm, rms and phi are summed in fp32.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 B N d_model FLOPs and (top + 2) B N d_model comparisons; memory traffic is what limits it. One pass over x
    finds all but the median, which is found from x's bits by counting: on a GPU one more reading of x for bf16,
    two for fp16, three for fp32. Extra memory O(B N top), and one block.
    Source: phi is from VAR (Kang et al. 2025, arXiv:2503.03321), where a token with phi > 20 is a sink; psi from Sun et
    al. 2024 (arXiv:2402.17762), whose code takes the lower one of two medians.

    Examples:
        >>> census = interp_kernels.residual_census(torch.tensor([[[1.0, -2.0, 3.0], [0.0, 200.0, 1.0]]]), top=1)
        >>> census.text_value, census.text_token, census.text_channel
        (tensor([[200.]]), tensor([[1]]), tensor([[1]]))
    """
    operation = "residual_census"
    expect_float(operation, x=x)
    expect_shape(operation, "x", x, "B N d_model", {})
    if not x.numel():
        raise ValueError(f"{operation}: x should hold at least one text, token and channel, found {list(x.shape)}.")
    size = x.shape[2]
    if not 1 <= top <= min(MOST, size):
        raise ValueError(f"{operation}: top should be 1 to {min(MOST, size)} for {size} channels, found {top}.")
    if mask is not None:
        expect_bool(operation, mask=mask)
        expect_shape(operation, "mask", mask, "B N", {"B": (x.shape[0],), "N": (x.shape[1],)})
    if channels is not None:
        channels = _checked(operation, torch.as_tensor(channels, device=x.device), size)
    square, sink, value, channel, median = choose(PATHS, x)(x, channels, top, mask)
    return _of_texts(square, sink, value, channel, median, mask, size)


def _checked(operation: str, channels: Tensor, size: int) -> Tensor:
    if channels.dim() != 1 or not channels.numel():
        raise ValueError(
            f"{operation}: channels should be a list of at least one channel, found shape {list(channels.shape)}; "
            "None means no phi."
        )
    if channels.is_floating_point() or channels.is_complex() or channels.dtype == torch.bool:
        raise TypeError(f"{operation}: channels must be integers, found {channels.dtype}.")
    low, high = int(channels.min()), int(channels.max())
    if low < 0 or high >= size:
        raise ValueError(f"{operation}: channels should lie in 0 to {size - 1}, found {low if low < 0 else high}.")
    return channels.long()


def _of_texts(
    square: Tensor, sink: Tensor | None, value: Tensor, channel: Tensor, median: Tensor, mask: Tensor | None, size: int
) -> ResidualCensus:
    """The census from a path's findings: every token's sum of squares [B, N], largest |x| of the sink channels [B, N],
    largest |x| and their channels [B, N, top], and the medians [B]. At padding they may be anything.
    """
    rms = (square / size + EPS).sqrt()
    phi = None if sink is None else sink / rms
    if mask is not None:
        square, rms = square.masked_fill(~mask, 0), rms.masked_fill(~mask, 0)
        phi = None if phi is None else phi.masked_fill(~mask, 0)
        value, channel = value.masked_fill(~mask[..., None], -1), channel.masked_fill(~mask[..., None], -1)
    # A text's largest entries are among its tokens' largest; they lie in the order that breaks ties.
    top = value.shape[2]
    order = value.flatten(1).sort(stable=True, dim=-1, descending=True)
    text_value, at = order.values[:, :top], order.indices[:, :top]
    token = (at // top).masked_fill(text_value < 0, -1)
    text_value = text_value.masked_fill(text_value < 0, 0)
    return ResidualCensus(
        norm=square.sqrt(),
        rms=rms,
        phi=phi,
        token_value=value.masked_fill(value < 0, 0),
        token_channel=channel,
        median=median,
        psi=text_value[:, 0] / median,
        text_value=text_value,
        text_token=token,
        text_channel=channel.flatten(1).gather(1, at),
    )
