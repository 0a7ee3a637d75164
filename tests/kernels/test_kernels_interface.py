"""What a caller meets: error messages, the override of the path, and a package that needs torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import interp_kernels as ik

Q, K = torch.zeros(2, 6, 5, 8), torch.zeros(2, 3, 7, 8)
LSE = torch.zeros(2, 6, 5)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: ik.attention_apply(Q[0], K), ValueError, r"attention_apply: q should be \[B, H, N, D\], found \[6, 5, 8\]"),
    (lambda: ik.attention_apply(Q, K[..., :4]), ValueError, r"k should be \[B=2, Hk, S, D=8\], found \[2, 3, 7, 4\]"),
    (lambda: ik.attention_apply(Q, K[:, [0, 1, 2, 0]]), ValueError, r"k's 4 heads should divide q's 6 evenly, found q \["),
    (lambda: ik.attention_apply(Q, K.long()), TypeError, r"k must be floating point, found torch.int64"),
    (lambda: ik.attention_apply(Q, K, K[:, :2]), ValueError, r"v should be \[B=2, Hk\|H=3 or 6, S=7, R\], found \[2, 2, 7, 8\]"),
    (lambda: ik.attention_apply(Q, K, statistics=("lse", "variance")), ValueError, r"a list of lse, entropy, square, found"),
    (lambda: ik.attention_apply(Q, K, statistics="lse"), ValueError, r"a list of lse, entropy, square, found 'lse'"),
    (lambda: ik.attention_apply(Q, K, windows=3), TypeError, r'no mask fact is called "windows"; did you mean "window"\?'),
    (lambda: ik.attention_apply(Q, K, bias=3), TypeError, r'no mask fact is called "bias"; there are causal, offset'),
    (lambda: ik.attention_apply(Q, K, window=0), ValueError, r"window should be at least 1 .*, found 0"),
    (lambda: ik.attention_apply(Q, K, softcap=0.0), ValueError, r"softcap should be positive, found 0.0; None means no cap"),
    (lambda: ik.attention_apply(Q, K, key_mask=torch.ones(2, 7)), TypeError, r"key_mask must be bool .* `key_mask == 0`"),
    (lambda: ik.attention_apply(Q, K, key_mask=torch.ones(2, 5).bool()), ValueError, r"key_mask should be \[B=2, S=7\], found \[2, 5\]"),
    (lambda: ik.attention_apply(Q, K, query_mask=torch.ones(2, 7).bool()), ValueError, r"query_mask should be \[B=2, N=5\]"),
    (lambda: ik.attention_apply(Q, K, mask=torch.ones(5, 7).bool()), ValueError, r"mask should be \[B\|1=2 or 1, H\|1=6 or 1, N=5, S=7\]"),
    (lambda: ik.attention_apply(Q, K, sinks=torch.zeros(3)), ValueError, r"sinks should be \[H=6\], found \[3\]"),
    (lambda: ik.attention_transpose_apply(Q, K, LSE[:, :3]), ValueError, r"attention_transpose_apply: lse should be \[B=2, H=6, N=5\]"),
    (lambda: ik.attention_transpose_apply(Q, K, LSE, K), ValueError, r"y should be \[B=2, H=6, N=5, R\], found \[2, 3, 7, 8\]"),
    (lambda: ik.attention_transpose_apply(Q, K, LSE, LSE[:1]), ValueError, r"y should be \[B=2, H=6, N=5\], found \[1, 6, 5\]"),
    (lambda: ik.attention_gram_apply(Q, K, LSE, K), ValueError, r"attention_gram_apply: x should be \[B=2, H=6, S=7, R\]"),
    (lambda: ik.channel_energy(Q[0]), ValueError, r"channel_energy: x should be \[B, H, N, D\], found \[6, 5, 8\]"),
    (lambda: ik.channel_energy(Q, torch.ones(2, 6).bool()), ValueError, r"mask should be \[B=2, N=5\], found \[2, 6\]"),
    (lambda: ik.use("cuda"), ValueError, r'no path is called "cuda"; there are "reference", "cpu" and "auto"'),
    (lambda: ik.use("referense"), ValueError, r'no path is called "referense" \(did you mean "reference"\?\)'),
])  # fmt: skip
def test_mistakes_are_told_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.fixture
def path_taken(monkeypatch):
    """A function that calls channel_energy and says which path ran."""
    taken = []
    for name in ("reference", "cpu"):
        monkeypatch.setitem(ik.channel_energy.__globals__["PATHS"], name, lambda x, mask, name=name: taken.append(name))

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
    with pytest.raises(ZeroDivisionError), ik.use("cpu"):
        with ik.use("auto"), ik.use("reference"):
            assert path_taken() == "reference"
        assert path_taken() == "cpu"
        1 / 0  # noqa: B018
    assert path_taken() == "reference"


def test_a_wrong_name_changes_nothing(path_taken):
    ik.use("reference")
    with pytest.raises(ValueError):
        ik.use("gpu")
    assert path_taken() == "reference"


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    q = torch.randn(1, 4, 1024, 8)
    monkeypatch.setattr("interp_kernels.attention_apply.cpu.HeadScores", lambda *_: 1 / 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            ik.attention_apply(q, q)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_importing_needs_nothing_but_torch():
    script = (
        "import sys, torch; before = set(sys.modules); import interp_kernels; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['interp_kernels']"
