"""gradcheck: is the gradient that backward computes the slope of the function? Pass, fail, or not to be told from noise.

For cotangents v and directions u, ⟨Jᵀv, u⟩ of backward is compared with ⟨v, f(x + hu) − f(x − hu)⟩ / 2h at two steps, h and
2h. Their difference estimates the error of truncation, which extrapolation then removes; the noise of f is measured from
sixth differences of nine evaluations in a row (Moré & Wild 2011, "Estimating computational noise"). A gradient passes
where it agrees *and* noise and truncation are below the tolerance; it fails where it disagrees by more than they explain;
else the verdict is inconclusive.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_llm.autograd.backward import grad, gradients_at
from tinygrad_llm.autograd.errors import AutogradError
from tinygrad_llm.autograd.modes import no_grad, records_graph
from tinygrad_llm.autograd.tensor import Tensor
from tinygrad_llm.autograd.trees import flatten

_DIRECTIONS = 3  # in fast mode
_COMPLEX_STEP = 2.0**-100
_ZERO = 1e-8  # of the largest slope of the same output: below it, noise is as good as zero


class GradcheckError(AutogradError):
    """gradcheck found a wrong or random gradient."""


class InconclusiveError(GradcheckError):
    """gradcheck could not tell: noise or truncation dominates."""


@dataclass(frozen=True)
class Verdict:
    """What gradcheck found. True in a condition only where the gradient passed.

    outcome    "pass", "fail" or "inconclusive"
    message    one line on the entry that decided
    error, tolerance, uncertainty   of that entry: |analytic − numeric|, what was allowed, and how far numeric is trusted
    """

    outcome: str
    message: str
    error: float
    tolerance: float
    uncertainty: float

    def __bool__(self) -> bool:
        return self.outcome == "pass"


class ChangingOutputError(GradcheckError, AssertionError):
    """The shapes or dtypes of the outputs depend on the values of the inputs: there is no slope to compare with."""


def gradcheck(
    func: Callable[..., Any], inputs: Any, *, eps: float = 1e-6, atol: float | None = None, rtol: float = 1e-4,
    raise_exception: bool = True, nondet_tol: float = 0.0, check_undefined_grad: bool = True, check_grad_dtypes: bool = False,
    check_batched_grad: bool = False, check_batched_forward_grad: bool = False, check_forward_ad: bool = False,
    check_backward_ad: bool = True, fast_mode: bool = False, masked: bool | None = None, method: str = "central",
    generator: np.random.Generator | None = None,
) -> bool:
    """Whether backward's gradients of func(*inputs) are the slopes of func, for every input that requires grad.

    torch.autograd.gradcheck's arguments. What check_gradients says of them holds here too; further:

    raise_exception          GradcheckError on fail, InconclusiveError where noise dominates; else False for either
    check_undefined_grad, check_grad_dtypes   are always done: each output has a cotangent while the others have none, and the
                             engine refuses a gradient of another dtype than its input's
    check_forward_ad, check_batched_forward_grad   NotImplementedError: there is no forward mode. func.jvp is two backwards
    masked                   of sparse tensors, of which there are none

    Errors, also where raise_exception is False: those of func; ValueError where no input requires grad; AutogradError for an
    input that repeats memory (expand); ChangingOutputError.
    """
    _check_modes("gradcheck", check_forward_ad or check_batched_forward_grad, check_backward_ad)
    verdict = check_gradients(func, inputs, eps=eps, atol=atol, rtol=rtol, nondet_tol=nondet_tol, method=method,
                              check_batched_grad=check_batched_grad, fast_mode=fast_mode, generator=generator)
    return _said("gradcheck", verdict, raise_exception)


def check_gradients(
    func: Callable[..., Any], inputs: Any, *, eps: float = 1e-6, atol: float | None = None, rtol: float = 1e-4,
    nondet_tol: float = 0.0, check_batched_grad: bool = False, fast_mode: bool = False, method: str = "central",
    generator: np.random.Generator | None = None,
) -> Verdict:
    """Compare backward's gradients of func(*inputs) with slopes of func, for every input that requires grad.

    eps         step of the differences; 1e-6 suits float64
    atol, rtol  a slope s may be missed by atol + rtol · |s|; atol None means 1e-5 of the largest slope of the same Jacobian,
                so that small gradients are held to as much as large ones
    nondet_tol  by how much two backwards of the same graph may differ
    check_batched_grad   also that three cotangents at once give what they give one by one
    fast_mode   3 random directions and cotangents for each input and output in place of all entries
    method      "central", or "complex": Im f(x + ihu) / h with h = 2⁻¹⁰⁰, exact to rounding; for functions that take complex
                numbers and are analytic
    generator   of the random directions; by default always the same ones

    torch's rtol, 1e-3, would not see an error of 0.1 %.
    """
    if method not in ("central", "complex"):
        raise ValueError(f"gradcheck: method: got {method!r}, expected 'central' or 'complex'")
    rng = np.random.default_rng(0) if generator is None else generator
    subject = _Subject(func, inputs if isinstance(inputs, tuple | list) else (inputs,), warns=method == "central")
    if not subject.outputs:
        return _constant(subject, rng, eps)
    verdict = _nondeterministic(subject, rng, nondet_tol)
    if verdict is None and check_batched_grad:
        verdict = _batched(subject, rng)
    return min(_compare(subject, rng, eps, atol, rtol, fast_mode, method), key=_severity) if verdict is None else verdict


def gradgradcheck(
    func: Callable[..., Any], inputs: Any, grad_outputs: Any = None, *, raise_exception: bool = True,
    gen_non_contig_grad_outputs: bool = False, check_undefined_grad: bool = True, check_grad_dtypes: bool = False,
    check_fwd_over_rev: bool = False, check_rev_over_rev: bool = True, masked: bool = False, **options: Any,
) -> bool:
    """gradcheck of func's gradient, with respect to inputs and to grad_outputs (drawn where not given). Same options.

    gen_non_contig_grad_outputs draws them with gaps in memory. check_fwd_over_rev: NotImplementedError, as check_forward_ad.
    """
    _check_modes("gradgradcheck", check_fwd_over_rev, check_rev_over_rev)
    options["gen_non_contig_grad_outputs"] = gen_non_contig_grad_outputs
    verdict = check_second_gradients(func, inputs, grad_outputs, **options)
    return _said("gradgradcheck", verdict, raise_exception)


def check_second_gradients(
    func: Callable[..., Any], inputs: Any, grad_outputs: Any = None, *, gen_non_contig_grad_outputs: bool = False,
    generator: np.random.Generator | None = None, **options: Any,
) -> Verdict:
    """check_gradients of func's gradient; see gradgradcheck."""
    inputs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    rng = np.random.default_rng(0) if generator is None else generator
    if not (outs := _Subject(func, inputs).outputs):
        return check_gradients(func, inputs, generator=rng, **options)
    if grad_outputs is None:
        grad_outputs = [_drawn(rng, o, gen_non_contig_grad_outputs) for o in outs]
    given = list(grad_outputs) if isinstance(grad_outputs, tuple | list) else [grad_outputs]

    def gradient(*args: Tensor) -> tuple[Tensor, ...]:
        xs, cotangents = args[: len(inputs)], args[len(inputs) :]
        outputs = [o for o in flatten(func(*xs))[0] if isinstance(o, Tensor) and o.requires_grad]
        wanted = [x for x in xs if isinstance(x, Tensor) and x.requires_grad]
        found = grad(outputs, wanted, list(cotangents), create_graph=True, materialize_grads=True)
        return tuple([g for g in found if g is not None])

    return check_gradients(gradient, (*inputs, *given), generator=rng, **options)


def _check_modes(who: str, forward: bool, backward: bool) -> None:
    if forward:
        raise NotImplementedError(f"{who}: check_forward_ad: got True, expected False: there is no forward mode to check; "
                                  "func.jvp is two backwards")
    if not backward:
        raise AssertionError(f"{who}: check_backward_ad: got False, expected True: nothing would be checked")


def _said(who: str, verdict: Verdict, raise_exception: bool) -> bool:
    if raise_exception and not verdict:
        raise (GradcheckError if verdict.outcome == "fail" else InconclusiveError)(f"{who}: {verdict.message}")
    return bool(verdict)


def _drawn(rng: np.random.Generator, like: Tensor, gaps: bool) -> Tensor:
    values = np.asarray(rng.standard_normal((*like.shape, 2) if gaps else like.shape), like.dtype)
    return Tensor.wrap(values[..., 0] if gaps else values).requires_grad_()


class _Subject:
    """The function at its inputs: its graph, and its values elsewhere."""

    def __init__(self, func: Callable[..., Any], inputs: Sequence[Any], warns: bool = False) -> None:
        if not records_graph():
            raise GradcheckError("gradcheck: got no_grad() around it, expected a mode in which func makes a graph")
        self.func, self.inputs = func, list(inputs)
        self.wanted = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
        if not self.wanted:
            raise ValueError("gradcheck: inputs: got none that requires grad, expected at least one tensor that does")
        for i in self.wanted:
            _check_input(i, self.inputs[i], warns)
        self.xs = [np.array(self.inputs[i].numpy()) for i in self.wanted]
        self.leaves, self.all = self._run(self.xs)
        self.kept = [k for k, o in enumerate(self.all) if o._requires_grad]
        self.outputs = [self.all[k] for k in self.kept]

    def _run(self, xs: Sequence[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [Tensor.wrap(x).requires_grad_() for x in xs]
        return leaves, self._call(leaves)

    def _call(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        args = list(self.inputs)
        for i, leaf in zip(self.wanted, leaves):
            args[i] = leaf
        return [o for o in flatten(self.func(*args))[0] if isinstance(o, Tensor)]

    def values(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs at xs, flat; of a function without differentiable outputs, all of them."""
        outputs = self._run(xs)[1]
        found, expected = ([(o.dtype, o.shape) for o in outs] for outs in (outputs, self.all))
        if found != expected:
            shown = [", ".join([f"{dtype} {shape}" for dtype, shape in outs]) for outs in (found, expected)]
            raise ChangingOutputError(f"gradcheck: func: got outputs {shown[0]} where inputs are moved a little, expected "
                                      f"{shown[1]} as before")
        return [np.array(outputs[k]._array).reshape(-1) for k in self.kept or range(len(outputs))]

    def complex_values(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs at complex xs, flat. Errors: ValueError where func does not take them."""
        try:
            with no_grad(), np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                outputs = self._call([Tensor.wrap(x) for x in xs])
                return [np.array(outputs[k]._array).reshape(-1) for k in self.kept]
        except Exception as error:
            line = str(error).split("\n")[0]
            raise ValueError("gradcheck: method: got 'complex' for a func that does not take complex numbers, expected "
                             f"'central': {line}") from None

    def pulled(self, k: int, cotangents: np.ndarray) -> list[np.ndarray]:
        """cotangents [R, m] of output k → for each input [R, n]."""
        out = self.outputs[k]
        rows = []
        for v in cotangents:
            found = gradients_at([out], [v.reshape(out.shape)], self.leaves, True, False)
            rows.append([np.zeros(x.size, x.dtype) if g is None else np.reshape(g, -1) for g, x in zip(found, self.xs)])
        return [np.array([row[i] for row in rows], x.dtype).reshape(len(rows), x.size) for i, x in enumerate(self.xs)]


def _check_input(i: int, x: Tensor, warns: bool) -> None:
    if any(step == 0 and n > 1 for step, n in zip(x.numpy().strides, x.shape)):
        raise AutogradError(f"gradcheck: inputs[{i}]: got a tensor that repeats memory (expand, broadcast_to), expected one "
                            "whose elements can be moved one by one; use a clone()")
    if warns and x.dtype.itemsize < 8:
        warnings.warn(f"gradcheck: inputs[{i}]: got dtype {x.dtype}, expected float64: differences in it are mostly noise",
                      stacklevel=5)


def _constant(subject: _Subject, rng: np.random.Generator, eps: float) -> Verdict:
    """The verdict on a function none of whose outputs requires grad: right where they do not depend on the inputs."""
    for i, x in enumerate(subject.xs):
        u = rng.choice([-1.0, 1.0], x.shape) * eps
        up, down = (_at(subject, i, np.asarray(x + sign * u, x.dtype)) for sign in (1, -1))
        for k, (a, b) in enumerate(zip(up, down)):
            change = float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0))
            if change > 0:
                return Verdict("fail", f"output {k}: got a value that does not require grad, expected one that does: it "
                               f"depends on input {subject.wanted[i]}", change / (2 * eps), 0.0, 0.0)
    return Verdict("pass", "no output depends on an input", 0.0, 0.0, 0.0)


def _batched(subject: _Subject, rng: np.random.Generator) -> Verdict | None:
    """A failure where three cotangents at once give other gradients than one by one."""
    for k, out in enumerate(subject.outputs):
        v = np.array([_unit(rng, out.size, out.dtype) for _ in range(_DIRECTIONS)]).reshape((_DIRECTIONS, *out.shape))
        rows = grad(out, subject.leaves, Tensor.wrap(v), True, allow_unused=True, is_grads_batched=True)
        for i, (a, b) in enumerate(zip(rows, subject.pulled(k, v.reshape(_DIRECTIONS, -1)))):
            if not np.allclose(0 if a is None else a.numpy().reshape(b.shape), b):
                return Verdict("fail", f"output {k}, input {i}: a batch of cotangents gives other gradients", 0.0, 0.0, 0.0)
    return None


def _nondeterministic(subject: _Subject, rng: np.random.Generator, nondet_tol: float) -> Verdict | None:
    for k, out in enumerate(subject.outputs):
        v = _unit(rng, out.size, out.dtype)[None]
        for i, (a, b) in enumerate(zip(subject.pulled(k, v), subject.pulled(k, v))):
            change = float(np.max(np.abs(a - b), initial=0.0))
            if change > nondet_tol:
                message = f"input {subject.wanted[i]}: two backwards differ by {change:.3g}, expected at most {nondet_tol}"
                return Verdict("fail", message, change, nondet_tol, 0.0)
    return None


def _compare(
    subject: _Subject, rng: np.random.Generator, eps: float, atol: float | None, rtol: float, fast: bool, method: str
) -> list[Verdict]:
    """A verdict for each (output, input)."""
    noise = _noise(subject, rng, eps)
    cotangents = [_probes(rng, o.size, o.dtype, fast) for o in subject.outputs]
    analytic = [subject.pulled(k, v) for k, v in enumerate(cotangents)]
    blocks: dict[tuple[int, int], _Block] = {}
    for i, x in enumerate(subject.xs):
        directions = _probes(rng, x.size, x.dtype, fast)
        slopes = _slopes(subject, i, directions, eps)
        exact = _complex_slopes(subject, i, directions) if method == "complex" else None
        for k, v in enumerate(cotangents):
            block = _central(v, analytic[k][i], [(steps, moved[k]) for steps, moved in slopes], noise[k] / eps)
            blocks[k, i] = block if exact is None else _refined(block, v, analytic[k][i], directions, exact[k])
    largest = [max([np.max(np.abs(blocks[k, i].numeric), initial=0.0) for i in range(len(subject.xs))])
               for k in range(len(subject.outputs))]
    return [_judge(block, f"output {subject.kept[k]}, input {subject.wanted[i]}", largest[k], atol, rtol)
            for (k, i), block in blocks.items()]


@dataclass
class _Block:
    """What is known of one Jacobian, [cotangents, directions]."""

    analytic: np.ndarray
    numeric: np.ndarray
    error: np.ndarray
    uncertainty: np.ndarray
    why: str = "noise or truncation of the differences"


def _central(v: np.ndarray, pulled: np.ndarray, slopes: list[tuple[np.ndarray, np.ndarray]], noise: np.ndarray) -> _Block:
    """Extrapolated central differences. The residual is taken at each step for the direction that rounding left of it."""
    (u1, d1), (u2, d2) = slopes
    v, pulled = v.astype(np.float64), pulled.astype(np.float64)
    analytic = pulled @ u1.T
    r1, r2 = v @ d1.T - analytic, v @ d2.T - pulled @ u2.T
    residual = (4 * r1 - r2) / 3
    rounding = np.sqrt(np.square(v) @ np.square(noise))[:, None]
    lost = np.where((u1 == 0).all(1), np.inf, 0.0)  # the step was too small to move the input
    numeric = np.where(np.isfinite(analytic), analytic + residual, v @ d1.T)
    return _Block(analytic, numeric, np.abs(residual), np.abs(r1 - r2) + 3 * rounding + lost)


def _refined(block: _Block, v: np.ndarray, pulled: np.ndarray, u: np.ndarray, exact: np.ndarray) -> _Block:
    """Complex-step slopes in place of differences, unless the two contradict each other: then func is not analytic."""
    numeric, analytic = v.astype(np.float64) @ exact.T, pulled.astype(np.float64) @ u.astype(np.float64).T
    gap = np.abs(numeric - block.numeric)
    if (gap > 4 * block.uncertainty + 1e-3 * np.abs(numeric)).any():
        return _Block(analytic, numeric, np.abs(numeric - analytic), gap + block.error, "complex step against differences")
    rounding = 64 * np.finfo(v.dtype).eps * np.max(np.abs(numeric), initial=0.0)
    return _Block(analytic, numeric, np.abs(numeric - analytic), np.full(numeric.shape, rounding))


def _judge(block: _Block, where: str, largest: float, atol: float | None, rtol: float) -> Verdict:
    size = np.abs(block.numeric)
    tolerance = (1e-5 * np.max(size, initial=0.0) if atol is None else atol) + rtol * size
    finite = np.isfinite(block.numeric) & np.isfinite(block.analytic)
    zero = np.maximum(size, np.abs(block.analytic)) <= block.uncertainty
    zero &= block.uncertainty <= _ZERO * largest
    passed = finite & (((block.error <= tolerance) & (block.uncertainty <= tolerance)) | zero)
    failed = (finite & (block.error > tolerance + 2 * block.uncertainty)) | (~np.isfinite(block.analytic) & np.isfinite(size))
    for outcome, those in (("fail", failed), ("inconclusive", ~passed & ~failed)):
        if those.any():
            at = np.unravel_index(np.argmax(np.where(those, np.nan_to_num(block.error, nan=np.inf), -1)), those.shape)
            return _verdict(outcome, block, where, at, tolerance)
    if not size.size:
        return Verdict("pass", f"{where}: nothing to compare", 0.0, 0.0, 0.0)
    return _verdict("pass", block, where, np.unravel_index(np.argmax(block.error), size.shape), tolerance)


def _verdict(outcome: str, block: _Block, where: str, at: Any, tolerance: np.ndarray) -> Verdict:
    a, n, e, t, u = (float(m[at]) for m in (block.analytic, block.numeric, block.error, tolerance, block.uncertainty))
    entry = f"{where}, entry {tuple(int(j) for j in at)}: backward gives {a:.6g}"
    tail = f"; {block.why} may be {u:.2g}, too much for a tolerance of {t:.2g}" if outcome == "inconclusive" else ""
    return Verdict(outcome, f"{entry}, expected {n:.6g} within {t:.2g}{tail}", e, t, u)


def _severity(verdict: Verdict) -> tuple[int, float]:
    return ("fail", "inconclusive", "pass").index(verdict.outcome), -verdict.error


# Evaluations ----------------------------------------------------------------------------------------------------------


def _slopes(subject: _Subject, i: int, directions: np.ndarray, eps: float) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """For steps eps and 2 eps: (the directions that rounding left, [C, n]; for each output the slopes along them, [C, m])."""
    found = []
    for h in (eps, 2 * eps):
        moves = [np.asarray(h * u, u.dtype).reshape(subject.xs[i].shape) for u in directions]
        ends = [(subject.xs[i] + move, subject.xs[i] - move) for move in moves]
        left = [_slope(up, down, h) for up, down in ends]
        moved = [(_at(subject, i, up), _at(subject, i, down)) for up, down in ends]
        slopes = [np.array([_slope(up[k], down[k], h) for up, down in moved]).reshape(len(directions), o.size)
                  for k, o in enumerate(subject.outputs)]
        found.append((np.array(left).reshape(len(directions), subject.xs[i].size), slopes))
    return found


def _slope(up: np.ndarray, down: np.ndarray, h: float) -> np.ndarray:
    return (up.astype(np.float64) - down) / (2 * h)


def _at(subject: _Subject, i: int, x: np.ndarray) -> list[np.ndarray]:
    return subject.values([x if j == i else np.array(other) for j, other in enumerate(subject.xs)])


def _complex_slopes(subject: _Subject, i: int, directions: np.ndarray) -> list[np.ndarray]:
    """For each output Im f(x + ihu) / h along every direction, [C, m]."""
    h, rows = _COMPLEX_STEP, []
    for u in directions:
        kind = np.result_type(u.dtype, np.complex64)
        xs = [x.astype(np.result_type(x.dtype, np.complex64)) for x in subject.xs]
        xs[i] = (subject.xs[i] + 1j * h * u.reshape(subject.xs[i].shape)).astype(kind)
        rows.append([v.imag.astype(np.float64) / h for v in subject.complex_values(xs)])
    return [np.array([row[k] for row in rows]).reshape(len(directions), o.size) for k, o in enumerate(subject.outputs)]


def _noise(subject: _Subject, rng: np.random.Generator, eps: float) -> list[np.ndarray]:
    """For each entry of each output the standard deviation of its noise; at least half of its last bit."""
    directions = [rng.choice([-1.0, 1.0], x.shape) for x in subject.xs]
    order, values = 6, []
    for t in range(-4, 5):
        values.append(subject.values([np.asarray(x + t * eps * d, x.dtype) for x, d in zip(subject.xs, directions)]))
    scale = math.factorial(order) / math.sqrt(math.factorial(2 * order))
    found = []
    for k in range(len(subject.outputs)):
        table = np.array([v[k] for v in values], np.float64)
        spread = np.sqrt(np.mean(np.square(np.diff(table, order, axis=0)), 0)) * scale
        last_bit = np.spacing(np.max(np.abs([v[k] for v in values]), 0)).astype(np.float64) / 2
        found.append(np.maximum(np.nan_to_num(spread, nan=np.inf), last_bit))
    return found


def _probes(rng: np.random.Generator, n: int, dtype: Any, fast: bool) -> np.ndarray:
    """Unit vectors of n entries: all of the basis, or a few in random directions."""
    if not fast or n <= _DIRECTIONS:
        return np.eye(n, dtype=dtype)
    return np.array([_unit(rng, n, dtype) for _ in range(_DIRECTIONS)])


def _unit(rng: np.random.Generator, n: int, dtype: Any) -> np.ndarray:
    v = rng.standard_normal(n)
    return np.asarray(v / max(float(np.sqrt(np.sum(v * v))), 1e-30), dtype)
