"""What Triton's attention kernels share: a head's rows, masked scores, the softmax that runs over blocks of them."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def head_start(X, batch, head):
    """Where a head of X begins, in 64 bits: products of sizes may exceed 32."""
    return X.x + tl.cast(batch, tl.int64) * X.batch + tl.cast(head, tl.int64) * X.head


@triton.jit
def load_rows(X, start, rows, real):
    """Rows [rows, width] of the head of X that begins at `start`; zeros where not `real` and beyond its columns."""
    column = tl.arange(0, X.width)
    cells = rows.to(tl.int64)[:, None] * X.row + column[None, :] * X.column
    x = tl.load(start + cells, mask=real[:, None] & (column < X.columns)[None, :], other=0.0)
    if X.widen:
        x = x.to(tl.float32)
    return x


@triton.jit
def store_rows(X, start, rows, values, real):
    """Write values [rows, width] to the head of X that begins at `start`, where `real`."""
    column = tl.arange(0, X.width)
    cells = rows.to(tl.int64)[:, None] * X.row + column[None, :] * X.column
    tl.store(start + cells, values, mask=real[:, None] & (column < X.columns)[None, :])


@triton.jit
def real_rows(batch, rows, N, Keep):
    """Which of `rows` exist and are not padding; Keep is [B, N] bytes or None."""
    real = rows < N
    if Keep is not None:
        real = real & (tl.load(Keep + batch * N + rows, mask=real, other=0) != 0)
    return real


@triton.jit
def key_range(first_row, last_row, facts):
    """(first, past-the-last) key that rows first..last may see."""
    low, high = 0, facts.keys
    if facts.causal:
        high = tl.minimum(facts.keys, tl.maximum(0, last_row + facts.offset + 1))
    if facts.window is not None:
        low = tl.maximum(0, first_row + facts.offset - facts.window + 1)
    return low, high


@triton.jit
def row_range(first_key, last_key, facts):
    """(first, past-the-last) row that may see any of the keys first..last."""
    low, high = 0, facts.queries
    if facts.causal:
        low = tl.maximum(0, first_key - facts.offset)
    if facts.window is not None:
        high = tl.minimum(facts.queries, tl.maximum(0, last_key - facts.offset + facts.window))
    return low, high


@triton.jit
def masked_scores(products, batch, head, rows, keys, facts):
    """Scores in units of log 2 of products q . k, which rows and keys broadcast to; -inf where the key is hidden.

    Padding may hold anything, NaN too: what is hidden is replaced, not added to.
    """
    scores = products * facts.scale
    if facts.softcap is not None:
        scores = capped(scores, facts.softcap)
    seen = (rows < facts.queries) & real_rows(batch, keys, facts.keys, facts.key_mask)
    distance = rows + facts.offset - keys
    if facts.causal:
        seen = seen & (distance >= 0)
    if facts.window is not None:
        seen = seen & (distance < facts.window)
    if facts.mask is not None:
        at = facts.mask + tl.cast(batch, tl.int64) * facts.mask_batch + tl.cast(head, tl.int64) * facts.mask_head
        seen = seen & (tl.load(at + rows.to(tl.int64) * facts.keys + keys, mask=seen, other=0) != 0)
    if facts.bias is not None:
        at = facts.bias + tl.cast(batch, tl.int64) * facts.bias_batch + tl.cast(head, tl.int64) * facts.bias_head
        scores += tl.load(at + rows.to(tl.int64) * facts.bias_row + keys, mask=seen, other=0.0)
    return tl.where(seen, scores * LOG2E, float("-inf"))


@triton.jit
def capped(scores, softcap):
    """softcap * tanh(scores / softcap)."""
    return softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)


@triton.jit
def raised(top, candidate):
    """Of a running softmax: (the new top, the same to subtract from scores, by what sums under the old top shrink).

    What has seen nothing so far has top -inf; 0 is subtracted there, and its sums stay 0.
    """
    higher = tl.maximum(top, candidate)
    level = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, level, tl.exp2(top - level)


@triton.jit
def weighed(read, fade, t, v, lift):
    """`read` [rows, columns] faded, and 2^t [rows, keys] @ v [keys, columns], 2^t in v's dtype.

    lift: log 2 of what multiplies 2^t where that dtype cannot hold it (`blocks.HALF_LIFT`), to be taken out of the sum
    when it is done; None: nothing does.
    """
    if lift is not None:
        t += lift
    return tl.dot(tl.exp2(t).to(v.dtype), v, read * fade[:, None], input_precision="ieee")


@triton.jit
def attended(top, total, read, scores, v, lift):
    """(top, total, read) of a running softmax after one more block of scores [rows, keys] with its values."""
    top, level, fade = raised(top, tl.max(scores, 1))
    t = scores - level[:, None]
    return top, total * fade + tl.sum(tl.exp2(t), 1), weighed(read, fade, t, v, lift)


@triton.jit
def unlifted(x, lift):
    """x without the factor that `weighed` put into it."""
    if lift is not None:
        x *= tl.exp2(-lift)
    return x
