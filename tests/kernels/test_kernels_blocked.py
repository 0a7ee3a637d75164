"""The blocked CPU path against the reference, over dtypes, grouped-query ratios, lengths and mask facts."""

from __future__ import annotations

import interp_kernels as ik
import pytest
import torch

STATISTICS = ("lse", "entropy", "square", "column_mass")
HEADS = [(3, 3), (6, 2), (8, 1)]  # ratios 1, 3, 8
LENGTHS = [(1, 1), (7, 7), (63, 63), (1, 100), (100, 63), (257, 257)]
DTYPES = [
    (torch.float32, 1e-5, LENGTHS),
    (torch.bfloat16, 1e-5, LENGTHS[1::2]),
    (torch.float16, 1e-5, LENGTHS[1::2]),
    (torch.float64, 1e-12, LENGTHS[::2]),
]


def assert_equal(found, wanted, tolerance):
    """Equal to tolerance, absolute below 1 and relative above; -inf only where wanted, and NaN nowhere."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert not found.isnan().any()
    assert not wanted.isnan().any()
    infinite = wanted == -torch.inf
    assert torch.equal(found == -torch.inf, infinite)
    error = (found - wanted).abs() / wanted.abs().clamp(min=1)
    assert error.masked_fill(infinite, 0).max() <= tolerance


def every_operation(drawn, path):
    """Outputs of all attention operations on one path, by name; lse always comes from the reference."""
    q, k, facts = drawn.q, drawn.k, drawn.facts
    with ik.use("reference"):
        lse = ik.attention_apply(q, k, **facts).lse
    with ik.use(path):
        attended = ik.attention_apply(q, k, drawn.v, statistics=STATISTICS, **facts)
        alone = ik.attention_apply(q, k, drawn.x, **facts)
        applied, gram = ik.attention_gram_apply(q, k, lse, drawn.x, **facts)
        return {
            **attended._asdict(),
            "values per query head": alone.z,
            "statistics of z alone": alone.lse,
            "column mass": ik.attention_transpose_apply(q, k, lse, **facts),
            "transpose, one column": ik.attention_transpose_apply(q, k, lse, drawn.y[..., 0], **facts),
            "transpose": ik.attention_transpose_apply(q, k, lse, drawn.y, **facts),
            "gram, applied": applied,
            "gram": gram,
        }


@pytest.mark.parametrize(("dtype", "tolerance", "lengths"), DTYPES, ids=["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_blocked_equals_reference(draw, facts_name, heads, kv_heads, dtype, tolerance, lengths):
    for seed, (queries, keys) in enumerate(lengths):
        drawn = draw(heads, kv_heads, queries, keys, dtype, facts_name, seed)
        wanted, found = every_operation(drawn, "reference"), every_operation(drawn, "cpu")
        for output in wanted:
            assert_equal(found[output], wanted[output], tolerance)


DOUBLE_OR_SINGLE = [torch.float64, torch.float32]


@pytest.mark.parametrize("v_dtype", DOUBLE_OR_SINGLE, ids=str)
@pytest.mark.parametrize("k_dtype", DOUBLE_OR_SINGLE, ids=str)
@pytest.mark.parametrize("q_dtype", DOUBLE_OR_SINGLE, ids=str)
@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_the_dtype_of_q_decides(draw, path, q_dtype, k_dtype, v_dtype):
    """With k and v in fp64 beside q in fp32, results are those of fp32 inputs, and the other way round."""
    drawn = draw(4, 2, 13, 21, torch.float32, "all at once")
    groups = torch.arange(21).expand(2, -1) % 2
    factors = torch.tensor([0.5, 2.0]).view(1, 1, 1, 2)
    edit = {"rule": factors.to(v_dtype), **drawn.facts}
    drawn.q, drawn.k = drawn.q.to(q_dtype), drawn.k.to(k_dtype)
    for name in ("v", "x", "y"):
        setattr(drawn, name, getattr(drawn, name).to(v_dtype))
    found = every_operation(drawn, path)
    with ik.use(path):
        edited = ik.group_reweighted_attention(drawn.q, drawn.k, drawn.v, groups, **edit)
    for name in ("q", "k", "v", "x", "y"):
        setattr(drawn, name, getattr(drawn, name).to(q_dtype))
    wanted = every_operation(drawn, "reference")
    with ik.use("reference"):
        alike = ik.group_reweighted_attention(drawn.q, drawn.k, drawn.v, groups, factors.to(q_dtype), **drawn.facts)
    for output, value in {**wanted, **alike._asdict()}.items():
        assert value.dtype == q_dtype
        assert_equal({**found, **edited._asdict()}[output], value, 1e-12 if q_dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", ["causal", "window", "all at once"])
def test_threads_give_the_same_answer(draw, set_threads, name):
    """Long enough for worker threads and for blocks of fewer than the most rows."""
    drawn = draw(2, 1, 300, 5000, name=name)
    set_threads(3)
    threaded, again = every_operation(drawn, "cpu"), every_operation(drawn, "cpu")
    assert torch.get_num_threads() == 3
    set_threads(1)
    alone, wanted = every_operation(drawn, "cpu"), every_operation(drawn, "reference")
    for output in wanted:
        assert torch.equal(threaded[output], again[output])
        assert_equal(threaded[output], alone[output], 1e-5)
        assert_equal(threaded[output], wanted[output], 1e-5)


@pytest.mark.parametrize("factor", [1e-3, 1e2, 1e4])
def test_scores_of_any_size(draw, factor):
    drawn = draw(4, 2, 63, 63, torch.float64, "sinks")
    drawn.q *= factor
    wanted, found = every_operation(drawn, "reference"), every_operation(drawn, "cpu")
    for output in wanted:
        assert_equal(found[output], wanted[output], 1e-8)


def test_inputs_may_be_views_and_need_no_gradient(draw):
    drawn = draw(6, 2, 63, 63)
    wanted = every_operation(drawn, "cpu")
    for name in ("q", "k", "v", "x", "y"):  # as a model lays them out: [B, N, H, D], seen through a transpose
        strided = getattr(drawn, name).transpose(1, 2).contiguous().requires_grad_()
        setattr(drawn, name, strided.transpose(1, 2))
    for output, found in every_operation(drawn, "cpu").items():
        assert not found.requires_grad
        assert_equal(found, wanted[output], 1e-6)


def test_inference_mode_reaches_the_threads(draw, set_threads):
    set_threads(2)
    with torch.inference_mode():
        drawn = draw(4, 2, 1024, 1024)
        found = every_operation(drawn, "cpu")
    assert found["gram"].is_inference()
    assert found["gram"].isfinite().all()


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("name", ["causal", "bidirectional", "window", "left padding", "all at once"])
def test_no_tensor_is_as_large_as_the_pattern(draw, set_threads, name):
    drawn = draw(1, 1, 2500, 2500, name=name)
    q, k, v, y, x, facts = drawn.q, drawn.k, drawn.v, drawn.y, drawn.x, drawn.facts
    set_threads(1)  # the mode sees its own thread only
    with ik.use("cpu"), LargestTensor() as largest:
        lse = ik.attention_apply(q, k, v, statistics=STATISTICS, **facts).lse
        ik.attention_transpose_apply(q, k, lse, y, **facts)
        ik.attention_gram_apply(q, k, lse, x, **facts)
    assert q.numel() <= largest.elements < 2500 * 2500 / 8
