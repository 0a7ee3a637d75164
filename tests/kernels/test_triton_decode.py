"""Triton's packed_decode against the reference; on a machine without a GPU in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import KeySegment, packed_decode, use

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Stored tokens, and key and value channels of each segment (None: all). The last segment holds the newest tokens.
LAYOUTS = {
    "one dense segment": [(37, None, None)],
    "packed, dense": [(41, 5, None), (9, None, None)],
    "packed values too": [(40, 16, 3), (9, None, None)],
    "sinks between": [(34, 3, None), (4, None, None), (6, None, None)],
    "all packed": [(5, 8, 2), (1, 1, 4), (6, 3, 3)],
    "four segments": [(33, 8, None), (1, None, None), (2, 9, 7), (8, None, None)],
    "no channel stored": [(5, 0, None), (6, None, None)],
    "nothing in a segment": [(0, 3, 2), (12, 7, None), (6, None, None)],
}
FACTS = ("bias", "offset", "softcap", "sinks", "scale", "all at once")


def drawn(
    layout: list,
    *,
    heads: int = 6,
    stored: int = 2,
    queries: int = 3,
    size: int = 20,
    value_size: int = 12,
    batch: int = 2,
    facts: str = "plain",
    dtype: torch.dtype = torch.float32,
) -> SimpleNamespace:
    """Random q, segments and keywords."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).to(DEVICE, dtype)

    def some(width: int, count: int) -> torch.Tensor:
        order = torch.rand(batch, stored, width, generator=generator).argsort(-1)
        return order[..., :count].sort(-1).values.to(DEVICE, torch.int16)

    segments = []
    for i, (n, t, tv) in enumerate(layout):
        bias = None
        if facts in ("bias", "all at once") and i != 1:  # one segment without a bias, where there are several
            shape = (1 if i else batch, stored if i else 1, n)  # biases may be shared by heads or by texts
            bias = torch.randn(*shape, generator=generator).to(DEVICE)
            if i < len(layout) - 1:
                bias[..., ::3] = -torch.inf
        segments.append(
            KeySegment(
                randn(stored, n, size if t is None else t),
                randn(stored, n, value_size if tv is None else tv),
                None if t is None else some(size, t),
                None if tv is None else some(value_size, tv),
                bias,
                0.5 * randn(stored, size) if facts in ("offset", "all at once") and i != 1 else None,
            )
        )
    keywords = {"d_value": value_size}
    if facts in ("softcap", "all at once"):
        keywords["softcap"] = 1.5
    if facts in ("sinks", "all at once"):
        keywords["sinks"] = (3 * torch.rand(heads, generator=generator) - 1).to(DEVICE)
    if facts in ("scale", "all at once"):
        keywords["scale"] = 0.1
    return SimpleNamespace(q=randn(heads, queries, size), segments=segments, keywords=keywords)


def agree(same: Callable, case: SimpleNamespace, **keywords) -> None:
    same(case.q.dtype, packed_decode, case.q, case.segments, **(case.keywords | keywords))


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set constants of the module: few tokens or rows a program, so that small inputs come in many pieces."""
    module = import_module("interp_kernels.packed_decode.triton")

    def change(**values: int) -> None:
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)

    return change


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, same) -> None:
    agree(same, drawn(LAYOUTS[layout], facts="all at once"))


@pytest.mark.parametrize("facts", FACTS)
def test_facts(facts: str, same) -> None:
    agree(same, drawn(LAYOUTS["packed, dense"], facts=facts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("size", "kept", "value_size", "kept_values"), [(32, 19, 32, None), (80, 48, 80, 41), (128, 77, 64, None)]
)
def test_dtypes_and_sizes(size: int, kept: int, value_size: int, kept_values: int | None, dtype, same) -> None:
    case = drawn(
        [(65, kept, kept_values), (33, None, None)],
        heads=4, stored=2, queries=1, size=size, value_size=value_size, dtype=dtype, facts="offset",
    )  # fmt: skip
    agree(same, case)


def test_wide_heads(same) -> None:
    agree(same, drawn([(33, 130, None), (7, None, None)], heads=1, stored=1, batch=1, size=256, value_size=192))


@pytest.mark.parametrize(("heads", "stored", "queries"), [(4, 4, 2), (3, 3, 1), (6, 2, 1), (7, 1, 6), (8, 2, 5)])
def test_groups(heads: int, stored: int, queries: int, same) -> None:
    agree(same, drawn(LAYOUTS["sinks between"], heads=heads, stored=stored, queries=queries))


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("least", [8, 32])
def test_many_parts(least: int, queries: int, same, constants) -> None:
    """More parts than are put together at a time; parts that end within a block, and parts hidden from some rows."""
    constants(LEAST_TOKENS=least, PROGRAMS=1 << 20)
    agree(same, drawn([(130, 5, None), (9, None, None)], heads=2, stored=1, batch=1, queries=queries, facts="bias"))


def test_parts_that_see_nothing(same, constants) -> None:
    """The newest tokens fill several parts, of which the first query sees one."""
    constants(LEAST_TOKENS=8, PROGRAMS=1 << 20)
    agree(same, drawn([(3, 5, None), (20, None, None)], heads=2, stored=1, queries=20))


def test_many_rows(same, constants) -> None:
    """Rows of several programs, the last of them mostly empty; queries in blocks for the sake of their scores."""
    case = drawn(LAYOUTS["packed values too"], heads=8, stored=1, queries=5, batch=1, facts="all at once")
    constants(ROW_BYTES=1)
    agree(same, case)
    constants(MOST_SCORES=2 * 8 * 49)  # two queries at a time
    agree(same, case)


def test_few_programs_are_wanted(same, constants) -> None:
    """Long parts, each in several blocks."""
    constants(PROGRAMS=1)
    agree(same, drawn([(130, 5, None), (70, None, None)], heads=2, stored=1, batch=1, queries=2))


def test_any_strides(same) -> None:
    """Queries of a [B, N, H, D] tensor, channel-major packed keys, a dense segment inside a larger buffer."""
    case = drawn(LAYOUTS["packed, dense"], facts="all at once")
    old, recent = case.segments

    def inside(x: torch.Tensor) -> torch.Tensor:
        buffer = x.new_full((*x.shape[:2], x.shape[2] + 5, x.shape[3] + 3), torch.nan)
        buffer[:, :, 2:-3, 1:-2] = x
        return buffer[:, :, 2:-3, 1:-2]

    case.q = case.q.transpose(1, 2).contiguous().transpose(1, 2)
    old = old._replace(keys=old.keys.mT.contiguous().mT, values=old.values.mT.contiguous().mT)
    doubled = recent._replace(
        keys=inside(recent.keys),
        values=inside(recent.values),
        channels=torch.arange(20, device=DEVICE).expand(2, 2, 20),
    )
    case.segments = [old, doubled._replace(bias=torch.zeros(1, 1, 18, device=DEVICE)[..., ::2])]
    agree(same, case)


@pytest.mark.parametrize("least", [8, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scores_far_from_zero(dtype: torch.dtype, least: int, same, constants) -> None:
    """Peaks that differ by hundreds between blocks, parts, and those that are put together at a time."""
    constants(LEAST_TOKENS=least, PROGRAMS=1 << 20)
    case = drawn([(130, 5, None), (9, None, None)], heads=2, stored=1, batch=1, queries=2, dtype=dtype)
    ramp = torch.linspace(-400, 400, 130, device=DEVICE)
    for bias in (ramp, -ramp):
        case.segments[0] = case.segments[0]._replace(bias=bias[None, None])
        agree(same, case)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, about the NaNs that are wanted
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_without_any_token(sinks: bool, same) -> None:
    case = drawn(LAYOUTS["packed, dense"], queries=2)
    case.segments = [s._replace(bias=torch.full((1, 1, s.keys.shape[2]), -torch.inf)) for s in case.segments]
    agree(same, case, sinks=torch.zeros(6, device=DEVICE) if sinks else None)


def test_without_mass(same) -> None:
    agree(same, drawn(LAYOUTS["sinks between"]), mass=False)


def test_runs_are_bit_identical(constants) -> None:
    constants(LEAST_TOKENS=32, PROGRAMS=1 << 20)
    case = drawn(LAYOUTS["four segments"], facts="all at once", batch=1)
    with use("triton"):
        first, second = (packed_decode(case.q, case.segments, **case.keywords) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert all(torch.equal(a, b) for a, b in zip(first.mass, second.mass, strict=True))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.booleans())
def test_a_segment_may_be_cut_anywhere(at: int, packed: bool) -> None:
    """Two segments in place of one give the same, and all that the queries give away arrives somewhere."""
    case = drawn([(41, 7 if packed else None, None), (3, None, None)], heads=2, stored=1, queries=2, batch=1)
    whole, recent = case.segments
    halves = [
        whole._replace(keys=whole.keys[:, :, part], values=whole.values[:, :, part])
        for part in (slice(0, at), slice(at, None))
    ]
    with use("triton"):
        one, two = packed_decode(case.q, [whole, recent]), packed_decode(case.q, [*halves, recent])
    torch.testing.assert_close(two.z, one.z, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat(two.mass, -1), torch.cat(one.mass, -1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat(one.mass, -1).sum(-1), torch.full((1, 1), 4.0, device=DEVICE))
