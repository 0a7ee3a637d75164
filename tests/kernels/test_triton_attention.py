"""Triton's paths of the three attention operations against the references; without a GPU in Triton's interpreter."""

from __future__ import annotations

import interp_kernels as ik
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STATISTICS = ("lse", "entropy", "square", "column_mass")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def placed(drawn):
    """What `draw` drew, where kernels can run on it."""
    for name, value in vars(drawn).items():
        if name == "facts":
            drawn.facts = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in value.items()}
        else:
            setattr(drawn, name, value.to(DEVICE))
    return drawn


def lse_of(drawn):
    with ik.use("reference"):
        return ik.attention_apply(drawn.q, drawn.k, **drawn.facts).lse


def check_all(same, dtype, drawn):
    """Every output of the three operations."""
    q, k, facts, lse = drawn.q, drawn.k, drawn.facts, lse_of(drawn)
    same(dtype, ik.attention_apply, q, k, drawn.v, statistics=STATISTICS, **facts)
    same(dtype, ik.attention_transpose_apply, q, k, lse, drawn.y, **facts)
    same(dtype, ik.attention_gram_apply, q, k, lse, drawn.x, **facts)


def test_mask_facts(draw, same, facts_name):
    check_all(same, torch.float32, placed(draw(3, 1, 33, 37, name=facts_name, columns=3)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "kv_heads"), [(32, 3), (64, 1), (80, 3), (128, 1)])
def test_dtypes_head_sizes_and_groups(draw, same, dtype, size, kv_heads):
    drawn = draw(3, kv_heads, 7, 29, dtype, "right padding", size=size, columns=size)
    check_all(same, dtype, placed(drawn))


@pytest.mark.parametrize(
    ("queries", "keys", "name", "dtype"),
    [
        (1, 1, "causal", torch.float32),
        (1, 97, "sinks", torch.bfloat16),
        (7, 7, "offset", torch.float32),
        (130, 65, "all at once", torch.float16),
        (65, 129, "dense", torch.float32),
        (97, 101, "window", torch.bfloat16),
        (71, 3, "bidirectional", torch.float32),
    ],
)
def test_lengths_within_and_beyond_a_block(draw, same, queries, keys, name, dtype):
    check_all(same, dtype, placed(draw(2, 1, queries, keys, dtype, name, size=32)))


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [(1, DTYPES[0]), (1, DTYPES[1]), (1, DTYPES[2]), (16, DTYPES[0]), (140, DTYPES[1]), (300, DTYPES[2])],
)
def test_any_number_of_columns(draw, same, dtype, columns):
    """One column has its own sum, and more than a launch's take several launches."""
    check_all(same, dtype, placed(draw(2, 1, 17, 19, dtype, "right padding", columns=columns)))


def test_forms_of_the_arguments(draw, same):
    drawn = placed(draw(4, 2, 9, 40, name="left padding"))
    q, k, facts, lse = drawn.q, drawn.k, drawn.facts, lse_of(drawn)
    same(torch.float32, ik.attention_apply, q, k, **facts)
    same(torch.float32, ik.attention_apply, q, k, statistics=("square",), **facts)
    same(torch.float32, ik.attention_apply, q, k, drawn.x, statistics=("entropy",), **facts)  # per query head
    same(torch.float32, ik.attention_apply, q, k, drawn.v[..., :0], **facts)
    same(torch.float32, ik.attention_transpose_apply, q, k, lse, **facts)
    same(torch.float32, ik.attention_transpose_apply, q, k, lse, drawn.y[..., 2], **facts)
    same(torch.float32, ik.attention_transpose_apply, q, k, lse, drawn.y[..., :0], **facts)


@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (5, 0)])
def test_nothing_to_attend_with_or_to(draw, same, queries, keys):
    drawn = placed(draw(2, 1, queries, keys, name="bidirectional"))
    with ik.use("triton"):
        z, lse, _, square, mass = ik.attention_apply(drawn.q, drawn.k, drawn.v, statistics=STATISTICS, causal=False)
        back = ik.attention_transpose_apply(drawn.q, drawn.k, lse, drawn.y, causal=False)
    assert z.shape == (2, 2, queries, 5)
    assert mass.shape == (2, 2, keys)
    assert back.shape == (2, 2, keys, 5)
    assert (lse == -torch.inf).all()
    assert not any(found.any() for found in (z, square, mass, back))


def test_views_and_mixed_dtypes(draw, same):
    drawn = placed(draw(4, 2, 21, 34, name="all at once"))
    for name in ("q", "k", "v", "x", "y"):  # as a model lays them out: [B, N, H, D], seen through a transpose
        setattr(drawn, name, getattr(drawn, name).transpose(1, 2).contiguous().transpose(1, 2))
    drawn.v = drawn.v.mT.contiguous().mT  # channels far apart
    check_all(same, torch.float32, drawn)
    q, k, facts, lse = drawn.q, drawn.k, drawn.facts, lse_of(drawn)
    same(torch.bfloat16, ik.attention_apply, q, k.bfloat16(), drawn.v.half(), **facts)
    same(torch.float16, ik.attention_gram_apply, q.half(), k.half(), lse, drawn.x, **facts)
    same(torch.float32, ik.attention_apply, q, k.double(), drawn.v.double(), statistics=STATISTICS, **facts)


def test_given_lse_rules_not_the_rows_own(draw, same):
    """Whoever sets a row's lse to -inf takes the row out, and a larger one makes it smaller."""
    drawn = placed(draw(2, 1, 9, 12, name="sinks"))
    lse = lse_of(drawn) + 0.5
    lse[:, :, 3] = -torch.inf
    for operation, columns in ((ik.attention_transpose_apply, drawn.y), (ik.attention_gram_apply, drawn.x)):
        same(torch.float32, operation, drawn.q, drawn.k, lse, columns, **drawn.facts)


def test_sinks_far_above_every_score(draw, same):
    drawn = placed(draw(2, 1, 9, 12, name="sinks"))
    drawn.facts["sinks"] = torch.tensor([200.0, -200.0], device=DEVICE)
    check_all(same, torch.float32, drawn)


@pytest.mark.parametrize("factor", [1e-3, 1e2, 1e4])
def test_scores_of_any_size(draw, factor):
    """Large scores have large rounding errors, so the truth is fp64's and what is compared is how rows sum."""
    drawn = placed(draw(2, 1, 17, 40, name="sinks"))
    drawn.q *= factor
    with ik.use("triton"):
        z, lse, entropy, square, mass = ik.attention_apply(
            drawn.q, drawn.k, torch.ones_like(drawn.v), statistics=STATISTICS, **drawn.facts
        )
    with ik.use("reference"):
        truth = ik.attention_apply(drawn.q.double(), drawn.k.double(), **drawn.facts).lse
    torch.testing.assert_close(lse.double(), truth, rtol=1e-5, atol=1e-5)
    kept = 1 / (1 + (drawn.facts["sinks"][:, None] - truth).exp())
    torch.testing.assert_close(z[..., 0].double(), kept, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mass.sum(-1), z[..., 0].sum(-1), rtol=1e-3, atol=1e-3)
    assert (entropy > -1e-4).all()
    assert (square <= 1 + 1e-4).all()


@pytest.mark.parametrize(("window", "dtype"), [(2, torch.float16), (33, torch.float32), (34, torch.float32)])
def test_every_row_that_sees_a_block_of_keys_is_read(draw, same, window, dtype):
    """Also where the last of them begins a block of rows: for these windows, with the blocks of the interpreter."""
    drawn = placed(draw(1, 1, 100, 100, dtype))
    same(dtype, ik.attention_transpose_apply, drawn.q, drawn.k, lse_of(drawn), window=window)


def test_keys_that_no_row_of_a_block_sees_are_not_read(draw):
    """With NaN in them a program that multiplies them by 0 gives NaN. All keys before and behind count as unseen."""
    drawn = placed(draw(1, 1, 16, 128, name="causal"))
    facts = {"offset": 64, "window": 16}
    drawn.v[:, :, :32] = drawn.v[:, :, 112:] = torch.nan
    with ik.use("triton"):
        assert ik.attention_apply(drawn.q, drawn.k, drawn.v, **facts).z.isfinite().all()
        drawn = placed(draw(1, 1, 256, 16, name="causal"))
        facts = {"offset": -96, "window": 32}
        lse = torch.zeros(2, 1, 256, device=DEVICE)
        drawn.y[:, :, :64] = drawn.y[:, :, 192:] = torch.nan
        assert ik.attention_transpose_apply(drawn.q, drawn.k, lse, drawn.y, **facts).isfinite().all()


def test_small_weights_survive_half_precision(draw, same):
    """A key that gets 2e-8 of each of many rows gets its share of a half-precision y, which cannot hold 2e-8."""
    q = torch.zeros(1, 1, 33, 16, dtype=torch.float16, device=DEVICE)
    k = torch.zeros(1, 1, 3, 16, dtype=torch.float16, device=DEVICE)
    y = torch.ones(1, 1, 33, 2, dtype=torch.float16, device=DEVICE)
    lse = torch.full((1, 1, 33), 17.7, device=DEVICE)
    with ik.use("triton"):
        found = ik.attention_transpose_apply(q, k, lse, y, causal=False)
    wanted = torch.full_like(found, 33).mul(torch.tensor(-17.7).exp().item())
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)


def test_two_runs_give_the_same_bits(draw):
    drawn = placed(draw(2, 1, 65, 70, torch.float16, "all at once", columns=20))
    lse = lse_of(drawn)

    def run():
        attended = ik.attention_apply(drawn.q, drawn.k, drawn.v, statistics=STATISTICS, **drawn.facts)
        return [*attended, *ik.attention_gram_apply(drawn.q, drawn.k, lse, drawn.x, **drawn.facts)]

    with ik.use("triton"):
        for one, other in zip(run(), run(), strict=True):
            assert torch.equal(one, other)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    causal=st.booleans(),
    offset=st.integers(-45, 45),
    window=st.none() | st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_property_rows_are_probabilities_over_what_they_see(queries, keys, causal, offset, window, seed):
    """In fp64, with the pattern written out here: who sees whom, z, both statistics and the column sums."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 1, n, 16, generator=generator).to(DEVICE) for n in (queries, keys, keys))
    with ik.use("triton"):
        z, lse, entropy, square, mass = ik.attention_apply(
            q, k, v, statistics=STATISTICS, causal=causal, offset=offset, window=window
        )
    distance = torch.arange(queries)[:, None] + offset - torch.arange(keys)
    seen = torch.ones_like(distance, dtype=torch.bool) if not causal and window is None else distance >= 0
    if window is not None:
        seen &= distance < window
    scores = (q[0, 0].double() @ k[0, 0].double().T / 4).cpu()
    a = torch.where(seen, scores.exp(), 0.0)
    total = a.sum(-1, keepdim=True)
    a = torch.where(total > 0, a / total, 0.0)
    wanted = (a @ v[0, 0].double().cpu(), total[:, 0].log(), torch.special.entr(a).sum(-1), (a * a).sum(-1), a.sum(0))
    for found, truth in zip((z, lse, entropy, square, mass), wanted, strict=True):
        torch.testing.assert_close(found[0, 0].cpu().double(), truth, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_told_in_one_sentence(draw):
    drawn = draw(2, 1, 3, 3, torch.float64)
    with ik.use("triton"), pytest.raises(TypeError, match=r"^the \"triton\" path sums in fp32; fp64 runs on [^\n]*\.$"):
        ik.attention_apply(drawn.q, drawn.k, drawn.v)


def test_what_a_dominant_key_leaves_is_not_rounded_away_in_half_precision() -> None:
    """One key takes nearly all attention and has nothing to give; thousands share the rest, each below fp16's step."""
    keys = 1500
    q = torch.zeros(1, 1, 1, 16, device=DEVICE).half()
    q[..., 0] = 14.0
    k = torch.zeros(1, 1, keys, 16, device=DEVICE).half()
    k[0, 0, 0, 0] = 4.0
    v = torch.full((1, 1, keys, 4), 20.0, device=DEVICE).half()
    v[0, 0, 0] = 0.0
    with ik.use("reference"):
        expected = ik.attention_apply(q, k, v).z
    with ik.use("triton"):
        found = ik.attention_apply(q, k, v).z
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def test_strides_of_sinks_do_not_matter(same) -> None:
    q, k, v = (torch.randn(1, h, 9, 16, device=DEVICE) for h in (4, 2, 2))
    same(torch.float32, ik.attention_apply, q, k, v, sinks=torch.linspace(-3, 3, 8, device=DEVICE)[::2])
