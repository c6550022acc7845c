"""What is guarded: something of ours beside a yardstick that does the same work on the same machine, and a bound.

A ratio is the fastest of many rounds of one over the fastest of the other. Times are no part of it, so that it holds on
another machine; the bound is about 1.5 times the ratio that was seen (`seen`), because caches and BLAS differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import GRID, Case
from benchmarks.inputs import draw_batches
from tinygrad_llm import Tensor, Transformer, tensor
from tinygrad_llm.autograd import apply
from tinygrad_llm.decoding import Decoder
from tinygrad_llm.ops.declare import REGISTRY
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer

CASE = Case("guard", 4, 64, 64, 4, 2, 65)  # some ms a step: short enough for some rounds to be undisturbed
Work = Callable[[], Any]


@dataclass(frozen=True)
class Pair:
    """make() → (ours, yardstick), to be called by turns; ours / yardstick was `seen`, and must stay below `bound`."""

    name: str
    make: Callable[[], tuple[Work, Work]]
    seen: float
    bound: float
    rounds: int = 100


def step_and_its_products() -> tuple[Work, Work]:
    """A training step, and the matrix products in it alone."""
    return _eager(CASE), _products(CASE)


def replay_and_eager(case: Case) -> tuple[Work, Work]:
    """A training step replayed by one process, and the same step eager."""
    model = Transformer(case.config, seed=0)
    trainer = Trainer(model, AdamW(model.parameters()), capture=True)
    ((ids, targets),) = draw_batches(case, 0, 0, 1)
    return lambda: trainer.step(ids, targets), _eager(case)


def _eager(case: Case) -> Work:
    model = Transformer(case.config, seed=0)
    optimizer = AdamW(model.parameters())
    ((ids, targets),) = draw_batches(case, 0, 0, 1)

    def step() -> None:
        model.loss(ids, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _products(case: Case) -> Work:
    n, d, heads = case.tokens, case.d_model, (case.batch, case.n_heads, case.context, case.d_model // case.n_heads)
    layer = [((n, a), (a, b)) for a, b in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))]
    wide, square = (*heads[:2], heads[3], heads[2]), (*heads[:2], heads[2], heads[2])
    forward = case.n_layers * [*layer, (heads, wide), (square, heads)] + [((n, d), (d, case.vocab))]
    shapes = [pair for (*lead, m, k), (*_, p) in forward for pair in
              (((*lead, m, k), (*lead, k, p)), ((*lead, m, p), (*lead, p, k)), ((*lead, k, m), (*lead, m, p)))]
    rng = np.random.default_rng(0)
    operands = [tuple(rng.standard_normal(shape, np.float32) for shape in pair) for pair in shapes]
    outs = [np.matmul(a, b) for a, b in operands]

    def products() -> None:
        for (a, b), out in zip(operands, outs):
            np.matmul(a, b, out=out)

    return products


def token_and_its_products() -> tuple[Work, Work]:
    """50 tokens decoded over a cache, and the products of the weights with one position alone."""
    model, token = Transformer(CASE.config, seed=0), np.zeros((1, 1), np.int64)
    decoder = Decoder(model)
    weights = [p.numpy().T for name, p in model.named_parameters() if p.ndim == 2 and name != "tok_embed.weight"]
    pairs = [(np.ones((1, len(w)), np.float32), w) for w in weights]

    def tokens() -> None:
        decoder.clear()
        for _ in range(50):
            decoder(token)

    def products() -> None:
        for _ in range(50):
            for x, w in pairs:
                x.dot(w)

    return tokens, products


def tape_and_numpy() -> tuple[Work, Work]:
    """A chain of 300 sums of scalars there and back, and 600 sums in NumPy: what recording an op costs."""
    x, one = tensor(np.ones(1, np.float32), requires_grad=True), np.ones(1, np.float32)

    def chain() -> None:
        y = x
        for _ in range(300):
            y = y + one
        y.backward(tensor(one))
        x.grad = None

    def plain() -> None:
        y = one
        for _ in range(600):
            y = y + one

    return chain, plain


def adamw_and_copies() -> tuple[Work, Work]:
    """A step of AdamW, and as many bytes copied as it cannot do without moving: reads p, g, m, v and writes p, m, v."""
    p = tensor(np.ones((512, 1024), np.float32), requires_grad=True)
    p.grad = tensor(np.ones((512, 1024), np.float32))
    source, target = np.ones(7 * 512 * 1024 // 2, np.float32), np.empty(7 * 512 * 1024 // 2, np.float32)
    return AdamW([p]).step, lambda: np.copyto(target, source)


def fused_and_definition(name: str, *arrays: Any, **options: Any) -> tuple[Work, Work]:
    """An op there and back, and its definition in primitive ops there and back, both on the tape."""
    op = REGISTRY[name]
    assert op.definition is not None
    inputs = [tensor(a, requires_grad=True) if a is not None and a.dtype.kind == "f" else a for a in arrays]
    return _there_and_back(partial(apply, op), inputs, options), _there_and_back(op.definition, inputs, options)


def _there_and_back(call: Callable[..., Tensor], inputs: list[Any], options: dict[str, Any]) -> Work:
    g = tensor(np.ones(call(*inputs, **options).shape, np.float32))

    def work() -> None:
        call(*inputs, **options).backward(g)
        for one in inputs:
            if isinstance(one, Tensor):
                one.grad = None

    return work


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _below(bound: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, bound, shape)


PAIRS = (
    Pair("step / its products", step_and_its_products, 2.3, 3.5),
    Pair("replay / eager, a toy", lambda: replay_and_eager(GRID["S0"]), 0.2, 0.3),
    Pair("replay / eager", lambda: replay_and_eager(CASE), 0.65, 0.95),
    Pair("token / its products", token_and_its_products, 9.3, 14),
    Pair("tape / NumPy", tape_and_numpy, 19, 28),
    Pair("AdamW / copies", adamw_and_copies, 2.2, 4.0),
    Pair("layer_norm / definition", lambda: fused_and_definition(
        "layer_norm", _normal(2048, 128), _normal(128), _normal(128), eps=1e-5), 0.65, 0.95),
    Pair("causal attention / definition", lambda: fused_and_definition(
        "attention", *(_normal(2, 4, 128, 32) for _ in range(3)), is_causal=True, scale=None), 0.38, 0.6),
    Pair("cross_entropy / definition", lambda: fused_and_definition(
        "cross_entropy", _normal(512, 512), _below(512, 512), None, ignore_index=-100, reduction="mean",
        label_smoothing=0.0), 0.45, 0.7),
    Pair("linear_cross_entropy / definition", lambda: fused_and_definition(
        "linear_cross_entropy", _normal(128, 64), _normal(4096, 64), _below(4096, 128), None, ignore_index=-100,
        reduction="mean"), 0.58, 0.9),
)
