"""Random programs of what is around the arrays: writes to indices, masks, views of constants, gradients and data; hooks, modes,
checkpoints, leaves that freeze. Each statement runs in both libraries, and everything that can be seen is compared.

Where torch refuses a statement and ours goes on, or the other way round, the program ends there: values up to it have been
compared. `Ended` says which, and a test says which of them may be.
"""

import warnings
from collections import Counter

import numpy as np
import torch
import torch.utils.checkpoint

import tinygrad_llm as tg
from tinygrad_llm.autograd import checkpoint

SIZE = 3
UNARY = {
    "sin": lambda x: x.sin(), "exp": lambda x: (x * 0.1).exp(), "tanh": lambda x: x.tanh(), "square": lambda x: x * x,
    "relu": lambda x: (x + 0.03).relu(), "abs": lambda x: (x - 0.02).abs(), "half": lambda x: x * 0.5,
    "sum": lambda x: x.sum() + x * 0,
    "softmax": lambda x: x.softmax(0), "flip": lambda x: x.flip(0), "cumsum": lambda x: x.cumsum(0) * 0.3,
}
BINARY = {"add": lambda x, y: x + y, "mul": lambda x, y: x * y, "div": lambda x, y: x / (y * y + 1), "sub": lambda x, y: x - y}
INDEXED = {
    "getitem": lambda x, i: x[i], "gather": lambda x, i: x.gather(0, i), "index_select": lambda x, i: x.index_select(0, i),
    "take_along_dim": lambda x, i: x.take_along_dim(i, 0), "index_add": lambda x, i: x.index_add(0, i, x * 2),
    "scatter_add": lambda x, i: x.scatter_add(0, i, x * 3), "index_put": lambda x, i: x.index_put((i,), x * 2, accumulate=True),
}
MASKED = {
    "where": lambda x, k: x.where(k, x * 3), "masked_fill": lambda x, k: x.masked_fill(k, 0.5) * x,
    "mask by product": lambda x, k: x * k,
}
INPLACE = {
    "add_": lambda x, y: x.add_(y), "mul_": lambda x, y: x.mul_(y * 0.5), "sin_": lambda x, y: x.sin_(),
    "copy_": lambda x, y: x.copy_(y), "setitem": lambda x, y: x.__setitem__(slice(0, 2), y[1:]),
    "fill_": lambda x, y: x.fill_(0.7), "zero_": lambda x, y: x.zero_(), "imul": lambda x, y: x.__imul__(0.5),
}
VIEWS = {
    "view": lambda x: x.view(SIZE), "all": lambda x: x[:], "row": lambda x: x.view(1, SIZE)[0],
    "transposed": lambda x: x.view(SIZE, 1).t()[0],
}


class Ended(Exception):
    """(who refused, the statement, the refusal)."""


def shown(gradient):
    return np.round(gradient.detach().numpy(), 9).tolist()


class Side:
    """One library's half of a program: everything has three elements."""

    def __init__(self, m):
        self.m, self.notes = m, []
        self.checkpoint = torch.utils.checkpoint.checkpoint if m is torch else checkpoint
        self.tensors, self.leaves, self.indices, self.masks = [], [], [], []

    def tensor(self, values):
        return self.m.tensor(np.array(values))

    def note(self, name, factor):
        """A hook that says what it saw, and multiplies it."""
        def hook(g):
            self.notes.append((name, shown(g)))
            return g * factor if factor != 1 else None
        return hook

    def seen(self):
        """What can be seen: values and flags of everything, and gradients of leaves."""
        every = [*self.tensors, *self.leaves]
        rows = [(t.detach().numpy().copy(), t.requires_grad, t.is_leaf) for t in every]
        grads = [None if p.grad is None else (p.grad.detach().numpy().copy(), p.grad.requires_grad) for p in self.leaves]
        return rows, grads, list(self.notes), self.m.is_grad_enabled()


class SemanticProgram:
    """A program under way; `step(seed)` adds a statement. AssertionError where the two differ, Ended where one refuses."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.sides = [Side(torch), Side(tg)]
        self.log, self.counts = [], Counter()
        for _ in range(2):
            self.do("leaf", self.leaf())

    def values(self):
        return np.round(self.rng.uniform(-1, 1, SIZE), 2) + 0.005

    def leaf(self, requires_grad=True):
        values = self.values()

        def statement(s):
            p = s.tensor(values).requires_grad_(requires_grad)
            s.leaves.append(p)
            s.tensors.append(p)
        return statement

    def pick(self, n):
        return int(self.rng.integers(n))

    def one(self, table):
        return sorted(table)[self.pick(len(table))]

    def step(self):
        """One statement, drawn."""
        name, statement = getattr(self, self.one(KINDS))()
        self.do(name, statement)
        self.counts[name.split(":")[0]] += 1

    def do(self, name, statement):
        """Run it in both, and compare."""
        self.log.append(name)
        errors = []
        for s in self.sides:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    statement(s)
                    errors.append(None)
                except (RuntimeError, ValueError, TypeError, IndexError) as error:
                    errors.append(error)
        if any(errors) and (not all(errors) or "backward" in name):  # torch's may have gone some way before it refused
            raise Ended("both" if all(errors) else "torch" if errors[0] else "ours", name, errors[0] or errors[1])
        self.compare()

    def compare(self):
        try:
            rows, grads, notes, mode = self.sides[0].seen()
        except RuntimeError as error:  # torch refuses to look at some views of what was written to
            raise Ended("torch", "look", error) from None
        rows2, grads2, notes2, mode2 = self.sides[1].seen()
        story = " · ".join(self.log)
        for k, (a, b) in enumerate(zip(rows, rows2, strict=True)):
            assert np.allclose(a[0], b[0], rtol=1e-9, atol=1e-9, equal_nan=True), f"{story}: tensor {k}: {b[0]}, torch {a[0]}"
            assert a[1:] == b[1:], f"{story}: tensor {k}: requires_grad, is_leaf {b[1:]}, torch {a[1:]}"
        for k, (a, b) in enumerate(zip(grads, grads2, strict=True)):
            assert (a is None) == (b is None), f"{story}: .grad of leaf {k}: {b}, torch {a}"
            assert a is None or (np.allclose(a[0], b[0], rtol=1e-8, atol=1e-8, equal_nan=True) and a[1] == b[1]), \
                f"{story}: .grad of leaf {k}: {b}, torch {a}"
        assert mode == mode2, story
        assert len(notes) == len(notes2), f"{story}: hooks {notes2}, torch {notes}"
        for a, b in zip(notes, notes2):
            assert a[0] == b[0], f"{story}: hook {b}, torch {a}"
            assert np.allclose(a[1], b[1], rtol=1e-7, atol=1e-7, equal_nan=True), f"{story}: hook {b}, torch {a}"

    # Statements: each draws what it needs, and returns (name, function of a side) ---------------------------------------------

    def made(self, name, make):
        return name, lambda s: s.tensors.append(make(s))

    def call(self):
        if self.pick(2):
            f, a = self.one(UNARY), self.pick(len(self.sides[0].tensors))
            return self.made(f"call: {f} {a}", lambda s: UNARY[f](s.tensors[a]))
        f, (a, b) = self.one(BINARY), [self.pick(len(self.sides[0].tensors)) for _ in range(2)]
        return self.made(f"call: {f} {a} {b}", lambda s: BINARY[f](s.tensors[a], s.tensors[b]))

    def by_index(self):
        f, a, places = self.one(INDEXED), self.pick(len(self.sides[0].tensors)), self.rng.integers(0, SIZE, SIZE)

        def make(s):
            s.indices.append(s.tensor(places))
            return INDEXED[f](s.tensors[a], s.indices[-1])
        return self.made(f"by_index: {f} {a}", make)

    def by_mask(self):
        f, a, bits = self.one(MASKED), self.pick(len(self.sides[0].tensors)), self.rng.integers(0, 2, SIZE).astype(bool)

        def make(s):
            s.masks.append(s.tensor(bits))
            return MASKED[f](s.tensors[a], s.masks[-1])
        return self.made(f"by_mask: {f} {a}", make)

    def write_index(self):
        what = ["indices", "masks"][self.pick(2)]
        n = len(getattr(self.sides[0], what))
        k, values = self.pick(n) if n else 0, self.rng.integers(0, 2, SIZE)

        def statement(s):
            if n:
                t = getattr(s, what)[k]
                t.copy_(s.tensor(values.astype(bool) if what == "masks" else values))
        return f"write_index: {what} {k}", statement

    def write(self):
        f, (a, b) = self.one(INPLACE), [self.pick(len(self.sides[0].tensors)) for _ in range(2)]
        return f"write: {f} {a} {b}", lambda s: [INPLACE[f](s.tensors[a], s.tensors[b])]

    def write_outside(self):
        f, (a, b) = self.one(INPLACE), [self.pick(len(self.sides[0].tensors)) for _ in range(2)]

        def statement(s):
            with s.m.no_grad():
                INPLACE[f](s.tensors[a], s.tensors[b])
        return f"write_outside: {f} {a} {b}", statement

    def view(self):
        f, a = self.one(VIEWS), self.pick(len(self.sides[0].tensors))
        def make(s):
            with s.m.enable_grad():  # under no_grad a view of what requires grad is a constant here, a leaf in torch
                return VIEWS[f](s.tensors[a])
        return self.made(f"view: {f} {a}", make)

    def constant_view(self):
        values, asks = self.values(), bool(self.pick(2))

        def statement(s):
            base = s.tensor([values, values])
            v = base[self_row]
            s.tensors += [v.requires_grad_() if asks else v]
            if asks:
                s.leaves.append(v)
        self_row = self.pick(2)
        return f"constant_view: {asks}", statement

    def constant(self):
        values = self.values()
        return self.made("constant", lambda s: s.tensor(values))

    def new_leaf(self):
        return "new_leaf", self.leaf()

    def hook(self):
        a, factor, n = self.pick(len(self.sides[0].tensors)), [1, 2, 0.5][self.pick(3)], len(self.log)
        if self.sides[0].tensors[a]._base is not None:  # torch forgets hooks of a view when the memory is written to
            return self.call()
        return f"hook: {a} × {factor}", lambda s: s.tensors[a].register_hook(s.note(n, factor)) and None

    def accumulated(self):
        a, n = self.pick(len(self.sides[0].leaves)), len(self.log)

        def statement(s):
            p = s.leaves[a]
            if p.requires_grad and p.is_leaf:
                p.register_post_accumulate_grad_hook(lambda t: s.notes.append((n, shown(t.grad))) if t.requires_grad else None)
        return f"accumulated: {a}", statement

    def keep(self):
        a = self.pick(len(self.sides[0].tensors))
        return f"keep: {a}", lambda s: s.tensors[a].retain_grad() if s.tensors[a].requires_grad else None

    def mode(self):
        on = bool(self.pick(4))
        return f"mode: {on}", lambda s: s.m.set_grad_enabled(on) and None

    def checkpointed(self):
        f, g, a = self.one(UNARY), self.one(BINARY), self.pick(len(self.sides[0].tensors))
        b = self.pick(len(self.sides[0].leaves))
        return self.made(f"checkpointed: {f} {g} {a} {b}", lambda s: s.checkpoint(
            lambda x: UNARY[f](BINARY[g](x, s.leaves[b])), s.tensors[a], use_reentrant=False))

    def gradient(self):
        a, what, values = self.pick(len(self.sides[0].leaves)), self.pick(6), self.values()

        def statement(s):
            p = s.leaves[a]
            if what == 0:
                p.grad = None
            elif what == 1:
                p.grad = s.tensor(values)
            elif p.grad is not None and what in (2, 3):
                p.grad.zero_() if what == 2 else p.grad.mul_(0.5)
            elif what == 4 and p.is_leaf:
                p.requires_grad_(not p.requires_grad)
            elif what == 5 and p.is_leaf:
                p.data = s.tensor(values)
        return f"gradient: {what} {a}", statement

    def forget(self):
        """A detached copy: the graph behind goes on without it."""
        a = self.pick(len(self.sides[0].tensors))
        return self.made(f"forget: {a}", lambda s: s.tensors[a].detach().clone())

    def backward(self):
        a, retain, create = self.pick(len(self.sides[0].tensors)), bool(self.pick(3)), not self.pick(5)

        def statement(s):
            t = s.tensors[a]
            if t.requires_grad:
                with s.m.enable_grad():
                    t.sum().backward(retain_graph=retain, create_graph=create)
        return f"backward: {a} {retain} {create}", statement


KINDS = [
    *["call"] * 5, "by_index", "by_mask", "write_index", "write", "write", "write_outside", "view", "constant_view", "constant",
    "new_leaf", "hook", "accumulated", "keep", "mode", "checkpointed", "gradient", "forget", "backward", "backward",
]


def last_backward(s):
    s.m.set_grad_enabled(True)
    if s.tensors[-1].requires_grad:
        s.tensors[-1].sum().backward()


def run(seed, length=20):
    """A program of that seed: (its counts, (who refused, where, how) or None)."""
    program = SemanticProgram(seed)
    try:
        for _ in range(length):
            program.step()
        program.do("last backward", last_backward)
    except Ended as ended:
        return program, ended.args
    finally:
        for s in program.sides:
            s.m.set_grad_enabled(True)
    return program, None

