"""Tensors with some of their channels: cutting them out, and putting them back at their places."""

from __future__ import annotations

from torch import Tensor


def cut(x: Tensor, channels: Tensor | None) -> Tensor:
    """x [B, H, n, D] with only its channels [B, H, T] (integers); None is all of them."""
    return x if channels is None else x.gather(-1, _index(channels, x.shape[2]))


def unpacked(x: Tensor, channels: Tensor | None, width: int) -> Tensor:
    """x [B, H, n, T] with its T channels at their places among `width`, and zeros elsewhere."""
    if channels is None:
        return x
    return x.new_zeros(*x.shape[:-1], width).scatter_(-1, _index(channels, x.shape[2]), x)


def _index(channels: Tensor, n: int) -> Tensor:
    return channels.long()[:, :, None].expand(-1, -1, n, -1)
