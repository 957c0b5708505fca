"""The inner product that everything here is made of, written as vector instructions of the processor at hand.

numba has no vectors of its own, so each tile is given to LLVM as intermediate code: at most ``ROWS`` rows times one
panel of ``PANEL`` columns, whose sums stay in registers. A sum runs over k in order, one fused multiply-add after the
other, whatever the rows beside it: so a row's result does not depend on its neighbours, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

PANEL = 32
"""Columns of a panel."""
_WIDE = "avx512f" in binding.get_host_cpu_features() and binding.get_host_cpu_features()["avx512f"]
_LANES = 16 if _WIDE else 8  # fp32 in a vector
ROWS = 8 if _WIDE else 2  # sums of a tile must fit the registers: 32 of 16 lanes, or 16 of 8


def _tile(rows: int) -> Callable[..., None]:
    """``out[r, c] (+)= sum over k of x[r, k] * w[k, c]`` for ``rows`` rows and one panel.

    The compiled signature is (x, x_start, x_stride, w, w_start, k, out, out_start, out_stride, add): flat fp32 arrays
    (w may be uint16: the upper halves of fp32, which is bf16), where each begins, how far apart rows are, the length of
    the sums (at least 1), and whether they are added to what ``out`` holds.
    """

    @intrinsic
    def tile(
        context: Any, x: Any, xs: Any, xd: Any, w: Any, ws: Any, k: Any, out: Any, os: Any, od: Any, add: Any
    ) -> Any:
        i = types.int64
        return types.void(x, i, i, w, i, i, out, i, i, types.boolean), _code(rows)

    return tile


def _code(rows: int) -> Callable[..., Any]:
    vectors = PANEL // _LANES
    number, whole, index = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(number, _LANES)
    zero = ir.Constant(vector, [0.0] * _LANES)
    empty = ir.Constant(vector, ir.Undefined)
    spread = ir.Constant(ir.VectorType(index, _LANES), [0] * _LANES)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, w, out = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 6))
        x_start, x_stride, w_start, k, out_start, out_stride, add = (args[i] for i in (1, 2, 4, 5, 7, 8, 9))
        half = signature.args[3].dtype == types.uint16
        w = builder.gep(w, [w_start])
        lines = [builder.gep(x, [builder.add(x_start, builder.mul(x_stride, whole(r)))]) for r in range(rows)]
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{_LANES}f32"
        )

        def columns(at: Any) -> Any:
            if not half:
                return builder.load(builder.bitcast(at, vector.as_pointer()), align=4)
            short, long = ir.VectorType(ir.IntType(16), _LANES), ir.VectorType(index, _LANES)
            bits = builder.zext(builder.load(builder.bitcast(at, short.as_pointer()), align=2), long)
            return builder.bitcast(builder.shl(bits, ir.Constant(long, [16] * _LANES)), vector)

        before = builder.block
        loop, end = builder.append_basic_block("k"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(whole)
        sums = [builder.phi(vector) for _ in range(rows * vectors)]
        line = builder.gep(w, [builder.mul(at, whole(PANEL))])
        loaded = [columns(builder.gep(line, [whole(v * _LANES)])) for v in range(vectors)]
        added = []
        for r in range(rows):
            value = builder.insert_element(empty, builder.load(builder.gep(lines[r], [at])), index(0))
            value = builder.shuffle_vector(value, empty, spread)
            added += [builder.call(fma, [value, loaded[v], sums[r * vectors + v]]) for v in range(vectors)]
        after = builder.add(at, whole(1))
        at.add_incoming(whole(0), before)
        at.add_incoming(after, loop)
        for old, new in zip(sums, added, strict=True):
            old.add_incoming(zero, before)
            old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", after, k), loop, end)
        builder.position_at_end(end)
        for r in range(rows):
            for v in range(vectors):
                place = builder.add(out_start, builder.add(builder.mul(out_stride, whole(r)), whole(v * _LANES)))
                target = builder.bitcast(builder.gep(out, [place]), vector.as_pointer())
                held = builder.select(add, builder.load(target, align=4), zero)
                builder.store(builder.fadd(held, added[r * vectors + v]), target, align=4)
        return context.get_dummy_value()

    return generate


_one, _two, _four, _eight = (_tile(rows) for rows in (1, 2, 4, 8))


@njit(cache=True, nogil=True)
def multiply(x, x_start, x_stride, rows, w, w_start, w_stride, k, out, out_start, out_stride, add, panels):
    """``out`` [rows, panels * PANEL] is (or has added to it) ``x`` [rows, k] times ``w`` [panels, k, PANEL]: flat
    arrays, with where they begin and how far apart rows of x and out and panels of w are."""
    for p in range(panels):
        xs, ws, os, left = x_start, w_start + p * w_stride, out_start + p * PANEL, rows
        if ROWS == 8:
            while left >= 8:
                _eight(x, xs, x_stride, w, ws, k, out, os, out_stride, add)
                xs, os, left = xs + 8 * x_stride, os + 8 * out_stride, left - 8
            if left >= 4:
                _four(x, xs, x_stride, w, ws, k, out, os, out_stride, add)
                xs, os, left = xs + 4 * x_stride, os + 4 * out_stride, left - 4
        while left >= 2:
            _two(x, xs, x_stride, w, ws, k, out, os, out_stride, add)
            xs, os, left = xs + 2 * x_stride, os + 2 * out_stride, left - 2
        if left == 1:
            _one(x, xs, x_stride, w, ws, k, out, os, out_stride, add)


@intrinsic
def _bits_to_float(context: Any, value: Any) -> Any:
    """The fp32 number that an int32 spells."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _count_up(context: Any, counter: Any, by: Any) -> Any:
    """Add to the first element of an int64 array as one indivisible operation; its old value. 0 reads it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(counter, types.int64), generate


bits_to_float: Any = _bits_to_float  # called with the values alone
count_up: Any = _count_up
give_way: Any = types.ExternalFunction("sched_yield", types.int32())
"""Let another thread have this core."""
