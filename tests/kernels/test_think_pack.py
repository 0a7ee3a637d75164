"""think_pack against loops over tokens and channels, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import KeySegment, packed_decode, use
from interp_kernels.think_pack import think_pack

PATHS = ["reference", "cpu"]
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits read as dtype, so that NaNs of all kinds are among them."""
    size = torch.empty((), dtype=dtype).element_size()
    top = 2 if dtype == torch.bool else 256
    return torch.randint(0, top, (*shape[:-1], shape[-1] * size), dtype=torch.uint8).view(dtype)


def as_bytes(x: torch.Tensor) -> list:
    return x.clone(memory_format=torch.contiguous_format).view(torch.uint8).tolist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", [torch.int16, torch.uint8, torch.int64], ids=str)
def test_every_value_is_copied(path: str, dtype: torch.dtype, index: torch.dtype) -> None:
    k = bits(dtype, 2, 3, 5, 7)
    channels = torch.stack([torch.randperm(7)[:4] for _ in range(6)]).view(2, 3, 4).to(index)
    with use(path):
        packed = think_pack(k, channels)
    assert packed.dtype == dtype
    assert packed.shape == (2, 3, 5, 4)
    for b in range(2):
        for h in range(3):
            for token in range(5):
                wanted = [as_bytes(k[b, h, token, c : c + 1]) for c in channels[b, h].tolist()]
                assert [as_bytes(packed[b, h, token, i : i + 1]) for i in range(4)] == wanted


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 3), tokens=st.integers(0, 6), size=st.integers(1, 9), seed=st.integers(0, 999), data=st.data()
)
def test_channels_put_back_give_what_was_there(heads: int, tokens: int, size: int, seed: int, data) -> None:
    """Kept and dropped channels together are all of k, in whatever order they were asked for."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(2, heads, tokens, size, generator=generator)
    order = torch.rand(2, heads, size, generator=generator).argsort(-1)
    at = data.draw(st.integers(0, size))
    with use("cpu"):
        parts = [think_pack(k, order[..., :at]), think_pack(k, order[..., at:])]
        together = think_pack(torch.cat(parts, -1), order.argsort(-1))
    assert torch.equal(together, k)


def test_on_a_processor_tokens_of_a_channel_are_neighbours() -> None:
    k = torch.randn(2, 3, 9, 8)
    with use("cpu"):
        packed = think_pack(k, torch.arange(4).expand(2, 3, 4))
    assert packed.mT.is_contiguous()
    assert packed.untyped_storage().nbytes() == 2 * 3 * 9 * 4 * 4


@pytest.mark.parametrize("path", PATHS)
def test_any_strides(path: str) -> None:
    k = torch.randn(2, 9, 3, 8).transpose(1, 2)
    channels = torch.tensor([6, 0, 3]).expand(2, 3, 3)
    with use(path):
        assert torch.equal(think_pack(k[:, :, 2:], channels), k[:, :, 2:][..., [6, 0, 3]])


def test_the_result_is_what_decoding_reads() -> None:
    """Decoding over packed keys is decoding over keys with zeros in the other channels."""
    q, k, v = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    channels = torch.tensor([[[1, 4, 6], [0, 2, 7]]])
    zeroed = torch.zeros_like(k)
    for head, kept in enumerate(channels[0].tolist()):
        zeroed[:, head, :, kept] = k[:, head, :, kept]
    found = packed_decode(q, [KeySegment(think_pack(k, channels), v, channels)])
    torch.testing.assert_close(found.z, packed_decode(q, [KeySegment(zeroed, v)]).z)


K, CHANNELS = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 4, dtype=torch.int16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((K[0], CHANNELS), "k should be [B, Hs, n, D], found [3, 5, 7]"),
        ((K, CHANNELS[0]), "channels should be [B=2, Hs=3, T], found [3, 4]"),
        ((K, CHANNELS[:, :2]), "channels should be [B=2, Hs=3, T], found [2, 2, 4]"),
        ((K, CHANNELS.float()), "channels must be integers, found torch.float32"),
        ((K.to(torch.complex128), CHANNELS), "k must be of a dtype of at most 8 bytes, found torch.complex128"),
        ((K, CHANNELS.bool()), "channels must be integers, found torch.bool"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments, message) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        think_pack(*arguments)
    told = str(caught.value)
    assert told.startswith("think_pack: ")
    assert message in told
    assert "\n" not in told
    assert told.endswith(".")
