"""The Triton kernel of a sweep: one block of theta is loaded once, and serves every expert.

Here theta is seen as (height, width) with the sum along the width; a transposed view, with the two factors exchanged,
gives the other direction. For expert n, W = theta + left_n right_n is formed in registers, in float32, block by block,
and |W| v is summed along the width; on the way back sign(W) meets (right_n * v)^T in a second product, for

    gamma_k = sum_ij u_i left_ik sign(W)_ij right_kj v_j.

Nothing is shared between programs and nothing is added atomically: each writes its part of the sums to a place of its
own, and whoever launched the kernel adds the parts up in a fixed order.

Both factors lie with the rank first, (components, height) and (components, width), all experts' components one after
the other: no padding is stored, any rank will do, and loads run along the height and the width.

sign(W) is -1, 0 or 1 and so is exact in bfloat16. Its partner is split into a sum of two or three bfloat16 numbers (16
or 24 bits of mantissa): the product with the signs runs on tensor cores, and with three is as exact as in float32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads annotations as its own types, so that only its constants have any.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _high(values, OPERAND: tl.constexpr):
    """Rounded to bfloat16."""
    return values.to(tl.bfloat16).to(OPERAND)


@triton.jit
def _product(a, b, total, PRODUCTS: tl.constexpr, OPERAND: tl.constexpr):
    """total + a @ b for float32 a (m, k) and b (k, n)."""
    if PRODUCTS == "bf16x3":
        a_high = _high(a, OPERAND)
        b_high = _high(b, OPERAND)
        a_low = _high(a - a_high.to(tl.float32), OPERAND)
        b_low = _high(b - b_high.to(tl.float32), OPERAND)
        total = tl.dot(a_low, b_high, total, input_precision="ieee")
        total = tl.dot(a_high, b_low, total, input_precision="ieee")
        return tl.dot(a_high, b_high, total, input_precision="ieee")
    else:  # only one branch is compiled
        return tl.dot(a, b, total, input_precision=PRODUCTS)


@triton.jit
def _signed(sign, b, PIECES: tl.constexpr, OPERAND: tl.constexpr):
    """sign @ b for sign (m, k) exact in bfloat16 and float32 b (k, n)."""
    piece = _high(b, OPERAND)
    total = tl.dot(sign, piece, input_precision="ieee")
    for _ in tl.static_range(PIECES - 1):
        b -= piece.to(tl.float32)
        piece = _high(b, OPERAND)
        total = tl.dot(sign, piece, total, input_precision="ieee")
    return total


@triton.jit
def _factor(packed, stride, first, rank, block, places, inside, BK: tl.constexpr):
    """(BK, places) of a packed factor, zero beyond the rank and outside."""
    k = block * BK + tl.arange(0, BK)
    at = packed + (first + k).to(tl.int64)[:, None] * stride + places[None, :]
    return tl.load(at, mask=(k < rank)[:, None] & inside[None, :], other=0.0)


@triton.jit(do_not_specialize=["adapted", "count", "components"])
def sweep_kernel(
    theta,  # (height, width), any float dtype, any strides
    left,  # (components, height) float32
    right,  # (components, width) float32
    starts,  # (adapted + 1,) int32: where each expert's components begin
    experts,  # (count,) int32: rows of u and v; first the experts that adapt the weight, then the others
    u,  # (N, height) float32; only where gammas are wanted
    v,  # (N, width) float32
    flows,  # (count, blocks across, height) float32, out: the parts of |W| v
    gammas,  # (programs, components) float32, out: the parts of gamma
    height,
    width,
    theta_rows,  # strides, in entries
    theta_columns,
    left_stride,
    right_stride,
    u_stride,
    v_stride,
    adapted,
    count,
    components,
    SENSE: tl.constexpr,  # gammas too
    PRODUCTS: tl.constexpr,  # how left @ right is computed: "ieee", "tf32x3", "tf32", "bf16x3"
    PIECES: tl.constexpr,  # bfloat16 numbers for one float32 number in the product with the signs
    ONE_BLOCK: tl.constexpr,  # no rank exceeds BK
    OPERAND: tl.constexpr,  # bfloat16; float32 in the interpreter, whose dot takes a bfloat16's bits for integers
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One block (BM, BN) of theta for all experts; `samerge.saliency.kernels.triton_tiles.sweep` launches it."""
    program = tl.program_id(0)
    across = tl.cdiv(width, BN)
    row_block = program // across
    column_block = program % across
    rows = row_block * BM + tl.arange(0, BM)
    columns = column_block * BN + tl.arange(0, BN)
    in_rows = rows < height
    in_columns = columns < width
    at = theta + rows.to(tl.int64)[:, None] * theta_rows + columns.to(tl.int64)[None, :] * theta_columns
    base = tl.load(at, mask=in_rows[:, None] & in_columns[None, :], other=0.0).to(tl.float32)

    for place in range(adapted):
        expert = tl.load(experts + place).to(tl.int64)
        first = tl.load(starts + place)
        rank = tl.load(starts + place + 1) - first
        blocks = 1 if ONE_BLOCK else tl.cdiv(rank, BK)
        weight = base
        for block in range(blocks):
            a = _factor(left, left_stride, first, rank, block, rows, in_rows, BK)
            b = _factor(right, right_stride, first, rank, block, columns, in_columns, BK)
            weight = _product(tl.trans(a), b, weight, PRODUCTS, OPERAND)
        v_here = tl.load(v + expert * v_stride + columns, mask=in_columns, other=0.0)
        flow = tl.sum(tl.abs(weight) * v_here[None, :], axis=1)
        slot = expert * across + column_block
        tl.store(flows + slot * height + rows, flow, mask=in_rows)
        if SENSE:
            u_here = tl.load(u + expert * u_stride + rows, mask=in_rows, other=0.0)
            one = (weight.to(tl.int32, bitcast=True) & -2147483648) | 0x3F800000  # its sign bit on 1.0
            sign = tl.where(weight == 0, 0.0, one.to(tl.float32, bitcast=True)).to(OPERAND)
            for block in range(blocks):
                a = _factor(left, left_stride, first, rank, block, rows, in_rows, BK)
                b = _factor(right, right_stride, first, rank, block, columns, in_columns, BK)
                product = _signed(sign, tl.trans(b * v_here[None, :]), PIECES, OPERAND)  # (BM, BK)
                gamma = tl.sum(product * tl.trans(a * u_here[None, :]), axis=0)
                k = block * BK + tl.arange(0, BK)
                slot = program.to(tl.int64) * components + first
                tl.store(gammas + slot + k, gamma, mask=k < rank)

    plain = tl.abs(base)
    for place in range(adapted, count):
        expert = tl.load(experts + place).to(tl.int64)
        v_here = tl.load(v + expert * v_stride + columns, mask=in_columns, other=0.0)
        slot = expert * across + column_block
        tl.store(flows + slot * height + rows, tl.sum(plain * v_here[None, :], axis=1), mask=in_rows)
