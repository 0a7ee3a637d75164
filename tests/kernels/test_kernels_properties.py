"""What must hold of any attention matrix, on inputs that hypothesis picks."""

from __future__ import annotations

import interp_kernels as ik
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

FACTS = ["causal", "bidirectional", "window", "softcap", "offset", "left padding", "right padding", "dense"]
shapes = st.fixed_dictionaries(
    {
        "kv_heads": st.integers(1, 3),
        "group": st.integers(1, 4),
        "queries": st.integers(1, 300),
        "keys": st.integers(1, 300),
        "size": st.integers(1, 40),
        "columns": st.integers(1, 9),
        "seed": st.integers(0, 2**31),
    }
)
few = settings(max_examples=20, deadline=None)


def build(draw, shape, name):
    shape = dict(shape)
    heads = shape["kv_heads"] * shape.pop("group")
    return draw(heads, dtype=torch.float64, name=name, **shape)


@pytest.fixture(params=["reference", "cpu"], autouse=True, scope="module")
def path(request):
    with ik.use(request.param):
        yield


@given(shape=shapes, name=st.sampled_from(FACTS))
@few
def test_column_mass_sums_to_the_number_of_rows_that_see_a_key(draw, shape, name):
    drawn = build(draw, shape, name)
    lse = ik.attention_apply(drawn.q, drawn.k, **drawn.facts).lse
    mass = ik.attention_transpose_apply(drawn.q, drawn.k, lse, **drawn.facts)
    assert (mass >= 0).all()
    torch.testing.assert_close(mass.sum(-1), lse.isfinite().sum(-1).double())


@given(shape=shapes, name=st.sampled_from([*FACTS, "sinks", "all at once"]))
@few
def test_transpose_is_the_adjoint(draw, shape, name):
    drawn = build(draw, shape, name)
    q, k, facts = drawn.q, drawn.k, drawn.facts
    y, x = drawn.y.nan_to_num(), drawn.x.nan_to_num()
    attended = ik.attention_apply(q, k, x, **facts)
    transposed = ik.attention_transpose_apply(q, k, attended.lse, y, **facts)
    torch.testing.assert_close((y * attended.z).sum(), (transposed * x).sum())


@given(shape=shapes, name=st.sampled_from([*FACTS, "sinks", "all at once"]))
@few
def test_gram_is_the_transpose_of_the_product(draw, shape, name):
    drawn = build(draw, shape, name)
    q, k, x, facts = drawn.q, drawn.k, drawn.x, drawn.facts
    attended = ik.attention_apply(q, k, x, **facts)
    applied, gram = ik.attention_gram_apply(q, k, attended.lse, x, **facts)
    torch.testing.assert_close(applied, attended.z)
    torch.testing.assert_close(gram, ik.attention_transpose_apply(q, k, attended.lse, attended.z, **facts))


@given(shape=shapes, cut=st.floats(0, 1), causal=st.booleans())
@few
def test_keys_may_come_in_shards_with_one_lse(draw, shape, cut, causal):
    drawn = build(draw, shape, "causal")
    q, k, y = drawn.q, drawn.k, drawn.y
    keys, offset = k.shape[2], k.shape[2] - q.shape[2]
    at = min(keys - 1, int(cut * keys))
    lse = ik.attention_apply(q, k, causal=causal).lse
    whole = ik.attention_transpose_apply(q, k, lse, y, causal=causal)
    shards = [
        ik.attention_transpose_apply(q, k[:, :, first:last], lse, y, causal=causal, offset=offset - first)
        for first, last in ((0, at), (at, keys))
    ]
    torch.testing.assert_close(torch.cat(shards, dim=2), whole)


@given(shape=shapes, name=st.sampled_from(FACTS))
@few
def test_entropy_and_square_keep_their_bounds(draw, shape, name):
    drawn = build(draw, shape, name)
    attended = ik.attention_apply(drawn.q, drawn.k, statistics=("entropy", "square"), **drawn.facts)
    seen = attended.lse.isfinite()
    most = torch.tensor(float(shape["keys"])).double()
    assert (attended.entropy >= -1e-12).all()
    assert (attended.entropy <= most.log() + 1e-9).all()
    assert (attended.square <= 1 + 1e-9).all()
    assert (attended.square[seen] >= 1 / most - 1e-9).all()
    # Renyi entropies fall with their order: H1 >= H2 = -log(square)
    assert (attended.entropy[seen] >= -attended.square[seen].log() - 1e-9).all()
    assert (attended.entropy[~seen] == 0).all()
    assert (attended.square[~seen] == 0).all()
