"""Watch the tape: what the engine writes down while you compute, and how it reads it backwards.

    python examples/01_watch_the_tape.py

Every op returns its result and a function `vjp` (vector-Jacobian product): given a cotangent g = d loss / d result, it
returns d loss / d argument for each argument. A Node keeps that vjp and the nodes that made the arguments, its parents;
the nodes together are the tape.
"""

import gc
import weakref

import numpy as np

import tinygrad_llm as tg
from tinygrad_llm.autograd import Node, saved_arrays

# loss = Σ y · tanh(y),  y = w · x + b:  y is used twice, so two cotangents will meet there, and b is stretched over
# three elements, so three gradients will be added up for it.
x = tg.tensor([1.0, 2.0, 3.0])
w = tg.tensor([0.5, -1.0, 0.25], requires_grad=True)
b = tg.tensor(0.1, requires_grad=True)
y = w * x + b
t = y.tanh()
loss = (y * t).sum()


def tape(last):
    """The nodes that lead to this one, each after its parents. (Recursive, to be short; the engine's walk is not.)"""
    found = []

    def visit(place):
        if isinstance(place, Node) and place not in found:
            for parent in place.parents:
                visit(parent)
            found.append(place)

    visit(last)
    return found


def show(array):
    return np.array2string(np.asarray(array), precision=4, suppress_small=True)


nodes = tape(loss.grad_fn)
places = {id(w): "w", id(b): "b", id(None): "constant"} | {id(n): f"#{i} {n.op.name}" for i, n in enumerate(nodes)}
arrays = {id(tensor.detach().numpy()): name for name, tensor in (("w", w), ("x", x), ("y", y), ("t", t))}

print("Forward wrote this tape. Each node points back to its parents and holds what its vjp closes over:\n")
print(f"  {'node':<9}{'shape':<7}{'parents':<17}{'kept for backward':<19}its formula")
for node in nodes:
    kept = [f"{arrays[id(a)]} {a.nbytes} B" for a in saved_arrays(node.vjp)]
    parents = ", ".join(places[id(p)] for p in node.parents)
    formula = node.op.__doc__.splitlines()[0]
    print(f"  {places[id(node)]:<9}{node.shape!s:<7}{parents:<17}{', '.join(kept) or 'nothing':<19}{formula}")

print("\nBackward reads it from the end. Each node turns its cotangent g into one for each parent:\n")
cotangents = {id(loss.grad_fn): np.ones((), np.float32)}  # d loss / d loss = 1
for node in reversed(nodes):
    g = cotangents.pop(id(node))  # popped: no stale gradient stays behind
    print(f"  {places[id(node)]:<9}g = {show(g)}")
    for parent, d in zip(node.parents, node.vjp(g)):
        if parent is not None:
            meets = id(parent) in cotangents
            cotangents[id(parent)] = cotangents[id(parent)] + d if meets else d
            print(f"  {'':<9}→ {places[id(parent)]:<8}{show(d)}{'  is added to what waits there' if meets else ''}")

loss.backward()
print(f"\nThe engine's own backward() agrees:  w.grad = {show(w.grad)},  b.grad = {show(b.grad)}")
np.testing.assert_allclose(cotangents[id(w)], w.grad, rtol=1e-6)
np.testing.assert_allclose(cotangents[id(b)], b.grad, rtol=1e-6)

# A new loss, and a weak reference, which sees when the memory of t goes. Nothing on a tape points forward, to a result,
# so there are no cycles: when the loss goes, reference counting alone (no garbage collector) frees all of it.
gc.disable()
y = w * x + b
t = y.tanh()
loss, memory_of_t = (y * t).sum(), weakref.ref(t.detach().numpy())
del y, t
print(f"\nWe let go of y and t but keep the loss:  t is {'freed' if memory_of_t() is None else 'alive, on the tape'}")
del loss
print(f"We let go of the loss:                   t is {'freed' if memory_of_t() is None else 'alive'}")
