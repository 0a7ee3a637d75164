"""What a caller meets: error messages, the override of the path, and a package that needs torch alone."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import interp_kernels as ik
import pytest
import torch

Q, K = torch.zeros(2, 6, 5, 8), torch.zeros(2, 3, 7, 8)
LSE = torch.zeros(2, 6, 5)


APPLY = "attention_apply"
TRANSPOSE = "attention_transpose_apply"
GRAM = "attention_gram_apply"
ENERGY = "channel_energy"
MISTAKES = [
    (APPLY, (Q[0], K), {}, "q should be [B, H, N, D], found [6, 5, 8]"),
    (APPLY, (Q, K[..., :4]), {}, "k should be [B=2, Hk, S, D=8], found [2, 3, 7, 4]"),
    (
        APPLY,
        (Q, K[:, [0, 1, 2, 0]]),
        {},
        "k's 4 heads should divide q's 6 evenly, found q [2, 6, 5, 8] and k [2,",
    ),
    (APPLY, (Q, K.long()), {}, "k must be floating point, found torch.int64"),
    (APPLY, (Q, K, K[:, :2]), {}, "v should be [B=2, Hk|H=3 or 6, S=7, R], found [2, 2, 7, 8]"),
    (APPLY, (Q, K), {"statistics": ("variance",)}, "a list of lse, entropy, square, column_mass, found ('variance',)"),
    (APPLY, (Q, K), {"statistics": "lse"}, "a list of lse, entropy, square, column_mass, found 'lse'"),
    (APPLY, (Q, K), {"windows": 3}, 'no mask fact is called "windows"; did you mean "window"?'),
    (APPLY, (Q, K), {"alibi": 3}, 'no mask fact is called "alibi"; there are causal, offset, window'),
    (
        APPLY,
        (Q, K),
        {"bias": torch.zeros(1, 1, 5, 3)},
        "bias should be [B|1=2 or 1, H|1=6 or 1, N|1=5 or 1, S=7], found [1, 1, 5, 3]",
    ),
    (APPLY, (Q, K), {"bias": torch.ones(1, 1, 1, 7).bool()}, "bias must be floating point, found torch.bool"),
    (APPLY, (Q, K), {"window": 0}, "window should be at least 1 (a query sees itself), found 0"),
    (APPLY, (Q, K), {"softcap": 0.0}, "softcap should be positive, found 0.0; None means no cap"),
    (
        APPLY,
        (Q, K),
        {"key_mask": torch.ones(2, 7)},
        "key_mask must be bool with True for what is kept, found",
    ),
    (APPLY, (Q, K), {"key_mask": torch.ones(2, 5).bool()}, "key_mask should be [B=2, S=7], found [2, 5]"),
    (APPLY, (Q, K), {"query_mask": torch.ones(2, 7).bool()}, "query_mask should be [B=2, N=5], found [2, 7]"),
    (
        APPLY,
        (Q, K),
        {"mask": torch.ones(5, 7).bool()},
        "mask should be [B|1=2 or 1, H|1=6 or 1, N=5, S=7], found [5, 7]",
    ),
    (APPLY, (Q, K), {"sinks": torch.zeros(3)}, "sinks should be [H=6], found [3]"),
    (TRANSPOSE, (Q, K, LSE[:, :3]), {}, "lse should be [B=2, H=6, N=5], found [2, 3, 5]"),
    (TRANSPOSE, (Q, K, LSE, K), {}, "y should be [B=2, H=6, N=5, R], found [2, 3, 7, 8]"),
    (TRANSPOSE, (Q, K, LSE, LSE[:1]), {}, "y should be [B=2, H=6, N=5], found [1, 6, 5]"),
    (GRAM, (Q, K, LSE, K), {}, "x should be [B=2, H=6, S=7, R], found [2, 3, 7, 8]"),
    (ENERGY, (Q[0],), {}, "x should be [B, H, N, D], found [6, 5, 8]"),
    (ENERGY, (Q, torch.ones(2, 6).bool()), {}, "mask should be [B=2, N=5], found [2, 6]"),
    ("use", ("cuda",), {}, 'no path is called "cuda"; there are "reference", "cpu", "triton" and "auto"'),
    ("use", ("referense",), {}, 'no path is called "referense" (did you mean "reference"?)'),
]


@pytest.mark.parametrize(("name", "arguments", "keywords", "message"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(name, arguments, keywords, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(ik, name)(*arguments, **keywords)
    told = str(caught.value)
    assert told.startswith(f"{name}: ")
    assert message in told
    assert "\n" not in told
    assert told.endswith((".", "?"))


@pytest.fixture
def path_taken(monkeypatch):
    """A function that calls channel_energy and says which path ran."""
    taken = []
    paths = import_module("interp_kernels.channel_energy").PATHS  # the package has a function of the same name
    for name in ("reference", "cpu"):
        monkeypatch.setitem(paths, name, lambda x, mask, name=name: taken.append(name))

    def call():
        ik.channel_energy(Q)
        return taken[-1]

    yield call
    ik.use("auto")


def test_the_blocked_path_is_the_default(path_taken):
    assert path_taken() == "cpu"


def test_use_as_a_call_lasts_until_the_next(path_taken):
    ik.use("reference")
    assert path_taken() == "reference"
    ik.use("auto")
    assert path_taken() == "cpu"


def test_use_as_a_block_restores_also_after_an_exception(path_taken):
    ik.use("reference")
    with ik.use("cpu"):
        with ik.use("auto"), ik.use("reference"):
            assert path_taken() == "reference"
        assert path_taken() == "cpu"
    assert path_taken() == "reference"
    with pytest.raises(ZeroDivisionError), ik.use("cpu"):
        raise ZeroDivisionError
    assert path_taken() == "reference"


def test_a_wrong_name_changes_nothing(path_taken):
    ik.use("reference")
    with pytest.raises(ValueError, match="no path"):
        ik.use("gpu")
    assert path_taken() == "reference"


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch, set_threads):
    q = torch.randn(1, 4, 1024, 8)
    monkeypatch.setattr(import_module("interp_kernels.attention_apply.cpu"), "HeadScores", lambda *_: 1 / 0)
    set_threads(2)
    with pytest.raises(ZeroDivisionError):
        ik.attention_apply(q, q)
    assert torch.get_num_threads() == 2


def test_importing_needs_nothing_but_torch():
    script = (
        "import sys, torch; before = set(sys.modules); import interp_kernels; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['interp_kernels']"
