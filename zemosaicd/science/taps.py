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
"""Taps a row -> floats of a row of the table."""
PLACES = {4: (0, 1, 2, 3), 6: (0, 1, 2, 3, 6, 7)}
"""Where the weights stand in a row of the table; the other places hold 0."""


class _Sums:
    """Builds the instructions of one call."""

    def __init__(self, context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Any) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args

    def data(self, k: int) -> Any:
        """Pointer to the first element of the array that is argument k."""
        return self.context.make_array(self.signature.args[k])(self.context, self.builder, self.args[k]).data

    def _load(self, pointer: Any, index: Any, taps: int) -> Any:
        """`taps` neighbouring float32 from pointer[index] on, wherever they are aligned."""
        vector = ir.VectorType(ir.FloatType(), taps).as_pointer()
        loaded = self.builder.load(self.builder.bitcast(self.builder.gep(pointer, [index]), vector))
        loaded.align = 4
        return loaded

    def _row(self, plane: Any, at: Any, taps: int) -> Any:
        """A row of taps: 4 lanes, or 8 for 6 taps (the first four, then the last four: the table's row has zeros for
        the two that come twice, so that no pixel beside the taps is touched).
        """
        first = self._load(plane, at, 4)
        if taps == 4:
            return first
        last = self._load(plane, self.builder.add(at, ir.Constant(ir.IntType(64), taps - 4)), 4)
        return self.builder.shuffle_vector(first, last, _lanes(range(8)))

    def columns(self, plane: Any, base: Any, stride: Any, table: Any, ku: Any, kv: Any, taps: int) -> Any:
        """Vector of the taps' columns, each summed over its rows by the weights at table[kv], times table[ku]."""
        b, total, at = self.builder, None, base
        lanes = LANES[taps]
        empty = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
        for k in PLACES[taps]:
            weight = b.load(b.gep(table, [b.add(kv, ir.Constant(ir.IntType(64), k))]))
            first = b.insert_element(empty, weight, ir.Constant(ir.IntType(32), 0))
            spread = b.shuffle_vector(first, empty, _lanes([0] * lanes))
            product = b.fmul(self._row(plane, at, taps), spread, flags=FUSED)
            total = product if total is None else b.fadd(product, total, flags=FUSED)
            at = b.add(at, stride)
        return b.fmul(total, self._load(table, ku, lanes))

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
