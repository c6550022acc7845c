"""What torch's versions do not agree on. The library does as the newest does; what each of torch's does is pinned beside it."""

import numpy as np
import pytest
import torch
from packaging.version import Version

import tinygrad_llm as tg

INF, NAN = float("inf"), float("nan")
INSTALLED = Version(Version(torch.__version__).base_version)


def gradients(call, *arrays):
    """The gradients of call(m, *leaves).sum() with respect to each."""

    def program(m):
        leaves = [m.tensor(np.array(a), requires_grad=True) for a in arrays]
        call(m, *leaves).sum().backward()
        return [leaf.grad.tolist() for leaf in leaves]

    return program


def integers(call):
    """The values of call(x) of small integers x that have no sign."""
    return lambda m: call(m.tensor(np.array([1, 2], np.uint8))).tolist()


X = [-1.0, 0.0, 0.5, 1.0, 2.0, NAN]
REFUSED = "refused"
CHANGED = {  # what: (program, the version that changed it, what it gives since, what it gave before)
    "clamp between numbers": (gradients(lambda m, x: m.clamp(x, 0, 1), X), "2.14", [[0, 0, 1, 0, 0, 0]], [[0, 1, 1, 1, 0, 0]]),
    "clamp below": (gradients(lambda m, x: x.clamp(min=0), X), "2.14", [[0, 0, 1, 1, 1, 0]], [[0, 1, 1, 1, 1, 0]]),
    "clamp above": (gradients(lambda m, x: x.clamp(max=0), X), "2.14", [[1, 0, 0, 0, 0, 0]], [[1, 1, 0, 0, 0, 0]]),
    "clamp at infinities": (gradients(lambda m, x: m.clamp(x, -INF, INF), [-INF, 0.0, INF]), "2.14", [[0, 1, 0]], [[1, 1, 1]]),
    "clamp at a tensor": (gradients(lambda m, x, low: m.clamp(x, low), [1.0, 0.0, 2.0], [1.0, 1.0, 1.0]), "2.14",
                          [[0.5, 0, 1], [0.5, 1, 0]], [[1, 0, 1], [0, 1, 0]]),
    "clamp between tensors": (gradients(lambda m, x, low, high: m.clamp(x, low, high), [0.0, 1.0, 0.5, 3.0], [0.0] * 4,
                                        [1.0] * 4), "2.14",
                              [[0.5, 0.5, 1, 0], [0.5, 0, 0, 0], [0, 0.5, 0, 1]], [[1, 1, 1, 0], [0] * 4, [0, 0, 0, 1]]),
    "clamp of nan at a tensor": (gradients(lambda m, x, low: m.clamp(x, low), [NAN, 1.0], [1.0, NAN]), "2.14",
                                 [[1, 1], [1, 1]], [[0, 0], [0, 0]]),
    "a hidden infinite gradient": (gradients(lambda m, x: m.clamp(x, 0, 1) * m.tensor([INF, INF]), [0.0, 1.0]), "2.14",
                                   [[0, 0]], [[INF, INF]]),
    "integers above what they cannot be below": (integers(lambda x: x.clamp(min=-1)), "2.15", [1, 2], [255, 255]),
    "integers above what is far below": (integers(lambda x: x.clamp(-300, 300)), "2.15", [1, 2], REFUSED),
    "integers below what they cannot be above": (integers(lambda x: x.clamp(max=300)), "2.15", [1, 2], REFUSED),
    "integers below all integers": (integers(lambda x: x.clamp(max=-1)), "2.15", REFUSED, [1, 2]),
    "counting to a fraction": (lambda m: m.arange(1.5, dtype=m.zeros(1).long().dtype).tolist(), "2.14", [0, 1], [0]),
}


def outcome(program, m):
    try:
        return program(m)
    except RuntimeError:
        return REFUSED


@pytest.mark.parametrize("what", CHANGED)
def test_the_library_does_what_the_newest_torch_does(what):
    program, since, now, before = CHANGED[what]
    assert outcome(program, tg) == now
    assert outcome(program, torch) == (now if Version(since) <= INSTALLED else before)


@pytest.mark.parametrize("arguments", [(0, 3, 0.5), (-0.5, 3), (0.7, 5.9, 1.5), (0, -3, -0.5), (5, 0, -2.5)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_fraction_is_no_start_and_no_step_of_integers(arguments, dtype):
    """torch cuts it off: since 2.14 (0, 3, 0.5) gives six zeros; earlier versions gave them in int32, and refused in int64."""
    with pytest.raises(ValueError, match=r"^arange: start, step: got .*, expected whole numbers"):
        tg.arange(*arguments, dtype=dtype)
    assert tg.arange(1.0, 4.5, 2.0, dtype=dtype).tolist() == [1, 3]
    assert tg.arange(5, 0.5, -2, dtype=dtype).tolist() == [5, 3, 1]
