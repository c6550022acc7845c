"""Training by several processes: the steps are those of one process, and whatever ends, nothing is left behind."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from multiprocessing import active_children, get_all_start_methods, parent_process
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from tinygrad_llm import Transformer, TransformerConfig, manual_seed
from tinygrad_llm.checkpoint import CheckpointFolder
from tinygrad_llm.data import BatchLoader, CharTokenizer, SequenceDataset
from tinygrad_llm.optim import AdamW, WarmupCosine, decay_groups
from tinygrad_llm.training import Trainer, WorkerError, cores, memory
from tinygrad_llm.training import trainer as trainer_module
from tinygrad_llm.training.flat import Flat, Layout
from tinygrad_llm.training.workers import ChildTraceback, Team

VOCAB, LENGTH = 11, 6
FORK = pytest.mark.skipif("fork" not in get_all_start_methods(), reason="needs fork, or the children would not see the patch")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
MODELS = {
    "plain": {},
    "tied, learned, gelu": {"tie_embeddings": True, "positions": "learned", "activation": "gelu_tanh"},
    "post-norm, no biases": {"norm_position": "post", "bias": False},
}


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    gc.collect()
    assert not active_children()


def batch(rows=5, seed=0, ignored=0.0):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, VOCAB, (2, rows, LENGTH))
    targets[rng.random(targets.shape) < ignored] = -100
    return ids, targets


def make(workers, dtype=np.float64, optimizer=lambda model: AdamW(model.parameters(), lr=1e-2), kind=Transformer, **options):
    config = {name: options.pop(name) for name in list(options) if name in TransformerConfig.__dataclass_fields__}
    model = kind(TransformerConfig(VOCAB, LENGTH, 8, 2, 1, **config), seed=1, dtype=dtype)
    return Trainer(model, optimizer(model), workers=workers, **options)


def take(trainer, steps=4, rows=5, ignored=0.2):
    """Losses and norms of some steps, and the weights after them; the trainer is left open."""
    found = [(trainer.step(*batch(rows, seed, ignored)), trainer.grad_norm) for seed in range(steps)]
    return np.array(found), trainer.model.state_dict()


def taken(*arguments, steps=4, rows=5, ignored=0.2, **options):
    with make(*arguments, **options) as trainer:
        return take(trainer, steps, rows, ignored)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-9)
    for name, value in theirs[1].items():
        np.testing.assert_allclose(ours[1][name], value, rtol=1e-6, atol=1e-9, err_msg=name)


def assert_same_bits(ours, theirs):
    assert np.array_equal(ours[0], theirs[0])
    for name, value in theirs[1].items():
        assert ours[1][name].tobytes() == value.tobytes(), name


# The same steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_go_where_one_process_goes(model, workers):
    options = {**MODELS[model], "grad_clip": 0.5}
    assert_close(taken(workers, **options), taken(1, **options))


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("accumulate", [1, 2, 50])
def test_any_number_of_rows_is_shared(rows, accumulate):
    assert_close(taken(3, rows=rows, accumulate=accumulate), taken(1, rows=rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_workers_add_what_two_parts_add(dtype):
    ours, theirs = taken(2, dtype), taken(1, dtype, accumulate=2)
    assert np.array_equal(ours[0][:, 0], theirs[0][:, 0])  # the norm is a sum in another order
    assert_same_bits((ours[0][:, 0], ours[1]), (theirs[0][:, 0], theirs[1]))


@pytest.mark.parametrize("start", [0, 3])
def test_rows_without_a_counted_target_weigh_nothing(start):
    ids, targets = batch(6)
    targets[start : start + 3] = -100  # all that one of two workers has
    weights = []
    for workers in (1, 2):
        with make(workers) as trainer:
            losses = [trainer.step(ids, targets) for _ in range(3)]
            weights.append((np.array(losses), trainer.model.state_dict()))
    assert_close(weights[1], weights[0])


def groups(model):
    wide, narrow = decay_groups(model, 0.1)
    first, *rest = wide["params"]
    return AdamW([{"params": [first], "lr": 0.1, "eps": 0.0}, {"params": rest, "weight_decay": 0.3, "amsgrad": True},
                  {**narrow, "betas": (0.5, 0.9), "maximize": True}], lr=1e-3)  # fmt: skip


def test_groups_keep_their_settings():
    with np.errstate(invalid="ignore"):  # eps = 0, and tokens that do not occur
        assert_close(taken(2, optimizer=groups, ignored=0.0, rows=40), taken(1, optimizer=groups, ignored=0.0, rows=40))


def test_frozen_parameters_stay_and_those_of_no_group_too():
    def without_the_head(model):
        model.blocks[0].ffn.requires_grad_(False)
        return AdamW([p for name, p in model.named_parameters() if name != "lm_head.weight"], lr=1e-2)

    ours = taken(2, optimizer=without_the_head)
    assert_close(ours, taken(1, optimizer=without_the_head))
    before = make(1).model.state_dict()
    for name in ("lm_head.weight", "blocks.0.ffn.up_proj.weight"):
        assert np.array_equal(ours[1][name], before[name])


def test_what_is_frozen_or_thawed_on_the_way_is_so_in_every_process():
    weights = []
    for workers in (1, 2):
        with make(workers) as trainer:
            for seed in range(4):
                trainer.model.tok_embed.requires_grad_(seed % 2 == 0)
                trainer.step(*batch(seed=seed))
            weights.append((np.zeros(1), trainer.model.state_dict()))
            steps = {i: state["step"] for i, state in trainer.optimizer.state_dict()["state"].items()}
    assert_close(weights[1], weights[0])
    assert steps[0] == 2
    assert steps[1] == 4


def test_a_team_of_one_takes_the_optimizers_steps_bit_by_bit():
    plain = taken(1, np.float32, optimizer=groups, dropout=0.2, ignored=0.0, rows=40)
    trainer = make(1, np.float32, optimizer=groups, dropout=0.2)
    team, found = Team(trainer.model, trainer.optimizer, 1, 40 * LENGTH), []
    for seed in range(4):
        ids, targets = batch(40, seed)
        with team.one_step(seed + 1):
            ((loss, weight),) = team.gradients(ids, targets)
            found.append((loss, team.norm()))
            team.update(found[-1][1], None)
        assert weight == 1
    team.close()
    assert_same_bits((np.array(found), trainer.model.state_dict()), plain)


# The same bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bits_depend_on_the_number_alone(workers):
    first, *others = [taken(workers, np.float32, dropout=0.3, start_method=method) for method in get_all_start_methods()]
    for other in [*others, taken(workers, np.float32, dropout=0.3)]:
        assert_same_bits(other, first)


def test_each_worker_draws_masks_of_its_own_and_each_step_others():
    with make(2, dropout=0.5) as trainer:
        ids, targets = batch(1)
        ids, targets = np.repeat(ids, 2, 0), np.repeat(targets, 2, 0)  # the same row for both
        trainer.step(ids, targets)
        team, losses = trainer._team, []
        for step in (2, 3):
            with team.one_step(step):
                losses += [loss for loss, _ in team.gradients(ids, targets)]
        assert len(set(losses)) == 4


TEXT = "she sells sea shells by the sea shore, he hears her cheer here; " * 12
TOKENIZER = CharTokenizer(TEXT)
IDS = TOKENIZER.encode(TEXT)


def fit(folder, steps, workers=2, change=lambda trainer: None, capture=False, **options):
    manual_seed(1)  # a checkpoint holds the state of the library's generator too
    model = Transformer(TransformerConfig(TOKENIZER.vocab_size, 8, 8, 2, 1, dropout=0.2), seed=3)
    optimizer = AdamW(decay_groups(model, 0.1), lr=1e-2)
    settings = {"evaluate_on": SequenceDataset(IDS[:100], 8), "eval_every": 4, "checkpoint_every": 3, "progress": False,
                "plot": False, "tokenizer": TOKENIZER, **options}  # fmt: skip
    schedule = WarmupCosine(optimizer, 3, 12)
    with Trainer(model, optimizer, schedule=schedule, grad_clip=1.0, accumulate=2, workers=workers, capture=capture) as trainer:
        change(trainer)
        return trainer.fit(BatchLoader(SequenceDataset(IDS, 8), 5, seed=5), steps, folder=folder, **settings)


def newest(folder):
    return CheckpointFolder(folder).steps()[-1].read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, 12)
    return newest(folder)


@pytest.mark.parametrize("workers", [2, "auto"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, whole, workers):
    fit(tmp_path, 5)
    fit(tmp_path, 12, workers, resume=True)
    assert newest(tmp_path) == whole


def test_a_run_of_two_does_not_go_on_with_another_number(tmp_path):
    fit(tmp_path, 2)
    with pytest.raises(ValueError, match=r"^resume: got workers = 3 \(saved: 2\)"):
        fit(tmp_path, 4, 3, resume=True)
    with pytest.raises(ValueError, match=r"^resume: got workers = None \(saved: 2\)"):
        fit(tmp_path, 4, 1, resume=True)


def test_a_fast_run_goes_on_fast_to_the_same_bits_and_any_other_run_with_a_program_or_without(tmp_path, whole):
    fit(tmp_path / "fast", 12, capture="fast")
    fit(tmp_path / "again", 5, capture="fast")
    with pytest.raises(ValueError, match=r"^resume: got capture = None \(saved: 'fast'\)"):
        fit(tmp_path / "again", 12, capture=True, resume=True)
    fit(tmp_path / "again", 12, capture="fast", resume=True)
    assert newest(tmp_path / "again") == newest(tmp_path / "fast")
    fit(tmp_path / "eager", 5)
    fit(tmp_path / "eager", 12, capture=True, resume=True)
    assert newest(tmp_path / "eager") == whole


# Weights and moments --------------------------------------------------------------------------------------------------


def test_weights_can_be_read_and_written_between_steps_and_are_their_own_after_close():
    trainer, alone = make(2), make(1)
    for each in (trainer, alone):
        take(each)
        zeros = {name: value * 0.5 for name, value in each.model.state_dict().items()}
        each.model.load_state_dict(zeros)
        take(each)
    trainer.close()
    assert_close((np.zeros(1), trainer.model.state_dict()), (np.zeros(1), alone.model.state_dict()))
    assert all(p.detach().numpy().flags.owndata for p in trainer.model.parameters())
    assert all(state["exp_avg"].flags.owndata for state in trainer.optimizer.state.values())
    before = trainer.model.state_dict()
    trainer.step(*batch())  # starts processes again
    assert not np.array_equal(trainer.model.state_dict()["lm_head.weight"], before["lm_head.weight"])
    trainer.close()
    trainer.close()


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_an_optimizers_state_goes_from_workers_to_one_process_and_back(first, second):
    whole, one, other = make(1), make(first), make(second)
    for seed in range(6):
        whole.step(*batch(seed=seed))
    for seed in range(3):
        one.step(*batch(seed=seed))
    other.step(*batch(seed=9))  # has processes and a state already
    other.model.load_state_dict(one.model.state_dict())
    other.optimizer.load_state_dict(one.optimizer.state_dict())
    for seed in range(3, 6):
        other.step(*batch(seed=seed))
    assert_close((np.zeros(1), other.model.state_dict()), (np.zeros(1), whole.model.state_dict()))
    theirs = whole.optimizer.state_dict()["state"]
    for i, state in other.optimizer.state_dict()["state"].items():
        assert state["step"] == theirs[i]["step"] == 6
        np.testing.assert_allclose(state["exp_avg_sq"], theirs[i]["exp_avg_sq"], rtol=1e-6, atol=1e-12)
    one.close()
    other.close()


def test_the_parameters_share_one_memory_and_are_no_views_of_each_other():
    with make(2) as trainer:
        trainer.step(*batch())
        bases = [p.detach().numpy().base for p in trainer.model.parameters()]
        assert not any(isinstance(base, np.ndarray) for base in bases)
        assert all(p.numpy().ctypes.data % 64 == 0 for p in trainer.model.parameters())


def test_other_groups_and_larger_batches_start_the_processes_anew():
    weights = []
    for workers in (1, 2):
        def without_the_head(model):
            return AdamW([p for name, p in model.named_parameters() if name != "lm_head.weight"], lr=1e-2)

        with make(workers, optimizer=without_the_head) as trainer:
            trainer.step(*batch())
            trainer.optimizer.add_param_group({"params": trainer.model.lm_head.weight, "amsgrad": True})
            trainer.step(*batch(9))
            trainer.step(*batch(2))
            weights.append((np.zeros(1), trainer.model.state_dict()))
    assert_close(weights[1], weights[0])


def test_without_memfd_the_memory_is_multiprocessings_own(monkeypatch):
    expected = taken(2)
    monkeypatch.delattr(memory.os, "memfd_create", raising=False)
    assert_same_bits(taken(2), expected)
    assert_same_bits(taken(2, start_method="spawn"), expected)


def test_memory_is_not_sent_but_to_a_process_that_starts():
    flat = Flat(Layout([], [], 1, 1, False))
    with pytest.raises(RuntimeError, match="should only be shared between processes through inheritance"):
        pickle.dumps(flat)


# What is refused ------------------------------------------------------------------------------------------------------


class Failing(Transformer):
    """Does what it is told to where it sees token 7 first in a row, in whichever process."""

    def loss(self, ids, targets):
        out = super().loss(ids, targets)
        if (ids[:, 0] == 7).any():
            return getattr(self, self.how)(out)
        return out

    def fail(self, out):
        raise LookupError("the seventh token")

    def spoil(self, out):
        return out * np.nan

    def own(self, out):
        raise Unsendable(1, 2)

    def die(self, out):
        if parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return out


class Unsendable(Exception):
    """An error that can be pickled and not be unpickled."""

    def __init__(self, one, two):
        super().__init__("unsendable")


def doomed(row, rows=4):
    ids, targets = batch(rows)
    ids[:, 0] = 1
    ids[row, 0] = 7
    return ids, targets


def failing(how, **options):
    trainer = make(2, kind=Failing, dropout=0.2, **options)
    trainer.model.how = how
    ids, targets = batch(4)
    ids[:, 0] = 1
    trainer.step(ids, targets)
    return trainer


@pytest.mark.parametrize("method", get_all_start_methods())
@pytest.mark.parametrize("row", [0, 3])
def test_an_error_in_either_process_is_raised_here_with_its_traceback_and_the_next_step_works(method, row):
    with failing("fail", start_method=method) as trainer:
        before, generator = trainer.model.state_dict(), trainer.model.generator.bit_generator.state
        with pytest.raises(LookupError, match=r"^the seventh token$") as told:
            trainer.step(*doomed(row))
        if row == 3:
            assert isinstance(told.value.__cause__, ChildTraceback)
            assert "in fail\n    raise LookupError" in str(told.value.__cause__)
        assert_same_bits(([0], trainer.model.state_dict()), ([0], before))
        assert trainer.model.generator.bit_generator.state == generator
        assert trainer.steps_done == 1
        trainer.step(*batch())


def test_an_error_that_cannot_be_sent_is_told_all_the_same():
    with failing("own") as trainer, pytest.raises(RuntimeError, match=r"^Unsendable: unsendable$"):
        trainer.step(*doomed(3))


@pytest.mark.parametrize("row", [0, 3])
def test_what_is_not_finite_stops_before_anything_is_changed(row):
    with failing("spoil", grad_clip=1.0) as trainer:
        before, state = trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]
        with pytest.raises(FloatingPointError, match=r"^step 2: got a loss of nan, .* those of step 1$"):
            trainer.step(*doomed(row))
        assert_same_bits(([0], trainer.model.state_dict()), ([0], before))
        assert all(np.array_equal(s["exp_avg"], state[i]["exp_avg"]) and s["step"] == 1
                   for i, s in trainer.optimizer.state_dict()["state"].items())  # fmt: skip


def test_a_batch_that_counts_no_target_is_refused_as_in_one_process():
    ids, targets = batch()
    with make(2) as trainer, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError, match=r"^step 1: got a loss of nan"):
            trainer.step(ids, targets * 0 - 100)


def test_a_batch_that_does_not_fit_is_refused():
    ids, targets = batch()
    with make(2) as trainer:
        for bad in ((ids, targets[:, :-1]), (ids + 100, targets), (ids.astype(float), targets), (ids[0], targets[0])):
            with pytest.raises((ValueError, IndexError, TypeError)) as told:
                trainer.step(*bad)
            assert "\n" not in str(told.value)
        trainer.step(ids, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: got 0, expected an integer >= 1, or 'auto'"),
        ({"workers": 2.0}, "workers: got 2.0"),
        ({"workers": "all"}, "workers: got 'all'"),
        ({"workers": 2, "start_method": "thread"}, "start_method: got 'thread', expected None or one of "),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**options)


def test_another_optimizer_works_alone():
    class Other(AdamW):
        def step(self):
            raise ArithmeticError("its own")

    with pytest.raises(TypeError, match=r"^optimizer: got Other, expected AdamW with more than one worker"):
        make(2, optimizer=lambda model: Other(model.parameters()))
    with pytest.raises(ArithmeticError, match="its own"):
        make("auto", optimizer=lambda model: Other(model.parameters())).step(*batch())


def test_a_model_that_cannot_be_sent_is_named(monkeypatch):
    trainer = make(2, start_method="spawn")
    trainer.model.note = lambda: None
    with pytest.raises(WorkerError, match=r"^workers: got a model that cannot be pickled"):
        trainer.step(*batch())
    monkeypatch.setattr(trainer_module, "choose_workers", lambda *sizes: 2)
    auto = make("auto", start_method="spawn")
    auto.model.note = trainer.model.note
    with pytest.warns(RuntimeWarning, match=r"^training in one process: workers: got a model that cannot be pickled"):
        auto.step(*batch())
    auto.step(*batch())
    assert auto.workers == 1


def test_auto_is_the_cores_that_there_are_and_rows_to_share(monkeypatch):
    monkeypatch.setattr(cores, "available_cores", lambda: 4)
    assert cores.choose_workers(32, 2048, 10**6) == 4
    assert cores.choose_workers(3, 2048, 10**6) == 3
    assert cores.choose_workers(32, 64, 1000) == 1
    with make("auto") as small:
        small.step(*batch())
        assert small.workers == 1


def test_two_threads_of_a_core_are_one_core_and_a_quota_is_a_limit(monkeypatch):
    files = {f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)}
    monkeypatch.setattr(cores, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1, 2, 4}, raising=False)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 8)
    assert cores.available_cores() == 3
    files["/sys/fs/cgroup/cpu.max"] = "150000 100000"
    assert cores.available_cores() == 2
    files["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert cores.available_cores() == 3


# The end of a process -------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_named_the_others_end_and_training_can_start_again():
    trainer = failing("die", start_method=None)
    before = trainer.model.state_dict()
    with pytest.raises(WorkerError, match=r"^workers: got the end of worker 1 \(SIGKILL: .*\) in step 2, .* step 1$") as told:
        trainer.step(*doomed(3))
    assert told.value.whole
    assert not active_children()
    assert_same_bits(([0], trainer.model.state_dict()), ([0], before))
    trainer.step(*batch())
    trainer.close()


@FORK
def test_a_worker_that_ends_within_adamw_leaves_no_whole_step(monkeypatch):
    main = os.getpid()
    update = Flat.update
    monkeypatch.setattr(Flat, "update", lambda *a: update(*a) if os.getpid() == main else os._exit(3))
    trainer = make(2, start_method="fork")
    with pytest.raises(WorkerError, match=r"worker 1 \(exit code 3; .* half-way from step 0 to 1, so go on") as told:
        trainer.step(*batch())
    assert not told.value.whole


@FORK
def test_a_run_whose_worker_is_killed_is_saved_and_goes_on_with_the_same_bits(tmp_path, whole):
    def kill_at_five(trainer):
        step = trainer.step

        def step_and_kill(*batch):
            if trainer.steps_done == 5:
                active_children()[0].kill()
            return step(*batch)

        trainer.step = step_and_kill

    with pytest.raises(WorkerError, match="weights and optimizer are those of step 5"):
        fit(tmp_path, 12, change=kill_at_five)
    assert CheckpointFolder(tmp_path).latest().metadata["step"] == 5
    fit(tmp_path, 12, resume=True)
    assert newest(tmp_path) == whole


@pytest.mark.parametrize("how", ["dropped", "left", "interrupted"])
def test_processes_end_with_the_trainer_however_it_goes(how):
    trainer = make(2)
    trainer.step(*batch())
    (child,) = active_children()
    if how == "interrupted":
        trainer.model.loss = lambda *batch: signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            trainer.step(*batch())
    elif how == "left":
        trainer.close()
    else:
        del trainer
        gc.collect()
    child.join(10)
    assert not active_children()


def run(script, *arguments):
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "error::ResourceWarning", *(["-c", textwrap.dedent(script)] if script else []), *arguments]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                            start_new_session=True)  # fmt: skip


def group_of(pid):
    """The processes of a session that are alive, by number."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if fields and int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def assert_all_gone(pid, segments):
    deadline = time.monotonic() + 20
    while group_of(pid):
        assert time.monotonic() < deadline, group_of(pid)
        time.sleep(0.02)
    assert set(os.listdir("/dev/shm")) <= segments


SCRIPT = """
import sys, time
import numpy as np
from tinygrad_llm import Transformer, TransformerConfig, manual_seed
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer
if __name__ == "__main__":
    model = Transformer(TransformerConfig(11, 6, 8, 2, 1))
    trainer = Trainer(model, AdamW(model.parameters()), workers=3, start_method=sys.argv[1])
    trainer.step(*np.zeros((2, 6, 6), int))
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
"""


@LINUX
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("how", ["exit", "SIGKILL"])
def test_no_process_and_no_segment_outlives_a_program(method, how):
    segments = set(os.listdir("/dev/shm"))
    with run(SCRIPT, method, "wait" if how == "SIGKILL" else "end") as child:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        if how == "SIGKILL":
            assert len(group_of(child.pid)) >= 3
            child.kill()
        _, err = child.communicate(timeout=60)
    assert child.returncode == (0 if how == "exit" else -signal.SIGKILL)
    assert err == ""
    assert_all_gone(child.pid, segments)


@LINUX
def test_ctrl_c_of_the_command_reaches_all_saves_and_leaves_nothing(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    segments = set(os.listdir("/dev/shm"))
    words = f"train --corpus {tmp_path}/text --context-length 8 --d-model 8 --n-heads 2 --n-layers 1 --batch-size 4 --quiet"
    more = f"--steps 1000000 --eval-every 1000000 --checkpoint-every 5 --workers 2 --out {tmp_path}/out"
    with run("", "-m", "tinygrad_llm", *words.split(), *more.split()) as child:
        while not list(tmp_path.glob("out/step-*5.safetensors")):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, "")
    assert err.startswith("tinygrad-llm: stopped after step ")
    assert err.count("\n") == 1
    assert_all_gone(child.pid, segments)


def test_blas_has_its_threads_again_between_steps():
    def threads():
        return [pool["num_threads"] for pool in ThreadpoolController().select(user_api="blas").info()]

    before, seen = threads(), []
    with make(2) as trainer:
        loss = trainer.model.loss
        trainer.model.loss = lambda *batch: (seen.append(threads()), loss(*batch))[1]
        trainer.step(*batch())
        assert threads() == before
    assert seen == [[1] * len(before)]


# Who else has the weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"capture": True}, {"capture": "fast"}, {"workers": 2},
                                     {"workers": 2, "capture": True}], ids=str)
def test_what_somebody_holds_of_the_weights_is_theirs_as_before(options):
    """detach() and numpy() share memory with a parameter; what is written there reaches it, in training too."""
    trainer = make(options.pop("workers", 1), **options)
    head, row = trainer.model.lm_head.weight, trainer.model.tok_embed.weight
    held, array, part = head.detach(), head.numpy(), row.detach()[2:4]
    for step in range(3):
        trainer.step(*batch(seed=step))
        assert np.array_equal(held.numpy(), head.numpy())
        assert np.array_equal(array, head.numpy())
        assert np.array_equal(part.numpy(), row.numpy()[2:4])
        held.clamp_(-0.01, 0.01)
        part.zero_()
        assert np.abs(head.numpy()).max() <= 0.01
        assert not row.numpy()[2:4].any()
    trainer.close()
    assert np.array_equal(held.numpy(), head.numpy())
    held.zero_()
    assert not head.numpy().any()


def test_the_step_is_the_same_whoever_holds_the_weights():
    losses = []
    for holds in (False, True):
        trainer = make(1, capture=True)
        held = [p.detach() for p in trainer.model.parameters()] if holds else []
        losses.append([trainer.step(*batch(seed=step)) for step in range(4)])
        assert len(trainer._team.lodging.guests) == 0
        assert all(np.shares_memory(h.numpy(), p.numpy()) for h, p in zip(held, trainer.model.parameters()))
        trainer.close()
    assert losses[0] == losses[1]


def test_a_system_that_refuses_a_file_in_memory(monkeypatch):
    def refused(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    expected, losses = [], []
    for workers, found in ((1, expected), (2, losses)):
        trainer = make(workers, capture=True)
        found += [trainer.step(*batch(seed=step)) for step in range(3)]
        trainer.close()
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("options", [{"capture": True}, {"workers": 2}, {"workers": 2, "capture": True}], ids=str)
def test_a_process_that_was_forked_trains_a_model_of_its_own(options):
    """Whatever it does to its weights, by loading, stepping or writing, is nothing to the parent's, and the other way round."""
    workers = options.pop("workers", 1)
    expected = make(workers, **options)
    losses = [expected.step(*batch(seed=step)) for step in range(4)]
    expected.close()
    trainer = make(workers, **options)
    assert trainer.step(*batch(seed=0)) == losses[0]
    here, there = os.pipe()
    if (child := os.fork()) == 0:
        try:
            again = [trainer.step(*batch(seed=step)) for step in (1, 2)]
            trainer.model.load_state_dict({name: value * 0 for name, value in trainer.model.state_dict().items()})
            for p in trainer.model.parameters():
                p.detach().zero_()
            os.write(there, repr(again).encode())
        finally:
            os._exit(0)
    os.close(there)
    assert trainer.step(*batch(seed=1)) == losses[1]
    os.waitpid(child, 0)
    with os.fdopen(here, "rb") as pipe:
        said = pipe.read().decode()
    assert said == repr(losses[1:3])
    assert [trainer.step(*batch(seed=step)) for step in (2, 3)] == losses[2:]
    trainer.close()
