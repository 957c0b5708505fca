"""The inner product that everything here is made of, written as vector instructions of the processor at hand.

numba has no vectors of its own, so each tile is given to LLVM as intermediate code: at most ``ROWS`` rows times one
panel of ``PANEL`` columns, whose sums stay in registers. A sum runs over k in order, one fused multiply-add after the
other, whatever the rows beside it: so a row's result does not depend on its neighbours, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

PANEL = 32
"""Columns of a panel."""
_WIDE = "avx512f" in binding.get_host_cpu_features() and binding.get_host_cpu_features()["avx512f"]
LANES = 16 if _WIDE else 8
"""fp32 in a vector."""
ROWS = 8 if _WIDE else 2  # sums of a tile must fit the registers: 32 of 16 lanes, or 16 of 8

ZERO, NO, YES = np.int64(0), np.bool_(False), np.bool_(True)
"""Arguments whose values numba does not know: for each value that it knows it compiles a function anew."""


def _tile(rows: int) -> Callable[..., None]:
    """``out[r, c] (+)= sum over k of x[r, k] * w[k, c]`` for ``rows`` rows and one panel.

    The compiled signature is (x, x_start, x_stride, w, w_start, k, out, out_start, out_stride, add): flat fp32 arrays
    (w may be uint16: bf16, column c beside column c + PANEL / 2, so that one load brings two vectors), where each
    begins, how far apart rows are, the length of the sums (at least 1), and whether they are added to what ``out``
    holds.
    """

    @intrinsic
    def tile(
        context: Any, x: Any, xs: Any, xd: Any, w: Any, ws: Any, k: Any, out: Any, os: Any, od: Any, add: Any
    ) -> Any:
        i = types.int64
        return types.void(x, i, i, w, i, i, out, i, i, types.boolean), _code(rows)

    return tile


def _code(rows: int) -> Callable[..., Any]:
    vectors = PANEL // LANES
    number, whole, index = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(number, LANES)
    zero = ir.Constant(vector, [0.0] * LANES)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, w, out = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 6))
        x_start, x_stride, w_start, k, out_start, out_stride, add = (args[i] for i in (1, 2, 4, 5, 7, 8, 9))
        half = signature.args[3].dtype == types.uint16
        w = builder.gep(w, [w_start])
        lines = [builder.gep(x, [builder.add(x_start, builder.mul(x_stride, whole(r)))]) for r in range(rows)]

        # the panel's columns at one k, as fp32 vectors: bf16 is the upper half of an fp32 number
        def columns(line: Any) -> list[Any]:
            places = [builder.gep(line, [whole(v * LANES)]) for v in range(vectors)]
            if not half:
                return [builder.load(builder.bitcast(at, vector.as_pointer()), align=4) for at in places]
            both = ir.VectorType(index, LANES)
            pairs = [
                builder.load(builder.bitcast(builder.gep(line, [whole(2 * v * LANES)]), both.as_pointer()), align=2)
                for v in range(vectors // 2)
            ]
            low = [builder.shl(pair, ir.Constant(both, [16] * LANES)) for pair in pairs]
            high = [builder.and_(pair, ir.Constant(both, [0xFFFF0000] * LANES)) for pair in pairs]
            return [builder.bitcast(bits, vector) for bits in (*low, *high)]

        # loop over k: the sums are phi nodes, so they never leave their registers
        before = builder.block
        loop, end = builder.append_basic_block("k"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(whole)
        sums = [builder.phi(vector) for _ in range(rows * vectors)]
        line = builder.gep(w, [builder.mul(at, whole(PANEL))])
        loaded = columns(line)
        added = []
        # one broadcast of x[r, k] for all columns, one fused multiply-add for each vector of them
        for r in range(rows):
            value = splat(builder, builder.load(builder.gep(lines[r], [at])), LANES)
            added += [fused(builder, value, loaded[v], sums[r * vectors + v], LANES) for v in range(vectors)]
        after = builder.add(at, whole(1))
        at.add_incoming(whole(0), before)
        at.add_incoming(after, loop)
        # the loop's edges: zeros from outside, the new sums from its own end
        for old, new in zip(sums, added, strict=True):
            old.add_incoming(zero, before)
            old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", after, k), loop, end)
        # write the sums, or add them to what is there
        builder.position_at_end(end)
        for r in range(rows):
            for v in range(vectors):
                place = builder.add(out_start, builder.add(builder.mul(out_stride, whole(r)), whole(v * LANES)))
                store(builder, builder.gep(out, [place]), added[r * vectors + v], add)
        return context.get_dummy_value()

    return generate


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one number."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def fused(builder: Any, a: Any, b: Any, c: Any, lanes: int) -> Any:
    """a * b + c of vectors of fp32, rounded once."""
    kind = ir.FunctionType(c.type, [c.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f32"), [a, b, c])


def store(builder: Any, pointer: Any, value: Any, add: Any) -> None:
    """Put a vector of fp32 at a pointer to a number, added to what is there where ``add`` is true."""
    target = builder.bitcast(pointer, value.type.as_pointer())
    held = builder.select(add, builder.load(target, align=4), ir.Constant(value.type, [0.0] * value.type.count))
    builder.store(builder.fadd(held, value), target, align=4)


_one, _two, _four, _eight = (_tile(rows) for rows in (1, 2, 4, 8))


@njit(cache=True, nogil=True)
def multiply(x, x_start, x_stride, rows, w, w_start, w_stride, k, out, out_start, out_stride, add, panels):
    """``out`` [rows, panels * PANEL] is (or has added to it) ``x`` [rows, k] times ``w`` [panels, k, PANEL]: flat
    arrays, with where they begin and how far apart rows of x and out and panels of w are."""
    for p in range(panels):
        xs, ws, os, left = x_start, w_start + p * w_stride, out_start + p * PANEL, rows
        # the largest tile that fits the rows that are left: each weight is then read once for all of them
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
