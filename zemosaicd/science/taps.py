"""Sums over a kernel's taps as vector instructions: what the compiled warps spend their time on.

LLVM does not find the vectors in 4x4 multiplications by itself, so they are written down: one vector a row of taps, a
multiply-add a row, and the columns' weights at the end. The order of the operations is fixed; the products may be fused
with the sums (`contract`), nothing else is relaxed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.base import BaseContext
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

FUSED = ("contract",)
LANES = {4: 4, 6: 8}
"""Taps a row -> floats of a row of the table, those beyond the taps 0."""
SPARE = 2
"""Floats that must be there, whatever they hold, behind the last pixel of a plane: a row of 6 taps loads 8."""


class _Sums:
    """Builds the instructions of one call."""

    def __init__(self, context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Any) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args

    def data(self, k: int) -> Any:
        """Pointer to the first element of the array that is argument k."""
        return self.context.make_array(self.signature.args[k])(self.context, self.builder, self.args[k]).data

    def _load(self, pointer: Any, index: Any, lanes: int) -> Any:
        """`lanes` neighbouring float32 from pointer[index] on, wherever they are aligned."""
        vector = ir.VectorType(ir.FloatType(), lanes).as_pointer()
        loaded = self.builder.load(self.builder.bitcast(self.builder.gep(pointer, [index]), vector))
        loaded.align = 4
        return loaded

    def columns(self, plane: Any, base: Any, stride: Any, table: Any, ku: Any, kv: Any, taps: int) -> Any:
        """Vector of the taps' columns, each summed over its rows by the weights at table[kv], times table[ku].

        What was loaded beside the taps is dropped, not multiplied by 0: it may be NaN.
        """
        b, totals, at = self.builder, [None, None], base
        lanes = LANES[taps]
        vector = ir.VectorType(ir.FloatType(), lanes)
        empty = ir.Constant(vector, ir.Undefined)
        for k in range(taps):
            weight = b.load(b.gep(table, [b.add(kv, ir.Constant(ir.IntType(64), k))]))
            first = b.insert_element(empty, weight, ir.Constant(ir.IntType(32), 0))
            spread = b.shuffle_vector(first, empty, _lanes([0] * lanes))
            product = b.fmul(self._load(plane, at, lanes), spread, flags=FUSED)
            total = totals[k % 2]
            totals[k % 2] = product if total is None else b.fadd(product, total, flags=FUSED)
            at = b.add(at, stride)
        own = ir.Constant(ir.VectorType(ir.IntType(1), lanes), [lane < taps for lane in range(lanes)])
        sums = b.select(own, b.fadd(*totals), ir.Constant(vector, [0.0] * lanes))
        return b.fmul(sums, self._load(table, ku, lanes))

    def total(self, vector: Any) -> Any:
        """Sum of a vector's elements, its halves first."""
        b, lanes = self.builder, vector.type.count
        while lanes > 1:
            lanes //= 2
            upper = b.shuffle_vector(vector, vector, _lanes(range(lanes, 2 * lanes)))
            lower = b.shuffle_vector(vector, vector, _lanes(range(lanes)))
            vector = b.fadd(lower, upper)
        return b.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _lanes(order: Iterable[int]) -> ir.Constant:
    places = list(order)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)


def _one_plane(taps: int) -> Callable[..., Any]:
    @intrinsic
    def sums(typing: Any, plane: Any, base: Any, stride: Any, table: Any, ku: Any, kv: Any) -> Any:
        """Sum of taps x taps from plane[base] on, rows `stride` apart; weights from table[ku] and table[kv] on."""
        long = types.int64

        def codegen(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Any) -> Any:
            s = _Sums(context, builder, signature, args)
            _, at, apart, _, u, v = args
            return s.total(s.columns(s.data(0), at, apart, s.data(3), u, v, taps))

        return types.float32(plane, long, long, table, long, long), codegen

    return sums


plane_taps_4, plane_taps_6 = _one_plane(4), _one_plane(6)
"""(plane, base, stride, table, ku, kv): flat float32 arrays and int64 indices -> float32."""
