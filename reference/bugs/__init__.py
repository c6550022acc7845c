"""Seeded bugs: mistakes that people make in a Transformer, each a small patch of our library in a context manager.

They are what the checks are checked with (reference.killtable). `library` is the package tinygrad_llm, handed in by whoever
runs the table: this package imports nothing of it but the op records.
"""

from reference.bugs.attention import BUGS as ATTENTION
from reference.bugs.engine import BUGS as ENGINE
from reference.bugs.fused import BUGS as FUSED
from reference.bugs.losses import BUGS as LOSSES
from reference.bugs.model import BUGS as MODEL
from reference.bugs.norm import BUGS as NORM
from reference.bugs.optimizer import BUGS as OPTIMIZER
from reference.bugs.patch import Bug
from reference.bugs.replay import BUGS as REPLAY

BUGS: list[Bug] = [*NORM, *ATTENTION, *LOSSES, *FUSED, *MODEL, *ENGINE, *REPLAY, *OPTIMIZER]

__all__ = ["BUGS", "Bug"]
