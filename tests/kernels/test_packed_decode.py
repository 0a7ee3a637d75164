"""packed_decode against loops over single queries, against torch's SDPA on zero-filled keys, and path against path."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace

import interp_kernels as ik
import pytest
import torch
from interp_kernels import KeySegment, packed_decode

# Stored tokens and channels of each segment; None: all channels. The last segment holds the newest tokens.
LAYOUTS = {
    "one dense segment": [(7, None, None)],
    "packed, dense": [(13, 5, None), (9, None, None)],
    "packed values too": [(13, 5, 3), (9, None, None)],
    "sinks between": [(21, 3, None), (4, None, None), (6, None, None)],
    "all packed": [(5, 8, 2), (1, 1, 4), (6, 3, 3)],
    "no channel stored": [(5, 0, None), (6, None, None)],
    "nothing in a segment": [(0, 3, 2), (6, None, None)],
}
FACTS = ("plain", "bias", "offset", "softcap", "sinks", "scale", "all at once")


def drawn(
    layout: str,
    *,
    heads: int = 6,
    stored: int = 2,
    queries: int = 1,
    facts: str = "plain",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> SimpleNamespace:
    """Random q, segments and keywords for a batch of two, d_head 16, d_value 10."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)

    def some(width: int, count: int) -> torch.Tensor:
        order = torch.rand(2, stored, width, generator=generator).argsort(-1)
        return order[..., :count].sort(-1).values.to(torch.int16)

    sizes = LAYOUTS[layout]
    segments = []
    for i, (n, t, tv) in enumerate(sizes):
        bias = None
        if facts in ("bias", "all at once") and i != 1:  # one segment without a bias, where there are several
            shape = (1 if i else 2, stored if i else 1, n)  # biases may be shared by heads or by texts
            bias = torch.randn(*shape, generator=generator)
            if i < len(sizes) - 1:
                bias[..., ::3] = -torch.inf
        segments.append(
            KeySegment(
                randn(stored, n, 16 if t is None else t),
                randn(stored, n, 10 if tv is None else tv),
                None if t is None else some(16, t),
                None if tv is None else some(10, tv),
                bias,
                0.5 * randn(stored, 16) if facts in ("offset", "all at once") and i != 1 else None,
            )
        )
    keywords = {"d_value": 10}
    if facts in ("softcap", "all at once"):
        keywords["softcap"] = 1.5
    if facts in ("sinks", "all at once"):
        keywords["sinks"] = 3 * torch.rand(heads, generator=generator) - 1
    if facts in ("scale", "all at once"):
        keywords["scale"] = 0.1
    return SimpleNamespace(q=randn(heads, queries, 16), segments=segments, keywords=keywords)


def by_loops(case: SimpleNamespace) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """z and mass in fp64: for each text, head and query, every stored token's score one by one from the channels it
    has, then a softmax over the tokens that the query sees."""
    q, segments, keywords = case.q.double(), case.segments, case.keywords
    batch, heads, queries, d = q.shape
    group = heads // segments[0].keys.shape[1]
    z = torch.zeros(batch, heads, queries, 10, dtype=torch.float64)
    mass = [torch.zeros(s.keys.shape[:3], dtype=torch.float64) for s in segments]
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                places, scores, read = [], [], []
                for number, s in enumerate(segments):
                    n, at = s.keys.shape[2], (b, h // group)
                    seen = n - (queries - 1 - i) if number == len(segments) - 1 else n
                    for token in range(seen):
                        channels = range(d) if s.channels is None else s.channels[at].tolist()
                        score = sum(
                            q[b, h, i, c].item() * x for c, x in zip(channels, s.keys[at][token].tolist(), strict=True)
                        )
                        if s.offset is not None:
                            score += (q[b, h, i] @ s.offset[at].double()).item()
                        score *= keywords.get("scale", 1 / math.sqrt(d))
                        if "softcap" in keywords:
                            score = keywords["softcap"] * math.tanh(score / keywords["softcap"])
                        if s.bias is not None:
                            score += s.bias[b % s.bias.shape[0], at[1] % s.bias.shape[1], token].item()
                        value = torch.zeros(10, dtype=torch.float64)
                        wide = range(10) if s.value_channels is None else s.value_channels[at].tolist()
                        value[list(wide)] = s.values[at][token].double()
                        places.append((number, token))
                        scores.append(score)
                        read.append(value)
                if "sinks" in keywords:
                    scores.append(keywords["sinks"][h].item())
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                for (number, token), weight, value in zip(places, weights, read, strict=False):
                    z[b, h, i] += weight * value
                    mass[number][b, h // group, token] += weight
    return z, mass


def close(found: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted.to(found.dtype), atol=atol, rtol=rtol)


@pytest.mark.parametrize("path", ["reference", "cpu"])
@pytest.mark.parametrize("facts", FACTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_output_follows_from_its_definition(path: str, layout: str, facts: str) -> None:
    case = drawn(layout, queries=3, facts=facts)
    z, mass = by_loops(case)
    with ik.use(path):
        found = packed_decode(case.q, case.segments, **case.keywords)
    close(found.z, z)
    assert len(found.mass) == len(mass)
    for one, other in zip(found.mass, mass, strict=True):
        close(one, other)


@pytest.mark.parametrize("facts", FACTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("heads", "stored", "queries"), [(4, 4, 2), (6, 2, 1), (7, 1, 6)])
@pytest.mark.parametrize(
    ("dtype", "atol", "rtol"),
    [
        (torch.float32, 1e-5, 1e-5),
        (torch.float64, 1e-13, 1e-13),
        (torch.float16, 2e-3, 1e-2),
        (torch.bfloat16, 1e-2, 2e-2),
    ],
)
def test_the_two_paths_agree(layout, facts, heads, stored, queries, dtype, atol, rtol) -> None:
    """Tolerances are those of the specification for every kernel."""
    case = drawn(layout, heads=heads, stored=stored, queries=queries, facts=facts, dtype=dtype, seed=heads)
    with ik.use("reference"):
        wanted = packed_decode(case.q, case.segments, **case.keywords)
    with ik.use("cpu"):
        found = packed_decode(case.q, case.segments, **case.keywords)
    assert found.z.dtype == wanted.z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(found.z, wanted.z, atol, rtol)
    for one, other in zip(found.mass, wanted.mass, strict=True):
        assert one.dtype == other.dtype
        close(one, other, atol, rtol)


def zero_filled(segments: Sequence[KeySegment]) -> tuple[torch.Tensor, torch.Tensor]:
    """All keys and values with a zero written, channel by channel, where none is stored."""
    keys, values = [], []
    for s in segments:
        for stored, channels, width, into in (
            (s.keys, s.channels, 16, keys),
            (s.values, s.value_channels, 10, values),
        ):
            full = torch.zeros(*stored.shape[:3], width, dtype=stored.dtype)
            for b in range(stored.shape[0]):
                for h in range(stored.shape[1]):
                    places = range(width) if channels is None else channels[b, h].tolist()
                    for i, channel in enumerate(places):
                        full[b, h, :, channel] = stored[b, h, :, i]
            into.append(full)
    return torch.cat(keys, 2), torch.cat(values, 2)


@pytest.mark.parametrize("path", ["reference", "cpu"])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_equals_sdpa_over_zero_filled_keys(path: str, layout: str, queries: int) -> None:
    case = drawn(layout, queries=queries)
    keys, values = zero_filled(case.segments)
    seen = torch.ones(queries, keys.shape[2], dtype=torch.bool).tril(keys.shape[2] - queries)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        case.q, keys, values, attn_mask=seen, enable_gqa=True, scale=0.25
    )
    with ik.use(path):
        close(packed_decode(case.q, case.segments, d_value=10).z, wanted)


@pytest.mark.parametrize("scores", [1, 100, 500])
@pytest.mark.parametrize("facts", ["plain", "all at once"])
def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, scores: int, facts: str) -> None:
    """One row a block, and blocks whose last one is short, against all rows at once."""
    case = drawn("sinks between", queries=5, facts=facts)
    module = import_module("interp_kernels.packed_decode.cpu")
    with ik.use("cpu"):
        whole = packed_decode(case.q, case.segments, **case.keywords)
        monkeypatch.setattr(module, "BLOCK_SCORES", scores)
        blocked = packed_decode(case.q, case.segments, **case.keywords)
    close(blocked.z, whole.z, 1e-6, 1e-6)
    for one, other in zip(blocked.mass, whole.mass, strict=True):
        close(one, other, 1e-6, 1e-6)


@pytest.mark.parametrize("path", ["reference", "cpu"])
@pytest.mark.parametrize("queries", [1, 4])
def test_mass_is_what_queries_give_away(path: str, queries: int) -> None:
    """Without learned sinks every query gives 1, so a head's mass sums to its queries; a sink takes its share."""
    case = drawn("packed, dense", queries=queries, facts="bias")
    with ik.use(path):
        given = packed_decode(case.q, case.segments, d_value=10).mass
        strong = packed_decode(case.q, case.segments, d_value=10, sinks=torch.full((6,), 30.0)).mass
    close(sum(m.sum(-1) for m in given), torch.full((2, 2), 3.0 * queries))
    assert sum(m.sum(-1) for m in strong).max() < 1e-6
    assert given[0][:, :, ::3].eq(0).all()  # hidden tokens receive nothing


@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_a_token_that_stands_for_several_weighs_like_them(path: str) -> None:
    """log(c) as a bias gives what c copies of the token give."""
    case = drawn("one dense segment")
    (s,) = case.segments
    copies = torch.tensor([1, 3, 1, 2, 1, 1, 1])
    repeated = KeySegment(s.keys.repeat_interleave(copies, 2), s.values.repeat_interleave(copies, 2))
    counted = s._replace(bias=copies.log()[None, None])
    with ik.use(path):
        close(packed_decode(case.q, [counted]).z, packed_decode(case.q, [repeated]).z)


@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_the_order_of_tokens_does_not_matter(path: str) -> None:
    """Shuffled within segments, and segments swapped, save for the last one."""
    case = drawn("sinks between", facts="bias")
    first, second, last = case.segments
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    shuffled = first._replace(
        keys=first.keys[:, :, order], values=first.values[:, :, order], bias=first.bias[:, :, order]
    )
    with ik.use(path):
        wanted, found = packed_decode(case.q, case.segments), packed_decode(case.q, [second, shuffled, last])
    close(found.z, wanted.z)
    close(found.mass[1], wanted.mass[0][:, :, order])


@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_inputs_stay_as_they_were(path: str) -> None:
    case = drawn("packed values too", queries=3, facts="all at once")
    tensors = [case.q, *(t for s in case.segments for t in s if t is not None)]
    before = [t.clone() for t in tensors]
    with ik.use(path):
        packed_decode(case.q, case.segments, **case.keywords)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


Q = torch.zeros(2, 6, 3, 16)
DENSE = KeySegment(torch.zeros(2, 2, 5, 16), torch.zeros(2, 2, 5, 10))
INDEX = torch.zeros(2, 2, 4, dtype=torch.int16)
PACKED = KeySegment(torch.zeros(2, 2, 7, 4), torch.zeros(2, 2, 7, 10), INDEX)
SHORT = KeySegment(DENSE.keys[:, :, :2], DENSE.values[:, :, :2])
MISTAKES: list = [
    ((Q[0], [DENSE]), {}, "q should be [B, H, N, D], found [6, 3, 16]"),
    ((Q.long(), [DENSE]), {}, "q must be floating point, found torch.int64"),
    ((Q, []), {}, "segments is empty"),
    ((Q[:, :5], [DENSE]), {}, "2 stored heads do not divide 5 query heads"),
    ((Q, [DENSE._replace(keys=DENSE.keys[..., :8])]), {}, "keys should be [B=2, Hs=2, n, T=16], found [2, 2, 5, 8]"),
    ((Q, [PACKED._replace(keys=PACKED.keys[..., :3]), DENSE]), {}, "keys should be [B=2, Hs=2, n, T=4], found"),
    ((Q, [DENSE._replace(values=DENSE.values[:, :, :4])]), {}, "values should be [B=2, Hs=2, n=5, Tv=10], found"),
    ((Q, [PACKED._replace(channels=INDEX[:, :1]), DENSE]), {}, "channels should be [B=2, Hs=2, T], found [2, 1, 4]"),
    ((Q, [DENSE._replace(bias=torch.zeros(2, 2, 4))]), {}, "bias should be [B=2 or 1, Hs=2 or 1, n=5], found"),
    ((Q, [DENSE._replace(offset=torch.zeros(2, 2, 8))]), {}, "offset should be [B=2, Hs=2, D=16], found [2, 2, 8]"),
    ((Q, [DENSE._replace(values=DENSE.values[..., :4], value_channels=INDEX)]), {}, "so d_value must say how many"),
    ((Q, [PACKED, SHORT]), {}, "there are 3 queries, whose keys should be its last ones"),
]


@pytest.mark.parametrize(("arguments", "keywords", "message"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(arguments, keywords, message) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        packed_decode(*arguments, **keywords)
    told = str(caught.value)
    assert told.startswith("packed_decode: ")
    assert message in told
    assert "\n" not in told
    assert told.endswith(".")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sinks": torch.zeros(3)}, ValueError, "sinks should be [H=4]"),
        ({"softcap": 0.0}, ValueError, "softcap should be positive"),
        ({"q": torch.zeros(1, 4, 0, 8)}, ValueError, "q holds no query"),
        ({"segments": [KeySegment(torch.zeros(1, 2, 3, 8).half(), torch.zeros(1, 2, 3, 8))]}, TypeError, "like q"),
        (
            {"segments": [KeySegment(torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3, 8), torch.rand(1, 2, 2))]},
            TypeError,
            "channels should hold integers",
        ),
    ],
)
def test_what_would_be_misread_is_refused(change: dict, error: type[Exception], message: str) -> None:
    zeros = torch.zeros(1, 2, 3, 8)
    arguments = {"q": torch.zeros(1, 4, 1, 8), "segments": [KeySegment(zeros, zeros)]} | change
    with pytest.raises(error, match=re.escape(message)):
        packed_decode(**arguments)
