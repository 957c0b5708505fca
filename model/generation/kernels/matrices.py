"""Products with matrices in the forms that models are kept in: fp32, bf16, int8 (activations rounded row by row) and
int4 with a scale for each group of inputs.

A matrix is a row of panels of ``PANEL`` outputs, each a run of bytes (``panel_bytes``) with its scales in it, so that a
product reads memory once and in order. int8 sums are exact integers. An int4 weight is turned back into the very fp32
number that it stands for, in registers, and then counts as in an fp32 matrix; so does a bf16 one. In all of them what
a row gives depends on no other row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from model.generation.kernels.tiles import LANES, PANEL, ROWS, bits_to_float, fused, multiply, splat, store

FP32, BF16, INT8, INT4 = 0, 1, 2, 3
_DOT = "avx512vnni" in binding.get_host_cpu_features() and binding.get_host_cpu_features()["avx512vnni"]
_VECTORS = PANEL // LANES
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_WHOLE, _REAL = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
_INFINITE = np.int32(0x7F800000)  # and above it what is no number
_MAGIC = 0x4B000000  # 2 ** 23: a whole number in the lowest bits of this float is added to it


@register_jitable
def panel_bytes(kind, group, inputs):
    """Bytes of a panel: fp32 [inputs, PANEL]; bf16 [inputs, PANEL / 2, 2], column c beside c + PANEL / 2; int8 scales
    fp32 [PANEL], int32 [PANEL] what 128 times the sum of the codes takes away, codes [inputs / 4, PANEL, 4]; int4 for
    each group of inputs scales bf16 [PANEL] and codes [group, PANEL / 2], column c in the lower half of a byte and c +
    PANEL / 2 in the upper one."""
    if kind == FP32:
        return 4 * PANEL * inputs
    if kind == BF16:
        return 2 * PANEL * inputs
    if kind == INT8:
        return 8 * PANEL + 4 * PANEL * ((inputs + 3) // 4)
    return inputs // group * (2 * PANEL + PANEL // 2 * group)


@njit(cache=True, nogil=True, error_model="numpy")  # a check for a division by 0 would keep it off vectors
def ready(kind, x, x_start, x_stride, rows, k, codes, steps):
    """What ``product`` needs to know beside ``rows`` of ``x``: for int8 their codes uint8 (128 more than each is) and
    the step of each row, fp32 (no number where the row holds one that is not finite)."""
    if kind != INT8:
        return
    # int8: each row gets its own step, so that no neighbour changes its codes
    width = (k + 3) // 4 * 4
    for row in range(rows):
        line = x[x_start + row * x_stride :][:k]
        out, bits = codes[row * width :][:k], line.view(np.int32)
        most = np.int32(0)  # of what magnitudes spell, which is in their order
        for i in range(k):
            most = max(most, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
        step = max(bits_to_float(most), np.float32(1e-30)) / np.float32(127)
        for i in range(k):
            out[i] = np.uint8(np.int32(np.rint(line[i] / step) + np.float32(128)))
        steps[row] = step if most < _INFINITE else np.float32(np.nan)


@njit(cache=True, nogil=True)
def product(
    kind, group, x, x_start, x_stride, codes, steps, first, rows, w, place, k, out, out_start, out_stride, add, panels
):
    """``out`` [rows, panels * PANEL] is (or has added to it) ``x`` [rows, k] times the panels that begin at the byte
    ``place`` of ``w`` uint8: flat arrays, with where they begin and how far apart rows are; ``first`` is the number of
    the first row among those that :func:`ready` has seen."""
    size = panel_bytes(kind, group, k)
    if kind == FP32:
        multiply(x, x_start, x_stride, rows, w.view(np.float32), place // 4, size // 4, k, out, out_start, out_stride,
                 add, panels)  # fmt: skip
    elif kind == BF16:
        multiply(x, x_start, x_stride, rows, w.view(np.uint16), place // 2, size // 2, k, out, out_start, out_stride,
                 add, panels)  # fmt: skip
    elif kind == INT8:
        for p in range(panels):
            _eights(codes, first, (k + 3) // 4, steps, rows, w, place + p * size, out, out_start + p * PANEL,
                    out_stride, add)  # fmt: skip
    else:
        for p in range(panels):
            _fours(x, x_start, x_stride, rows, w, place + p * size, k // group, group, out, out_start + p * PANEL,
                   out_stride, add)  # fmt: skip


@njit(cache=True, nogil=True)
def _eights(codes, first, quads, steps, rows, w, ws, out, os, od, add):
    done, width = 0, 4 * quads
    if ROWS == 8:
        while rows - done >= 8:
            _int8_8(codes, (first + done) * width, steps, first + done, w, ws, quads, out, os + done * od, od, add)
            done += 8
        if rows - done >= 4:
            _int8_4(codes, (first + done) * width, steps, first + done, w, ws, quads, out, os + done * od, od, add)
            done += 4
    while rows - done >= 2:
        _int8_2(codes, (first + done) * width, steps, first + done, w, ws, quads, out, os + done * od, od, add)
        done += 2
    if rows > done:
        _int8_1(codes, (first + done) * width, steps, first + done, w, ws, quads, out, os + done * od, od, add)


@njit(cache=True, nogil=True)
def _fours(x, xs, xd, rows, w, ws, groups, group, out, os, od, add):
    done = 0
    if ROWS == 8:
        while rows - done >= 8:
            _int4_8(x, xs + done * xd, xd, w, ws, groups, group, out, os + done * od, od, add)
            done += 8
        if rows - done >= 4:
            _int4_4(x, xs + done * xd, xd, w, ws, groups, group, out, os + done * od, od, add)
            done += 4
    while rows - done >= 2:
        _int4_2(x, xs + done * xd, xd, w, ws, groups, group, out, os + done * od, od, add)
        done += 2
    if rows > done:
        _int4_1(x, xs + done * xd, xd, w, ws, groups, group, out, os + done * od, od, add)


def _data(context: Any, builder: Any, signature: Any, args: Any, *places: int) -> list[Any]:
    """Pointers to the data of the arrays among ``args``."""
    return [context.make_array(signature.args[i])(context, builder, args[i]).data for i in places]


def _load(builder: Any, pointer: Any, offset: Any, kind: Any, align: int) -> Any:
    """A value of LLVM's type ``kind``, ``offset`` bytes behind a pointer."""
    return builder.load(builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer()), align=align)


def _same(number: int) -> Any:
    return ir.Constant(_WHOLE, [number] * LANES)


def _int8(rows: int) -> Any:
    """One panel of int8 for ``rows`` rows: (codes, their start, steps, the first of them, w, start, inputs / 4, out,
    start, distance of its rows, add)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, steps, w, out = _data(context, builder, signature, args, 0, 2, 4, 7)
        x_start, first, w_start, quads, out_start, out_stride, add = (args[i] for i in (1, 3, 5, 6, 8, 9, 10))
        w, width = builder.gep(w, [w_start]), builder.mul(quads, _I64(4))
        lines = [builder.gep(x, [builder.add(x_start, builder.mul(width, _I64(r)))]) for r in range(rows)]
        base = [_load(builder, w, _I64(4 * (PANEL + v * LANES)), _WHOLE, 4) for v in range(_VECTORS)]
        codes = builder.gep(w, [_I64(8 * PANEL)])
        # loop over four inputs at a time: the products of four bytes are one instruction
        before, loop, end = builder.block, builder.append_basic_block("quads"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(_I64)
        sums = [builder.phi(_WHOLE) for _ in range(rows * _VECTORS)]
        line = builder.gep(codes, [builder.mul(at, _I64(4 * PANEL))])
        loaded = [_load(builder, line, _I64(4 * v * LANES), _WHOLE, 4) for v in range(_VECTORS)]
        added = []
        for r in range(rows):
            four = _load(builder, lines[r], builder.mul(at, _I64(4)), _I32, 4)
            added += [_dot(builder, sums[r * _VECTORS + v], four, loaded[v]) for v in range(_VECTORS)]
        after = builder.add(at, _I64(1))
        at.add_incoming(_I64(0), before)
        at.add_incoming(after, loop)
        for i, (old, new) in enumerate(zip(sums, added, strict=True)):
            old.add_incoming(base[i % _VECTORS], before)
            old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", after, quads), loop, end)
        builder.position_at_end(end)
        # the sums are exact integers: scale of the row times scale of the column, once
        for r in range(rows):
            step = splat(builder, builder.load(builder.gep(steps, [builder.add(first, _I64(r))])), LANES)
            for v in range(_VECTORS):
                value = builder.fmul(builder.sitofp(added[r * _VECTORS + v], _REAL), step)
                value = builder.fmul(value, _load(builder, w, _I64(4 * v * LANES), _REAL, 4))
                place = builder.add(out_start, builder.add(builder.mul(out_stride, _I64(r)), _I64(v * LANES)))
                store(builder, builder.gep(out, [place]), value, add)
        return context.get_dummy_value()

    return generate


def _dot(builder: Any, sums: Any, four: Any, weights: Any) -> Any:
    """``sums`` int32 and, added to each, the products of four unsigned bytes and the four signed ones of its lane."""
    if _DOT:
        kind = ir.FunctionType(_WHOLE, [_WHOLE] * 3)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [sums, splat(builder, four, LANES), weights])
    # without the instruction: byte by byte, to the same integers
    for i in range(4):
        own = builder.and_(builder.lshr(four, _I32(8 * i)), _I32(255))
        weight = builder.ashr(builder.shl(weights, _same(24 - 8 * i)), _same(24))
        sums = builder.add(sums, builder.mul(weight, splat(builder, own, LANES)))
    return sums


def _int4(rows: int) -> Any:
    """One panel of int4 for ``rows`` rows: (x, its start, distance of its rows, w, start, groups, inputs of a group,
    out, start, distance of its rows, add)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, w, out = _data(context, builder, signature, args, 0, 3, 7)
        x_start, x_stride, w_start, groups, group, out_start, out_stride, add = (
            args[i] for i in (1, 2, 4, 5, 6, 8, 9, 10)
        )
        w = builder.gep(w, [w_start])
        lines = [builder.gep(x, [builder.add(x_start, builder.mul(x_stride, _I64(r)))]) for r in range(rows)]
        size = builder.add(_I64(2 * PANEL), builder.mul(group, _I64(PANEL // 2)))
        blocks = [builder.append_basic_block(name) for name in ("group", "inputs", "next", "sums")]
        before, (outer, inner, leave, end) = builder.block, blocks
        builder.branch(outer)
        builder.position_at_end(outer)
        # outer loop, over groups of inputs: their scales
        number, held = builder.phi(_I64), [builder.phi(_REAL) for _ in range(rows * _VECTORS)]
        begin = builder.gep(w, [builder.mul(number, size)])
        scales = [_bf16(builder, begin, 2 * v * LANES) for v in range(_VECTORS)]
        codes, inputs = builder.gep(begin, [_I64(2 * PANEL)]), builder.mul(number, group)
        builder.branch(inner)
        builder.position_at_end(inner)
        # inner loop, over the inputs of a group
        at, sums = builder.phi(_I64), [builder.phi(_REAL) for _ in held]
        line, place = builder.gep(codes, [builder.mul(at, _I64(PANEL // 2))]), builder.add(inputs, at)
        weights = _nibbles(builder, line, scales)
        added = []
        for r in range(rows):
            value = splat(builder, builder.load(builder.gep(lines[r], [place])), LANES)
            added += [fused(builder, value, weights[v], sums[r * _VECTORS + v], LANES) for v in range(_VECTORS)]
        after = builder.add(at, _I64(1))
        builder.cbranch(builder.icmp_signed("<", after, group), inner, leave)
        builder.position_at_end(leave)
        following = builder.add(number, _I64(1))
        builder.cbranch(builder.icmp_signed("<", following, groups), outer, end)
        # what each loop begins with, and what it carries on
        for phi, first, again, source, back in (
            (number, _I64(0), following, before, leave),
            (at, _I64(0), after, outer, inner),
            *(
                (old, ir.Constant(_REAL, [0.0] * LANES), new, before, leave)
                for old, new in zip(held, added, strict=True)
            ),
            *((old, first, new, outer, inner) for old, first, new in zip(sums, held, added, strict=True)),
        ):
            phi.add_incoming(first, source)
            phi.add_incoming(again, back)
        builder.position_at_end(end)
        for r in range(rows):
            for v in range(_VECTORS):
                target = builder.add(out_start, builder.add(builder.mul(out_stride, _I64(r)), _I64(v * LANES)))
                store(builder, builder.gep(out, [target]), added[r * _VECTORS + v], add)
        return context.get_dummy_value()

    return generate


def _bf16(builder: Any, pointer: Any, offset: int) -> Any:
    """A vector of bf16 as fp32."""
    bits = _load(builder, pointer, _I64(offset), ir.VectorType(_I16, LANES), 2)
    return builder.bitcast(builder.shl(builder.zext(bits, _WHOLE), _same(16)), _REAL)


def _nibbles(builder: Any, line: Any, scales: list[Any]) -> list[Any]:
    """The weights of one input: (code - 8) * scale, which fp32 holds exactly."""
    half, weights = _VECTORS // 2, []
    short = ir.VectorType(_I8, LANES)
    wide = [builder.zext(_load(builder, line, _I64(v * LANES), short, 1), _WHOLE) for v in range(half)]
    for v in range(_VECTORS):
        code = wide[v] if v < half else builder.lshr(wide[v - half], _same(4))
        weights.append(builder.fmul(_signed(builder, code), scales[v]))
    return weights


def _signed(builder: Any, code: Any) -> Any:
    """The lowest four bits of int32, less 8, as fp32."""
    if LANES == 16:  # a table in a register, whose places these bits name
        table = ir.Constant(_REAL, [float(i - 8) for i in range(16)])
        kind = ir.FunctionType(_REAL, [_REAL, _WHOLE])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
        return builder.call(function, [table, code])
    bits = builder.or_(builder.and_(code, _same(15)), _same(_MAGIC))
    return builder.fsub(builder.bitcast(bits, _REAL), ir.Constant(_REAL, [float(2**23 + 8)] * LANES))


def _tile(code: Callable[[int], Any], rows: int, arrays: str) -> Any:
    """An intrinsic whose arguments are arrays where ``arrays`` has an "a", else int64; the last is a boolean."""

    @intrinsic
    def tile(
        context: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, i: Any, j: Any, k: Any
    ) -> Any:
        given = (a, b, c, d, e, f, g, h, i, j)
        kinds = [own if mark == "a" else types.int64 for own, mark in zip(given, arrays, strict=True)]
        return types.void(*kinds, types.boolean), code(rows)

    return tile


_int8_1, _int8_2, _int8_4, _int8_8 = (_tile(_int8, rows, "aiaiaiiaii") for rows in (1, 2, 4, 8))
_int4_1, _int4_2, _int4_4, _int4_8 = (_tile(_int4, rows, "aiiaiiiaii") for rows in (1, 2, 4, 8))
