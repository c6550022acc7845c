"""The library's generator, whatever draws from it, and that nothing else decides what is drawn."""

import copy
import importlib
import inspect
import math
import pickle
import pkgutil
import threading

import numpy as np
import pytest
import torch

import tinygrad_llm as tg
from tinygrad_llm import Tensor, Transformer, TransformerConfig, nn
from tinygrad_llm.autograd import checkpoint
from tinygrad_llm.capture import compile
from tinygrad_llm.data import BatchLoader, PairDataset
from tinygrad_llm.generation import generate
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer

F = nn.functional
HALF = tg.full((64,), 0.5)
HEADS = tg.ones(1, 2, 8, 4)
SMALL = Transformer(TransformerConfig(97, 8, 8, 2, 1))

# What draws: every name in the library that takes `generator`, and a call of it
DRAWS = {
    "rand": lambda g: tg.rand(64, generator=g), "randn": lambda g: tg.randn(64, generator=g),
    "randint": lambda g: tg.randint(1000, (64,), generator=g), "randperm": lambda g: tg.randperm(64, generator=g),
    "rand_like": lambda g: tg.rand_like(HALF, generator=g), "randn_like": lambda g: tg.randn_like(HALF, generator=g),
    "randint_like": lambda g: tg.randint_like(HALF, 1000, generator=g),
    "bernoulli": lambda g: tg.bernoulli(HALF, generator=g), "normal": lambda g: tg.normal(0.0, 1.0, (64,), generator=g),
    "uniform_": lambda g: tg.zeros(64).uniform_(generator=g), "normal_": lambda g: tg.zeros(64).normal_(generator=g),
    "bernoulli_": lambda g: tg.zeros(64).bernoulli_(generator=g), "random_": lambda g: tg.zeros(64).random_(generator=g),
    "dropout": lambda g: F.dropout(HALF, generator=g),
    "scaled_dot_product_attention": lambda g: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, dropout_p=0.5, generator=g),
    "attention_qkvpacked": lambda g: F.attention_qkvpacked(tg.ones(1, 8, 3, 2, 4), 0.5, generator=g),
    "Linear": lambda g: nn.Linear(8, 8, generator=g).weight, "Embedding": lambda g: nn.Embedding(8, 8, generator=g).weight,
    "Dropout": lambda g: nn.Dropout(generator=g)(HALF),
    "generate": lambda g: tg.tensor(list(generate(SMALL, [1], 30, temperature=1.0, generator=g))),
    **{f"init.{name}": lambda g, name=name: getattr(nn.init, name)(tg.zeros(8, 8), generator=g)
       for name in ("uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
                    "kaiming_normal_")},
}
# Those whose answer is a verdict, or part of something that is given its generator
NOT_DRAWS = {
    "gradcheck", "gradgradcheck", "check_gradients", "check_second_gradients", "Attention", "FeedForward", "Block", "chosen",
}


def takes_a_generator(value):
    try:
        return callable(value) and "generator" in inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False


def public_names():
    """(name, value) of all that is public in the library's modules, and of Tensor's methods."""
    for found in pkgutil.walk_packages(tg.__path__, "tinygrad_llm."):
        if found.name.split(".")[1] not in ("cli", "__main__"):
            module = importlib.import_module(found.name)
            prefix = "init." if module is nn.init else ""
            yield from ((prefix + n, v) for n, v in vars(module).items()
                        if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__)
    yield from vars(Tensor).items()


def test_everything_that_takes_a_generator_is_tested_here():
    found = {name for name, value in public_names() if takes_a_generator(value)}
    assert found - NOT_DRAWS == set(DRAWS)


@pytest.mark.parametrize("name", DRAWS)
def test_no_two_draws_are_equal_unless_they_were_seeded_so(name):
    draw = DRAWS[name]
    first, second = draw(None).tolist(), draw(None).tolist()
    assert first != second
    tg.manual_seed(5)
    seeded = [draw(None).tolist() for _ in range(3)]
    tg.manual_seed(5)
    assert [draw(None).tolist() for _ in range(3)] == seeded
    assert seeded[0] != seeded[1] != seeded[2]
    before = tg.get_rng_state()
    assert draw(np.random.default_rng(5)).tolist() == seeded[0] != draw(np.random.default_rng(6)).tolist()
    assert tg.get_rng_state() == before  # another generator leaves the library's alone
    with pytest.raises(TypeError, match=r"generator: got int, expected a numpy\.random\.Generator or None"):
        draw(3)


def test_generator_is_never_given_by_position():
    for name, value in public_names():
        if takes_a_generator(value) and name in DRAWS and not name.startswith("init."):  # where torch's is
            assert inspect.signature(value).parameters["generator"].kind is inspect.Parameter.KEYWORD_ONLY, name


# The generator ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "initial"), [
    (0, 0), (-1, 2**64 - 1), (-(2**63), 2**63), (2**64 - 1, 2**64 - 1), (1.7, 1), ("5", 5), (True, 1), (np.int64(3), 3),
])
def test_seeds_are_torchs(seed, initial):
    torch.manual_seed(seed)
    assert tg.manual_seed(seed) is tg.default_generator
    assert tg.initial_seed() == initial == torch.initial_seed()
    assert tg.rand(3).tolist() == np.random.default_rng(initial).random(3, np.float32).tolist()


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_refused_and_nothing_changes(seed):
    before = tg.get_rng_state()
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=r"^manual_seed: seed: got -?\d+, expected"):
            tg.manual_seed(seed)
    for none, wrong in ((None, TypeError), (float("nan"), ValueError), (np.inf, ValueError), ("a", ValueError)):
        with pytest.raises(wrong, match=f"^manual_seed: seed: got {none!r}, expected an integer"):
            tg.manual_seed(none)
    assert tg.get_rng_state() == before


def test_a_process_that_never_seeds_starts_from_one_seed():
    assert tg.Generator().initial_seed() == torch.Generator().initial_seed() == 67280421310721


def test_seed_is_another_each_time():
    assert tg.seed() == tg.initial_seed() != tg.seed()


def test_a_state_is_plain_values_and_goes_on_where_it_was_asked():
    tg.manual_seed(9)
    tg.rand(3)
    state = tg.get_rng_state()
    drawn = [tg.rand(5).tolist(), nn.Linear(2, 2).weight.tolist()]
    tg.manual_seed(1)
    tg.set_rng_state(pickle.loads(pickle.dumps(state)))
    assert [tg.rand(5).tolist(), nn.Linear(2, 2).weight.tolist()] == drawn
    assert tg.initial_seed() == 9
    with pytest.raises(TypeError, match=r"^set_state: new_state: got int"):
        tg.set_rng_state(3)


def test_a_generator_is_numpys_and_torchs():
    mine = tg.Generator().manual_seed(4)
    assert tg.rand(2, generator=mine).tolist() == np.random.default_rng(4).random(2, np.float32).tolist()
    for twin in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert (type(twin), twin.initial_seed(), twin.get_state()) == (tg.Generator, 4, mine.get_state())
    assert copy.deepcopy(tg.default_generator) is pickle.loads(pickle.dumps(tg.default_generator)) is tg.default_generator
    with pytest.raises(ValueError, match="device: got 'cuda'"):
        tg.Generator("cuda")


def test_threads_share_it_without_drawing_a_number_twice():
    tg.manual_seed(2)
    blocks = []

    def work():
        for _ in range(200):
            blocks.append(tg.rand(50, dtype=np.float64).numpy())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tg.manual_seed(2)
    alone = [tg.rand(50, dtype=np.float64).numpy() for _ in range(800)]
    assert sorted(b.tobytes() for b in blocks) == sorted(b.tobytes() for b in alone)


def test_two_layers_differ_and_copies_of_a_dropout_go_on_from_one_generator():
    assert nn.Linear(3, 3).weight.tolist() != nn.Linear(3, 3).weight.tolist()
    one = nn.Dropout()
    other = copy.deepcopy(one)
    assert one(HALF).tolist() != other(HALF).tolist()


# Values -------------------------------------------------------------------------------------------------------------------

SHAPES = {
    "rand(2, 3)": lambda m: m.rand(2, 3), "rand((2, 3))": lambda m: m.rand((2, 3)), "rand(size=)": lambda m: m.rand(size=(2,)),
    "rand(())": lambda m: m.rand(()), "rand(0, 2)": lambda m: m.rand(0, 2), "randn([2])": lambda m: m.randn([2]),
    "rand float64": lambda m: m.rand(2, dtype=m.float64), "randn float16": lambda m: m.randn(2, dtype=m.float16),
    "rand requires_grad": lambda m: m.rand(2, requires_grad=True),
    "randint(high, size)": lambda m: m.randint(3, (4,)), "randint(low, high, size)": lambda m: m.randint(1, 3, (4,)),
    "randint by name": lambda m: m.randint(high=3, size=(2,)),
    "randint float": lambda m: m.randint(0, 5, (2,), dtype=m.float32),
    "randint uint8": lambda m: m.randint(0, 256, (2,), dtype=m.uint8), "randperm": lambda m: m.randperm(5),
    "randperm 0": lambda m: m.randperm(0), "randperm int32": lambda m: m.randperm(3, dtype=m.int32),
    "bernoulli": lambda m: m.bernoulli(m.full((3,), 0.5)), "bernoulli p": lambda m: m.bernoulli(m.ones(3, dtype=m.int64), 0.3),
    "normal size": lambda m: m.normal(0.0, 1.0, (2,)), "normal by name": lambda m: m.normal(mean=0, std=1, size=(2,)),
    "normal mean": lambda m: m.normal(m.zeros(2)), "normal std": lambda m: m.normal(2.0, m.ones(3)),
    "normal both": lambda m: m.normal(m.zeros(2, 1, dtype=m.float64), m.ones(3)),
    "rand_like": lambda m: m.rand_like(m.zeros(2, 3, dtype=m.float64)), "randn_like": lambda m: m.randn_like(m.zeros(2)),
    "randint_like": lambda m: m.randint_like(m.zeros(2), 3), "randint_like 3": lambda m: m.randint_like(m.zeros(2), 1, 3),
    "uniform_": lambda m: m.zeros(3).uniform_(-1, 1), "uniform_ by name": lambda m: m.zeros(3).uniform_(**{"from": 2, "to": 3}),
    "normal_": lambda m: m.zeros(3).normal_(mean=1, std=0), "bernoulli_": lambda m: m.zeros(3, dtype=m.int64).bernoulli_(),
    "bernoulli_ p": lambda m: m.zeros(2, 3).bernoulli_(m.tensor([0.0, 1.0, 1.0])), "random_": lambda m: m.zeros(3).random_(),
    "random_(to)": lambda m: m.zeros(3).random_(3), "random_(from, to)": lambda m: m.zeros(3).random_(1, 3),
    "random_ int64": lambda m: m.zeros(3, dtype=m.int64).random_(),
    "random_ bool": lambda m: m.zeros(9, dtype=m.bool).random_(),
}


class Ours:
    """tinygrad_llm with torch's names of dtypes."""

    float16, float32, float64, int32, int64, uint8, bool = (
        np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)

    def __getattr__(self, name):
        return getattr(tg, name)


@pytest.mark.parametrize("call", SHAPES.values(), ids=SHAPES)
def test_shapes_and_dtypes_are_torchs(call):
    ours, theirs = call(Ours()), call(torch)
    assert (ours.shape, str(ours.dtype), ours.requires_grad) == (
        tuple(theirs.shape), str(theirs.dtype).removeprefix("torch."), theirs.requires_grad)


REFUSED = {
    "randint empty": lambda m: m.randint(5, 5, (2,)), "randint float": lambda m: m.randint(2.5, (2,)),
    "randint uint8": lambda m: m.randint(0, 300, (2,), dtype=m.uint8), "randint no size": lambda m: m.randint(5),
    "randperm": lambda m: m.randperm(-1), "randperm float": lambda m: m.randperm(2.0),
    "bernoulli 2": lambda m: m.bernoulli(m.tensor([2.0])), "bernoulli nan": lambda m: m.bernoulli(m.tensor([math.nan])),
    "bernoulli int": lambda m: m.bernoulli(m.tensor([1, 0])), "bernoulli p": lambda m: m.bernoulli(m.ones(3), 1.3),
    "bernoulli number": lambda m: m.bernoulli(0.5), "normal none": lambda m: m.normal(0.0, 1.0),
    "normal std": lambda m: m.normal(m.zeros(2), -1.0), "normal stds": lambda m: m.normal(m.zeros(2), m.tensor([-1.0, 1.0])),
    "normal std size": lambda m: m.normal(0.0, -1.0, (2,)), "normal int": lambda m: m.normal(m.zeros(2, dtype=m.int64), 1.0),
    "normal size=2": lambda m: m.normal(0.0, 1.0, size=2), "rand int": lambda m: m.rand(2, dtype=m.int64),
    "rand none": lambda m: m.rand(), "rand -1": lambda m: m.rand(-1), "rand float": lambda m: m.rand(2.0),
    "rand_like int": lambda m: m.rand_like(m.zeros(2, dtype=m.int64)), "rand_like list": lambda m: m.rand_like([1.0]),
    "uniform_": lambda m: m.zeros(2).uniform_(2, 1), "uniform_ nan": lambda m: m.zeros(2).uniform_(math.nan),
    "uniform_ int": lambda m: m.zeros(2, dtype=m.int64).uniform_(), "normal_ std": lambda m: m.zeros(2).normal_(0, -1),
    "normal_ int": lambda m: m.zeros(2, dtype=m.int64).normal_(), "bernoulli_": lambda m: m.zeros(2).bernoulli_(2),
    "random_": lambda m: m.zeros(2).random_(3, 2), "random_ 0": lambda m: m.zeros(2).random_(0),
    "random_ uint8": lambda m: m.zeros(2, dtype=m.uint8).random_(0, 300), "random_ float": lambda m: m.zeros(2).random_(2.5),
    "a leaf": lambda m: m.ones(2, requires_grad=True).normal_(), "repeated": lambda m: m.ones(2, 1).expand(2, 3).uniform_(),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_torch_refuses_is_refused_before_anything_is_drawn(call):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
        call(torch)
    before = tg.get_rng_state()
    with pytest.raises((RuntimeError, TypeError, ValueError)) as ours:
        call(Ours())
    kind = RuntimeError if issubclass(theirs.type, RuntimeError) else theirs.type
    assert issubclass(ours.type, kind), (ours.type, theirs.type)
    assert tg.get_rng_state() == before


def moments(draw):
    """Mean and standard deviation of 40,000 drawn numbers."""
    tg.manual_seed(11)
    values = draw().numpy().astype(np.float64)
    return values.mean(), values.std()


N = 40_000
DISTRIBUTIONS = {
    "rand": (lambda: tg.rand(N), 0.5, 12**-0.5), "rand float16": (lambda: tg.rand(N, dtype=np.float16), 0.5, 12**-0.5),
    "randn": (lambda: tg.randn(N), 0, 1), "randn float64": (lambda: tg.randn(N, dtype=np.float64), 0, 1),
    "uniform_": (lambda: tg.zeros(N).uniform_(-2, 4), 1, 6 / 12**0.5), "normal_": (lambda: tg.zeros(N).normal_(3, 2), 3, 2),
    "normal": (lambda: tg.normal(tg.full((N,), 3.0), tg.full((N,), 2.0)), 3, 2),
    "normal number": (lambda: tg.normal(-1.0, 0.5, (N,)), -1, 0.5),
    "randint": (lambda: tg.randint(2, 12, (N,)), 6.5, (99 / 12) ** 0.5),
    "random_": (lambda: tg.zeros(N).random_(10), 4.5, (99 / 12) ** 0.5),
    "bernoulli": (lambda: tg.bernoulli(tg.full((N,), 0.2)), 0.2, 0.4),
    "bernoulli_": (lambda: tg.zeros(N).bernoulli_(0.9), 0.9, 0.3),
    "trunc_normal_": (lambda: nn.init.trunc_normal_(tg.zeros(N), 1, 2, -3, 5), 1, 1.759252),
    "trunc_normal_ narrow": (lambda: nn.init.trunc_normal_(tg.zeros(N, dtype=np.float64), 0, 1, 0.1, 0.1001), 0.10005,
                             1e-4 / 12**0.5),
    "trunc_normal_ tail": (lambda: nn.init.trunc_normal_(tg.zeros(N), 0, 1, 4, math.inf), 4.225606, 0.216039),
}


@pytest.mark.parametrize(("draw", "mean", "std"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.filterwarnings("ignore:trunc_normal_")
def test_distributions(draw, mean, std):
    found = moments(draw)
    assert abs(found[0] - mean) < 5 * std / N**0.5
    assert abs(found[1] / std - 1) < 0.02


def test_ranges_hold_their_ends_also_after_rounding():
    x = tg.zeros(200_000).uniform_(1, 1 + 2**-23)  # two float32 numbers, the second of which is not in [from, to)
    assert set(x.tolist()) == {1.0}
    assert tg.rand(200_000, dtype=np.float16).numpy().max() < 1
    assert set(tg.randint(3, (300,)).tolist()) == {0, 1, 2}
    assert sorted(tg.randperm(50).tolist()) == list(range(50))
    assert tg.bernoulli(tg.tensor([0.0, 1.0] * 500)).tolist() == [0, 1] * 500
    assert set(tg.zeros(200, dtype=np.bool_).random_().tolist()) == {True, False}
    with pytest.warns(UserWarning, match=r"^randint: got bounds 0 and 33554432"):
        tg.randint(0, 2**25, (2,), dtype=np.float32)


def test_what_is_drawn_has_no_slope():
    p = tg.full((3,), 0.5, requires_grad=True)
    mean, std = tg.zeros(3, requires_grad=True), tg.ones(3, requires_grad=True)
    for out, inputs in ((tg.bernoulli(p), [p]), (tg.normal(mean, std), [mean, std]), (tg.normal(mean, 2.0), [mean])):
        assert out.requires_grad
        out.sum().backward()
        for x in inputs:
            assert x.grad.tolist() == [0, 0, 0]
            x.grad = None


@pytest.mark.parametrize("name", ["uniform_", "normal_", "bernoulli_", "random_"])
def test_filling_is_a_write(name):
    w = tg.ones(4, requires_grad=True)
    x = w * 2
    y = w * 3
    square = y * y
    getattr(x[1:3], name)()
    assert x.requires_grad
    (x * 3).sum().backward()
    assert w.grad.tolist() == [6, 0, 0, 6]
    getattr(y, name)()
    with pytest.raises(tg.AutogradError, match="modified in place"):
        square.sum().backward()
    with tg.no_grad():
        assert getattr(w, name)() is w


# nn.init ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arguments"), [
    ("xavier_uniform_", ()), ("xavier_uniform_", (2.0,)), ("xavier_normal_", (0.5,)), ("kaiming_uniform_", ()),
    ("kaiming_uniform_", (math.sqrt(5),)), ("kaiming_uniform_", (0, "fan_out", "relu")), ("kaiming_normal_", (0.2, "fan_in")),
    ("kaiming_normal_", (0, "fan_in", "tanh")), ("uniform_", (-1, 3)), ("normal_", (1, 2)), ("trunc_normal_", ()),
])
def test_initial_values_are_spread_as_torchs(name, arguments):
    tg.manual_seed(0)
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(np.zeros((300, 20, 5), np.float32)), torch.nn.Parameter(torch.zeros(300, 20, 5))
    assert getattr(nn.init, name)(ours, *arguments) is ours
    getattr(torch.nn.init, name)(theirs, *arguments)
    a, b = ours.numpy(), theirs.detach().numpy()
    assert abs(a.std() / b.std() - 1) < 0.02
    assert abs(a.mean() - b.mean()) < 6 * b.std() * (2 / a.size) ** 0.5
    if "uniform" in name:
        assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=1e-3)
    assert ours.grad_fn is None


@pytest.mark.parametrize(("name", "param"), [("linear", None), ("sigmoid", None), ("tanh", None), ("relu", None),
                                             ("leaky_relu", None), ("leaky_relu", 0.2), ("selu", None)])
def test_gains_are_torchs(name, param):
    assert nn.init.calculate_gain(name, param) == pytest.approx(torch.nn.init.calculate_gain(name, param))


def test_constants_and_mistakes_of_init():
    w = nn.Parameter(np.zeros((2, 3)))
    assert nn.init.ones_(w).tolist() == [[1] * 3] * 2
    assert nn.init.constant_(w, 0.5).tolist() == [[0.5] * 3] * 2
    assert not nn.init.zeros_(w).numpy().any()
    for call in (lambda: nn.init.xavier_uniform_(tg.zeros(3)), lambda: nn.init.kaiming_uniform_(w, mode="fan"),
                 lambda: nn.init.calculate_gain("nothing"), lambda: nn.init.trunc_normal_(w, 0, 1, 2, 1),
                 lambda: nn.init.uniform_(w, 2, 1)):
        with pytest.raises(ValueError, match=": got "):
            call()


# What runs again ----------------------------------------------------------------------------------------------------------


def noisy(x):
    y = F.dropout(x, 0.5) + tg.rand(8) + tg.normal(x, tg.ones(8)) + tg.bernoulli(x / 8) + tg.randint(9, (8,))
    return F.dropout(y, 0.5) + tg.randn_like(x) + (x * 1).uniform_(0, 2) + tg.randperm(8) + tg.rand(8)


def test_a_program_draws_anew_at_each_run_also_after_it_was_seeded():
    x, fast = tg.tensor(np.arange(8.0, dtype=np.float32)), compile(noisy)
    for seed in (1, 2, 1):
        runs = []
        for function in (noisy, fast):
            tg.manual_seed(seed)
            runs.append([function(x).tolist() for _ in range(3)] + [tg.rand(1).item()])
        assert runs[0] == runs[1]
        assert runs[0][0] != runs[0][1] != runs[0][2]
    assert fast.reason is None


@pytest.mark.parametrize("preserve", [True, False])
def test_checkpoint_draws_again_what_it_drew_from_the_librarys_generator(preserve):
    drop, x = nn.Dropout(), tg.ones(200, requires_grad=True)
    tg.manual_seed(4)
    y = checkpoint(lambda x: drop(x * 3), x, preserve_rng_state=preserve, determinism_check="none")
    tg.rand(3)
    before = tg.get_rng_state()
    y.sum().backward()
    assert np.array_equal(x.grad.numpy(), y.numpy()) == preserve
    assert (tg.get_rng_state() == before) == preserve


class Noisy(nn.Module):
    """A model that draws from the library's generator."""

    def __init__(self):
        self.table, self.drop = nn.Embedding(11, 8), nn.Dropout(0.3)
        self.head = nn.Linear(8, 11)

    def loss(self, ids, targets):
        logits = self.head(self.drop(self.table(ids)))
        return F.cross_entropy(logits.reshape(-1, 11), np.asarray(targets).reshape(-1))


def batches():
    ids = np.arange(32).reshape(4, 8) % 11
    return ids, (ids + 1) % 11


@pytest.mark.parametrize("capture", [False, True])
def test_a_run_that_draws_from_the_librarys_generator_resumes_exactly(tmp_path, capture):
    def run(folder, stops):
        losses = []
        for i, stop in enumerate(stops):
            tg.manual_seed(3)
            model = Noisy()
            with Trainer(model, AdamW(model.parameters(), lr=0.01), capture=capture) as trainer:
                losses += trainer.fit(BatchLoader(PairDataset(*batches()), 2), stop, folder=folder, resume=i > 0,
                                      progress=False, plot=False).losses
        return losses

    assert run(tmp_path / "whole", [6]) == run(tmp_path / "parts", [2, 3, 6])


def test_workers_draw_other_masks_and_the_same_ones_again():
    def losses():
        tg.manual_seed(3)
        model = Noisy()
        with Trainer(model, AdamW(model.parameters(), lr=0.01), workers=2) as trainer:
            return [trainer.step(*batches()) for _ in range(3)]

    first = losses()
    assert first == losses()
    assert len(set(first)) == 3


def test_a_model_with_a_seed_does_not_look_at_the_librarys_generator():
    config = TransformerConfig(11, 8, 8, 2, 1, dropout=0.2)
    ids = np.arange(8)[None]
    tg.manual_seed(1)
    before = tg.get_rng_state()
    first = Transformer(config, seed=3)
    drawn = first(ids).tolist()
    assert tg.get_rng_state() == before
    tg.rand(7)
    second = Transformer(config, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert second(ids).tolist() == drawn
