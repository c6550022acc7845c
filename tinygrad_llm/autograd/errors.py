"""What the engine raises."""

from __future__ import annotations


class AutogradError(RuntimeError):
    """The graph cannot do what was asked of it."""


class AnomalyError(AutogradError):
    """A NaN or an infinity appeared while detect_anomaly() was on."""


class WriteError(AutogradError, ValueError):
    """A write into a tensor that no gradient could follow, or whose memory cannot be written to."""


class InferenceError(AutogradError):
    """An inference tensor was given to what it cannot be part of."""
