# mypy: disable-error-code="no-untyped-def,untyped-decorator,operator"
# ruff: noqa: PLR0913, PLR0917, RET505
# The functions below are compiled by Triton: arguments have no Python types, a kernel takes plain numbers, no records,
# and only one branch of an `if` over constants is compiled, for which it must have an `else`.
"""The two kernels of the bounded change in Triton, tile by tile; `kernels` launches them and says when.

Shapes: A is rank × in, B out × rank, all dense matrices out × in. A tile is ROWS × COLUMNS entries.
The module imports Triton, so nothing may import it before `kernels.available` has said yes.

The rank product is made in float32 on the ordinary units ("ieee"): omega * B @ A reaches thousands, and the 11 bits of
TF32 would ruin the phase of a sine. The two products of the gradients go to the tensor cores in three passes, which
give back the bits that one would lose.
"""

import triton
import triton.language as tl


@triton.jit
def _reduce_by_pi(z):
    """Return r = z - n * pi with n the nearest integer, and the sign (-1)^n as the top bit of an integer.

    Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits. pi is subtracted in four parts (Cody and
    Waite), the first three with so few bits that n times each is exact for abs(z) < 51,000, with or without fused
    multiply-add. For larger z the error grows no faster than the distance of the float32 numbers around z.
    """
    shifted = z * 0.3183098861837907 + 12582912.0
    n = shifted - 12582912.0
    r = z - n * 3.140625
    r = r - n * 0.0009670257568359375
    r = r - n * 6.277114152908325e-07
    r = r - n * 1.215420125655342e-10
    sign = shifted.to(tl.int32, bitcast=True) << 31
    return r, sign


@triton.jit
def _within_one(value):
    """Clamp to [-1, 1]: rounding, and arguments too large to reduce, must not break the limit. NaN stays NaN."""
    value = tl.minimum(value, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(value, -1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _with_sign(value, sign):
    return (value.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def _sine(z):
    """Taylor polynomial of degree 11 on [-pi/2, pi/2]: off by 6e-8 at most."""
    r, sign = _reduce_by_pi(z)
    s = r * r
    p = 1 / 362880 + s * (-1 / 39916800)
    p = -1 / 5040 + s * p
    p = 1 / 120 + s * p
    p = -1 / 6 + s * p
    return _within_one(_with_sign(r + r * (s * p), sign))


@triton.jit
def _cosine(z):
    """Taylor polynomial of degree 12 on [-pi/2, pi/2]: off by 7e-9 at most. Shares its reduction with `_sine`."""
    r, sign = _reduce_by_pi(z)
    s = r * r
    p = -1 / 3628800 + s * (1 / 479001600)
    p = 1 / 40320 + s * p
    p = -1 / 720 + s * p
    p = 1 / 24 + s * p
    p = -1 / 2 + s * p
    return _within_one(_with_sign(1.0 + s * p, sign))


@triton.jit
def _tanh(z):
    """A ratio of polynomials (the continued fraction of tanh) below 1, where 1 - 2 / (exp(2z) + 1) loses digits."""
    s = z * z
    near = z * (945.0 + s * (105.0 + s)) / (945.0 + s * (420.0 + s * 15.0))
    size = tl.minimum(tl.abs(z), 20.0, propagate_nan=tl.PropagateNan.ALL)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(tl.abs(z) < 1.0, near, tl.where(z < 0.0, -far, far))


@triton.jit
def bound_value(z, BOUND: tl.constexpr):
    """The bounding function of that name, entry by entry, as in `bounds`."""
    if BOUND == "sine":
        return _sine(z)
    elif BOUND == "tanh":
        return _tanh(z)
    elif BOUND == "clip":
        return _within_one(z)
    elif BOUND == "softsign":
        return z / (1.0 + tl.abs(z))
    else:
        tl.static_assert(BOUND == "identity")
        return z


@triton.jit
def bound_slope(z, BOUND: tl.constexpr):
    """Derivative of the bounding function of that name, as in `bounds`."""
    if BOUND == "sine":
        return _cosine(z)
    elif BOUND == "tanh":
        value = _tanh(z)
        return 1.0 - value * value
    elif BOUND == "clip":
        return tl.where(tl.abs(z) <= 1.0, 1.0, 0.0)
    elif BOUND == "softsign":
        size = 1.0 + tl.abs(z)
        return 1.0 / (size * size)
    else:
        tl.static_assert(BOUND == "identity")
        return z * 0.0 + 1.0


@triton.jit
def _argument(a, b, rows, columns, height, width, a_row, a_column, b_row, b_column, rank, omega,
              STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """One tile of omega * (B @ A) in float32, 16 ranks a step."""
    z = tl.zeros((ROWS, COLUMNS), tl.float32)
    kept_rows, kept_columns = rows[:, None] < height, columns[None, :] < width
    for step in range(STEPS):
        ranks = step * 16 + tl.arange(0, 16)
        left = tl.load(b + rows[:, None] * b_row + ranks[None, :] * b_column,
                       mask=kept_rows & (ranks < rank)[None, :], other=0.0)  # fmt: skip
        right = tl.load(a + ranks[:, None] * a_row + columns[None, :] * a_column,
                        mask=kept_columns & (ranks < rank)[:, None], other=0.0)  # fmt: skip
        z = tl.dot(left.to(tl.float32) * omega, right.to(tl.float32), z, input_precision="ieee")
    return z


@triton.jit
def _split(value):
    """Two bfloat16 numbers whose sum has the upper 16 bits of a float32's significand."""
    high = value.to(tl.bfloat16)
    return high, (value - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _products(inner, a_tile, b_tile, sum_b, FULL: tl.constexpr):
    """``sum_b`` + M @ A.T, and M.T @ B, for a tile M.

    If the dense gradient came in 8 or 11 bits, 16 are enough and half the shared memory, in a layout that the tensor
    cores can read either way. Otherwise three passes in TF32, which has the accuracy of float32.
    """
    if FULL:
        sum_b = tl.dot(inner, a_tile, sum_b, input_precision="tf32x3")
        tile_a = tl.dot(tl.trans(inner), b_tile, input_precision="tf32x3")
        return sum_b, tile_a
    else:
        high, low = _split(inner)
        a_high, a_low = _split(a_tile)
        b_high, b_low = _split(b_tile)
        sum_b = tl.dot(low, a_high, tl.dot(high, a_low, tl.dot(high, a_high, sum_b)))
        tile_a = tl.dot(tl.trans(high), b_high)
        tile_a = tl.dot(tl.trans(low), b_high, tl.dot(tl.trans(high), b_low, tile_a))
        return sum_b, tile_a


@triton.jit(do_not_specialize=["rank"])
def effective_kernel(base, out, a, b, height, width, base_row, base_column, out_row, out_column,
                     a_row, a_column, b_row, b_column, rank, omega, scale,
                     BOUND: tl.constexpr, STEPS: tl.constexpr,
                     ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Out = base + scale * bound(omega * (B @ A)): one tile per program, base read once and out written once.

    The sum is made in float32 and rounded to the type of ``out``, which may be ``base`` itself.
    """
    num_across = tl.cdiv(width, COLUMNS)
    rows = (tl.program_id(0) // num_across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(0) % num_across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    tile = tl.load(base + rows[:, None] * base_row + columns[None, :] * base_column, mask=inside, other=0.0)
    z = _argument(a, b, rows, columns, height, width, a_row, a_column, b_row, b_column, rank, omega, STEPS, ROWS,
                  COLUMNS)  # fmt: skip
    total = tile.to(tl.float32) + bound_value(z, BOUND) * scale
    target = out + rows[:, None] * out_row + columns[None, :] * out_column
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rank", "first_rank", "num_ranks", "num_chunks", "tiles_per_chunk"])
def backward_kernel(grad, base, out, a, b, part_a, part_b, height, width, first_rank, num_ranks,
                    grad_row, base_row, base_column, out_row, a_row, a_column, b_row, b_column, rank, omega, scale,
                    num_chunks, tiles_per_chunk,
                    BOUND: tl.constexpr, STEPS: tl.constexpr, RANKS: tl.constexpr, WRITE_OUT: tl.constexpr,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """With M = grad * bound'(omega * B @ A): parts of M @ A.T and of B.T @ M, and the effective weight on the way.

    A program has the rows of one tile and goes through a chunk of its columns. It keeps its part of M @ A.T in
    registers and writes it once, ``part_b`` (num_chunks × out × num_ranks); of B.T @ M it writes one part per tile of
    rows, ``part_a`` (tiles of rows × num_ranks × in). Nothing is added across programs, so results do not depend on
    their order. The ``num_ranks`` rows of A from ``first_rank`` on get a gradient; ``RANKS`` is that number rounded up.
    """
    row_tile = (tl.program_id(0) // num_chunks).to(tl.int64)
    chunk = (tl.program_id(0) % num_chunks).to(tl.int64)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    own_ranks = tl.arange(0, RANKS)
    ranks = first_rank + own_ranks
    kept_rows, kept_ranks = rows < height, own_ranks < num_ranks
    b_tile = tl.load(b + rows[:, None] * b_row + ranks[None, :] * b_column,
                     mask=kept_rows[:, None] & kept_ranks[None, :], other=0.0).to(tl.float32)  # fmt: skip
    sum_b = tl.zeros((ROWS, RANKS), tl.float32)
    for tile in range(tiles_per_chunk):
        columns = (chunk * tiles_per_chunk + tile) * COLUMNS + tl.arange(0, COLUMNS)
        kept_columns = columns < width
        inside = kept_rows[:, None] & kept_columns[None, :]
        grad_tile = tl.load(grad + rows[:, None] * grad_row + columns[None, :], mask=inside, other=0.0)
        z = _argument(a, b, rows, columns, height, width, a_row, a_column, b_row, b_column, rank, omega, STEPS, ROWS,
                  COLUMNS)  # fmt: skip
        inner = grad_tile.to(tl.float32) * bound_slope(z, BOUND)
        a_tile = tl.load(a + columns[:, None] * a_column + ranks[None, :] * a_row,
                         mask=kept_columns[:, None] & kept_ranks[None, :], other=0.0).to(tl.float32)  # fmt: skip
        sum_b, tile_a = _products(inner, a_tile, b_tile, sum_b, grad.dtype.element_ty == tl.float32)
        target_a = part_a + (row_tile * num_ranks + own_ranks)[None, :] * width + columns[:, None]
        tl.store(target_a, tile_a, mask=kept_columns[:, None] & kept_ranks[None, :])
        if WRITE_OUT:
            base_tile = tl.load(
                base + rows[:, None] * base_row + columns[None, :] * base_column, mask=inside, other=0.0
            )
            total = base_tile.to(tl.float32) + bound_value(z, BOUND) * scale
            tl.store(out + rows[:, None] * out_row + columns[None, :], total.to(out.dtype.element_ty), mask=inside)
    target_b = part_b + (chunk * height + rows)[:, None] * num_ranks + own_ranks[None, :]
    tl.store(target_b, sum_b, mask=kept_rows[:, None] & kept_ranks[None, :])
