"""The errors that an op raises. Each is both NumPy's and torch's type, so that code written for either catches it."""


class ShapeError(ValueError, RuntimeError):
    """An argument has a shape that the op does not take (NumPy: ValueError, torch: RuntimeError)."""


class DtypeError(TypeError, RuntimeError):
    """An argument has a dtype that the op does not take (NumPy: TypeError, torch: RuntimeError)."""


class IndexRangeError(IndexError, ValueError, RuntimeError):
    """An index lies outside the axis that it indexes (NumPy: IndexError; torch: that, or RuntimeError where it gathers)."""


class ArgumentError(ValueError, RuntimeError):
    """An argument has a value that the function does not take (NumPy: ValueError, torch: mostly RuntimeError)."""
