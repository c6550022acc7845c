"""The benchmarks' harness: turns, agreement before ratios, records, reports, mistakes. Never how fast anything is."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from benchmarks import cells, kernels, machine, measure, preload, run, sides, verdicts
from benchmarks.__main__ import main, make_parser
from benchmarks.cases import GRID, find_cases, scaling_cases
from benchmarks.compare import compare
from benchmarks.guards import test_ratios as guard
from benchmarks.guards.pairs import PAIRS, Pair
from benchmarks.inputs import draw_batches, draw_state
from benchmarks.micro import BOTH, FORWARD, find_ops
from benchmarks.process import Worker, WorkerError
from benchmarks.report import read_records, write_report
from tinygrad_llm.cli.program import python_as_typed

TOY = GRID["toy"]
PEERS = "autograd", "mygrad", "jax", "tinygrad"
QUICK = run.Plan(rounds=2, steps=2, seconds=1e-4, threads=1)
needs_compiler = pytest.mark.skipif(preload._compiler() is None, reason="needs a C compiler")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """No pauses, no search for the peak of matrix products, and our own float64 as the truth."""
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(run, "GEMM_SIZES", ())
    monkeypatch.setattr(run, "TRUTH", ("numpy",))


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Makes a side that is this library but for the methods given as source."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(name, source="", ours=False):
        body = textwrap.indent(textwrap.dedent(source) or "pass", "    ")
        header = "import os\nfrom benchmarks.sides import numpy_eager\n\nclass Engine(numpy_eager.Engine):\n"
        (tmp_path / f"{name}.py").write_text(header + body)
        side = sides.Side(name, name, "numpy", "made by a test", ours=ours)
        monkeypatch.setitem(sides.SIDES, name, side)
        return side

    return make


@pytest.fixture
def fast_learner(tmp_path, monkeypatch):
    """Makes a side with a learning rate at which AdamW's every detail shows in the losses."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(name):
        side = sides.SIDES[name]
        source = f"from benchmarks.sides import engine\nengine.LR = 0.05\nfrom {side.module} import Engine\n"
        (tmp_path / f"learns_{name}.py").write_text(source)
        monkeypatch.setitem(sides.SIDES, name, dataclasses.replace(side, module=f"learns_{name}"))
        return sides.SIDES[name]

    return make


def of(records, kind):
    return [record for record in records if record["kind"] == kind]


# How ------------------------------------------------------------------------------------------------------------------


def test_every_round_gives_each_side_one_turn_in_the_same_order():
    calls = []
    turns = {name: lambda number, name=name: calls.append((number, name)) or len(calls) for name in "ABC"}
    results = measure.interleave(turns, 3, pause=0.0)
    assert calls == [(number, name) for number in range(3) for name in "ABC"]
    assert results == {"A": [1, 4, 7], "B": [2, 5, 8], "C": [3, 6, 9]}


def test_results_agree_only_if_ours_passes_the_policy_and_theirs_did_the_same_work():
    truth = [2.0, 1.5]
    assert measure.disagreement([2.0, 1.5], [2.00001, 1.5], truth) is None
    assert measure.disagreement([2.0, 1.5], [2.0001, 1.5], truth) is None, "ours being more accurate is no difference"
    assert "ours" in measure.disagreement([2.0, 1.6], [2.0, 1.5], truth)
    assert "ours" in measure.disagreement([2.0001, 1.5], [2.0, 1.5], truth)
    assert "theirs" in measure.disagreement([2.0, 1.5], [2.0, 1.6], truth)
    assert "theirs" in measure.disagreement([2.0, 1.5], [2.0, float("nan")], truth)
    assert measure.disagreement([2.0, 1.6], [2.0, 1.6], truth) is not None, "wrong in the same way is wrong"


def test_a_ratio_is_taken_round_by_round():
    record = measure.ratio_record("a", "b", {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}, None)
    assert record["rounds"] == [2.0, 1.0, 0.5]
    assert (record["median"], record["low"], record["high"], record["best"]) == (1.0, 0.5, 2.0, 2.0)


def test_a_ratio_of_sides_that_disagree_is_refused():
    record = measure.ratio_record("a", "b", {"a": [1.0], "b": [2.0]}, "ours: different")
    assert not record["agree"]
    assert [record[key] for key in ("rounds", "median", "low", "high", "best")] == [None] * 5


def test_a_power_law_is_found_with_its_uncertainty():
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    exact = measure.fit_power(x, [3.0 * at**1.5 for at in x])
    assert exact.exponent == pytest.approx(1.5)
    assert exact.scale == pytest.approx(3.0)
    assert exact.half_width == pytest.approx(0.0, abs=1e-6)
    rng = np.random.default_rng(0)
    fits = [measure.fit_power(x, np.array(x) * np.exp(0.1 * rng.standard_normal(5))) for _ in range(2000)]
    assert np.mean([abs(fit.exponent - 1) < fit.half_width for fit in fits]) == pytest.approx(0.95, abs=0.02)
    assert measure.fit_power([1.0, 2.0], [1.0, 2.0]) is None


def test_a_line_is_fitted_to_relative_distances():
    x = [1.0, 2.0, 4.0, 8.0]
    exact = measure.fit_line(x, [3.0 + 5.0 * at for at in x])
    assert exact == pytest.approx((3.0, 5.0, 0.0), abs=1e-12)
    off = measure.fit_line(x, [8.0, 13.0, 23.0, 43.0 * 1.1])
    assert 0.02 < off.worst < 0.1
    assert off.worst == pytest.approx(max(abs(off.start + off.slope * a - b) / b for a, b in zip(x, [8, 13, 23, 47.3])))
    assert measure.fit_line([1.0, 2.0], [1.0, 2.0]) is None


def test_flops_are_those_of_the_products_in_a_step():
    n, d, layer_products = TOY.tokens, TOY.d_model, [(1, 3), (1, 1), (1, 4), (4, 1)]
    forward = TOY.n_layers * sum(2 * n * into * d * out * d for into, out in layer_products) + 2 * n * d * TOY.vocab
    seen = sum(t + 1 for t in range(TOY.context)) * TOY.batch * TOY.n_layers
    assert TOY.flops == 3 * (forward + seen * 2 * (d + d))


def test_weights_and_batches_are_functions_of_the_seed_alone():
    shapes = {"tok_embed.weight": (11, 8), "norm1.weight": (8,), "norm1.bias": (8,)}
    one, two = draw_state(shapes, 0), draw_state(dict(reversed(shapes.items())), 0)
    assert all(np.array_equal(one[name], two[name]) and one[name].dtype == np.float32 for name in shapes)
    assert not np.array_equal(one["tok_embed.weight"], draw_state(shapes, 1)["tok_embed.weight"])
    later, all_ = draw_batches(TOY, 0, 2, 1), draw_batches(TOY, 0, 0, 3)
    assert np.array_equal(later[0][0], all_[2][0])
    assert np.array_equal(all_[0][0][:, 1:], all_[0][1][:, :-1]), "targets are the next tokens"


def test_no_thread_variable_is_set_that_the_user_did_not_ask_for(monkeypatch):
    for name in machine.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert machine.thread_environment(None) == machine.thread_environment(machine.cores()) == {}
    assert machine.thread_environment(machine.cores() + 1)["OPENBLAS_NUM_THREADS"] == str(machine.cores() + 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.thread_environment(None) == {}
    assert machine.thread_environment(machine.cores())["OMP_NUM_THREADS"] == str(machine.cores())


# What comes of it -----------------------------------------------------------------------------------------------------


def test_two_equal_sides_give_times_memory_and_a_ratio(other, monkeypatch):
    monkeypatch.setattr(run, "GEMM_SIZES", (16,))
    monkeypatch.setattr(run, "GEMM_SECONDS", 0.01)
    records = list(run.train([TOY], [sides.SIDES["numpy"], other("twin")], QUICK))
    assert [r["kind"] for r in records] == ["gemm", "train", "train", "ratio", "done", "gemm"]
    ours, theirs = of(records, "train")
    assert ours["losses"] == theirs["losses"]
    assert len(ours["losses"]) == 4
    assert len(ours["seconds"]) == 2
    assert ours["peak_mb"] > 10
    assert ours["flops"] == TOY.flops
    (ratio,) = of(records, "ratio")
    assert ratio["agree"]
    assert ratio["rounds"] == [b / a for a, b in zip(ours["seconds"], theirs["seconds"])]


def test_a_side_with_other_losses_gets_no_ratio_in_record_or_report(other, tmp_path):
    wrong = other("wrong", "def steps(self, batches): return [0.999 * loss for loss in super().steps(batches)]")
    records = list(run.train([TOY], [sides.SIDES["numpy"], wrong], QUICK))
    (ratio,) = of(records, "ratio")
    assert ratio["median"] is None
    assert "theirs" in ratio["why_not"]
    write_report({"x": [head("run"), *records, {"kind": "end"}]}, tmp_path / "r.md")
    assert "refused: results differ" in (tmp_path / "r.md").read_text(encoding="utf-8")


@needs_torch
def test_ours_and_torch_agree_end_to_end(tmp_path):
    out, report = tmp_path / "run.jsonl", tmp_path / "results.md"
    arguments = ["--grid", "toy", "--sides", "numpy,torch-sdpa", "--rounds", "2", "--steps", "3", "--threads", "1"]
    assert main(["run", *arguments, "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert records[0]["kind"] == "machine"
    assert records[-1]["kind"] == "end"
    assert [r["side"] for r in of(records, "train")] == ["numpy", "torch-sdpa"]
    assert all(r["agree"] and r["median"] > 0 for r in of(records, "ratio"))
    assert main(["report", str(out), "--out", str(report)]) == 0
    text = report.read_text(encoding="utf-8")
    assert "torch-sdpa / numpy" in text
    assert "refused" not in text


def test_a_run_goes_on_where_it_was_left(tmp_path, capsys):
    out = str(tmp_path / "run.jsonl")
    common = ["--sides", "numpy", "--rounds", "1", "--seconds", "0.01", "--threads", "1", "--out", out]
    cells = ["crossover", "--d-model", "8,16", "--context", "4", "--batch", "1,2", *common]
    assert main([*cells, "--minutes", "1e-9"]) == 0
    lines = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [r["kind"] for r in lines] == ["machine", "train", "done"], "time was up after the first"
    assert main([*cells, "--resume"]) == 0
    assert main([*cells, "--resume"]) == 0
    lines = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [r["unit"] for r in of(lines, "done")] == ["d8-T4-B1", "d8-T4-B2", "d16-T4-B1", "d16-T4-B2"]
    assert [r["kind"] for r in lines].count("machine") == 2
    assert lines[-1]["kind"] == "end"
    assert main([*cells, "--resume", "--rounds", "2"]) == 2
    assert "resume: got rounds 2, expected 1 as in run.jsonl" in capsys.readouterr().err


def test_each_of_ours_is_compared_with_all_others(other, tmp_path):
    records = list(run.train([TOY], [other("fast", ours=True), sides.SIDES["numpy"], other("twin")], QUICK))
    assert [(r["ours"], r["against"]) for r in of(records, "ratio")] == [
        ("fast", "numpy"), ("fast", "twin"), ("numpy", "twin")
    ]
    text = rendered(tmp_path, [head("run"), *records, {"kind": "end"}])
    assert "| case | ours | numpy / ours | twin / ours |" in text
    assert "| toy | numpy | – | " in text


def test_sides_are_gone_when_float64_judges(other, monkeypatch):
    closed = []
    monkeypatch.setattr(run.Workers, "close", lambda self, close=run.Workers.close: (close(self), closed.append(1)))
    monkeypatch.setattr(run, "_true_losses", lambda *_: closed.append("truth") or [2.0] * 4)
    list(run.train([TOY], [sides.SIDES["numpy"], other("twin")], QUICK))
    assert closed == [1, "truth"], "two models and a third in float64 need not have room beside each other"


@needs_torch
def test_attention_written_out_is_the_references():
    import torch

    from benchmarks.sides.pytorch import NaiveAttention
    from reference.model import Attention

    naive, fused = NaiveAttention(TOY.config, dtype=torch.float64), Attention(TOY.config, dtype=torch.float64)
    fused.load_state_dict(naive.state_dict())
    x = torch.randn(3, TOY.context, TOY.d_model, dtype=torch.float64)
    torch.testing.assert_close(naive(x), fused(x))


@pytest.mark.parametrize(("peer", "activation"), [
    (peer, activation) for peer in PEERS for activation in ("relu", "gelu")
    if peer != "tinygrad" or activation == "gelu" or settings.default.max_examples >= 1000  # half a minute each
])
def test_a_peer_trains_the_same_model(peer, activation, fast_learner, monkeypatch):
    if peer == "tinygrad" and sides.missing(sides.SIDES[peer]):
        monkeypatch.setenv("DEV", "PYTHON")  # its interpreter needs no compiler
    if reason := sides.missing(sides.SIDES[peer]):
        pytest.skip(reason)
    small = {"context": 2, "d_model": 4, "vocab": 5} if peer == "tinygrad" else {}  # its interpreter is slow
    case = dataclasses.replace(TOY, activation=activation, **small)
    records = list(run.train([case], [fast_learner("numpy"), fast_learner(peer)], QUICK))
    assert [r.get("why") or r["why_not"] for r in records if r["kind"] in ("absent", "ratio")] == [None]
    losses = of(records, "train")[0]["losses"]
    assert max(losses) - min(losses) > 0.1, "it learns"


# The strongest rival ---------------------------------------------------------------------------------------------------


@pytest.fixture
def another_processor(monkeypatch):
    """Makes the machine one of this maker and system."""
    def make(intel, system="Linux", processor="x86_64"):
        monkeypatch.setattr(machine, "is_intel", lambda: intel)
        monkeypatch.setattr(preload.platform, "system", lambda: system)
        monkeypatch.setattr(preload.platform, "machine", lambda: processor)

    return make


def test_mkl_is_told_only_where_the_processor_is_not_intels(another_processor, monkeypatch):
    for intel, processor in ((True, "x86_64"), (False, "aarch64")):
        another_processor(intel, processor=processor)
        assert (preload.why_not(), preload.environment()) == (None, {})
    another_processor(False, system="Windows")
    assert "LD_PRELOAD is Linux's" in preload.why_not()
    another_processor(False)
    monkeypatch.setattr(preload.shutil, "which", lambda name: None)
    assert "no C compiler (cc, gcc, clang)" in preload.why_not()
    assert "no C compiler" in sides.missing(dataclasses.replace(sides.SIDES["torch-best"], needs=()))


@needs_compiler
def test_what_is_loaded_first_says_yes_in_that_worker_alone(other, another_processor):
    another_processor(False)
    source = """
        def describe(self):
            import ctypes
            answer = getattr(ctypes.CDLL(None), "mkl_serv_intel_cpu_true", lambda: 0)()
            return {"answer": answer, "pages": os.environ.get("THP_MEM_ALLOC_ENABLE")}
    """
    told = dataclasses.replace(other("told", source), intel=True, environment={"THP_MEM_ALLOC_ENABLE": "1"})
    with Worker(told) as one, Worker(other("untold", source)) as two:
        assert one.ask("describe") == {"answer": 1, "pages": "1"}
        assert two.ask("describe") == {"answer": 0, "pages": None}
    assert not {"LD_PRELOAD", "THP_MEM_ALLOC_ENABLE"} & set(os.environ)


def test_a_compiler_that_fails_makes_the_side_absent_with_its_last_word(other, another_processor, monkeypatch):
    another_processor(False)
    monkeypatch.setattr(preload, "_compiler", lambda: "false")
    preload._library.cache_clear()
    with pytest.raises(WorkerError, match=r"told: preload: got exit code 1 from false .no message., expected a shared object"):
        Worker(dataclasses.replace(other("told"), intel=True))


@needs_torch
@needs_compiler
def test_the_rivals_train_the_same_model():
    case = dataclasses.replace(TOY, batch=64, vocab=8192)
    names = "numpy", "torch-intel", "torch-best", "torch-ddp", "torch-best-ddp"
    records = list(run.train([case], sides.find_sides(names), QUICK))
    assert [r.get("why") or r["why_not"] for r in records if r["kind"] in ("absent", "ratio")] == [None] * 4
    engines = {r["side"]: r["engine"] for r in of(records, "train")}
    assert "cross_entropy" in engines["torch-best"]["head"]
    assert "2 processes" in engines["torch-ddp"]["about"]



@needs_torch
def test_two_processes_need_a_batch_that_can_be_shared():
    odd = dataclasses.replace(TOY, batch=3).to_dict()
    with Worker(sides.SIDES["torch-ddp"], 1) as worker, pytest.raises(WorkerError, match="got 3 sequences, expected a mult"):
        worker.ask("build", case=odd, seed=0)


@needs_torch
def test_every_way_to_the_loss_is_the_models_and_a_wrong_one_is_not_chosen(monkeypatch):
    import torch

    from benchmarks.sides import torch_head
    from reference.model import Transformer

    config = dataclasses.replace(TOY, batch=64, vocab=8192).config
    ids = torch.randint(0, 8192, (64, TOY.context + 1))
    plain = Transformer(config, dtype=torch.float64)
    for name in torch_head.names(256, 8192):
        model = torch_head.headed(torch_head.find(name))(config, dtype=torch.float64)
        model.load_state_dict(plain.state_dict())
        torch.testing.assert_close(model.loss(ids[:, :-1], ids[:, 1:]), plain.loss(ids[:, :-1], ids[:, 1:]))
    fast_and_wrong = {torch_head.PLAIN: torch_head.find(torch_head.PLAIN), "wrong": lambda x, w, t: (x[0] * w[0]).sum()}
    monkeypatch.setattr(torch_head, "names", lambda rows, vocab: list(fast_and_wrong))
    monkeypatch.setattr(torch_head, "find", fast_and_wrong.__getitem__)
    assert torch_head.fastest(64, 100, 8, False, 1) == torch_head.PLAIN


def test_the_words_for_kernels_say_who_chose_them(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "threadpool_info", lambda: [{"internal_api": "openblas", "architecture": "SkylakeX"}])
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert kernels.openblas() == {"kernels": "OpenBLAS's kernels for SkylakeX: AVX-512, by its own choice",
                                  "instructions": "AVX-512", "told": False}
    monkeypatch.setenv("OPENBLAS_CORETYPE", "SkylakeX")
    assert kernels.openblas()["kernels"].endswith("AVX-512, by OPENBLAS_CORETYPE=SkylakeX")
    assert kernels.openblas()["told"]
    monkeypatch.setattr(kernels, "threadpool_info", list)
    assert kernels.openblas()["kernels"] == "not OpenBLAS: instructions not known, by its own choice"
    assert kernels.mkl(tmp_path / "no.so", intel=False)["instructions"] is None
    answer = types.SimpleNamespace(mkl_serv_cpu_detect=lambda: 7)
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda name: answer)
    monkeypatch.setattr(machine, "is_intel", lambda: False)
    assert kernels.mkl(tmp_path, intel=True)["kernels"] == "MKL: AVX-512, by the word that the processor is Intel's"


def test_peers_have_the_parameters_of_the_model():
    from benchmarks.sides.peer import parameter_shapes
    from tinygrad_llm import Transformer

    config = find_cases(["S0"])[0].config
    assert parameter_shapes(config) == {name: p.shape for name, p in Transformer(config).named_parameters()}


def test_what_is_not_installed_is_said_in_one_line(monkeypatch):
    side = dataclasses.replace(sides.SIDES["jax"], needs=("no_such_library",))
    assert sides.missing(side) == "no_such_library is not installed"
    monkeypatch.delenv("DEV", raising=False)
    monkeypatch.setenv("CC", "no-such-compiler")
    if importlib.util.find_spec("tinygrad"):
        assert "no clang" in sides.missing(sides.SIDES["tinygrad"])


def test_decoding_is_compared_by_its_tokens(other):
    wrong = other("wrong", "def continued(self, prompt, count): return [0] + super().continued(prompt, count)[1:]")
    case = dataclasses.replace(TOY, context=8)
    records = list(run.decode([case], [sides.SIDES["numpy"], other("twin"), wrong], QUICK, tokens=4))
    assert {r["against"]: r["agree"] for r in of(records, "ratio")} == {"twin": True, "wrong": False}
    assert all(r["tokens"] == 4 for r in of(records, "decode"))


def test_single_ops_are_compared_by_results_and_gradients(other):
    wrong = other("wrong", """
        def op(self, name, seed, dtype="float32"):
            answer = super().op(name, seed, dtype)
            answer["values"][-1][0] += 0.01
            return answer
    """)
    ops = find_ops(["layer_norm", "AdamW [384"])
    records = list(run.single_ops(ops, [sides.SIDES["numpy"], other("twin"), wrong], QUICK))
    found = {(r["name"].split()[0], r["direction"], r["against"]): r["agree"] for r in of(records, "ratio")}
    assert found == {
        (name, what, side): side == "twin" for side in ("twin", "wrong")
        for name, what in (("layer_norm", FORWARD), ("layer_norm", BOTH), ("AdamW", "step"))
    }


def test_every_op_runs_on_our_side():
    from benchmarks.sides.numpy_eager import Engine

    engine = Engine()
    for op in find_ops(["linear [2048", "relu", "cross_entropy [3072", "causal attention [32"]):
        assert all(np.isfinite(values).all() for values in engine.op(op.name, 0)["values"])
        assert engine.op_time(BOTH, 1)["seconds"] > 0


@pytest.mark.parametrize(("source", "reason"), [
    ("def __init__(self, threads=None): raise RuntimeError('no such device')", "no such device"),
    ("def steps(self, batches): os._exit(3)", "ended with code 3"),
    ("def steps(self, batches): raise MemoryError('too large')", "too large"),
])
def test_a_side_that_fails_is_absent_with_its_reason_and_the_others_are_measured(other, source, reason):
    records = list(run.train([TOY], [sides.SIDES["numpy"], other("broken", source)], QUICK))
    assert [r["side"] for r in of(records, "train")] == ["numpy"]
    assert reason in next(r["why"] for r in of(records, "absent") if r["what"] == "train")


def test_a_side_that_fails_in_its_turn_ends_the_case_and_not_the_run(other):
    late = other("late", """
        def steps(self, batches):
            self.turns = getattr(self, "turns", 0) + 1
            if self.turns > 3 and self.case.d_model == 8:
                raise MemoryError("too large")
            return super().steps(batches)
    """)
    cases = [TOY, dataclasses.replace(TOY, d_model=16)]
    records = list(run.crossover(cases, [sides.SIDES["numpy"], late], QUICK))
    assert [(r["side"], r["why"]) for r in of(records, "absent")] == [("late", "MemoryError: too large")]
    assert {r["case"]["d_model"] for r in of(records, "ratio")} == {16}


def test_a_worker_is_gone_when_its_block_is_left(other):
    with pytest.raises(KeyboardInterrupt), Worker(other("twin")) as worker:
        raise KeyboardInterrupt
    assert worker.process.returncode is not None
    with pytest.raises(WorkerError, match="ValueError"), Worker(other("twin")) as worker:
        worker.ask("something else")


def test_what_a_side_prints_does_not_disturb_the_answers(other):
    with Worker(other("loud", "def describe(self): print('hello'); os.system('echo hello'); return {}")) as worker:
        assert worker.ask("describe") == {}


@pytest.mark.skipif(not machine.PROC.is_dir(), reason="needs /proc")
def test_the_peak_counts_the_children(other):
    child = """
        def describe(self):
            import subprocess, sys
            self.child = subprocess.Popen([sys.executable, "-c", "x = bytearray(80_000_000); print(1); input()"],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            return {"line": self.child.stdout.readline().decode()}
    """
    with Worker(other("parent", child)) as worker:
        alone = worker.peak_mb()
        worker.ask("describe")
        assert worker.peak_mb() > alone + 60  # pages of the interpreter, which both have, count once


# What may be said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "rival", "ours", "theirs", "expected"), [
    ("torch cpu", False, ("AVX-512", False), ("AVX2", False), ["installed"]),
    ("torch cpu", False, ("AVX-512", False), ("AVX-512", False), ["installed", "same"]),
    ("torch cpu", False, ("AVX2", True), ("AVX2", False), ["same"]),
    ("torch cpu, MKL as on Intel's", False, ("AVX-512", False), ("AVX-512", True), ["same"]),
    ("torch cpu, MKL as on Intel's", True, ("AVX-512", False), ("AVX-512", True), ["everything"]),
    ("torch cpu", False, (None, False), (None, False), ["installed"]),
    ("torch cuda", False, ("AVX-512", False), (None, False), []),
    ("numpy", False, ("AVX-512", False), ("AVX-512", False), []),
])
def test_a_ratio_is_called_by_what_both_sides_were_told(library, rival, ours, theirs, expected):
    engines = [{"instructions": instructions, "told": told} for instructions, told in (ours, theirs)]
    assert verdicts.kinds(library, rival, *engines) == expected


def test_of_the_three_ratios_the_smallest_stands_first_and_what_is_missing_is_named():
    installed, slower = ratio(2.0, kinds=["installed"]), ratio(2.5, kinds=["installed"])
    disturbed, refused = ratio(1.0, kinds=["installed"], others_cores=0.5), ratio(0.5, kinds=["same"], agree=False)
    best = ratio(1.2, kinds=["everything"], against="torch-best")
    found = verdicts.three([slower, disturbed, installed, best, refused])
    assert list(found.items()) == [("everything", best), ("installed", installed)]
    assert verdicts.lacking(found) == ["the same instruction set"]
    assert cells.in_order(found) == "1.2 torch with everything (torch-best), 2 each library as installed (torch-sdpa)"
    told = ratio(1.1, kinds=["same"], against="torch-intel")  # what makes the rival's other large tensors slower is not in it
    assert verdicts.three([installed, best, told]) == {"same": told, "everything": told, "installed": installed}


def test_a_measurement_is_provisional_where_it_was_disturbed():
    calm = timed("train", "numpy", 1.0, seconds=[1.0, 1.0, 1.1])
    assert verdicts.doubts(calm) == verdicts.doubts({**calm, "others_cores": None}) == []
    assert verdicts.doubts({**calm, "others_cores": 0.7}) == ["other work kept 0.7 cores busy"]
    assert verdicts.doubts({**calm, "seconds": [1.0]}) == ["1 round"]
    assert verdicts.doubts({**calm, "low": 1.0, "high": 4.0}) == ["the highest round is 4.0 times the lowest"]
    refused = ratio(2.0, agree=False) | dict.fromkeys(("median", "low", "high", "best", "rounds"))
    assert verdicts.doubts(refused) == []


def test_a_run_ends_with_its_ratios_in_words_and_the_next_command(other, tmp_path, capsys):
    twin = other("twin")
    out = str(tmp_path / "run.jsonl")
    assert main(["run", "--grid", "toy", "--sides", f"numpy,{twin.name}", "--steps", "1", "--rounds", "1", "--out", out]) == 0
    said = capsys.readouterr()
    assert f"next: {python_as_typed()} -m benchmarks report {out} --out {tmp_path / 'run.md'}" in said.out
    assert re.search(r"toy twin / numpy: .* provisional: .*1 round\n", said.err)
    assert "toy: time / time of numpy, the smallest first: –. Not measured: each library as installed, the same" in said.err


def test_a_run_in_which_nothing_was_measured_is_no_success(other, tmp_path, capsys):
    other("broken", "def __init__(self, threads=None): raise RuntimeError('no such device')")
    out = tmp_path / "run.jsonl"
    assert main(["run", "--grid", "toy", "--sides", "broken", "--out", str(out)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    why = "broken: RuntimeError: no such device"
    assert last == f"error: sides: got none that could be measured ({why}), expected one at least"
    assert not out.exists()


def test_memory_is_compared_with_the_rival_too(tmp_path):
    sides_ = [timed("train", side, 0.02, peak_mb=mb) for side, mb in (("numpy", 500.0), ("torch-best", 400.0))]
    best = ratio(2.0, against="torch-best", kinds=["everything"])
    glance = rendered(tmp_path, [head("run"), *sides_, best, {"kind": "end"}]).partition("## Training")[0]
    assert "| case | torch-best / numpy | memory: numpy / torch-best |" in glance
    assert "| toy | 2 | 1.25 |" in glance


def two_runs(before, after, **more):
    return [[head("run"), timed("train", "numpy", 1.0), before], [head("run", **more), timed("train", "numpy", 1.0), after]]


def test_two_runs_are_compared_by_the_ratio_of_ratios():
    same = compare(*two_runs(ratio(2.0), ratio(2.1)), "a", "b")
    assert "commit abc in A, abc in B. All else is the same." in same
    assert "| toy | torch-sdpa / numpy | 2 (1.8–2.5) | 2.1 (1.89–2.62) | 1.05 | 0.756–1.46 | no more than the" in same
    assert "larger: ours gained |" in compare(*two_runs(ratio(2.0), ratio(4.0)), "a", "b")
    assert "smaller: ours lost (provisional) |" in compare(*two_runs(ratio(4.0), ratio(2.0, others_cores=1.0)), "a", "b")
    other_machine = compare(*two_runs(ratio(2.0), ratio(2.0), cpu="Another CPU"), "a", "b")
    assert "- cpu: A CPU in A, Another CPU in B" in other_machine
    more = two_runs(ratio(2.0), ratio(2.0))
    more[1].append(ratio(1.0, against="torch-best"))
    assert "1 further ratios are in one of the two alone" in compare(*more, "a", "b")
    with pytest.raises(ValueError, match=r"b: got no ratio that a has too, expected some in common"):
        compare(*two_runs(ratio(2.0), ratio(2.0, against="torch-best")), "a", "b")


def test_two_files_are_compared_on_the_command_line(tmp_path, capsys):
    for name, records in zip("ab", two_runs(ratio(2.0), ratio(2.0))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("# A = a.jsonl, B = b.jsonl\n")


# The report -----------------------------------------------------------------------------------------------------------


def head(name, **more):
    machine_ = {"cpu": "A CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux", "python": "3.12", "environment": {},
                "date": "2026-01-02 03:04 UTC", "commit": "abc", "load": 0.25, "asked": {"rounds": 3}}
    return {"kind": "machine", "run": name, **machine_, **more}


def timed(kind, side, median, **more):
    engine = {"about": side, "threads": 2}
    return {"kind": kind, "side": side, "library": side, "engine": engine, "case": TOY.to_dict(), "tokens": 8, "steps": 1,
            "flops": 10**9, "median": median, "low": median * 0.9, "high": median * 1.25, "others_cores": 0.02,
            "peak_mb": 1234.0, "load_before": 0.25, "load_after": 1.5, **more}


def ratio(median, case=TOY, **more):
    return {"kind": "ratio", "what": "train", "ours": "numpy", "against": "torch-sdpa", "agree": True, "why_not": None,
            "case": case.to_dict(), "median": median, "low": median * 0.9, "high": median * 1.25, "best": 2.5,
            "others_cores": 0.02, **more}


def rendered(folder, *runs):
    write_report({f"run{i}": records for i, records in enumerate(runs)}, folder / "results.md")
    return (folder / "results.md").read_text(encoding="utf-8")


def test_a_report_says_what_was_measured_where_and_how_busy_it_was(tmp_path):
    gemm = {"kind": "gemm", "library": "numpy", "gflops": 100.0, "load": 0.3}
    records = [head("run"), gemm, timed("train", "numpy", 0.02), ratio(2.0), {"kind": "end", "load": 1.0}]
    text = rendered(tmp_path, records)
    assert "A CPU, 2 cores" in text
    assert "2026-01-02 03:04 UTC, commit abc" in text
    assert "Load average (ours included): 0.25 at the start, 1.0 at the end, at most 1.5." in text
    assert "| toy | numpy | 20 (18–25) | 400 | 50 | 50.0% | 1,234 | 0.02 |" in text
    assert "| toy | 2 (1.8–2.5); 2.5 |" in text
    assert "**Provisional**" not in text
    busy = [{**r, "others_cores": 0.7} if "others_cores" in r else r for r in records]
    assert "**Provisional**: other processes kept 0.7 to 0.7 of the 2 cores busy" in rendered(tmp_path, busy)


def test_a_report_begins_with_the_medians_of_all_training_runs_by_what_was_set_for_blas(tmp_path):
    def run_(median, memory, **more):
        sides_ = [timed("train", side, 0.02, peak_mb=mb) for side, mb in (("numpy", memory), ("torch-sdpa", 1000.0))]
        return [head("run", **more), *sides_, ratio(median), ratio(9.0, agree=False), {"kind": "end"}]

    limited = {"environment": {"OPENBLAS_CORETYPE": "Haswell"}}
    runs = run_(2.0, 500.0), run_(3.0, 250.0), run_(1.5, 100.0, **limited), [head("crossover"), ratio(7.0), {"kind": "end"}]
    glance = rendered(tmp_path, *runs).partition("## At a glance")[2].partition("\n## ")[0]
    assert "No variable of BLAS was set:" in glance
    assert "| case | torch-sdpa / numpy | memory: numpy / torch-sdpa |" in glance
    assert "| toy | 2, 3 | 0.5, 0.25 |" in glance
    assert "OPENBLAS_CORETYPE=Haswell:" in glance
    assert "| toy | 1.5 | 0.1 |" in glance
    assert not {"7", "9"} & set(glance)  # another kind of run; results that differ


def test_a_report_has_the_three_ratios_at_a_glance_and_in_each_section(tmp_path):
    ratios = [ratio(2.0, kinds=["installed"]), ratio(1.5, kinds=["same"], against="torch-intel", others_cores=0.4)]
    engine = {"about": "x", "threads": 2, "kernels": "OpenBLAS's kernels for Haswell: AVX2, by OPENBLAS_CORETYPE=Haswell"}
    text = rendered(tmp_path, [head("run"), timed("train", "numpy", 0.02, engine=engine), *ratios, {"kind": "end"}],
                    [head("crossover"), *ratios, {"kind": "end"}])
    row = ("1.5 the same instruction set (torch-intel) provisional, 1.5 torch with everything (torch-intel) provisional, "
           "2 each library as installed (torch-sdpa)")
    glance, _, sections = text.partition("## Training")
    assert f"| toy | numpy | {row} | nothing |" in glance
    assert f"| toy | numpy | {row} | nothing |" in sections
    means = "1.5 torch with everything (1), 1.5 the same instruction set (1), 2 each library as installed (1)"
    assert f"| numpy | {means} | nothing |" in sections
    assert "| OpenBLAS's kernels for Haswell: AVX2, by OPENBLAS_CORETYPE=Haswell | – | – |" in sections
    assert "**Provisional** are 1 of 2 ratios; toy torch-intel / numpy: other work kept 0.4 cores busy." in sections


def test_bars_of_ratios_start_at_1_and_of_memory_at_0_and_what_is_provisional_is_hatched():
    plots = pytest.importorskip("benchmarks.plots")
    records = [head("run"), timed("train", "numpy", 0.02), ratio(2.0), ratio(0.5, against="x", others_cores=0.4)]
    (_, _, ratios), (_, _, memory) = plots._training(records)
    lower, upper = sorted(ratios.axes[0].patches, key=lambda bar: bar.get_height())
    assert (lower.get_y(), lower.get_height(), lower.get_hatch()) == (1.0, -0.5, "////")
    assert (upper.get_y(), upper.get_height(), upper.get_hatch()) == (1.0, 1.0, None)
    assert [bar.get_y() for axes in memory.axes for bar in axes.patches] == [0.0]
    assert "times" in ratios.axes[0].get_ylabel()
    assert "MB" in memory.axes[0].get_ylabel()


def test_a_report_says_what_was_not_measured(tmp_path):
    absent = {"kind": "absent", "what": "train", "side": "torch-cuda", "why": "no cuda device", "case": TOY.to_dict()}
    text = rendered(tmp_path, [head("run"), absent, timed("train", "numpy", 0.02)]).partition("## Not measured")[2]
    assert "torch-cuda: no cuda device (toy)" in text
    assert "of the grid: S0, S1, S2, S3, S4" in text
    assert "`crossover`: no file was given" in text
    assert "`run` ends early" in text


def test_the_crossover_is_a_table_and_a_plot_with_the_same_bytes_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    cases = [dataclasses.replace(TOY, d_model=d, context=t) for d in (32, 64) for t in (8, 16)]
    records = [head("crossover"), *(ratio(0.5 + i, case) for i, case in enumerate(cases)), {"kind": "end", "load": 1.0}]
    text = rendered(tmp_path, records)
    assert "| d = 32 | 0.5; 2.5 | 1.5; 2.5 |" in text
    (plot,) = (tmp_path / "figures").glob("crossover-*.svg")
    first = plot.read_bytes()
    rendered(tmp_path, records)
    assert plot.read_bytes() == first
    assert f"figures/{plot.name}" in text


def test_each_run_of_a_report_has_plots_of_its_own(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [[head("run"), ratio(median), {"kind": "end", "load": 1.0}] for median in (0.5, 2.0)]
    text = rendered(tmp_path, *runs)
    one, other = (tmp_path / "figures" / f"training-ratio-run{i}.svg" for i in range(2))
    assert one.read_bytes() != other.read_bytes()
    assert f"figures/{one.name}" in text
    assert f"figures/{other.name}" in text


def test_two_files_of_one_name_are_refused(tmp_path):
    files = [tmp_path / folder / "small.jsonl" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps(head("run")))
    with pytest.raises(ValueError, match=r"got a second file named small, expected another name"):
        read_records(map(str, files))


def test_scaling_has_its_exponents_and_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    sizes = [(case, case.tokens if case.about == "tokens" else case.n_layers) for case in scaling_cases(["tokens", "layers"])]
    runs = [timed("train", "numpy", 0.01 * n**0.9, case=case.to_dict(), tokens=case.tokens) for case, n in sizes]
    text = rendered(tmp_path, [head("scaling"), *runs, {"kind": "end"}])
    assert "| exponent over tokens | 0.90 ± 0.00 |" in text
    assert "| exponent over layers | 0.90 ± 0.00 |" in text
    assert re.search(r"\| line, ms over layers \| [\d.]+ \+ [\d.]+ n, \d% \|", text)
    assert len(list((tmp_path / "figures").glob("scaling-*.svg"))) == 1


def test_gelu_is_a_row_and_a_bar_of_its_own(tmp_path):
    gelu = dataclasses.replace(TOY, activation="gelu")
    records = [r for case in (TOY, gelu) for r in (timed("train", "numpy", 0.02, case=case.to_dict()), ratio(2.0, case))]
    text = rendered(tmp_path, [head("run"), *records, {"kind": "end"}])
    assert "| toy gelu | numpy | 20 " in text
    assert "| toy gelu | 2 (1.8–2.5); 2.5 |" in text


def test_a_section_has_the_title_that_was_asked_for(tmp_path):
    named = {**head("run"), "asked": {"rounds": 3, "title": "Peers"}}
    assert "## Peers\n" in rendered(tmp_path, [named, timed("train", "numpy", 0.02), {"kind": "end"}])


def test_ops_and_decoding_have_their_tables(tmp_path):
    op = {"name": "relu", "what": FORWARD, "unit": "byte", "work": 2e6}
    ops = [head("ops"), timed("op", "numpy", 1e-3, **op), ratio(2.0, **{**op, "what": "op", "direction": FORWARD})]
    decode = [head("decode"), timed("decode", "numpy", 0.5), ratio(2.0)]
    text = rendered(tmp_path, ops, decode)
    assert "| relu | forward | 1, 2 GB/s | 2 (1.8–2.5); 2.5 |" in text
    assert "| toy | numpy | 8 | 16 | 62.5 (56.2–78.1) | 1,234 |" in text


# Guards ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_what_is_guarded_runs(pair):
    assert 1 < pair.bound / pair.seen < 2
    for work in pair.make():
        work()


def test_a_guard_takes_the_fastest_of_both():
    class Fixture:
        extra_info = types.SimpleNamespace(update=lambda **info: None)
        stats = types.SimpleNamespace(stats=types.SimpleNamespace(min=0.5))

        def pedantic(self, ours, setup, rounds, warmup_rounds):
            for _ in range(rounds + warmup_rounds):
                setup()
                ours()

    turns = []
    pair = Pair("", lambda: (lambda: turns.append("ours"), lambda: turns.append("yardstick")), 1.0, 1.5, rounds=3)
    clock = iter([0.0, 4.0, 5.0, 6.0, 10.0, 12.0, 20.0, 29.0, 30.0, 31.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard.time, "process_time", lambda: next(clock))
        assert guard.measured(pair, Fixture()) == 0.5
    assert turns == ["yardstick", "ours"] * 5


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "expected"), [
    (["run", "--grid", "S9", "--out", "x"], "grid: got 'S9', expected some of toy, S0"),
    (["run", "--sides", "theano", "--out", "x"], "sides: got 'theano', expected some of numpy"),
    (["run", "--sides", "numpy,numpy", "--out", "x"], "sides: got 'numpy' twice"),
    (["run", "--rounds", "0", "--out", "x"], "got '0', expected an integer >= 1"),
    (["run", "--out", __file__], "expected a new file (or --resume)"),
    (["run", "--resume", "--out", __file__], "test_benchmarks.py: line 1: got "),
    (["run", "--minutes", "0", "--out", "x"], "got '0', expected a number > 0"),
    (["scaling", "--axes", "width", "--out", "x"], "axes: got 'width', expected some of tokens, layers"),
    (["run", "--out", os.path.join("no", "such", "folder")], "No such file"),
    (["run"], "--out"),
    (["ops", "--ops", "conv", "--out", "x"], "ops: got 'conv'"),
    (["ops", "--seconds", "nan", "--out", "x"], "got 'nan', expected a number > 0"),
    (["crossover", "--batch", "1,x", "--out", "x"], "got 'x', expected an integer >= 1"),
    (["walk"], "invalid choice: 'walk'"),
    ([], "COMMAND"),
    (["report", __file__, "--out", "x"], "test_benchmarks.py: line 1: got "),
    (["report", "missing.jsonl", "--out", "x"], "No such file"),
    (["compare", "missing.jsonl", "other.jsonl"], "No such file"),
    (["compare", "one.jsonl"], "B.jsonl"),
])
def test_a_mistake_is_one_line_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_the_commands_of_the_manual_can_be_read():
    manual = (machine.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in manual.splitlines() if line.startswith("python -m benchmarks ")]
    assert len(lines) > 8
    for line in lines:
        options = make_parser().parse_args(shlex.split(line.replace("$S", "numpy,torch-sdpa"), comments=True)[3:])
        if hasattr(options, "sides"):
            sides.find_sides(options.sides.split(","))


def test_the_activation_is_part_of_the_case():
    assert find_cases(["S1"], "gelu")[0].config.activation == "gelu"
