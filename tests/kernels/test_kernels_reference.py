"""The references against formulations that share no code with them: loops over rows, and torch's own SDPA."""

from __future__ import annotations

import math

import interp_kernels as ik
import pytest
import torch


@pytest.fixture(autouse=True)
def reference_path():
    with ik.use("reference"):
        yield


def sees(facts, b, h, i, j, queries, keys):
    """Whether query i sees key j, straight from the wording of the facts."""
    if "key_mask" in facts and not facts["key_mask"][b, j]:
        return False
    if "query_mask" in facts and not facts["query_mask"][b, i]:
        return False
    if "mask" in facts:
        mask = facts["mask"]
        return bool(mask[b if mask.shape[0] > 1 else 0, h if mask.shape[1] > 1 else 0, i, j])
    distance = i + facts.get("offset", keys - queries) - j
    if "window" in facts:
        return 0 <= distance < facts["window"]
    return distance >= 0 or not facts.get("causal", True)


def bias_of(facts, b, h, i, keys):
    """What is added to the scores of a row [S]."""
    bias = facts.get("bias", torch.zeros(1, 1, 1, keys)).double()
    return bias[b if len(bias) > 1 else 0, h if bias.shape[1] > 1 else 0, i if bias.shape[2] > 1 else 0]


def pattern_by_loops(drawn):
    """(A [B, H, N, S], lse [B, H, N]) in fp64, one row at a time with torch.softmax over the visible keys only."""
    q, k, facts = drawn.q.double(), drawn.k.double(), drawn.facts
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    pattern = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -torch.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            key = k[b, h * k.shape[1] // heads]
            for i in range(queries):
                bias = bias_of(facts, b, h, i, keys)
                visible = [j for j in range(keys) if sees(facts, b, h, i, j, queries, keys) and bias[j] > -torch.inf]
                if not visible:
                    continue
                scores = key[visible] @ q[b, h, i] * facts.get("scale", 1 / math.sqrt(size))
                if "softcap" in facts:
                    scores = facts["softcap"] * (scores / facts["softcap"]).tanh()
                scores = scores + bias[visible]
                lse[b, h, i] = scores.exp().sum().log()
                if "sinks" in facts:
                    scores = torch.cat([scores, facts["sinks"][h : h + 1].double()])
                pattern[b, h, i, visible] = torch.softmax(scores, dim=0)[: len(visible)]
    return pattern, lse


def close(found, wanted):
    torch.testing.assert_close(found, wanted.to(found.dtype), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (5, 11), (11, 5)])
def test_every_output_follows_from_the_pattern(draw, facts_name, queries, keys):
    drawn = draw(6, 2, queries, keys, name=facts_name)
    q, k, facts = drawn.q, drawn.k, drawn.facts
    a, lse = pattern_by_loops(drawn)
    v, y, x = (torch.nan_to_num(t).double() for t in (drawn.v, drawn.y, drawn.x))

    close(ik.attention_pattern(q, k, **facts), a)
    attended = ik.attention_apply(q, k, drawn.v, statistics=("lse", "entropy", "square", "column_mass"), **facts)
    close(attended.lse, lse)
    close(attended.z, torch.stack([a[:, h] @ v[:, h // 3] for h in range(6)], dim=1))
    close(attended.entropy, -(a * a.clamp(min=1e-300).log()).sum(-1))
    close(attended.square, (a**2).sum(-1))
    close(attended.column_mass, a.sum(2))
    close(ik.attention_transpose_apply(q, k, attended.lse, **facts), a.sum(2))
    close(ik.attention_transpose_apply(q, k, attended.lse, drawn.y, **facts), a.transpose(2, 3) @ y)
    close(ik.attention_transpose_apply(q, k, attended.lse, drawn.y[..., 1], **facts), (a.mT @ y)[..., 1])
    applied, gram = ik.attention_gram_apply(q, k, attended.lse, drawn.x, **facts)
    close(applied, a @ x)
    close(gram, a.mT @ (a @ x))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1)])
def test_output_equals_scaled_dot_product_attention(draw, heads, kv_heads):
    drawn = draw(heads, kv_heads, 63, 63, columns=16)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        drawn.q, drawn.k, drawn.v, is_causal=True, enable_gqa=True
    )
    close(ik.attention_apply(drawn.q, drawn.k, drawn.v).z, wanted)


def test_statistics_that_were_not_asked_for_are_none(draw):
    drawn = draw(2, 1, 7, 7)
    attended = ik.attention_apply(drawn.q, drawn.k)
    assert attended.z is attended.entropy is attended.square is attended.column_mass is None
    assert ik.attention_apply(drawn.q, drawn.k, statistics=("entropy",)).square is None


@pytest.mark.parametrize("path", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6), (torch.float64, 1e-14)],
)
@pytest.mark.parametrize("tokens", [1, 7, 2500])
def test_channel_energy_is_the_mean_square_of_real_tokens(path, dtype, tolerance, tokens):
    x = torch.randn(2, 3, tokens, 16, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64).to(dtype)
    real = torch.tensor([tokens, tokens // 2])
    mask = torch.arange(tokens) >= (tokens - real)[:, None]
    padded = x.masked_fill(~mask[:, None, :, None], float("nan"))
    wanted = [x.double()[b, :, tokens - n :].pow(2).sum(1) / max(1, n) for b, n in enumerate(real.tolist())]
    with ik.use(path):
        plain, masked = ik.channel_energy(x), ik.channel_energy(padded, mask)
    assert plain.dtype == masked.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(plain.double(), x.double().pow(2).mean(2), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(masked.double(), torch.stack(wanted), atol=tolerance, rtol=tolerance)
