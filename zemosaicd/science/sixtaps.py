"""The 6x6 taps of the coadd's kernels as one small function in vector instructions, and the tables of their weights.

LLVM's generic instructions, so that every processor has them: they halve the time of a whole mosaic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

PHASES = 512
"""Positions within a pixel that the tables know: nearest, so a sample is off by 1/1024 px at most."""
TAPS, LANES = 6, 8

_SIX = ir.IntType(32), ir.VectorType(ir.FloatType(), LANES)


def lanczos_table() -> Pixels:
    """Lanczos-3 weights, flat float32: 8 (6 taps at -2 ... 3, two zeros) for each of 512 + 1 phases, of sum 1."""
    return table_of(lambda d: np.sinc(d) * np.sinc(d / 3) * (np.abs(d) < 3))


def table_of(kernel: Any) -> Pixels:
    """The same of any kernel that reaches 3 px, a function of distances in px."""
    phase = np.arange(PHASES + 1)[:, np.newaxis] / PHASES
    weights = kernel(np.abs(phase - np.arange(-2, 4)[np.newaxis, :]))
    table = np.zeros((PHASES + 1, LANES), np.float32)
    table[:, :TAPS] = weights / weights.sum(axis=1, keepdims=True)
    return table.reshape(-1)


@intrinsic
def taps(typing: Any, flat: Any, base: Any, stride: Any, table: Any, row: Any, column: Any) -> Any:
    """Sum over 6 rows, `stride` apart from flat[base], and 8 columns: table[row + j] table[column + i] flat[...]."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        i32, floats = _SIX
        undefined = ir.Constant(floats, ir.Undefined)
        pixels, weights = (context.make_array(signature.args[i])(context, builder, values[i]).data for i in (0, 3))

        def eight(pointer: Any, index: Any) -> Any:
            loaded = builder.load(builder.bitcast(builder.gep(pointer, [index]), floats.as_pointer()))
            loaded.align = 4
            return loaded

        def mixed(vector: Any, order: Any) -> Any:
            return builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(i32, LANES), order))

        place, total = values[1], ir.Constant(floats, [0.0] * LANES)
        for j in range(TAPS):
            weight = builder.load(builder.gep(weights, [builder.add(values[4], ir.Constant(values[4].type, j))]))
            every = mixed(builder.insert_element(undefined, weight, ir.Constant(i32, 0)), [0] * LANES)
            product = builder.fmul(every, eight(pixels, place), flags=("contract",))
            total = builder.fadd(product, total, flags=("contract",))
            place = builder.add(place, values[2])
        total = builder.fmul(total, eight(weights, values[5]))
        for half in (4, 2, 1):
            total = builder.fadd(total, mixed(total, [(i + half) % LANES for i in range(LANES)]))
        return builder.extract_element(total, ir.Constant(i32, 0))

    return types.float32(flat, base, stride, table, row, column), build
