"""Module, ModuleList and the layers beside torch's: what may be assigned, how parts are found, saved and copied."""

import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch

import tinygrad_llm as tg
from tinygrad_llm import nn
from tinygrad_llm.capture import compile
from tinygrad_llm.optim import AdamW, WarmupCosine
from tinygrad_llm.training import Trainer

# Each program is run with both libraries; what it gives, or the class of its error, must be the same.


class Both:
    """What a program needs of either library."""

    def __init__(self, m):
        self.m, self.nn = m, m.nn
        self.ones, self.tensor, self.no_grad = m.ones, m.tensor, m.no_grad

    def parameter(self, *shape):
        return self.nn.Parameter(self.ones(*shape))

    def module(self, **parts):
        class Net(self.nn.Module):
            def __init__(net):
                super().__init__()
                for name, value in parts.items():
                    setattr(net, name, value)

            def forward(net, x):
                return x

        return Net()


def outcome(program, m):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return program(Both(m))
    except Exception as error:
        return type(error)


def names(module):
    return [list(module.state_dict()), [n for n, _ in module.named_parameters()], [n for n, _ in module.named_modules()],
            [n for n, _ in module.named_buffers()]]


def assigned(name, value):
    """A program that assigns to a part of a module, and what the module has then."""

    def program(b):
        net = b.module(w=b.parameter(2), child=b.nn.Linear(2, 2), none=None)
        net.register_buffer("buffer", b.ones(3))
        net.register_buffer("passing", b.ones(1), persistent=False)
        net.register_parameter("bias", None)
        setattr(net, name, value(b))
        return names(net)

    return program


VALUES = {
    "None": lambda b: None, "a tensor": lambda b: b.ones(2), "a parameter": lambda b: b.parameter(3), "a number": lambda b: 3,
    "a module": lambda b: b.nn.Linear(1, 1), "a list": lambda b: [1], "an array": lambda b: np.ones(2),
}


def stack(b, n=3):
    return b.nn.ModuleList([b.nn.Linear(i + 1, 1, bias=False) for i in range(n)])


def widths(modules):
    return [m.weight.shape[1] for m in modules]


def changed(change):
    def program(b):
        found = change(b, modules := stack(b))
        found = widths(found) if isinstance(found, b.nn.ModuleList | list) else found
        return found if not isinstance(found, b.nn.Module) else widths([found]), widths(modules), list(modules.state_dict())

    return program


def line(b, width=9):
    return b.nn.Linear(width, 1, bias=False)


def shared(b):
    one = b.nn.Linear(2, 2)
    tied = b.module(a=one, b=b.nn.Linear(2, 2, bias=False), c=one, under=b.module(d=one))
    tied.b.weight = one.weight
    tied.register_buffer("t", one.weight.detach())
    return tied


def ways(b, net):
    return [[n for n, _ in found] for found in (
        net.named_modules(), net.named_modules(remove_duplicate=False), net.named_modules(prefix="x"),
        net.named_parameters(), net.named_parameters(remove_duplicate=False), net.named_parameters("p", False),
        net.named_parameters("p"), net.named_buffers(), net.named_buffers("q", recurse=False), net.named_children(),
    )] + [len(list(net.parameters())), len(list(net.parameters(recurse=False))), len(list(net.buffers())),
          len(list(net.buffers(False))), len(list(net.children())), len(list(net.modules())), list(net.state_dict()),
          list(net.state_dict(prefix="z."))]


def applied(b):
    calls, net = [], shared(b)
    numbers = {id(m): i for i, m in enumerate(net.modules())}
    assert net.apply(lambda m: calls.append(numbers[id(m)])) is net
    return calls


def registered(method, *arguments):
    def program(b):
        net = b.module(w=b.parameter(2), child=b.nn.Linear(2, 2), number=3)
        net.register_buffer("buffer", b.ones(3))
        getattr(net, method)(*[a(b) if callable(a) else a for a in arguments])
        return names(net)

    return program


def got(method, target):
    def program(b):
        net = b.module(child=b.module(w=b.parameter(2), number=3), w=b.parameter(1))
        return type(getattr(net, method)(target)).__name__

    return program


def persistent(b):
    net = b.module(w=b.parameter(2))
    net.register_buffer("kept", b.ones(2))
    net.register_buffer("passing", b.ones(2), persistent=False)
    net.register_buffer("none", None)
    before = names(net)
    net.passing = b.ones(3)
    net.none = b.ones(1)
    net.kept = None
    return before, names(net)


def reordered(b):
    net = b.module(a=b.parameter(1), b=b.ones(1), c=b.parameter(3), d=3, e=b.nn.Linear(1, 1))
    net.register_buffer("t", b.ones(1))
    net.b = b.parameter(2)
    net.a = b.parameter(4)
    net.d = b.nn.Linear(2, 2)
    net.t = b.parameter(1)
    return names(net)


def made_of(b):
    """Which memory parameters have, and what copies have of them."""
    t = b.ones(3, 2)
    p, table = b.nn.Parameter(t), b.nn.Embedding.from_pretrained(t)
    before = p._version
    t.mul_(2)
    p.no_decay = True
    (p * 2).sum().backward()
    twin, pickled = copy.deepcopy(p), pickle.loads(pickle.dumps(p))
    tied = b.nn.Linear(2, 3)
    tied.weight = b.nn.Parameter(table.weight.detach())
    with b.no_grad():
        tied.weight.add_(1)
    return [p._version - before, p.tolist(), p.requires_grad, table.weight.tolist(), t.tolist(), table.weight.requires_grad,
            [(type(q).__name__, q.grad, hasattr(q, "no_decay"), q.requires_grad, q.tolist()) for q in (twin, pickled)]]


def loaded(b):
    net = b.nn.Linear(2, 2)
    net.load_state_dict({"weight": b.tensor([[1, 2], [3, 4]]), "bias": b.tensor([True, False])})
    return str(net.weight.dtype)[-7:], net.weight.tolist(), net.bias.tolist()


def deleted(name):
    def program(b):
        net = b.module(w=b.parameter(2), child=b.nn.Linear(2, 2))
        net.register_buffer("buffer", b.ones(3))
        delattr(net, name)
        return names(net), hasattr(net, name)

    return program


def replaced(make, **values):
    def program(b):
        net = make(b)
        for name, several in values.items():
            for value in several:
                setattr(net, name, value(b))
        return names(net)

    return program


PROGRAMS = {
    **{f"{name} = {what}": assigned(name, value)
       for name in ("w", "bias", "child", "buffer", "passing", "none", "new", "child.weight")
       for what, value in VALUES.items()},
    **{f"del {name}": deleted(name) for name in ("w", "child", "buffer", "nothing")},
    "replaced twice": replaced(lambda b: b.nn.Linear(2, 2), bias=[lambda b: None, lambda b: b.ones(2)]),
    "replaced thrice": replaced(lambda b: b.nn.Linear(2, 2), bias=[lambda b: None, lambda b: None, lambda b: b.parameter(2)]),
    "no bias": replaced(lambda b: b.nn.Linear(2, 2, bias=False), bias=[lambda b: b.ones(2)]),
    "no bias, a parameter": replaced(lambda b: b.nn.Linear(2, 2, bias=False), bias=[lambda b: b.parameter(2)]),
    "no weight": lambda b: setattr(b.nn.LayerNorm(2, elementwise_affine=False), "weight", b.ones(2)),
    "reordered": reordered, "made of": made_of, "loaded": loaded,
    "shared": lambda b: ways(b, shared(b)), "apply": applied, "persistent": persistent,
    "no name": registered("register_parameter", "", None), "a dot": registered("register_buffer", "a.b", None),
    "a number": registered("add_module", 3, None), "a dot in a module": registered("register_module", "a.b", None),
    **{f"{method} {name} {what}": registered(method, name, value)
       for method in ("register_parameter", "register_buffer", "add_module", "register_module")
       for name in ("new", "w", "child", "buffer", "number", "forward")
       for what, value in VALUES.items() if what in ("None", "a tensor", "a module", "a number")},
    **{f"{method} {target}": got(method, target) for method in ("get_parameter", "get_submodule", "get_buffer")
       for target in ("", "w", "child", "child.w", "child.number", "nothing", "child.nothing", "nothing.w", "w.x", "training")},
    "get_buffer": lambda b: (lambda net: (net.register_buffer("t", b.ones(2)), list(net.get_buffer("t").shape))[1])(b.module()),
    "train(3)": lambda b: b.module().train(3), "forward": lambda b: b.nn.Module()(1),
    "list": lambda b: widths(stack(b)), "list of None": lambda b: len(b.nn.ModuleList([None])),
    "list()": lambda b: len(b.nn.ModuleList()),
    "list(3)": lambda b: b.nn.ModuleList(3), "list([3])": lambda b: b.nn.ModuleList([3]),
    **{f"list {what}": changed(change) for what, change in {
        "[0]": lambda b, s: s[0], "[-1]": lambda b, s: s[-1], "[3]": lambda b, s: s[3], "[-4]": lambda b, s: s[-4],
        "[np]": lambda b, s: s[np.int64(1)], "['0']": lambda b, s: s["0"], "[1:]": lambda b, s: s[1:],
        "[::-1]": lambda b, s: s[::-1],
        "[0] =": lambda b, s: s.__setitem__(0, line(b)), "[-1] =": lambda b, s: s.__setitem__(-1, line(b)),
        "[3] =": lambda b, s: s.__setitem__(3, line(b)), "[0] = 3": lambda b, s: s.__setitem__(0, 3),
        "[:] =": lambda b, s: s.__setitem__(slice(0, 1), [line(b)]), "del [0]": lambda b, s: s.__delitem__(0),
        "del [-1]": lambda b, s: s.__delitem__(-1), "del [:2]": lambda b, s: s.__delitem__(slice(0, 2)),
        "del [9]": lambda b, s: s.__delitem__(9), "append": lambda b, s: s.append(line(b)),
        "append 3": lambda b, s: s.append(3),
        "extend": lambda b, s: s.extend([line(b), line(b, 8)]), "extend 3": lambda b, s: s.extend(3),
        "extend a module": lambda b, s: s.extend(line(b)),
        "insert 0": lambda b, s: s.insert(0, line(b)), "insert 3": lambda b, s: s.insert(3, line(b)),
        "pop": lambda b, s: s.pop(-1),
        "pop 0": lambda b, s: s.pop(0), "+": lambda b, s: s.__add__([line(b)]), "+=": lambda b, s: s.__iadd__([line(b)]),
        "reversed": lambda b, s: list(reversed(s)), "in": lambda b, s: s[1] in s, "twice": lambda b, s: len(s.append(s[0])),
    }.items()},
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_gives_what_it_gives_in_torch(program):
    ours, theirs = outcome(program, tg), outcome(program, torch)
    if isinstance(theirs, type):
        assert isinstance(ours, type)
        assert issubclass(ours, theirs), (ours, theirs)
    else:
        assert ours == theirs


def test_a_wrong_part_is_named_and_the_module_is_as_it_was():
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"^Linear\.weight: got Tensor, expected a Parameter or None: cannot assign"):
        layer.weight = tg.ones(2, 2)
    assert [n for n, _ in layer.named_parameters()] == ["weight", "bias"]


def test_no_init_needs_to_run_before_parts_are_set():
    class Net(nn.Module):
        def __init__(self):
            self.w = nn.Parameter(np.ones(2))
            self.register_buffer("b", tg.zeros(1))
            super().__init__()

    assert [n for n, _ in Net().named_parameters()] == ["w"]
    assert list(Net().state_dict()) == ["w", "b"]


def test_a_module_that_contains_itself_is_walked_once():
    net = nn.ModuleList([nn.Linear(2, 2)])
    net.me, net[0].above = net, net
    calls = []
    net.apply(calls.append)
    assert len(calls) == 2
    assert [n for n, _ in net.named_modules()] == ["", "0"]
    assert sorted(net.state_dict()) == ["0.bias", "0.weight"]
    assert not net.eval()[0].training
    assert repr(net).count("Linear") == 1
    assert net.num_parameters() == 6
    twin = copy.deepcopy(net)
    assert twin.me is twin is twin[0].above


def test_buffers_are_saved_loaded_and_not_trained():
    def make():
        net = nn.Linear(2, 2)
        net.register_buffer("count", tg.tensor([0, 0]))
        net.register_buffer("mask", tg.tensor([True, False]), persistent=False)
        return net

    first, second = make(), make()
    first.count.add_(3)
    assert second.load_state_dict(first.state_dict()) == ([], [])
    assert second.count.tolist() == [3, 3]
    assert first.num_parameters() == 6
    assert "count" not in [n for n, _ in first.named_parameters()]
    with pytest.raises(TypeError, match=r"^load_state_dict: count: got dtype float64, expected one that int64 can hold"):
        second.load_state_dict({**first.state_dict(), "count": np.ones(2)})
    with pytest.raises(RuntimeError, match="missing names"):
        second.load_state_dict({})


@pytest.mark.parametrize("of", ["module", "optimizer"])
def test_zeros_are_written_into_the_gradients_that_there_are(of):
    layer = nn.Linear(2, 2)
    layer(tg.ones(1, 2)).sum().backward()
    held = layer.weight.grad
    (layer if of == "module" else AdamW(layer.parameters())).zero_grad(set_to_none=False)
    assert held is layer.weight.grad
    assert held.tolist() == [[0, 0], [0, 0]]
    layer.weight.grad = held = (layer.weight * 2).sum() * layer.weight  # of a graph
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad is held
    assert (layer.weight.grad.is_leaf, layer.weight.grad.requires_grad) == (True, False)


def test_parts_are_plain_attributes():
    """What a step reads costs what any attribute does."""
    layer = nn.Linear(2, 2)
    assert vars(layer)["weight"] is layer.weight
    assert "__getattr__" not in vars(nn.Module)


# Layers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Linear", "Embedding", "LayerNorm", "RMSNorm", "Dropout", "GELU", "ReLU", "SiLU"])
def test_arguments_have_torchs_names_places_and_defaults(name):
    ours, theirs = (inspect.signature(getattr(m.nn, name)).parameters for m in (tg, torch))
    given = [p for p in ours.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    wanted = [p for p in theirs.values() if p.name not in ("device", "dtype")]
    assert [(p.name, p.default) for p in given] == [(p.name, p.default) for p in wanted]
    with pytest.raises(TypeError, match="positional"):
        getattr(nn, name)(*[1] * len(given), "cpu")


def flags(m):
    b = Both(m)
    return [
        [n for n, _ in b.nn.LayerNorm(4, 1e-5, False).named_parameters()],
        [n for n, _ in b.nn.LayerNorm(4, 1e-5, True, False).named_parameters()],
        [n for n, _ in b.nn.LayerNorm(4, elementwise_affine=False).named_parameters()],
        [n for n, _ in b.nn.LayerNorm(4, bias=False).named_parameters()],
        [tuple(p.shape) for p in b.nn.LayerNorm((2, 3)).parameters()], tuple(b.nn.LayerNorm([2, 3]).normalized_shape),
        [tuple(p.shape) for p in b.nn.RMSNorm((2, 3)).parameters()], list(b.nn.RMSNorm(3, None, False).parameters()),
        b.nn.Embedding(3, 2, -1).padding_idx, b.nn.Embedding(3, 2, padding_idx=-1).weight[2].tolist(),
        b.nn.Embedding(3, 2, 0, _weight=b.ones(3, 2)).weight.tolist(), b.nn.Embedding(1, 2, _freeze=True).weight.requires_grad,
        b.nn.Embedding.from_pretrained(b.ones(3, 2)).weight.requires_grad, b.nn.Linear(0, 2).bias.tolist(),
        b.nn.Embedding.from_pretrained(b.ones(3, 2), freeze=False, padding_idx=1).padding_idx,
        (b.nn.Linear(2, 3).in_features, b.nn.Linear(2, 3).out_features, b.nn.Embedding(3, 2).num_embeddings),
    ]


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_what_layers_are_made_of_is_torchs():
    assert flags(tg) == flags(torch)


WRONG = {
    "padding": lambda b: b.nn.Embedding(3, 2, 5), "negative padding": lambda b: b.nn.Embedding(3, 2, -4),
    "table": lambda b: b.nn.Embedding(3, 2, _weight=b.ones(2, 2)),
    "no table": lambda b: b.nn.Embedding.from_pretrained(b.ones(2)),
    "float size": lambda b: b.nn.Linear(2.0, 2), "float shape": lambda b: b.nn.LayerNorm(2.0), "p": lambda b: b.nn.Dropout(1.5),
    "negative size": lambda b: b.nn.Linear(-1, 2),
}


@pytest.mark.parametrize("program", WRONG.values(), ids=WRONG)
def test_layers_that_cannot_be_are_refused_as_in_torch(program):
    theirs, ours = outcome(program, torch), outcome(program, tg)
    assert isinstance(theirs, type)
    assert issubclass(ours, theirs), (ours, theirs)


def test_sparse_gradients_are_refused():
    with pytest.raises(ValueError, match="sparse: got True, expected False"):
        nn.Embedding(3, 2, sparse=True)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"max_norm": 0.5, "norm_type": 1.0}, {"scale_grad_by_freq": True},
                                     {"padding_idx": 1}, {"padding_idx": -1, "scale_grad_by_freq": True}])
def test_embedding_options_are_torchs(options):
    table, ids = np.random.default_rng(0).standard_normal((4, 3)), np.array([[1, 1, 3], [0, 3, 3]])
    ours = nn.Embedding(4, 3, _weight=tg.tensor(table), **options)
    theirs = torch.nn.Embedding(4, 3, _weight=torch.tensor(table), **options)
    a, b = ours(ids), theirs(torch.tensor(ids))
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12)
    (a * a).sum().backward()
    (b * b).sum().backward()
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours.weight.detach().numpy(), theirs.weight.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_over_several_axes_is_torchs(affine, bias):
    x = np.random.default_rng(1).standard_normal((5, 2, 3))
    ours = nn.LayerNorm((2, 3), 1e-3, affine, bias, dtype=np.float64)
    theirs = torch.nn.LayerNorm((2, 3), 1e-3, affine, bias, dtype=torch.float64)
    np.testing.assert_allclose(ours(tg.tensor(x)).detach().numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-12)


def test_initial_values_can_be_drawn_again():
    for layer in (nn.Linear(3, 3), nn.Embedding(3, 3, padding_idx=0)):
        before = layer.weight.tolist()
        layer.reset_parameters()
        assert layer.weight.tolist() != before
    assert layer.weight[0].tolist() == [0, 0, 0]
    norm = nn.LayerNorm(2)
    norm.weight.detach().zero_()
    norm.reset_parameters()
    assert norm.weight.tolist() == [1, 1]


# Copies -------------------------------------------------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x)),
          "pickle 0": lambda x: pickle.loads(pickle.dumps(x, 0))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_what_shares_memory_shares_the_copys(copied):
    a = tg.tensor(np.arange(24.0).reshape(2, 3, 4))
    views = [a, a.transpose(0, 2), a[1, ::2], a[0, 0, 1], a.detach(), a.transpose(0, 1).reshape(-1)]
    found = copied(views)
    for old, new in zip(views, found):
        assert np.array_equal(old.numpy(), new.numpy())
        assert old.numpy().strides == new.numpy().strides
    found[1].mul_(2)
    assert all(np.array_equal(2 * old.numpy(), new.numpy()) for old, new in zip(views[:5], found[:5]))
    assert np.array_equal(views[5].numpy(), found[5].numpy())  # a copy of its own before, and after
    assert a.numpy()[1, 2, 3] == 23
    square = found[0].requires_grad_() * found[0]
    with tg.no_grad():
        found[4].zero_()  # seen by backward's checks, as before
    with pytest.raises(tg.AutogradError, match="modified in place"):
        square.sum().backward()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_every_layout_survives(copied):
    base = np.arange(30.0)
    for array in (base[::-1], base[3:9], base[::5], base.reshape(5, 6).T, np.asfortranarray(base.reshape(2, 3, 5)),
                  base.reshape(2, 3, 5).transpose(2, 0, 1).copy("K"), np.zeros((0, 3)), np.array(3.0), base.view(np.int64)[1:3],
                  np.frombuffer(b"12345678" * 3)[1:], np.ones((3, 1), np.float32), np.array([True, False])):
        tensor = tg.from_numpy(array)
        same = copied([tensor])[0]
        assert (same.shape, same.dtype, same.numpy().strides) == (tensor.shape, tensor.dtype, array.strides) or not array.size
        assert same.numpy().tobytes() == array.tobytes()
        same.zero_()
        assert not same.numpy().any()
        assert tensor.numpy().tobytes() == array.tobytes()
    wide = copied([tg.ones(3, 1).expand(3, 4)])[0]
    with pytest.raises(ValueError, match="repeats memory"):
        wide.zero_()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_parameters_stay_tied_and_keep_what_they_are(copied):
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    net[1].weight = net[0].weight
    net.register_buffer("alias", net[0].weight.detach(), persistent=False)
    net[0].bias.requires_grad_(False)
    handle = net[0].weight.register_hook(lambda g: g * 0)
    twin, alias = copied((net, net[0].bias.detach()))
    assert type(twin[0].weight) is nn.Parameter
    assert twin[0].weight is twin[1].weight
    assert [p.requires_grad for p in twin.parameters()] == [True, False, True]
    with tg.no_grad():
        twin[0].weight.fill_(7)
        twin[0].bias.fill_(5)
    assert twin.alias.tolist() == [[7, 7], [7, 7]]
    assert alias.tolist() == [5, 5]
    assert list(twin.state_dict()) == list(net.state_dict())
    with pytest.raises(TypeError, match="cannot assign it as buffer"):
        twin.alias = 3
    (twin[0].weight * 2).sum().backward()
    assert twin[0].weight.grad.tolist() == [[2, 2], [2, 2]]  # the hook stayed where it was
    handle.remove()


def test_a_deep_copy_of_a_leaf_has_the_gradient_and_its_aliases():
    p = tg.ones(2, requires_grad=True)
    (p * 3).sum().backward()
    twin, gradient, row = copy.deepcopy([p, p.grad, p.grad[:1]])
    assert twin.grad is gradient
    gradient.mul_(2)
    assert (row.tolist(), p.grad.tolist()) == ([6], [3, 3])


def test_a_parameter_copies_what_is_no_tensor_or_of_another_dtype():
    array, t = np.ones(2), tg.ones(2)
    p, q = nn.Parameter(array), nn.Parameter(t, dtype=np.float64)
    array.fill(5)
    t.fill_(5)
    assert (p.tolist(), q.tolist(), q.dtype) == ([1, 1], [1, 1], np.float64)
    assert nn.Parameter(nn.Parameter(t), False).requires_grad is False


def test_layers_take_torchs_device():
    for make in (lambda **o: nn.Linear(2, 2, **o), lambda **o: nn.Embedding(2, 2, **o), lambda **o: nn.LayerNorm(2, **o),
                 lambda **o: nn.RMSNorm(2, **o)):
        assert make(device="cpu").weight.dtype == make(device=None).weight.dtype == np.float32
        with pytest.raises(ValueError, match=r"^\w+: device: got 'cuda', expected 'cpu'"):
            make(device="cuda")


def test_copies_of_what_a_trainer_has_moved_share_memory_too():
    ids = np.arange(16).reshape(2, 8) % 11
    model = tg.Transformer(tg.TransformerConfig(11, 8, 8, 2, 1))
    with Trainer(model, optimizer := AdamW(model.parameters(), lr=0.1), capture=True) as trainer:
        trainer.step(ids, ids)
        twin, theirs, held = copy.deepcopy((model, optimizer, model.lm_head.weight.detach()))
        held.mul_(2)
        assert np.array_equal(held.numpy(), twin.lm_head.weight.numpy())
        held.mul_(0.5)
        with Trainer(twin, theirs, capture=True) as other:
            assert other.step(ids, ids) == trainer.step(ids, ids)
        assert all(np.array_equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values()))


def test_of_a_mapped_file_only_the_part_is_copied(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(100_000.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    row = copy.deepcopy(tg.from_numpy(mapped[5:8]))
    assert row.mul_(2).tolist() == [10, 12, 14]
    assert len(pickle.dumps(tg.from_numpy(mapped[5:8]))) < 1000


@pytest.mark.filterwarnings("ignore:step runs without capture")
def test_zeros_written_in_a_recorded_function_are_not_forgotten():
    layer = nn.Linear(2, 2)

    def step(x):
        layer.zero_grad(set_to_none=False)
        out = layer(x).sum()
        out.backward()
        return out

    fast = compile(step)
    for _ in range(3):
        fast(np.ones((1, 2), np.float32))
        assert layer.weight.grad.tolist() == [[1, 1], [1, 1]]


def trained(model, optimizer, schedule, factors):
    for factor in factors:
        optimizer.zero_grad()
        (model(tg.ones(1, 2)) * factor).sum().backward()
        optimizer.step()
        schedule.step()
    return [p.tolist() for p in model.parameters()], optimizer.state_dict(), schedule.state_dict()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copied_training_goes_on_as_the_original(copied, amsgrad):
    model = nn.Linear(2, 2)
    optimizer = AdamW([{"params": model.weight, "lr": 0.1}, {"params": [model.bias]}], amsgrad=amsgrad)
    schedule = WarmupCosine(optimizer, 2, 9)
    trained(model, optimizer, schedule, [1.0, -2.0])
    other, theirs, plan = copied((model, optimizer, schedule))
    assert plan.optimizer is theirs
    assert theirs.param_groups[0]["params"][0] is other.weight
    before = optimizer.state_dict()["state"][0]["exp_avg"].tobytes()
    after = trained(other, theirs, plan, [-3.0, 0.5])
    assert optimizer.state_dict()["state"][0]["exp_avg"].tobytes() == before  # the copy's moments are its own
    assert str(after) == str(trained(model, optimizer, schedule, [-3.0, 0.5]))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_an_optimizer_copied_alone_has_parameters_of_its_own(copied):
    model = nn.Linear(2, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    trained(model, optimizer, WarmupCosine(optimizer, 2, 9), [1.0])
    twin = copied(optimizer)
    assert str(twin.state_dict()) == str(optimizer.state_dict())
    (twin.param_groups[0]["params"][0] * 2).sum().backward()
    values = model.weight.tolist()
    twin.step()
    assert model.weight.tolist() == values
