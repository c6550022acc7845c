"""Record a function once as a program of NumPy calls, improve the program, and replay it without the work of recording."""

from tinygrad_llm.capture.compiled import CaptureMismatch, Compiled, compile
from tinygrad_llm.capture.ir import CaptureError
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.record import Recorder

__all__ = ["CaptureError", "CaptureMismatch", "Compiled", "Program", "Recorder", "compile"]
