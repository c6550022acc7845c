"""Functions as people write them, drawn at random: a model with numbers, tables, counters, masks, logs, modes and hooks around
its arrays, and between two calls somebody who changes any of it. Run as it is and captured, both must give the same bits."""

import types

import numpy as np

import tinygrad_llm as tg
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer

WIDTH = 4
SCALE = 1.0  # which an action changes


class Person(tg.nn.Module):
    """x [B, WIDTH] → a loss, by way of some quirks, in the order drawn."""

    factor = 0.5

    def __init__(self, quirks, world):
        self.a, self.b = tg.nn.Linear(WIDTH, WIDTH), tg.nn.Linear(WIDTH, WIDTH)
        self.drop, self.quirks, self.world, self.gain = tg.nn.Dropout(0.3), quirks, world, 1.5
        self.tables, self.table, self.count, self.mean, self.log = {}, None, 0, 0.0, []
        self.register_buffer("kept", tg.ones(WIDTH))

    def forward(self, x):
        h = self.a(x)
        for quirk in self.quirks:
            h = getattr(self, quirk)(h)
        return self.b(h)

    def loss(self, ids, targets):
        """As a Trainer wants it: of integers."""
        h = self.forward(tg.tensor(ids).float()[:, :WIDTH])
        return (h * h).mean() + (tg.tensor(targets).float() * 0.01).mean()

    def by_number(self, h):
        return h * self.gain

    def by_class(self, h):
        return h * self.factor

    def by_global(self, h):
        return h * SCALE

    def by_object(self, h):
        return h * self.world.settings.gain + self.world.options["shift"]

    def by_branch(self, h):
        return h.tanh() if self.gain > 1 and "calm" not in self.world.tags else h.relu()

    def by_mask(self, h):
        return h * tg.tensor(self.world.mask[: h.shape[-1]]) + self.world.weights * h

    def by_buffer(self, h):
        return h * self.kept

    def by_table(self, h):
        if self.table is None:
            self.table = tg.cos(tg.arange(WIDTH) * 0.3)
        return h + self.table

    def by_tables(self, h):
        n = h.shape[0]
        if n not in self.tables:
            self.tables[n] = np.sin(np.arange(n, dtype=np.float32))[:, None]
        return h + tg.tensor(self.tables[n])

    def counted(self, h):
        self.count += 1
        return h

    def averaged(self, h):
        self.mean = 0.5 * self.mean + 0.5 * h.detach().mean()
        return h - self.mean

    def logged(self, h):
        self.log.append(h.detach().sum())
        return h

    def dropped(self, h):
        return self.drop(h)

    def written(self, h):
        out = h * 1
        out[:, 0] = 0.0
        return out

    def asked(self, h):
        return h * 2 if isinstance(h, tg.Tensor) and h.requires_grad else h

    def looked_into(self, h):
        return h / 2 if h.detach().abs().max().item() > 1 else h


PURE = ("by_number", "by_class", "by_global", "by_object", "by_branch", "by_mask", "by_buffer", "by_table", "by_tables",
        "dropped", "written", "asked")
EFFECTS = ("counted", "averaged", "logged", "looked_into")


def set_global(value):
    global SCALE
    SCALE = value


ACTIONS = {
    "gain": lambda m, d: setattr(m, "gain", d.choice([0.5, 1.5, 2.0])),
    "class": lambda m, d: setattr(Person, "factor", d.choice([0.5, 0.25])),
    "global": lambda m, d: set_global(d.choice([1.0, 2.0])),
    "object": lambda m, d: setattr(m.world.settings, "gain", d.choice([1.0, 3.0])),
    "option": lambda m, d: m.world.options.update(shift=d.choice([0.0, 0.5])),
    "tag": lambda m, d: m.world.tags.symmetric_difference_update({"calm"}),
    "mask": lambda m, d: m.world.mask.__setitem__(int(d.integers(WIDTH)), int(d.integers(2))),
    "weights": lambda m, d: m.world.weights.__imul__(np.float32(1.25)),
    "buffer": lambda m, d: m.kept.mul_(1.5),
    "new buffer": lambda m, d: setattr(m, "kept", tg.full((WIDTH,), float(d.integers(3)))),
    "mode": lambda m, d: m.train(bool(d.integers(2))),
    "freeze": lambda m, d: m.a.weight.requires_grad_(bool(d.integers(2))),
    "part": lambda m, d: setattr(m, "b", tg.nn.Linear(WIDTH, WIDTH)),
    "tied": lambda m, d: setattr(m.b, "weight", m.a.weight),
    "data": lambda m, d: setattr(m.a.bias, "data", tg.ones(WIDTH)),
    "weight": lambda m, d: m.a.bias.detach().mul_(0.5),
    "no table": lambda m, d: setattr(m, "table", None),
    "quirk": lambda m, d: m.quirks.reverse(),
    "hook": lambda m, d: m.a.bias.register_hook(lambda g: g * 2) and None,
    "nothing": lambda m, d: None,
}


def drawn(seed, effects):
    """(the model, its calls): each call is (action, rows, seed of the rows)."""
    d = np.random.default_rng(seed)
    known = PURE + (EFFECTS if effects else ())
    quirks = [str(q) for q in d.choice(known, int(d.integers(1, 6)), replace=False)]
    world = types.SimpleNamespace(settings=types.SimpleNamespace(gain=1.0), options={"shift": 0.0}, tags=set(),
                                  mask=np.array([1, 0, 1, 1]), weights=np.ones(WIDTH, np.float32))
    actions = [str(a) for a in d.choice([*ACTIONS, *["nothing"] * 15], 12)]
    return quirks, world, [(a, int(d.choice([2, 3, 3, 3])), int(d.integers(2**31))) for a in actions]


def shown(value):
    """A value as bits."""
    if isinstance(value, tg.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return shown(list(value.values()))
    return [shown(v) for v in value] if isinstance(value, list) else value


def state_of(m):
    """All that somebody could see of it."""
    return [*map(shown, m.parameters()), *[shown(p.grad) for p in m.parameters()], shown(m.kept), shown(m.table), m.count,
            shown(m.mean), shown(m.log), shown(list(m.tables.values())), shown(m.world.weights)]


def run(seed, kind, wrap, effects=False):
    """What each call gives, and the state after each. kind: "values", "backward inside", "backward outside", "trainer"."""
    set_global(1.0)
    Person.factor = 0.5
    tg.manual_seed(seed)
    quirks, world, calls = drawn(seed, effects)
    m, notes = Person(quirks, world), []
    step, finish = stepping(m, kind, wrap)
    for action, rows, at in calls:
        ACTIONS[action](m, np.random.default_rng(at))
        x = np.random.default_rng(at).standard_normal((rows, WIDTH)).astype(np.float32)
        notes.append((action, shown(step(x)), state_of(m)))
    finish()
    return notes


def stepping(m, kind, wrap):
    optimizer = AdamW(m.parameters(), lr=0.01)
    if kind == "trainer":
        trainer = Trainer(m, optimizer, capture=wrap is not None)
        return lambda x: trainer.step((x * 4).astype(np.int64) + 9, (x * 3).astype(np.int64) + 9), trainer.close
    wrap = wrap or (lambda f: f)
    if kind == "values":
        f = wrap(m.forward)

        def step(x):
            with tg.no_grad():
                return f(x)
    elif kind == "backward inside":
        def inside(x):
            m.zero_grad()
            loss = (m(x) ** 2).mean()
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

        f = wrap(inside)

        def step(x):
            loss = f(x)
            optimizer.step()
            return loss
    else:
        f = wrap(lambda x: (m(x) ** 2).mean())

        def step(x):
            optimizer.zero_grad()
            loss = f(x)
            loss.backward()
            optimizer.step()
            return loss
    return step, lambda: None
