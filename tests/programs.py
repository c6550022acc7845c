"""Random programs: a pool of tensors that grows by calls of every public function, by writes, detachments and gradients,
the same in both libraries, and compared with torch after every statement.

A statement is a function of a World (a library at a dtype), so that a program can be run again: in float32, whose results
are judged by the float64 ones, and in torch with its leaves one rounding away, which tells what rounding alone can do where
a comparison fails. Whatever depends on values (the distance from a kink, the factor that keeps a result small) is decided
once, by torch in float64, and is a constant of the statement.
"""

import warnings
from collections import Counter
from contextlib import nullcontext

import numpy as np
import torch
from functiondraws import Draw
from programcalls import CALLS, KINKED, POSITIVE, WRITES, function_of

import tinygrad_llm as tg
from reference.equivalence import compare_float32, compare_float64
from tinygrad_llm.autograd import WriteError
from tinygrad_llm.autograd.graph import root
from tinygrad_llm.policy import FLOAT32_RATIO, FLOAT32_TOL

SMALL = 4.0  # results larger than this are scaled down, by a power of two
POOL, LARGEST = 10, 64  # members; elements of one
GAP = 0.05  # between two values, and between a value and 0, where a function has kinks or is steep
NEIGHBOURS = 8  # runs of torch from leaves and constants one rounding away
SHAKY = 1e-6  # results that one rounding of these moves by more than this, in float64, are not judged

# Where the two are known to differ in something that is no value -----------------------------------------------------------

CLONED = {  # what of these becomes a member is a clone, as the two share memory with their input in different cases
    "split": "torch refuses to use one of several views once another was written to", "chunk": "as split", "unbind": "as split",
    "reshape": "torch promises neither a view nor a copy", "view": "as reshape",
    "flatten": "as reshape", "attention_qkvpacked": "torch has it in parts, whose last is a view",
    "diagonal": "ours copies where the matrix does not lie in one piece", "einsum": "as diagonal",
}
REFUSED = {"take_along_dim": "view size is not compatible"}  # of transposed tensors, by torch alone
OVERLAPPING = {"addmm", "baddbmm"}  # torch reads operands that it has already written over


class World:
    """One library at one dtype: the members of the pool, and the leaves that require grad."""

    def __init__(self, m, dtype, shaken=None):
        self.m, self.dtype, self.shaken = m, np.dtype(dtype), shaken
        self.engine = torch.autograd if m is torch else tg.autograd
        self.pool, self.leaves, self.made = [], [], []

    def constant(self, a):
        """The array, floats in the dtype of this world; where it is shaken, one rounding away."""
        a = a.astype(self.dtype) if a.dtype == np.float64 else a
        if self.shaken is not None and a.dtype.kind == "f":
            a = np.nextafter(a, np.asarray(self.shaken.choice([-np.inf, np.inf], a.shape), a.dtype))
        return self.m.tensor(a)

    def leaf(self, a, requires_grad):
        """A new leaf."""
        t = self.constant(a)
        if requires_grad:
            self.leaves.append(t.requires_grad_())
        return t

    def recording(self, on):
        """A context in which graphs are recorded, or not."""
        return nullcontext() if on else self.m.no_grad()


def array(t):
    return t.detach().numpy()


def repeats(a):
    """Whether several elements share memory."""
    return any(n > 1 and not stride for n, stride in zip(a.shape, a.strides))


def is_unchanged(snapshot):
    """Whether the members of a snapshot have the values that they had."""
    return all(np.array_equal(a, array(t), equal_nan=True) for t, a in snapshot)


class PoolDraw(Draw):
    """Draws whose shapes are often those of members, so that calls find members to work on."""

    def __init__(self, seed, shapes):
        super().__init__(seed)
        self.shapes = shapes

    def shape(self, low=0, high=3, most=4):
        fitting = [s for s in self.shapes if low <= len(s) <= high and max(s, default=1) <= most]
        return self.one(*fitting) if fitting and self.int(0, 3) else super().shape(low, high, most)


class Program:
    """A program under way in both libraries. Every method that takes a seed adds a statement, compares, and keeps the pool in
    bounds; a difference is an AssertionError that names the statement."""

    def __init__(self):
        self.ours, self.torch = World(tg, np.float64), World(torch, np.float64)
        self.log = []  # (name, statement, what torch's float64 gave)
        self.counts = Counter()
        self.orders = []  # of each member, how often differentiation made it
        self.written = False
        for seed in range(3):
            self.leaf(seed)

    # Statements ------------------------------------------------------------------------------------------------------------

    def leaf(self, seed):
        """A new leaf, most of which require grad."""
        d = Draw(seed)
        a, requires_grad = d.floats(*d.shape(0, 3)), d.int(0, 4) > 0
        self.make("leaf", lambda w: [w.leaf(a, requires_grad)])
        self.admit(0)

    def call(self, name, seed, recorded=True):
        """A public function of members, recorded or under no_grad."""
        d = self.draws(seed)
        call, arrays = CALLS[name](d)
        order = self.make(name, self.bound(call, self.plan(d, name, arrays), recorded))
        self.counts[name] += 1
        if order is not None:
            self.admit(order)

    def write(self, name, seed, recorded=True):
        """A write into a member, recorded or under no_grad: where torch refuses, nothing is written."""
        d = self.draws(seed)
        call, (target, *others) = WRITES[name](d)
        i = self.target(d, target)
        if i is None:
            return
        spread, plan = None, [{**self.source(d, a.shape), "copied": function_of(name) in OVERLAPPING} for a in others]
        if function_of(name) in KINKED:
            [spread], plan = self.apart(plan, array(self.torch.pool[i]))

        def statement(w):
            with w.recording(recorded):
                x, ys = w.pool[i], [prepared(w, one) for one in plan]
                if function_of(name) in POSITIVE:
                    x.tanh_().exp_()
                if spread is not None:
                    x.add_(w.constant(spread))
                call(Writing(w.m), x, *ys)
            return list(w.pool)

        if any(repeats(array(w.pool[i])) for w in (self.torch, self.ours)):  # mean's gradient is so in ours alone
            return self.write_repeated(name, statement)
        refused = self.both(name, statement, writes=True)
        self.counts["write refused" if refused else name] += 1
        if refused:
            return
        self.written, self.orders = True, [max(self.orders)] * len(self.orders)
        if (peak := peak_of([array(self.torch.pool[i])])) > SMALL:
            factor = power_of_two(peak)
            def scaled(w):
                with w.recording(recorded):
                    w.pool[i].mul_(factor)
                return [w.pool[i]]
            self.both("scaled", scaled, writes=True)

    def write_repeated(self, name, statement):
        """Into memory that several elements share: torch refuses some functions, and keeps some of what others write."""
        before = self.snapshot()
        _, error = outcome(statement, self.ours)
        assert isinstance(error, WriteError), f"{self.story()}: {name}: {error}, into memory that several elements share"
        assert is_unchanged(before), f"{self.story()}: {name} wrote to a member"
        self.counts["write refused"] += 1

    def mixed(self, seed):
        """A float32 leaf beside a member: its gradient must come back in float32."""
        d = self.draws(seed)
        i, name = d.int(0, len(self.orders) - 1), d.one("mul", "add", "sub")
        a = d.floats(*array(self.torch.pool[i]).shape).astype(np.float32)
        order = self.make("mixed", lambda w: [getattr(w.m, name)(w.pool[i], w.leaf(a, True))], self.orders[i])
        self.admit(order)

    def differentiate(self, seed):
        """Gradients as members: create_graph."""
        d = self.draws(seed)
        roots = [i for i, t in enumerate(self.torch.pool) if t.requires_grad and not t.is_leaf and not self.orders[i]]
        if not roots:
            return
        i = d.one(*roots)
        g = d.floats(*self.torch.pool[i].shape)

        def statement(w):
            w.made = w.engine.grad(w.pool[i], w.leaves, w.constant(g), create_graph=True, allow_unused=True)
            w.made = [zeros(w, x) if t is None else t for t, x in zip(w.made, w.leaves)]
            return [array(t) for t in w.made]

        if not self.both("create_graph", statement):
            self.counts["create_graph"] += 1
            self.admit(1)

    def backward(self, seed, retain=True, everything=False):
        """Random cotangents of some or all members flow to every leaf; without retain_graph all members become constants or
        new leaves."""
        d = self.draws(seed)
        members = [i for i, t in enumerate(self.torch.pool) if t.requires_grad]
        if not members:
            return
        roots = members if everything or d.one(True, False) else [d.one(*members) for _ in range(d.int(1, 2))]
        cotangents = [d.floats(*self.torch.pool[i].shape) for i in roots]

        def statement(w):
            w.engine.backward([w.pool[i] for i in roots], [w.constant(g) for g in cotangents], retain_graph=retain)
            return [array(zeros(w, x) if x.grad is None else x.grad) for x in w.leaves]

        if not self.both("backward", statement):
            self.counts["backward", retain] += 1
            if not retain or not all(np.isfinite(a).all() for a in self.log[-1][2]):
                self.cut(d.int(0, 2**31))

    def zero_grad(self, _=0):
        """Every leaf forgets its gradient."""
        def statement(w):
            for x in w.leaves:
                x.grad = None
            return []
        self.both("zero_grad", statement)

    def cut(self, seed):
        """Every member becomes a constant or a new leaf with the same values: where a graph is used up, or refused."""
        flags = [bool(n) for n in Draw(seed).rng.integers(0, 4, len(self.orders))]

        def statement(w):
            w.leaves, old = [], w.pool
            w.pool = [t.detach().clone().requires_grad_(flag) for t, flag in zip(old, flags)]
            w.leaves = [t for t in w.pool if t.requires_grad]
            return []

        self.both("cut", statement)
        self.orders, self.written = [0] * len(self.orders), False

    # Members ---------------------------------------------------------------------------------------------------------------

    def draws(self, seed):
        return PoolDraw(seed, [tuple(t.shape) for t in self.torch.pool])

    def plan(self, d, name, arrays):
        """For each input a member, how it is brought to the input's shape, and what keeps it off kinks."""
        found = [self.source(d, a.shape) for a in arrays]
        if function_of(name) in KINKED:
            _, found = self.apart(found)
        if function_of(name) in POSITIVE and found:
            found[0]["positive"] = True
        return found

    def apart(self, plan, *values):
        """Offsets of the values, and the plan with offsets, that keep all of them off kinks and ties."""
        with torch.no_grad():
            offsets = self.spread([*values, *[array(prepared(self.torch, one)) for one in plan]])
        rest = offsets[len(values) :]
        return offsets[: len(values)], [{**one, "offset": offset} for one, offset in zip(plan, rest)]

    def source(self, d, shape):
        same = [i for i, t in enumerate(self.torch.pool) if tuple(t.shape) == shape]
        i = d.one(*same) if same else d.int(0, len(self.orders) - 1)
        places = None if same else d.ints(self.torch.pool[i].numel(), int(np.prod(shape)))
        return {"member": i, "places": places, "shape": shape}

    @staticmethod
    def spread(values):
        """Offsets after which all values are at least GAP from zero and from each other, in the order that they had."""
        flat = np.concatenate([v.reshape(-1) for v in values])
        ranks = np.empty(flat.size)
        for sign in (1, -1):
            side = np.flatnonzero((flat >= 0) == (sign > 0))
            ranks[side[np.argsort(sign * flat[side], kind="stable")]] = sign * np.arange(1, side.size + 1)
        parts = np.split(GAP * ranks, np.cumsum([v.size for v in values])[:-1])
        return [p.reshape(v.shape) for p, v in zip(parts, values)]

    def target(self, d, like):
        """A member to write to: of this shape, or made so."""
        pool = self.torch.pool
        same = [i for i, t in enumerate(pool) if tuple(t.shape) == like.shape]
        views = [i for i in same if pool[i]._base is not None and not pool[i]._base.is_leaf]
        if views and d.one(True, False):
            return d.one(*views)
        if not same:
            plan = self.source(d, like.shape)
            self.make("clone", lambda w: [prepared(w, plan).clone()], self.orders[plan["member"]])
            self.admit(self.orders[plan["member"]])
            same = [len(self.orders) - 1] if tuple(self.torch.pool[-1].shape) == like.shape else []
        return d.one(*same) if same else None

    def bound(self, call, plan, recorded):
        """The call of prepared members as a statement."""
        def statement(w):
            with w.recording(recorded):
                inputs = [prepared(w, one) for one in plan]
                out = call(w.m, *inputs)
            out = list(out) if isinstance(out, tuple | list) else [out]
            return [t if recorded or t._base is None or any(t is x for x in inputs) else t.detach() for t in out]
        statement.order = max([self.orders[one["member"]] for one in plan], default=0)
        return statement

    def make(self, name, statement, order=None):
        """Run a statement whose results may become members; returns their order, or None where torch refuses it."""
        def made(w):
            w.made = statement(w)
            return w.made
        if not self.both(name, made):
            return getattr(statement, "order", 0) if order is None else order

    def admit(self, order):
        """What was made becomes members, where it is of floats, finite and not too large; older members make room."""
        chosen, name = [], self.log[-1][0]
        for k, t in enumerate(self.torch.made):
            a = array(t)
            agree = self.ours.made[k].requires_grad == t.requires_grad
            if a.dtype == np.float64 and 0 < a.size <= LARGEST and a.ndim < 5 and np.isfinite(a).all() and agree:
                alone = function_of(name) in CLONED
                alike = aliased(self.ours, self.ours.made[k]) == aliased(self.torch, t)
                assert alone or alike, f"{self.story()}: shares other memory than torch's"
                chosen.append((k, power_of_two(peak_of([a])), alone))
        chosen = chosen[:3]
        drop = max(0, len(self.orders) + len(chosen) - POOL)

        def statement(w):
            for k, factor, alone in chosen:
                t = w.made[k].clone() if alone else w.made[k]
                w.pool.append(t if factor == 1 else t * factor)
            w.pool, w.made = w.pool[drop:], []
            return [array(t) for t in w.pool[len(w.pool) - len(chosen) :]]

        self.both("admit", statement)
        self.orders = (self.orders + [order] * len(chosen))[drop:]

    # Both libraries --------------------------------------------------------------------------------------------------------

    def both(self, name, statement, writes=False):
        """Run a statement in both and compare. True where one of the two refused it, as it may after writes."""
        before = self.snapshot()
        theirs, torch_error = outcome(statement, self.torch)
        if torch_error and writes and "leaf" not in str(torch_error):
            with quiet():
                self.torch, _ = self.replayed(torch, np.float64)  # it may have written before it refused
            return True
        ours, error = outcome(statement, self.ours)
        if not writes or error:
            assert is_unchanged(before), f"{self.story()}: {name} wrote to a member"
        if torch_error or error:
            return self.refused(name, torch_error, error)
        self.log.append((name, statement, [np.array(a) for a in map(values, theirs)]))
        self.compare(name, ours, theirs)
        return False

    def refused(self, name, torch_error, error):
        """A gradient that needs what was written over may be refused by either. Some torch cannot differentiate twice, and
        some are zeros without memory, which it cannot add to."""
        if name.startswith("write") and torch_error and isinstance(error, WriteError):
            return True  # a leaf
        if torch_error and REFUSED.get(function_of(name), "nothing") in str(torch_error):
            return True
        for refusal in filter(None, (torch_error, error)):
            known = "modified" in str(refusal) or (
                refusal is torch_error and any(word in str(refusal) for word in ("derivative", "ZeroTensor"))
            )
            if not known or name not in ("backward", "create_graph"):
                raise AssertionError(f"{self.story()}: {name}: {refusal}") from refusal
        assert self.written or torch_error, f"{self.story()}: {name}: refused by ours alone: {error}"
        self.counts["refused", bool(torch_error), bool(error)] += 1
        self.cut(0)
        return True

    def compare(self, name, ours, theirs):
        rows = [self.differences(k, a, b) for k, (a, b) in enumerate(zip(ours, theirs, strict=True))]
        fails = [fail for row in rows for fail in row]
        assert not fails, f"{self.story()}: {name}: {fails}"

    def differences(self, k, ours, theirs):
        a, b = values(ours), values(theirs)
        if hasattr(theirs, "requires_grad") and self.log[-1][0] not in ("create_graph",):
            name = function_of(self.log[-1][0])
            got, expected = (ours.requires_grad, ours.is_leaf), (theirs.requires_grad, theirs.is_leaf)
            if got != expected and not (name == "flatten" and got[0] == expected[0]):
                return [f"requires_grad, is_leaf: got {got}, expected {expected}"]
        if b.dtype != np.float64:
            if b.dtype == np.float32 == a.dtype:
                found = compare_float32(a, b, b.astype(np.float64))
                return [] if found.passed else [str(found)]
            same = a.dtype == b.dtype and np.array_equal(a, b)
            return [] if same else [f"got {a!r}, expected {b!r}"]
        scale = max(1.0, peak_of([b]))
        found = compare_float64(a, b, scale=scale)
        if found.passed or a.shape != b.shape or a.dtype != b.dtype:
            return [] if found.passed else [str(found)]
        noise = self.noise(k)
        if noise > SHAKY * scale:
            self.counts["not judged"] += 1
            return []
        self.counts["judged by torch's own noise"] += 1
        found = compare_float64(a, b, scale=scale, slack=FLOAT32_RATIO * noise)
        return [] if found.passed else [str(found)]

    def noise(self, k):
        """How far one rounding moves result k of the last statement: the largest of torch's differences."""
        truth = self.log[-1][2][k]
        return max(float(np.max(np.abs(run[-1][k] - truth), initial=0)) for run in self.again(torch, np.float64, NEIGHBOURS))

    def again(self, m, dtype, shaken):
        """The results of every statement in other worlds: as many, shaken; or one, where shaken is 0."""
        for seed in range(max(1, shaken)):
            yield self.replayed(m, dtype, np.random.default_rng(seed) if shaken else None)[1]

    def replayed(self, m, dtype, shaken=None):
        """Another world in which every statement was made, and their results."""
        w = World(m, dtype, shaken)
        return w, [[np.array(values(t)) for t in asked(statement, w)] for _, statement, _ in self.log]

    def snapshot(self):
        """Our members, each with a copy of its values."""
        return [(t, array(t).copy()) for t in self.ours.pool]

    def judge_float32(self):
        """The program in float32: every result as near to float64 as torch's, luck apart (its largest error on neighbours)."""
        with quiet():
            [ours], [theirs] = (list(self.again(m, np.float32, 0)) for m in (tg, torch))
            nearby = None
            for k, (name, _, truth) in enumerate(self.log):
                for j, t in enumerate(truth):
                    if t.dtype != np.float64 or not np.isfinite(t).all():
                        continue
                    scale = max(1.0, peak_of([t]))
                    found = compare_float32(ours[k][j], theirs[k][j], t, f"{name} {j}", scale)
                    if found.passed:
                        continue
                    nearby = nearby or list(self.again(torch, np.float32, 6 * NEIGHBOURS))  # torch is lucky at most of some
                    allowed = max([FLOAT32_TOL, *[FLOAT32_RATIO * relative(run[k][j] / scale, t / scale) for run in nearby]])
                    self.counts["float32 judged by neighbours"] += 1
                    assert relative(ours[k][j] / scale, t / scale) <= allowed, f"{self.story()}: float32: {found}"

    def story(self):
        return " · ".join(name for name, _, _ in self.log if name != "admit")


class Writing:
    """A library's functions, each of which writes its result into its first argument."""

    def __init__(self, m):
        self.tensor = m.tensor

    def __getattr__(self, name):
        return lambda x, *args, **options: getattr(x, f"{name}_")(*args, **options)

    @staticmethod
    def setitem(x, index, value):
        x[index] = value


def prepared(w, one):
    """A member as an input: itself, or some of its elements in another shape; positive or away from kinks where it must be."""
    x = w.pool[one["member"]]
    if one["places"] is not None:
        x = x.reshape((-1,))[w.m.tensor(one["places"])].reshape(one["shape"])
    if one.get("positive"):
        x = w.m.exp(w.m.tanh(x))
    x = x.clone() if one.get("copied") else x
    return x + w.constant(one["offset"]) if "offset" in one else x


def asked(statement, w):
    """The results. Of a view whose base was written to, torch renews the graph when it is asked for it; a further write it
    refuses before."""
    results = statement(w)
    _ = [t.is_leaf for t in w.pool]
    return results


def outcome(statement, w):
    """(results, None), or (None, the refusal)."""
    try:
        with quiet():
            return statement(w), None
    except (RuntimeError, WriteError, TypeError, ValueError, IndexError) as error:
        return None, error


class quiet(warnings.catch_warnings):
    """Without NumPy's and torch's warnings, and with an attention of torch's that can be differentiated twice."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
        self.numpy, self.kernel = np.errstate(all="ignore"), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        self.numpy.__enter__()
        self.kernel.__enter__()

    def __exit__(self, *error):
        self.kernel.__exit__(*error)
        self.numpy.__exit__(*error)
        super().__exit__(*error)


def zeros(w, x):
    """What a gradient is that is not there."""
    return w.m.tensor(np.zeros_like(array(x)))


def values(t):
    return t if isinstance(t, np.ndarray) else array(t)


def relative(a, truth):
    """The error of the policy: the largest |a − truth| / (1 + |truth|)."""
    return float(np.max(np.abs(a - truth) / (1 + np.abs(truth)), initial=0.0))


def peak_of(arrays):
    return max((float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) for a in arrays), default=0.0)


def power_of_two(peak):
    return 1.0 if peak <= SMALL else 2.0 ** -np.ceil(np.log2(peak / SMALL))


def aliased(w, t):
    """Which members show the same memory as a tensor."""
    return [memory(x) == memory(t) for x in w.pool]


def memory(t):
    return t.untyped_storage().data_ptr() if isinstance(t, torch.Tensor) else id(root(t.numpy()))
