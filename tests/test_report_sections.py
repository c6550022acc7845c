"""The sections of the report: ops, activations, growth, training beside controls, devices, users' functions, HTML, JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

import tinygrad_llm
from reference.accuracy import compare_accuracy
from reference.activation_gradients import compare_activation_gradients, gradients_of
from reference.activations import compare_activations, growth_with_depth, growth_with_length, record_ours
from reference.bugs import BUGS
from reference.bugs.patch import patched
from reference.devices import compare_device
from reference.environment import environment
from reference.functions import NEITHER, ROUND, TORCH, YOURS, compare, load_functions
from reference.heatmap import shade
from reference.html import render
from reference.killtable import kill_table
from reference.neighbours import one_ulp_away
from reference.opdraw import draw_calls, run_torch
from reference.ops_report import compare_ops, judge_call, ulps_of
from reference.sections import Report
from reference.trajectories import CONTROL, POSITIVE, compare_trajectories, judge_runs, markov_batches
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.ops import REGISTRY, Arg
from tinygrad_llm.policy import Verdict

CONFIG = TransformerConfig(11, 6, 8, 2, 2)
IDS = np.random.default_rng(0).integers(11, size=(3, 6))


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make(config, dtype):
    return tinygrad_llm.Transformer(config, dtype=dtype)


def bug(name):
    return next(b for b in BUGS if b.name == name).apply(tinygrad_llm)


# ops -----------------------------------------------------------------------------------------------------------------


def test_every_op_has_a_row_in_each_dtype_and_none_fails():
    rows = compare_ops(count=2)
    assert {(row.op, row.dtype) for row in rows} == {(name, dtype) for name in REGISTRY for dtype in ("float64", "float32")}
    assert [f"{row.op} {row.dtype} {row.verdict} {row.detail}" for row in rows if row.failed] == []
    assert all((row.ratio is None) == (row.torch_error is None) for row in rows if row.dtype == "float64")


def test_a_wrong_op_has_a_verdict_and_a_place():
    with bug("dx without its third term"):
        wide, narrow = compare_ops(["layer_norm"])
    assert (wide.verdict, narrow.verdict) == (Verdict.DIFFERENT, Verdict.WORSE)
    assert wide.detail.startswith("gradient of x: at (")


def test_noise_is_inconclusive_and_not_wrong(monkeypatch):
    """torch lucky by a factor of 1000 on one call, but not on its neighbours."""
    call = draw_calls(REGISTRY["layer_norm"])[0]
    lucky = [value.astype(np.float32) for value in run_torch(call, np.float64)]
    call.cache["float32", "cpu"] = lucky
    original = REGISTRY["layer_norm"].function
    noise = np.float32(1 + 1e-4)
    far = {("float64", "cpu"): run_torch(call, np.float64), ("float32", "cpu"): [value * noise for value in lucky]}
    call.cache["neighbours"] = [dataclasses.replace(call, cache=far)]

    def unlucky(*args, **options):
        out, vjp = original(*args, **options)
        return out * out.dtype.type(1 + 1e-4 * (out.dtype == np.float32)), vjp

    with patched(REGISTRY["layer_norm"], "function", unlucky):
        assert judge_call(call, np.float32)[0].verdict == Verdict.INCONCLUSIVE
        call.cache["neighbours"] = [call]
        assert judge_call(call, np.float32)[0].verdict == Verdict.WORSE


def test_ulps():
    truth = np.array([1.0, 1.0, 0.0, np.inf])
    x = np.float32([1 + 2**-23, 1, 0, np.inf])
    assert ulps_of(x, truth).tolist() == [1.0, 0.0, 0.0]


# activations ---------------------------------------------------------------------------------------------------------


def test_no_activation_diverges():
    found = compare_activations(make, CONFIG, IDS)
    assert found.first is None, found.sentence
    names = [row.name for row in found.rows]
    assert names[0] == "tok_embed"
    assert names[-1] == "logits"
    assert {"blocks.1.attn.qkv_proj", "blocks.0.dropout#2", "final_norm"} <= set(names)


@pytest.mark.parametrize(
    ("name", "first"),
    [("eps outside the root", "blocks.0.norm1"), ("no scale", "blocks.0.attn.out_proj"), ("no final norm", "lm_head"),
     ("residual around attention dropped", "blocks.0.norm2"), ("positions off by one", "dropout")],
)  # fmt: skip
def test_the_first_diverging_tensor_is_the_one_that_the_bug_touches(name, first):
    with bug(name):
        found = compare_activations(make, CONFIG, IDS)
    assert found.first.name == first
    assert first in found.sentence


def test_watching_a_model_leaves_no_trace():
    model = make(CONFIG, np.float32)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    assert "blocks.0.attn" in record_ours(model, IDS)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def norm_with_a_wrong_gradient(block, norm, dtypes=(np.float64, np.float32)):
    """make(config, dtype) of a model in which one layer norm has a wrong vjp."""

    class Wrong(tinygrad_llm.nn.LayerNorm):
        def forward(self, x):
            with bug("dx without its third term"):
                return super().forward(x)

    def made(config, dtype):
        model = make(config, dtype)
        if dtype in dtypes:
            setattr(model.blocks[block], norm, Wrong(config.d_model, dtype=dtype))
        return model

    return made


def test_no_gradient_of_an_activation_diverges():
    found = compare_activation_gradients(make, CONFIG, IDS, IDS[::-1])
    assert found.first is None, found.sentence
    names = [row.name for row in found.rows[::2]]
    assert names[:3] == ["d final_norm", "d final_norm.input", "d blocks.1"]
    assert names[-1] == "d tok_embed"
    assert names.index("d blocks.1.dropout#2.input") < names.index("d blocks.1.ffn") < names.index("d blocks.0")
    assert len(names) == len(set(names)) == 49


@pytest.mark.parametrize("options", [{"norm_position": "post"}, {"positions": "learned", "tie_embeddings": True},
                                     {"activation": "gelu", "bias": False}])  # fmt: skip
def test_no_gradient_of_an_activation_diverges_in_other_models(options):
    found = compare_activation_gradients(make, dataclasses.replace(CONFIG, **options), IDS, IDS[::-1])
    assert found.first is None, found.sentence


@pytest.mark.parametrize(("block", "norm"), [(1, "norm2"), (1, "norm1"), (0, "norm2")])
@pytest.mark.parametrize("dtypes", [(np.float64, np.float32), (np.float32,)])
def test_a_wrong_layer_norm_is_named_by_the_gradient_that_leaves_it(block, norm, dtypes):
    found = compare_activation_gradients(norm_with_a_wrong_gradient(block, norm, dtypes), CONFIG, IDS, IDS)
    assert (found.first.name, found.first.dtype) == (f"d blocks.{block}.{norm}.input", np.dtype(dtypes[0]).name)
    assert f"first diverging gradient, from the last back: d blocks.{block}.{norm}.input" in found.sentence
    right = {row.name for row in found.rows if row.passed}
    assert {"d final_norm", "d final_norm.input", f"d blocks.{block}.{norm}"} <= right


@pytest.mark.parametrize(
    ("name", "first"),
    [("dx without its third term", "d final_norm.input"), ("dS without Σ dP P", "d blocks.1.attn.qkv_proj"),
     ("relu's gradient from its cotangent's sign", "d blocks.1.ffn.up_proj"), ("loss", "d final_norm")],
)  # fmt: skip
def test_the_first_diverging_gradient_is_the_one_that_the_bug_touches(name, first):
    class Wrong(tinygrad_llm.Transformer):
        def loss(self, ids, targets):
            return super().loss(ids, targets) * 1.001

    with bug(name) if name != "loss" else nullcontext():
        model = Wrong if name == "loss" else tinygrad_llm.Transformer
        found = compare_activation_gradients(lambda config, dtype: model(config, dtype=dtype), CONFIG, IDS, IDS)
    assert found.first.name == first


def test_watching_gradients_leaves_no_trace_and_changes_none():
    model, plain = make(CONFIG, np.float32), make(CONFIG, np.float32)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    gradients_of(model, IDS, IDS)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    (plain.loss(IDS, IDS) * float(IDS.size)).backward()
    assert all(np.array_equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters()))


def test_growth_is_that_of_rounding():
    for growth in (growth_with_depth(make, CONFIG, IDS, 4), growth_with_length(make, CONFIG, (4, 16, 64), 2)):
        assert len(growth.x) == len(growth.ours) == len(growth.torch)
        assert max(growth.ours) < 4 * max(growth.torch) < 1e-4
        assert growth.slopes[0] < 1


# training ------------------------------------------------------------------------------------------------------------


def test_ours_trains_like_rounding_and_the_rule_bites():
    found = compare_trajectories(partial(make, CONFIG), tinygrad_llm.optim.AdamW, CONFIG, steps=40, batch=2, thread_steps=0)
    assert found.like_rounding, found.sentence
    assert found.rule_bites
    assert {"torch", "ours", CONTROL, POSITIVE, "ours float64"} < set(found.paths)
    assert len(found.paths["ours"].losses) == 40


@pytest.mark.parametrize("name", ["eps inside the root", "decay coupled to the gradient", "dx without its third term"])
def test_a_bug_is_told_from_rounding(name):
    with bug(name):
        found = compare_trajectories(partial(make, CONFIG), tinygrad_llm.optim.AdamW, CONFIG, steps=20, batch=2, thread_steps=0)
    assert not found.like_rounding
    assert "LIKE A BUG" in found.sentence


def test_a_float32_only_bug_is_told_from_rounding():
    logits = np.random.default_rng(0).standard_normal((3, 4))
    run = {"ours": 1e-3, CONTROL: 1e-6, POSITIVE: 1e-2, "torch float64": 1e-6}
    runs = {"torch": ([1.0], [logits]), "ours float64": ([1.0], [logits * (1 + 1e-6)])}
    runs |= {name: ([1.0], [logits * (1 + size)]) for name, size in run.items()}
    assert not judge_runs(runs, [1]).like_rounding


def test_the_control_is_one_ulp_away_and_keeps_ties():
    weights = {"a": np.float32([[1, -2]]), "b": np.float32([[1, -2]]), "c": np.float32([3])}
    moved = one_ulp_away(weights, 0)
    assert np.array_equal(moved["a"], moved["b"])
    assert all(np.all(np.abs(moved[n] - w) <= np.spacing(np.abs(w))) and np.all(moved[n] != w) for n, w in weights.items())


def test_the_text_can_be_learned():
    batches, probe = markov_batches(CONFIG, 5, 2, 0)
    assert len(batches) == 5
    assert probe.shape == (2, 6)
    assert np.array_equal(batches[0][0][:, 1:], batches[0][1][:, :-1])


# devices and functions -----------------------------------------------------------------------------------------------


def test_the_cpu_beside_itself_is_not_wrong():
    found = compare_device("cpu", CONFIG, IDS, IDS)
    assert found.passed
    assert found.sentence.startswith("Neither device is wrong")
    assert {row.name for row in found.rows} >= {"logits", "loss", "matmul", "grad lm_head.weight"}


def test_a_wrong_device_is_named(monkeypatch):
    from reference import devices

    real = devices.run_torch

    def wrong(call, dtype, device="cpu"):
        values = real(call, dtype, "cpu")
        return [v * v.dtype.type(1.01) for v in values] if device == "gpu" and call.op.name == "matmul" else values

    monkeypatch.setattr(devices, "run_torch", wrong)
    monkeypatch.setattr(devices, "_model_rows", lambda *args: [])
    found = compare_device("gpu", CONFIG, IDS, IDS)
    assert not found.passed
    assert found.sentence.startswith("gpu is wrong in 1 quantities, worst in matmul: error ")


ARGS = tuple(Arg.parse(name, spec) for name, spec in (("x", "*B N>1"), ("w", "N")))


def np_norm(x, w):
    centred = x - x.mean(-1, keepdims=True)
    return w * centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)


def torch_norm(x, w):
    return torch.nn.functional.layer_norm(x, w.shape, w)


def vjp_norm(x, w, third=1.0):
    centred = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + x.dtype.type(1e-5))
    n = centred * scale

    def vjp(g):
        gw = g * w
        dx = scale * (gw - gw.mean(-1, keepdims=True) - x.dtype.type(third) * n * (gw * n).mean(-1, keepdims=True))
        return dx, (g * n).reshape(-1, len(w)).sum(0)

    return n * w, vjp


def verdicts(ours, theirs, args=ARGS):
    found = compare(ours, theirs, args, tinygrad_llm)
    return {row.name: row.verdict for row in found.rows}, found


def test_the_same_function_twice_rounds():
    for ours in (np_norm, vjp_norm):
        said, found = verdicts(ours, torch_norm)
        assert said == dict.fromkeys(["output", "gradient of x", "gradient of w"], ROUND)
        assert found.passed
        assert found.sentence.startswith("Both round")


def test_a_wrong_gradient_of_yours():
    said, found = verdicts(partial(vjp_norm, third=0.0), torch_norm)
    assert said == {"output": ROUND, "gradient of x": YOURS, "gradient of w": ROUND}
    assert "difference quotient" in found.sentence


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def test_a_wrong_gradient_of_torch_s_and_of_both():
    arg = (Arg.parse("x", "N"),)
    assert verdicts(lambda x: x * x, WrongBackward.apply, arg)[0] == {"output": ROUND, "gradient of x": TORCH}
    both = verdicts(lambda x: (x * x, lambda g: (g * x * 3,)), WrongBackward.apply, arg)[0]
    assert both == {"output": ROUND, "gradient of x": NEITHER}


def test_float32_alone():
    arg = (Arg.parse("x", "N in (0.001, 0.01)"),)

    def cancelling(x):
        one = x.dtype.type(1)
        return (np.log(one + x * x), lambda g: (g * 2 * x / (one + x * x),))

    stretch = 1e6
    said = verdicts(lambda x: tuple_scaled(cancelling(x), stretch), lambda x: stretch * torch.log1p(x * x), arg)[0]
    assert said["output"] == YOURS
    said = verdicts(lambda x: (stretch * np.log1p(x * x), lambda g: (g * stretch * 2 * x / (1 + x * x),)),
                    lambda x: stretch * torch.log(1 + x * x), arg)[0]  # fmt: skip
    assert said["output"] == TORCH


def tuple_scaled(pair, factor):
    out, vjp = pair
    return out * out.dtype.type(factor), lambda g: tuple(d * d.dtype.type(factor) for d in vjp(g))


@pytest.mark.skipif(np.finfo(np.longdouble).eps == np.finfo(np.float64).eps, reason="no extended precision here")
def test_a_formula_that_cancels_is_told_from_another_formula():
    args = tuple(Arg.parse(name, spec) for name, spec in (("x", "*B N>1 in (99.5, 100)"), ("w", "N")))

    def squares(x, w):
        mean = x.mean(-1, keepdims=True)
        return w * (x - mean) / np.sqrt((x * x).mean(-1, keepdims=True) - mean * mean + 1e-5)

    said, found = verdicts(squares, torch_norm, args)
    assert said["output"] == YOURS
    assert "torch's function, but it cancels" in found.sentence


def test_another_function_and_one_without_gradients():
    said, found = verdicts(lambda x, w: np_norm(x, w) * 1.001, torch_norm)
    assert said["output"] == YOURS
    assert "another function than torch's" in found.sentence
    untraceable = verdicts(lambda x, w: np_norm(x, w) if isinstance(x, np.ndarray) else 1 / 0, torch_norm)
    assert untraceable[0] == {"output": ROUND}
    assert "Gradients were not compared" in untraceable[1].sentence


def test_functions_that_cannot_be_found_are_refused_in_a_line():
    for given in ("math:sqrt", "nowhere:f,math:sqrt", "math:nothing,math:sqrt", "math:pi,math:sqrt", "math,math"):
        with pytest.raises((ValueError, TypeError), match=r"^functions: got .*, expected ") as caught:
            load_functions(given)
        assert "\n" not in str(caught.value)


# the page ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    found = Report(environment(0, ["check"]), "a <b> model", CONFIG.to_dict())
    found.ops = compare_ops(["add", "layer_norm"])
    from reference.equivalence import compare_models, compare_training

    found.model = compare_models(partial(make, CONFIG), CONFIG, IDS, IDS)
    batches = markov_batches(CONFIG, 3, 2, 0)[0]
    found.training = compare_training(partial(make, CONFIG), tinygrad_llm.optim.AdamW, CONFIG, batches)
    found.activations = compare_activations(make, CONFIG, IDS)
    found.activation_gradients = compare_activation_gradients(make, CONFIG, IDS, IDS)
    found.accuracy = compare_accuracy(make, CONFIG, draws=2)
    found.depth, found.length = growth_with_depth(make, CONFIG, IDS, 3), growth_with_length(make, CONFIG, (4, 8), 2)
    found.trajectories = compare_trajectories(partial(make, CONFIG), tinygrad_llm.optim.AdamW, CONFIG, steps=5, batch=2)
    found.kills = kill_table(tinygrad_llm, BUGS[:2])
    return found


def test_the_page_stands_alone(report):
    page = render(report)
    assert set(re.findall(r"(?:src|href)=[\"']?(.)", page)) == {"#"}
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "a &lt;b&gt; model" in page
    assert page.count("<section") == 5
    assert page.count("<svg") == 4 + len(report.accuracy)
    assert "d loss / d activation, from the last back: 98 rows" in page
    assert "prefers-color-scheme: dark" in page
    for opened in ("table", "details", "section", "figure", "svg", "div"):
        assert page.count(f"<{opened}") == page.count(f"</{opened}>"), opened


def test_a_failure_stands_at_the_top_of_the_page(report):
    with bug("dx without its third term"):
        broken = dataclasses.replace(report, ops=compare_ops(["layer_norm"]))
    assert not broken.passed
    assert "No: 2 findings" in render(broken)
    wrong = compare_activation_gradients(norm_with_a_wrong_gradient(1, "norm2"), CONFIG, IDS, IDS)
    broken = dataclasses.replace(report, activation_gradients=wrong)
    assert not broken.passed
    assert "first diverging gradient, from the last back: d blocks.1.norm2.input" in render(broken)
    assert broken.to_json()["first_diverging_gradient"] == "d blocks.1.norm2.input"


def test_json_has_every_section_and_no_infinities(report):
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["passed"]
    assert {"environment", "ops", "comparisons", "depth", "trajectories", "kill_table", "accuracy"} <= set(data)
    assert [row["interval"] for row in data["accuracy"]] == [[None, None]] * 3
    assert (data["first_diverging"], data["first_diverging_gradient"]) == (None, None)
    assert data["kill_table"][0]["killed_by"]
    assert data["trajectories"]["like_rounding"]


def test_shades():
    assert [shade(e) for e in (0.0, 1e-9, 1e-8, 2e-5, 1.0, np.inf, np.nan)] == [0, 0, 0, 8, 8, 8, 0]
    assert shade(4e-7) == 4


def test_the_environment_says_what_a_reader_needs():
    found = environment(3, ["check", "--seed", "3"])
    assert found["seed"] == "3"
    assert found["command"] == "tinygrad-llm check --seed 3"
    assert torch.__version__ in found["PyTorch"]
    assert np.__version__ in found["NumPy"]
    assert "TF32" in found["precision"]
