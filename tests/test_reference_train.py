"""The torch training: the loop by hand, the same batches, what it writes, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from reference import train as reference_train
from reference.bridge import numpy_state
from reference.train import Settings, evaluate, find_device, load_data, lr_factor, main, make_model, train
from tinygrad_llm.checkpoint import load_checkpoint
from tinygrad_llm.data import BatchLoader

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def settings(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, and the rat sat on the cat.\n" * 40)
    sizes = {"context_length": 16, "d_model": 16, "n_heads": 2, "n_layers": 1, "batch_size": 8}
    return Settings(str(text), **sizes, steps=30, lr=1e-2, warmup_steps=3, eval_every=15)


def replaced(settings, **changes):
    return type(settings)(**(vars(settings) | changes))


def test_it_learns_and_the_same_seed_gives_the_same_bits(settings):
    first, second = train(settings, progress=False), train(settings, progress=False)
    assert len(first.losses) == 30
    assert first.losses[-1] < 0.8 * first.losses[0]
    assert [line["step"] for line in first.evaluations] == [15, 30]
    assert first.losses == second.losses
    assert train(replaced(settings, seed=1), progress=False).losses != first.losses
    for name, array in numpy_state(first.model).items():
        np.testing.assert_array_equal(array, numpy_state(second.model)[name])


def test_it_is_the_loop_that_one_would_write_by_hand(settings):
    settings = replaced(settings, steps=6, grad_clip=0.5)
    data = load_data(settings)
    model = make_model(settings, data.tokenizer.vocab_size, CPU)
    start = numpy_state(model)
    decays = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    loader, losses = BatchLoader(data.train, 8, seed=0), []
    for step in range(6):
        ids, targets = map(torch.from_numpy, next(loader))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * lr_factor(step, settings)
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    result = train(settings, initial=start, progress=False)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    weight = result.model.blocks[0].ffn.up_proj.weight
    torch.testing.assert_close(weight, model.blocks[0].ffn.up_proj.weight, rtol=1e-3, atol=1e-5)


def test_the_learning_rate_rises_then_falls(settings):
    factors = [lr_factor(step, replaced(settings, steps=20, warmup_steps=4)) for step in range(21)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(np.diff(factors[4:]) < 0)
    assert factors[12] == pytest.approx(0.55)
    assert factors[20] == pytest.approx(0.1)
    assert lr_factor(0, replaced(settings, warmup_steps=0)) == 1.0


def test_evaluation_by_hand(settings):
    data = load_data(settings)
    model = make_model(settings, data.tokenizer.vocab_size, CPU)
    metrics = evaluate(model, data, 3, CPU)
    pairs = [data.test[i] for i in range(len(data.test))]
    ids, targets = (torch.from_numpy(np.stack(part)) for part in zip(*pairs))
    loss = model.loss(ids, targets).item()
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert metrics["bits_per_char"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((model(ids).argmax(-1) == targets).double().mean().item())
    assert model.training


def test_what_it_writes(settings, tmp_path):
    out = tmp_path / "run"
    result = train(replaced(settings, out=str(out)), progress=False)
    weights, about = load_checkpoint(out / "model.safetensors")
    assert set(weights) == set(result.model.state_dict())
    np.testing.assert_array_equal(weights["lm_head.weight"], numpy_state(result.model)["lm_head.weight"])
    assert about["config"] == result.model.config.to_dict()
    assert about["step"] == 30
    state, _ = load_checkpoint(out / "optimizer.safetensors")
    assert state["lm_head.weight.exp_avg"].shape == weights["lm_head.weight"].shape
    assert state["final_norm.bias.step"] == 30
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.evaluations


def test_ctrl_c_saves_what_there_is(settings, tmp_path, monkeypatch):
    step, count = reference_train.train_step, iter(range(100))

    def interrupted(*args):
        if next(count) == 13:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(reference_train, "train_step", interrupted)
    result = train(replaced(settings, out=str(tmp_path / "run")), progress=False)
    assert len(result.losses) == 13
    assert load_checkpoint(tmp_path / "run" / "model.safetensors")[1]["step"] == 13


def test_a_loss_that_is_no_number_ends_the_run(settings):
    with pytest.raises(FloatingPointError, match=r"^loss: got (nan|inf) at step \d+, expected a finite number$"):
        train(replaced(settings, lr=1e30, grad_clip=0.0, warmup_steps=0), progress=False)


MISTAKES = {
    "--corpus nowhere.txt": "corpus: got 'nowhere.txt'",
    "--lr -1": "lr: got -1.0, expected a finite number > 0",
    "--lr nan": "lr: got nan",
    "--steps 0": "steps: got 0, expected an integer >= 1",
    "--weight-decay -0.1": "weight_decay: got -0.1, expected a finite number >= 0",
    "--n-heads 3": "n_heads: got 3, expected a divisor of d_model = 16",
    "--tokenizer klingon": "tokenizer: got 'klingon'",
    "--context-length 100000": "context_length: got 100000",
    "--device tpu": "device: got 'tpu', expected one that is available here: cpu",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(flags, settings, capsys):
    sizes = ["--corpus", settings.corpus, "--d-model", "16", "--n-heads", "2", "--context-length", "16"]
    assert main([*sizes, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {MISTAKES[flags]}")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_training(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--corpus", settings.corpus, "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: out: got ")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_is_refused_and_a_present_one_used(name, settings):
    available = torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()
    if not available:
        with pytest.raises(ValueError, match=f"^device: got '{name}', expected one that is available here: cpu"):
            find_device(name)
        return
    there, here = (train(replaced(settings, device=device), progress=False) for device in (name, "cpu"))
    np.testing.assert_allclose(there.losses, here.losses, rtol=1e-3)
