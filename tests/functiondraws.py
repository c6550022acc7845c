"""A drawn call of every function of tensors: (call of a library's functions, float64 arrays that it differentiates).

`m` stands for tinygrad_llm or torch; draws come from a seeded generator. All values are float32 numbers, so that the float64
call is the truth of the float32 call.
"""

import math

import numpy as np


class Draw:
    """Arrays, shapes and choices out of one seeded generator."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def shape(self, low=0, high=3, most=4):
        return tuple(int(n) for n in self.rng.integers(1, most + 1, self.int(low, high)))

    def int(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def one(self, *choices):
        return choices[self.int(0, len(choices) - 1)]

    def floats(self, *shape, positive=False):
        values = self.rng.uniform(0.2, 3, shape) if positive else self.rng.standard_normal(shape)
        return values.astype(np.float32).astype(np.float64)

    def ints(self, n, *shape):
        return self.rng.integers(0, max(n, 1), shape)

    def any(self, low=0, **options):
        return self.floats(*self.shape(low, **options))

    def dim(self, x):
        return self.int(-x.ndim, x.ndim - 1) if x.ndim else self.one(0, -1)

    def dims(self, x):
        some = tuple(int(i) for i in self.rng.permutation(x.ndim)[: self.int(1, max(x.ndim, 1))])
        return self.one(self.dim(x), some) if x.ndim else self.one(0, -1)

    def pair(self):
        """Two arrays that broadcast."""
        shape = self.shape()
        cut = shape[self.int(0, len(shape)) :]
        return self.floats(*shape), self.floats(*[self.one(1, n) for n in cut])


def const(m, a, like=None):
    """An array as m's constant tensor, in the dtype of `like`."""
    if like is None:
        return m.tensor(a)
    return m.tensor(a, dtype=like.dtype)


def unary(name, positive=False, low=0):
    def case(d):
        x = d.floats(*d.shape(), positive=positive) + low
        return (lambda m, x: getattr(m, name)(x)), [x]
    return case


def binary(name, positive=False):
    def case(d):
        x, y = d.pair()
        return (lambda m, x, y: getattr(m, name)(x, y)), [abs(x) + 0.5 if positive else x, y]
    return case


def over_a_number(name, slope):
    """Numbers that no multiple of which a draw is: the quotient jumps there. torch's floor_divide has no gradient."""
    def case(d):
        x, y = d.pair()
        n = d.one(0.7310585, -1.3130353)
        return (lambda m, x, y: getattr(m, name)(x if slope else x.detach(), n) * y), [x, y]
    return case


def reduction(name, several=True, always=False):
    def case(d):
        x, kept = d.any(), d.one(True, False)
        dim = d.dims(x) if several else d.dim(x)
        if not always and d.int(0, 3) == 0:
            return (lambda m, x: getattr(m, name)(x)), [x]
        return (lambda m, x: getattr(m, name)(x, dim, keepdim=kept)), [x]
    return case


def along(name):
    def case(d):
        x = d.any()
        dim = d.dim(x)
        return (lambda m, x: getattr(m, name)(x, dim)), [x]
    return case


def clamp(d):
    x, (low, high) = d.any(), sorted(d.floats(2).tolist())
    low, high = d.one((low, high), (None, high), (low, None))
    return (lambda m, x: m.clamp(x, low, high)), [x]


def clamp_tensors(d):
    x = d.any(1)
    low, high = d.floats(x.shape[-1]), d.floats(*x.shape)
    return (lambda m, x, low, high: m.clamp(x, min=low, max=high)), [x, low, high]


def where(d):
    x, y = d.pair()
    mask = d.floats(*x.shape) > 0
    return (lambda m, x, y: m.where(const(m, mask), x, y)), [x, y]


def masked_fill(d):
    x = d.any()
    mask = d.floats(*x.shape) > 0
    return (lambda m, x: m.masked_fill(x, const(m, mask), 0.5)), [x]


def alphas(name):
    def case(d):
        x, y = d.pair()
        alpha = d.one(2, 0.5)
        return (lambda m, x, y: getattr(m, name)(x, y, alpha=alpha)), [x, y]
    return case


def norm(d):
    x, p, kept = d.any(), d.one("fro", None, 1, 2, 3, 0.5, 1.5, math.inf, -math.inf, 0, -1), d.one(True, False)
    dim = d.one(None, d.dims(x))
    p = 2 if p in ("fro", None) and isinstance(dim, tuple) and len(dim) > 2 else p  # torch takes them for a norm of matrices
    return (lambda m, x: m.norm(x, p, dim, kept)), [x]


def vector_norm(d):
    x, p, kept = d.any(), d.one(1, 2, 3, 2.5, 0.5, math.inf, -math.inf, 0), d.one(True, False)
    dim = d.one(None, d.dims(x))
    return (lambda m, x: m.linalg.vector_norm(x, p, dim, kept)), [x]


def extreme(name):
    def case(d):
        x, kept = d.any(), d.one(True, False)
        dim = d.dim(x)
        return (lambda m, x: tuple(getattr(m, name)(x, dim, kept))), [x]
    return case


def of_all(name):
    return lambda d: ((lambda m, x: getattr(m, name)(x)), [d.any()])


def corrected(name):
    def case(d):
        x, kept, correction = d.floats(*[n + 1 for n in d.shape(1)]), d.one(True, False), d.one(0, 1)
        dim = d.one(None, d.dims(x))
        return (lambda m, x: getattr(m, name)(x, dim=dim, correction=correction, keepdim=kept)), [x]
    return case


def matmul(d):
    n, k, j, lead = d.int(1, 4), d.int(1, 4), d.int(1, 4), d.shape(0, 2)
    x, y = d.one((k,), (n, k), (*lead, n, k)), d.one((k,), (k, j), (*lead, k, j))
    return (lambda m, x, y: m.matmul(x, y)), [d.floats(*x), d.floats(*y)]


def product(name, *specs):
    def case(d):
        size = {letter: d.int(1, 4) for letter in "bnkj"}
        options = {"beta": d.one(0, 1, 0.5), "alpha": d.one(1, 2)} if name in ("addmm", "baddbmm") else {}
        shapes = [[d.one(1, size[c]) if c.islower() and spec == "in" else size[c] for c in letters] for spec, letters in specs]
        return (lambda m, *t: getattr(m, name)(*t, **options)), [d.floats(*shape) for shape in shapes]
    return case


EQUATIONS = ["ii", "ii->i", "i,j->ij", "bij,bjk->bik", "...ij->...ji", "bn,anm,bm->ba", "ij,jk,kl", "i,i", "ij->", "ij->j",
             "...i,...i->...", "...i,ij->...j", "ijk,jil->kl", "iij->ij", "ij,ij->ij", "i...j,j->...i", "ba", "ab,cd->dbca",
             "...ij,...jk", "Ab,bA", "i,ij,j", "ijij->ij", "aij,bij->ab", "...,...->..."]


def einsum(d):
    equation = d.one(*EQUATIONS)
    size = {c: d.int(1, 3) for c in equation if c.isalpha()}
    lead = d.shape(0, 2, 3)
    arrays = []
    for term in equation.partition("->")[0].split(","):
        before, dots, after = term.partition("...")
        own = tuple(d.one(1, n) for n in lead[d.int(0, len(lead)) :]) if dots else ()
        arrays.append(d.floats(*[size[c] for c in before], *own, *[size[c] for c in after]))
    return (lambda m, *t: m.einsum(equation, *t)), arrays


def einsum_lists(d):
    n, k, j = d.shape(3, 3)
    return (lambda m, x, y: m.einsum(x, [..., 0, 1], y, [..., 1, 2], [..., 0, 2])), [d.floats(2, n, k), d.floats(k, j)]


def reshape(d):
    x = d.any()
    return (lambda m, x: m.reshape(x, tuple(reversed(x.shape)))), [x]


def permute(d):
    x = d.any()
    dims = tuple(int(i) for i in d.rng.permutation(x.ndim))
    return (lambda m, x: m.permute(x, dims)), [x]


def swap(name):
    def case(d):
        x = d.any()
        one, two = d.dim(x), d.dim(x)
        return (lambda m, x: getattr(m, name)(x, one, two)), [x]
    return case


def movedim(d):
    x = d.any(1)
    n = d.int(1, x.ndim)
    here, there = (tuple(int(i) for i in d.rng.permutation(x.ndim)[:n]) for _ in range(2))
    one = d.dim(x)
    return d.one((lambda m, x: m.movedim(x, here, there)), (lambda m, x: m.movedim(x, one, here[0]))), [x]


def squeeze(d):
    x = d.any(most=2)
    dim = d.dims(x)
    return d.one((lambda m, x: m.squeeze(x)), (lambda m, x: m.squeeze(x, dim))), [x]


def unsqueeze(d):
    x = d.any()
    dim = d.int(-x.ndim - 1, x.ndim)
    return (lambda m, x: m.unsqueeze(x, dim)), [x]


def flatten(d):
    x = d.any()
    start = d.int(0, max(x.ndim - 1, 0))
    return (lambda m, x: m.flatten(x, start, -1)), [x]


def expand(d):
    x = d.any(most=2)
    sizes = (*d.shape(0, 1), *[d.one(-1, 3) if n == 1 else d.one(-1, n) for n in x.shape])
    return (lambda m, x: x.expand(sizes)), [x]


def broadcast_to(d):
    x = d.any(most=2)
    sizes = (*d.shape(0, 1), *[3 if n == 1 else n for n in x.shape])
    return (lambda m, x: m.broadcast_to(x, sizes)), [x]


def joined(name):
    def case(d):
        x = d.any(1)
        y, dim = d.floats(*x.shape), d.dim(x)
        return (lambda m, x, y: getattr(m, name)([x, y, x], dim)), [x, y]
    return case


def split(d):
    x = d.any(1)
    dim = d.dim(x)
    first = d.int(0, x.shape[dim])
    sizes = d.one(d.int(1, 5), [first, x.shape[dim] - first])
    return (lambda m, x: tuple(m.split(x, sizes, dim))), [x]


def chunk(d):
    x, n = d.any(1, most=6), d.int(1, 5)
    dim = d.dim(x)
    return (lambda m, x: tuple(m.chunk(x, n, dim))), [x]


def unbind(d):
    x = d.any(1)
    dim = d.dim(x)
    return (lambda m, x: tuple(m.unbind(x, dim))), [x]


def narrow(d):
    x = d.any(1)
    dim = d.dim(x)
    start = d.int(-x.shape[dim], x.shape[dim] - 1)
    length = d.int(0, -start if start < 0 else x.shape[dim] - start)
    return (lambda m, x: m.narrow(x, dim, start, length)), [x]


def select(d):
    x = d.any(1)
    dim = d.dim(x)
    i = d.int(-x.shape[dim], x.shape[dim] - 1)
    return (lambda m, x: m.select(x, dim, i)), [x]


def flip(d):
    x = d.any(1)
    dims = d.dims(x)
    return (lambda m, x: m.flip(x, (dims,) if isinstance(dims, int) else dims)), [x]


def roll(d):
    x = d.any(1)
    dims = d.dims(x)
    shifts = d.int(-9, 9) if isinstance(dims, int) else tuple(d.int(-9, 9) for _ in dims)
    return d.one((lambda m, x: m.roll(x, shifts, dims)), (lambda m, x: m.roll(x, 2))), [x]


def repeat(d):
    x = d.any()
    times = tuple(d.int(1, 3) for _ in range(x.ndim + d.int(0, 1)))
    return (lambda m, x: x.repeat(times)), [x]


def tile(d):
    x = d.any()
    times = tuple(d.int(1, 3) for _ in range(d.int(0, 4)))
    return (lambda m, x: m.tile(x, times)), [x]


def triangle(name):
    def case(d):
        x, k = d.any(2), d.int(-4, 4)
        return (lambda m, x: getattr(m, name)(x, k)), [x]
    return case


def diagonal(d):
    x, k = d.any(2), d.int(-4, 4)
    one = d.int(0, x.ndim - 1)
    two = (one + d.int(1, x.ndim - 1)) % x.ndim
    return (lambda m, x: m.diagonal(x, k, one, two - x.ndim)), [x]


def index_select(d):
    x = d.any()
    dim = d.dim(x)
    i = d.ints(x.shape[dim] if x.ndim else 1, d.int(0, 5) if x.ndim else 1)
    return (lambda m, x: m.index_select(x, dim, const(m, i))), [x]


def indices_along(d):
    """(x, dim, sizes, indices into axis dim of x, of those sizes)"""
    x = d.any()
    dim = d.dim(x)
    size = [d.int(1, n) for n in x.shape]
    if size:
        size[dim] = d.int(0, 5)
    return x, dim, size, d.ints(x.shape[dim] if x.ndim else 1, *size)


def gather(d):
    x, dim, _, i = indices_along(d)
    return (lambda m, x: m.gather(x, dim, const(m, i))), [x]


def take_along_dim(d):
    x = d.any(1)
    dim = d.dim(x)
    size = [d.one(1, n) for n in x.shape]
    size[dim] = d.int(0, 5)
    i, flat = d.ints(x.shape[dim], *size), d.ints(x.size, 4)
    return d.one((lambda m, x: m.take_along_dim(x, const(m, i), dim)), (lambda m, x: m.take_along_dim(x, const(m, flat)))), [x]


def scatter_add(d):
    x, dim, size, i = indices_along(d)
    src = d.floats(*size)
    return (lambda m, x, src: m.scatter_add(x, dim, const(m, i), src)), [x, src]


def index_add(d):
    x, n, alpha = d.any(1), d.int(0, 5), d.one(1, 2)
    dim = d.dim(x)
    size = list(x.shape)
    size[dim] = n
    i = d.ints(x.shape[dim], n)
    return (lambda m, x, y: m.index_add(x, dim, const(m, i), y, alpha=alpha)), [x, d.floats(*size)]


def index_put(d):
    x, accumulate = d.floats(3, 4, *d.shape(0, 1)), d.one(True, False)
    rows = d.rng.permutation(3)[: d.int(1, 3)] if not accumulate else d.ints(3, 5)
    columns = d.ints(4, len(rows))
    y = d.floats(*d.one((1,), (len(rows), *x.shape[2:])))
    return (lambda m, x, y: m.index_put(x, (const(m, rows), const(m, columns)), y, accumulate)), [x, y]


def index_put_mask(d):
    x = d.any(1)
    mask = d.floats(*x.shape) > 0
    y = d.floats(*d.one((), (int(mask.sum()),)))
    return (lambda m, x, y: m.index_put(x, (const(m, mask),), y)), [x, y]


GROUPS = {
    "elementwise": {
        **{name: unary(name) for name in ("neg", "exp", "expm1", "square", "abs", "sign", "sin", "cos", "tanh", "sigmoid",
                                          "erf", "relu")},
        **{name: unary(name, True) for name in ("log", "sqrt", "rsqrt", "reciprocal")}, "log1p": unary("log1p", True, -1.0),
        **{name: binary(name) for name in ("add", "sub", "mul", "div", "maximum", "minimum")}, "pow": binary("pow", True),
        "add alpha": alphas("add"), "sub alpha": alphas("sub"), "clamp": clamp, "clamp tensors": clamp_tensors,
        "where": where, "masked_fill": masked_fill, "remainder": over_a_number("remainder", True),
        "floor_divide": over_a_number("floor_divide", False),
    },
    "reductions": {
        "sum": reduction("sum"), "mean": reduction("mean"), "amax": reduction("amax"), "amin": reduction("amin"),
        "prod": reduction("prod", False), "argmax": reduction("argmax", False),
        "logsumexp": reduction("logsumexp", always=True),
        "max": extreme("max"), "min": extreme("min"), "max of all": of_all("max"),
        "min of all": of_all("min"), "var": corrected("var"), "std": corrected("std"),
        "cumsum": along("cumsum"), "softmax": along("softmax"), "log_softmax": along("log_softmax"),
        "norm": norm, "linalg.vector_norm": vector_norm,
    },
    "products": {
        "matmul": matmul, "mm": product("mm", ("", "nk"), ("", "kj")), "bmm": product("bmm", ("", "bnk"), ("", "bkj")),
        "addmm": product("addmm", ("in", "nj"), ("", "nk"), ("", "kj")),
        "baddbmm": product("baddbmm", ("in", "bnj"), ("", "bnk"), ("", "bkj")), "mv": product("mv", ("", "nk"), ("", "k")),
        "dot": product("dot", ("", "n"), ("", "n")), "outer": product("outer", ("", "n"), ("", "j")),
        "einsum": einsum, "einsum lists": einsum_lists,
    },
    "shapes": {
        "reshape": reshape, "permute": permute, "transpose": swap("transpose"), "swapaxes": swap("swapaxes"), "t":
        lambda d: ((lambda m, x: m.t(x)), [d.any(0, high=2)]), "movedim": movedim, "squeeze": squeeze, "unsqueeze": unsqueeze,
        "flatten": flatten, "expand": expand, "broadcast_to": broadcast_to, "cat": joined("cat"), "stack": joined("stack"),
        "split": split, "chunk": chunk, "unbind": unbind, "narrow": narrow, "select": select, "flip": flip, "roll": roll,
        "repeat": repeat, "tile": tile, "triu": triangle("triu"), "tril": triangle("tril"), "diagonal": diagonal,
    },
    "indexing": {
        "index_select": index_select, "gather": gather, "take_along_dim": take_along_dim, "scatter_add": scatter_add,
        "index_add": index_add, "index_put": index_put, "index_put mask": index_put_mask,
    },
}
