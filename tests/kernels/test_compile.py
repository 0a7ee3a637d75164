"""torch.compile around the attention operations, without a C++ compiler: its "eager" back end only traces."""

from __future__ import annotations

from collections.abc import Callable

import interp_kernels as ik
import pytest
import torch

STATISTICS = ("lse", "entropy", "square", "column_mass")
OPERATIONS: dict[str, Callable] = {
    "attention_apply": lambda d, lse: ik.attention_apply(d.q, d.k, d.v, statistics=STATISTICS, **d.facts),
    "attention_pattern": lambda d, lse: ik.attention_pattern(d.q, d.k, **d.facts),
    "attention_transpose_apply": lambda d, lse: ik.attention_transpose_apply(d.q, d.k, lse, d.y, **d.facts),
    "attention_gram_apply": lambda d, lse: ik.attention_gram_apply(d.q, d.k, lse, d.x, **d.facts),
    "packed_decode": lambda d, lse: ik.packed_decode(d.q, [ik.KeySegment(d.k.nan_to_num(), d.v.nan_to_num())]).z,
}


@pytest.fixture
def fresh_compiler():
    """No compiled code of another test, nor ours for the next."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_torch_compile_changes_nothing(draw, fresh_compiler, operation):
    """Graph breaks are fine, exceptions and other numbers are not; around the call stands what compiles."""
    drawn = draw(6, 2, 9, 11, name="all at once")

    def step(q, lse):
        drawn.q = q * 2
        return [found + 1 for found in flat(OPERATIONS[operation](drawn, lse))]

    q = drawn.q
    with ik.use("cpu"):
        lse = ik.attention_apply(q * 2, drawn.k, **drawn.facts).lse
        wanted = step(q, lse)
        found = torch.compile(step, backend="eager")(q, lse)
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


def flat(found):
    """The tensors that an operation returned."""
    return list(found) if isinstance(found, tuple) else [found]
