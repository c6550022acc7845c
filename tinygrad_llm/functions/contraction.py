"""einsum, made of diagonals, sums and matrix products, from the left to the right; so are its gradients."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.functions.base import as_array_like, no_view, promoted, whole
from tinygrad_llm.functions.products import matmul
from tinygrad_llm.functions.reductions import sum
from tinygrad_llm.functions.shapes import diagonal, permute, reshape
from tinygrad_llm.ops import ArgumentError, ShapeError

Labels = list[Any]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def einsum(equation: Any, *operands: Any) -> Tensor:
    """Σ of products over the letters that the output lacks: "bij,bjk->bik"; `...` stands for leading axes that broadcast.

    A letter that an operand has twice takes its diagonal. Without an arrow the output has the `...`, then the letters that
    occur once, in alphabetical order. einsum(x, [0, 1], y, [1, 2], [0, 2]) says the same by numbers.
    """
    if not isinstance(equation, str):
        if not hasattr(equation, "dtype") or not all(isinstance(labels, tuple | list) for labels in operands[::2]):
            raise TypeError(
                f"einsum: equation: got {equation!r:.80}, expected a string, or tensors, each with a list of numbers"
            )
        equation, operands = _from_lists((equation, *operands))
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    tensors = [as_array_like(x) for x in operands]
    terms, out = _parsed(equation, tensors)
    sizes = _sizes(equation, tensors, terms)
    parts = [_simplified(x, labels, sizes) for x, labels in zip(tensors, terms)]
    x, labels = parts[0]
    for i, (y, others) in enumerate(parts[1:], 2):
        x, labels = _product(x, labels, y, others, {*out, *[n for _, later in parts[i:] for n in later]})
    is_view = len(tensors) == 1 and len(labels) == len(out)  # of the operand, or of its diagonal
    x, labels = _summed(x, labels, out)
    x = permute(x, [labels.index(n) for n in out]) if x.ndim else x
    return x if is_view else no_view(x)


def _from_lists(args: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """The equation of einsum(x, [0, ..., 1], y, [1], [0]): number n is the n-th letter, capitals first."""
    lists = [*args[1::2], args[-1]] if len(args) % 2 else list(args[1::2])
    terms = ["".join("..." if n is Ellipsis else _letter(n) for n in one) for one in lists]
    operands = args[: len(args) - 1 if len(args) % 2 else len(args)][::2]
    inputs = ",".join(terms[: len(operands)])
    return (f"{inputs}->{terms[-1]}" if len(args) % 2 else inputs), tuple(operands)


def _letter(number: Any) -> str:
    if not 0 <= whole("einsum", "labels", number) < len(_LETTERS):
        raise ArgumentError(f"einsum: labels: got {number}, expected numbers from 0 to {len(_LETTERS) - 1}")
    return _LETTERS[number]


def _parsed(equation: str, tensors: list[Any]) -> tuple[list[Labels], Labels]:
    """The labels of the axes of each operand, and of the output; `...` becomes the labels (n, …, 1), counted from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [re.findall(r"\.\.\.|.", term) for term in left.split(",")]
    output = re.findall(r"\.\.\.|.", right)
    if bad := {n for term in [*terms, output] for n in term} - {*_LETTERS, "..."}:
        raise ArgumentError(f"einsum: equation: got {sorted(bad)[0]!r} in {equation!r}, expected letters, '...', ',' and '->'")
    if len(terms) != len(tensors):
        raise ArgumentError(f"einsum: operands: got {len(tensors)}, expected {len(terms)} for {equation!r}")
    labels = [_expanded(equation, term, x.ndim) for term, x in zip(terms, tensors)]
    counts = Counter(n for term in labels for n in term)
    dots = sorted({n for n in counts if isinstance(n, int)}, reverse=True)
    if not arrow:
        return labels, [*dots, *sorted(n for n, count in counts.items() if isinstance(n, str) and count == 1)]
    out = [n for name in output for n in (dots if name == "..." else [name])]
    if wrong := [n for n in out if n not in counts or out.count(n) > 1]:
        raise ArgumentError(f"einsum: equation: got {wrong[0]!r} in the output of {equation!r}, expected once, from an operand")
    return labels, out


def _expanded(equation: str, term: list[str], ndim: int) -> Labels:
    extra = ndim - len([n for n in term if n != "..."])
    if extra < 0 or (extra and "..." not in term) or term.count("...") > 1:
        raise ShapeError(f"einsum: operands: got one with {ndim} axes, expected those of {''.join(term)!r} in {equation!r}")
    return [n for name in term for n in (range(extra, 0, -1) if name == "..." else [name])]


def _sizes(equation: str, tensors: list[Any], terms: list[Labels]) -> dict[Any, int]:
    """The size of each label: axes of size 1 broadcast."""
    sizes: dict[Any, int] = {}
    for x, labels in zip(tensors, terms):
        for label, n in zip(labels, x.shape):
            known = sizes.setdefault(label, n)
            if known != n and 1 not in (known, n):
                raise ShapeError(f"einsum: operands: got sizes {known} and {n} of axis {label!r} in {equation!r}, expected one")
            sizes[label] = n if known == 1 else known
    return sizes


def _simplified(x: Any, labels: Labels, sizes: dict[Any, int]) -> tuple[Any, Labels]:
    """Each label once, and no axis that is repeated to the size of another operand's."""
    labels = list(labels)
    while twice := [n for n, count in Counter(labels).items() if count > 1]:
        first = labels.index(twice[0])
        second = labels.index(twice[0], first + 1)
        x = diagonal(x, 0, first, second)
        labels = [n for i, n in enumerate(labels) if i not in (first, second)] + [twice[0]]
    kept = [(n, size) for n, size in zip(labels, x.shape) if size == sizes[n]]
    return (reshape(x, tuple(size for _, size in kept)) if len(kept) < x.ndim else x), [n for n, _ in kept]


def _summed(x: Any, labels: Labels, needed: Collection[Any]) -> tuple[Any, Labels]:
    drop = tuple(i for i, n in enumerate(labels) if n not in needed)
    return (sum(x, drop) if drop else x), [n for n in labels if n in needed]


def _product(x: Any, a: Labels, y: Any, b: Labels, needed: Collection[Any]) -> tuple[Any, Labels]:
    """Two operands as one: shared labels are batched where they are still needed, else summed by the matrix product."""
    x, a = _summed(x, a, {*needed, *b})
    y, b = _summed(y, b, {*needed, *a})
    batch = [n for n in a if n in b and n in needed]
    inner = [n for n in a if n in b and n not in needed]
    left, right = [n for n in a if n not in b], [n for n in b if n not in a]
    size = {**dict(zip(a, x.shape)), **dict(zip(b, y.shape))}
    x, y = (x, y) if inner or x.dtype == y.dtype else promoted(x, y)  # torch multiplies where it does not add
    out = matmul(_grouped(x, a, [batch, left, inner]), _grouped(y, b, [batch, inner, right]))
    labels = batch + left + right
    return reshape(out, tuple(size[n] for n in labels)), labels


def _grouped(x: Any, labels: Labels, groups: list[Labels]) -> Any:
    """The axes in the order of the groups, the first group axis by axis, each of the others as one axis."""
    order = [labels.index(n) for group in groups for n in group]
    sizes = [[x.shape[labels.index(n)] for n in group] for group in groups]
    moved = permute(x, order) if order != list(range(x.ndim)) else x
    return reshape(moved, (*sizes[0], *[math.prod(group) for group in sizes[1:]]))
