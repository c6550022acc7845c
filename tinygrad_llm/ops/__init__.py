"""The mathematics: every op as a function of plain arrays, its forward beside its vjp."""

from tinygrad_llm.ops import attention, elementwise, linalg, losses, nn, reduce, shape
from tinygrad_llm.ops.declare import REGISTRY, Op, Vjp, compute, op
from tinygrad_llm.ops.errors import ArgumentError, DtypeError, IndexRangeError, ShapeError
from tinygrad_llm.ops.spec import Arg, Dim

__all__ = [
    "REGISTRY", "Arg", "ArgumentError", "Dim", "DtypeError", "IndexRangeError", "Op", "ShapeError", "Vjp", "attention",
    "compute", "elementwise", "linalg", "losses", "nn", "op", "reduce", "shape",
]
