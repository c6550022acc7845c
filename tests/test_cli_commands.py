"""The commands end to end, on settings so small that a run takes a second."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from tinygrad_llm.checkpoint import CheckpointFolder, load_checkpoint, save_checkpoint
from tinygrad_llm.cli import COMMANDS, main
from tinygrad_llm.cli.errors import is_mistake
from tinygrad_llm.training import Trainer, load_model

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n" * 40
SMALL = {"context-length": 8, "d-model": 8, "n-heads": 2, "n-layers": 2, "batch-size": 4, "steps": 20, "lr": 0.01,
         "warmup-steps": 2, "eval-every": 10, "checkpoint-every": 5}  # fmt: skip
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["train", "--corpus", str(text), *FLAGS, "--out", str(out)]) == 0
    return out


def run(capsys, *words):
    """(exit code, stdout, stderr)"""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def process(*words, shell_tail="", **options):
    """A real process, of this checkout, in a pipeline where shell_tail says so."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = " ".join([sys.executable, "-m", "tinygrad_llm", *(f"'{word}'" for word in words), shell_tail])
    return subprocess.Popen(["bash", "-c", f"exec {command}" if not shell_tail else command], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


def final_weights(folder):
    return CheckpointFolder(folder).latest()


# train ---------------------------------------------------------------------------------------------------------------


def test_train_says_what_it_will_do_and_what_it_did(text, tmp_path, capsys):
    code, out, err = run(capsys, "train", "--corpus", text, *FLAGS, "--out", tmp_path / "out")
    assert code == 0
    assert re.search(r"Transformer +\d", out)
    assert re.search(r"held out to test +1 +\d+", out)
    assert re.search(r"loss +\d\.\d+ +nats per token", out)
    assert str(tmp_path / "out" / "best.safetensors") in out
    assert "step 10" in err
    assert "step 20" in err
    assert "Warning" not in err


def test_quiet_prints_the_final_evaluation_and_nothing_on_stderr(text, tmp_path, capsys):
    code, out, err = run(capsys, "train", "--corpus", text, *FLAGS, "--quiet", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.lstrip().startswith("loss")


def test_every_model_option_reaches_the_model(text, tmp_path, capsys):
    options = ["--d-ff", 12, "--activation", "gelu", "--norm-position", "post", "--positions", "learned", "--no-bias",
               "--tie-embeddings", "--dropout", 0.1, "--norm-eps", 1e-4, "--dtype", "float64"]  # fmt: skip
    assert run(capsys, "train", "--corpus", text, *FLAGS, *options, "--out", tmp_path / "out")[0] == 0
    model, _, metadata = load_model(tmp_path / "out")
    wanted = {"d_ff": 12, "activation": "gelu", "norm_position": "post", "positions": "learned", "bias": False,
              "tie_embeddings": True, "dropout": 0.1, "norm_eps": 1e-4}  # fmt: skip
    assert {name: getattr(model.config, name) for name in wanted} == wanted
    assert model.dtype == np.float64
    assert metadata["about"]["settings"]["corpus"] == str(text)


def test_ctrl_c_saves_says_how_to_go_on_and_the_resumed_run_ends_with_the_same_bits(
    text, trained, tmp_path, capsys, monkeypatch
):
    step, out = Trainer.step, tmp_path / "out"

    def step_and_stop(self, ids, targets):
        if self.steps_done == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, ids, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_stop)
        code, _, err = run(capsys, "train", "--corpus", text, *FLAGS, "--quiet", "--out", out)
    assert code == 130
    assert err == f"tinygrad-llm: stopped after step 7, saved; go on with: tinygrad-llm train --resume --out {out}\n"
    assert run(capsys, "train", "--resume", "--out", out)[0] == 0
    ours, wanted = final_weights(out), final_weights(trained)
    assert ours.metadata["step"] == 20
    assert all(np.array_equal(ours.tensors[name], wanted.tensors[name]) for name in wanted.tensors)


def test_a_finished_run_whose_evaluation_is_not_there_is_evaluated_again(trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "out")
    last = sorted(out.glob("step-*"))[-1]
    tensors, metadata = load_checkpoint(last)
    save_checkpoint(last, tensors, {**metadata, "evaluation": None})
    code, said, _ = run(capsys, "train", "--resume", "--out", out)
    assert code == 0
    assert f"{metadata['evaluation']['loss']:.3f}" in said


def test_resume_of_a_run_that_was_killed_before_its_first_checkpoint_starts_it(text, trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").touch()
    assert run(capsys, "train", "--corpus", text, *FLAGS, "--resume", "--out", tmp_path / "out")[0] == 0
    assert final_weights(tmp_path / "out").metadata["step"] == 20


def test_resume_of_a_finished_run_changes_nothing(text, trained, capsys):
    before = final_weights(trained).tensors
    assert run(capsys, "train", "--resume", "--out", trained)[0] == 0
    after = final_weights(trained).tensors
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_torch_learns_the_same_from_the_same_start(text, trained, tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "torch"
    assert run(capsys, "train", "--corpus", text, *FLAGS, "--backend", "torch", "--quiet", "--out", out)[0] == 0
    ours, theirs = load_model(trained)[2]["evaluation"], load_model(out)[2]["evaluation"]
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert run(capsys, "eval", "--checkpoint", out)[0] == 0


def test_real_processes_stop_at_ctrl_c_and_say_nothing_else(text, tmp_path):
    words = ["train", "--corpus", text, *FLAGS, "--steps", 10**6, "--eval-every", 10**6, "--quiet"]
    with process(*words, "--out", tmp_path / "out") as child:
        while not list(tmp_path.glob("out/step-*5.safetensors")):
            assert child.poll() is None, child.stderr.read()
        child.send_signal(signal.SIGINT)
        try:
            out, err = child.communicate(timeout=30)
        finally:
            child.kill()  # or leaving the block waits for ever
    assert child.returncode == 130
    assert out == ""
    assert re.fullmatch(r"tinygrad-llm: stopped after step [\d,]+, saved; go on with: .*\n", err)


# eval and generate ---------------------------------------------------------------------------------------------------


def test_eval_measures_what_was_held_out(trained, capsys):
    code, out, err = run(capsys, "eval", "--checkpoint", trained)
    assert (code, err) == (0, "")
    assert "(test)" in out
    for name in ("loss", "perplexity", "accuracy", "bits per character", "tokens"):
        assert re.search(rf"^{name} +[\d.,%]+ ", out, re.M)


def test_eval_agrees_with_training_and_with_torch(trained, capsys):
    pytest.importorskip("torch")
    results = []
    for backend in ("numpy", "torch"):
        code, out, _ = run(capsys, "eval", "--checkpoint", trained, "--backend", backend, "--json")
        assert code == 0
        results.append(json.loads(out))
    assert results[0]["loss"] == pytest.approx(load_model(trained)[2]["evaluation"]["loss"], rel=1e-6)
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)
    assert results[1]["tokens"] == results[0]["tokens"]


def test_eval_takes_the_whole_of_another_text(trained, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("the lazy dog\n")  # shorter than the context
    code, out, _ = run(capsys, "eval", "--checkpoint", trained, "--corpus", other, "--json")
    assert code == 0
    assert json.loads(out)["tokens"] == len("the lazy dog\n") - 1


def test_greedy_text_is_the_same_each_time_and_in_torch(trained, capsys):
    pytest.importorskip("torch")
    words = ["generate", "--checkpoint", trained, "--prompt", "the ", "--temperature", 0, "--max-new-tokens", 20]
    texts = [run(capsys, *words, *more) for more in ((), (), ("--backend", "torch"))]
    assert texts[0] == texts[1] == texts[2]
    code, out, err = texts[0]
    assert (code, err) == (0, "")
    assert out.startswith("the ")
    assert len(out) == len("the ") + 20 + 1


def test_a_seed_decides_sampled_text(trained, capsys):
    words = ["generate", "--checkpoint", trained, "--prompt", "the ", "--temperature", 1.5, "--max-new-tokens", 40]
    first, again, other = (run(capsys, *words, "--seed", seed)[1] for seed in (1, 1, 2))
    assert first == again != other


def test_generate_reads_standard_input_and_writes_json(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    assert run(capsys, "generate", "--checkpoint", trained, "--prompt", "-")[0] == 2
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("the fox"))
    code, out, _ = run(capsys, "generate", "--checkpoint", trained, "--prompt", "-", "--json", "--max-new-tokens", 5)
    assert code == 0
    assert json.loads(out)["prompt"] == "the fox"
    assert len(json.loads(out)["text"]) == 5


def test_generate_stops_at_any_of_the_texts(trained, capsys):
    words = ["generate", "--checkpoint", trained, "--prompt", "the ", "--temperature", 2, "--max-new-tokens", 200, "--json"]
    text = json.loads(run(capsys, *words)[1])["text"]
    first, second = text[60], text[30]
    stopped = json.loads(run(capsys, *words, "--stop", first, "--stop", second)[1])["text"]
    assert stopped == text[: min(text.index(first), text.index(second))]


# tokenize ------------------------------------------------------------------------------------------------------------


def test_tokenize_shows_ids_and_pieces_and_says_that_they_decode(capsys):
    code, out, _ = run(capsys, "tokenize", "--tokenizer", "cl100k_base", "hello world")
    assert code == 0
    assert re.search(r"^ *15339  'hello'$", out, re.M)
    assert re.search(r"^ *1917  ' world'$", out, re.M)
    assert "gives the same text back" in out


def test_tokenize_shows_bytes_where_a_token_is_part_of_a_character(capsys):
    code, out, _ = run(capsys, "tokenize", "𒀀")
    assert code == 0
    assert "part of a character" in out
    assert "gives the same text back" in out


def test_tokenize_takes_characters_from_a_corpus(text, capsys):
    code, out, _ = run(capsys, "tokenize", "--tokenizer", "char", "--corpus", text, "--json", "fox")
    result = json.loads(out)
    chars = sorted(set(TEXT))
    assert code == 0
    assert result["ids"] == [chars.index(char) for char in "fox"]
    assert result["vocab_size"] == len(chars)


def test_tokenize_counts_a_whole_corpus_and_a_file(text, capsys):
    for source in ("--corpus", "--file"):
        code, out, _ = run(capsys, "tokenize", "--tokenizer", "char", source, text, "--show", 2)
        assert code == 0
        assert f"{len(TEXT) - 2:,} more" in out


# check ---------------------------------------------------------------------------------------------------------------


SMALL_CHECK = ["check", "--d-model", 8, "--context-length", 4, "--vocab-size", 11]


def test_check_finds_all_equal_and_ends_with_a_sentence(tmp_path, capsys):
    pytest.importorskip("torch")
    files = ["--json", tmp_path / "check.json", "--html", tmp_path / "check.html"]
    code, out, err = run(capsys, *SMALL_CHECK, "--model", "--training", "--draws", 8, "--steps", 3,
                         "--control-steps", 20, *files)
    assert (code, err) == (0, "")
    last = " ".join(out.split("\n\n")[-1].split())
    result = json.loads((tmp_path / "check.json").read_text())
    assert last.startswith(f"All {len(result['comparisons'])} comparisons equal")
    assert result["passed"]
    assert {"logits", "loss", "grad lm_head.weight", "losses of 3 steps"} <= {row["name"] for row in result["comparisons"]}
    assert max(map(len, out.splitlines())) <= 80
    assert [row["size"]["name"] for row in result["accuracy"]] == ["small", "default", "larger"]
    assert re.search(r"small, d 16 +8 +\d\.\d\d  \d\.\d\d to \d\.\d\d ", out)
    assert "no gradient of an activation diverges" in out
    assert result["first_diverging_gradient"] is None
    gradients = [row["name"] for row in result["comparisons"] if row["name"].startswith("grad ")]
    assert all(re.search(rf"^{re.escape(name)} ", out, re.M) for name in gradients)
    assert (tmp_path / "check.html").read_text().startswith("<!doctype html>")


def test_check_shows_the_sections_that_are_named_and_every_row_if_asked(capsys):
    pytest.importorskip("torch")
    code, out, err = run(capsys, "check", "--ops")
    assert (code, err) == (0, "")
    assert "MODEL" not in out
    assert re.search(r"OPS: \d+, each with random cotangents", out)
    full = run(capsys, "check", "--ops", "--full")[1]
    assert len(full.splitlines()) > len(out.splitlines()) + 50
    assert max(map(len, full.splitlines())) <= 80


def test_check_takes_trained_weights(trained, capsys):
    pytest.importorskip("torch")
    code, out, _ = run(capsys, "check", "--model", "--checkpoint", trained, "--batch-size", 2, "--draws", 0)
    assert code == 0
    assert str(trained) in out


def test_check_that_finds_a_difference_says_which_and_exits_with_1(capsys, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    from tinygrad_llm.cli import check

    class Wrong(check.Transformer):
        def loss(self, ids, targets):
            return super().loss(ids, targets) * 1.001

    monkeypatch.setattr(check, "Transformer", Wrong)
    code, out, _ = run(capsys, *SMALL_CHECK, "--model", "--draws", 0, "--json", tmp_path / "check.json")
    assert code == 1
    assert "the first is loss in float64" in " ".join(out.split())
    assert not json.loads((tmp_path / "check.json").read_text())["passed"]


def test_check_of_a_device(capsys, tmp_path):
    torch = pytest.importorskip("torch")
    code, out, err = run(capsys, *SMALL_CHECK, "--device", "cpu", "--json", tmp_path / "device.json")
    assert (code, err) == (0, "")
    assert "Neither device is wrong" in out
    assert "TF32" in out
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads((tmp_path / "device.json").read_text())["passed"]
    if not torch.cuda.is_available():
        code, out, err = run(capsys, *SMALL_CHECK, "--device", "cuda")
        assert (code, out) == (2, "")
        assert re.fullmatch(r"tinygrad-llm: device: got 'cuda', expected one that is available here: .*\n", err)


def test_check_of_two_functions(capsys, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "mine_of_test.py").write_text(
        "import numpy as np, torch\n"
        "def np_norm(x, w):\n    c = x - x.mean(-1, keepdims=True)\n"
        "    return w * c / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)\n"
        "def np_wrong(x, w):\n    return np_norm(x, w) + w * 1e-3\n"
        "def torch_norm(x, w):\n    return torch.nn.functional.layer_norm(x, w.shape, w)\n"
    )
    monkeypatch.chdir(tmp_path)
    pair = ["check", "--inputs", "*B N>1; N", "--functions"]
    code, out, err = run(capsys, *pair, "mine_of_test:np_norm,mine_of_test:torch_norm")
    assert (code, err) == (0, "")
    assert "Both round" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run(capsys, *pair, "mine_of_test:np_wrong,mine_of_test:torch_norm", "--json", tmp_path / "out.json")
    assert code == 1
    assert "Yours is wrong, in output" in out
    assert not json.loads((tmp_path / "out.json").read_text())["passed"]
    assert run(capsys, *pair, "mine_of_test:absent,mine_of_test:torch_norm")[0] == 2
    assert run(capsys, "check", "--functions", "a:b,c:d")[0] == 2
    assert run(capsys, *pair, "mine_of_test:np_norm,mine_of_test:torch_norm", "--inputs", "not a shape")[0] == 2
    code, _, err = run(capsys, *pair, "mine_of_test:np_norm,mine_of_test:torch_norm", "--inputs", "*B N")  # one too few
    assert code == 2
    assert re.fullmatch(r"tinygrad-llm: functions: got TypeError\(.*\) from the second function, expected .*\n", err)


# settings, help, bugs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_fits_a_terminal_and_has_examples(command, capsys, monkeypatch):
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        code, out, err = run(capsys, command.name, "--help")
        assert (code, err) == (0, "")
        assert f"  tinygrad-llm {command.name} " in out.split("examples:")[1]
        assert max(map(len, out.splitlines())) <= columns


def test_help_of_the_program_lists_the_commands_and_exit_codes(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"    {command.name} " in out for command in COMMANDS)
    assert "exit codes" in out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_printed_config_can_be_fed_back(command, capsys, tmp_path):
    preset = ["--preset", next(iter(command.presets))] if command.presets else []
    code, out, _ = run(capsys, command.name, *preset, "--print-config")
    assert code == 0
    tomllib.loads(out)
    path = tmp_path / "config.toml"
    path.write_text(out)
    assert run(capsys, command.name, "--config", path, "--print-config") == (0, out, "")


def test_flags_win_over_the_file_and_the_file_over_the_preset(capsys, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('preset = "tiny"\nd_model = 48\nn_heads = 3\ntie_embeddings = true\nbetas = [0.8, 0.9]\nlr = 1\n')
    flags = ["--n-heads", 4, "--no-tie-embeddings", "--betas", 0.7, 0.95]
    config = tomllib.loads(run(capsys, "train", "--config", path, *flags, "--print-config")[1])
    wanted = {"context_length": 32, "d_model": 48, "n_heads": 4, "tie_embeddings": False, "betas": [0.7, 0.95], "lr": 1.0}
    assert {name: config[name] for name in wanted} == wanted


def test_texts_of_any_kind_survive_the_config(capsys, tmp_path):
    prompt, path = 'a "quoted" \\ back\tslash \x7f ñ 🙂\n', tmp_path / "config.toml"
    out = run(capsys, "generate", "--prompt", prompt, "--stop", "\n\n", "--stop", "'", "--print-config")[1]
    path.write_text(out, encoding="utf-8")
    assert tomllib.loads(out)["prompt"] == prompt
    assert tomllib.loads(out)["stop"] == ["\n\n", "'"]
    assert run(capsys, "generate", "--config", path, "--print-config") == (0, out, "")


@pytest.mark.parametrize("error", [KeyError("wte"), ValueError("operands could not be broadcast"), AttributeError("x"),
                                   TypeError("unsupported operand"), IndexError("list index out of range")])  # fmt: skip
def test_a_bug_shows_its_traceback_and_says_that_it_is_one(error, capsys, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr("tinygrad_llm.cli.tokenize.get_tokenizer", broken)
    code, _, err = run(capsys, "tokenize", "text")
    assert not is_mistake(error)
    assert code == 70
    assert "Traceback" in err
    assert err.endswith("this is a bug in the program, not a mistake of yours; please report it with the lines above\n")


def test_debug_shows_the_traceback_of_a_mistake(capsys):
    code, _, err = run(capsys, "tokenize", "--tokenizer", "bpe", "text", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("tinygrad-llm: tokenizer: got 'bpe', expected one of char, cl100k_base")


def test_a_reader_that_goes_away_is_no_error(text):
    with process("tokenize", "--file", text, "--show", 100000, shell_tail="| head -n 1") as child:
        out, err = child.communicate(timeout=30)
    assert out.endswith("piece\n")
    assert err == ""


def test_ctrl_c_elsewhere_is_one_word(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinygrad_llm.cli.tokenize.get_tokenizer", interrupted)
    assert run(capsys, "tokenize", "text") == (130, "", "tinygrad-llm: stopped\n")


def test_a_mistake_in_a_real_process_is_one_line_and_exit_code_2():
    with process("tokenize", "--tokenizer", "bpe", "text") as child:
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err.count("\n")) == (2, "", 1)


def test_the_checkpoint_of_the_best_model_is_a_plain_safetensors_file(trained):
    numpy_files = pytest.importorskip("safetensors.numpy")
    tensors, _ = load_checkpoint(trained / "best.safetensors")
    read = numpy_files.load_file(trained / "best.safetensors")
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)


def test_profile_accounts_for_a_step_by_op_and_by_layer(capsys, tmp_path):
    trace = tmp_path / "step.json"
    code, out, _ = run(capsys, "profile", "--preset", "toy", "--runs", "1", "--trace", str(trace))
    assert code == 0
    head, by_op, by_layer, _ = out.split("\n\n")
    assert "tokens/s" in head
    ops, layers = ({line.split()[0] for line in table.splitlines()} for table in (by_op, by_layer))
    assert {"linear", "linearᵀ", "attention_qkvpacked", "layer_norm", "adamw"} <= ops
    assert {"blocks.*.ffn.up_proj", "final_norm", "tok_embed"} <= layers
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert all(event["dur"] > 0 for event in events)
    assert {"linear", "linearᵀ"} <= {event["cat"] for event in events}


def test_profile_prints_the_program(capsys):
    code, out, _ = run(capsys, "profile", "--preset", "toy", "--program")
    assert code == 0
    assert out.startswith("inputs   in0, in1\n")
    assert " = matmul(" in out
    assert "blocks.1.attn.qkv_proj" in out


# Bytes and terminals -----------------------------------------------------------------------------------------------------


def spoken(words, given=b"", **environment):
    """(exit code, stdout, stderr) of a process, as bytes."""
    command = [sys.executable, "-c", "import sys; from tinygrad_llm.cli import main; sys.exit(main())", *words]
    done = subprocess.run(command, input=given, capture_output=True, env={**os.environ, **environment}, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("environment", [{"LC_ALL": "C.UTF-8"}, {"PYTHONIOENCODING": "utf-8:strict"},
                                         {"PYTHONIOENCODING": "ascii"}])
@pytest.mark.parametrize(("words", "name"), [
    (["tokenize", "--tokenizer", "char", "-"], "text"), (["generate", "--checkpoint", "nowhere", "--prompt", "-"], "--prompt"),
])
def test_bytes_that_are_no_text_are_told_in_one_line(words, name, environment):
    code, out, error = spoken(words, "café".encode("latin-1"), **environment)
    assert (code, out) == (2, b"")
    assert error.decode() == (f"tinygrad-llm: {name}: got bytes that are no UTF-8 on standard input, the first at 3, expected "
                              "text in UTF-8\n")


def test_an_argument_that_is_no_text_is_told_in_one_line():
    code, out, error = spoken(["tokenize", "--tokenizer", "char", b"caf\xe9"])
    assert (code, out) == (2, b"")
    assert error == b"tinygrad-llm: text: got bytes that are no UTF-8, expected text in UTF-8\n"


@pytest.mark.parametrize(("words", "code", "shown"), [
    (["tokenize", "--tokenizer", "char", "é"], 0, b"\\xe9"),
    (["tokenize", "--json", "--tokenizer", "char", "é→"], 0, b"[0, 1]"),
    (["check", "--help"], 0, b"usage"), (["tokenize", "--tokenizer", "char", "--file", "é→"], 2, b"\\xe9\\u2192"),
    (["é"], 2, b"\\xe9"),
])
def test_a_terminal_that_lacks_a_character_is_shown_another(words, code, shown):
    found, out, error = spoken(words, PYTHONIOENCODING="ascii")
    assert found == code, error
    assert shown in out + error
    assert b"this is a bug" not in error


def test_a_story_goes_on_where_the_terminal_lacks_a_character(trained):
    words = ["generate", "--checkpoint", str(trained), "--prompt", "the ", "--max-new-tokens", "5"]
    code, out, error = spoken(words, PYTHONIOENCODING="ascii")
    assert code == 0, error
    assert out.startswith(b"the ")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_are_no_bug(text, tmp_path, closed):
    """And what is printed goes into no file that took their place."""
    command = " ".join([sys.executable, "-m", "tinygrad_llm", "train", "--corpus", str(text), *map(str, FLAGS), "--out", "run"])
    shell = f"exec {command} {' '.join('<>'[n > 0] + '&-' if n < 2 else '2>&-' for n in closed)}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"this is a bug" not in done.stdout + done.stderr
    assert load_checkpoint(CheckpointFolder(tmp_path / "run").steps()[-1])[1]["step"] == 20


def test_standard_input_that_is_closed_is_told_in_one_line():
    command = f"{sys.executable} -m tinygrad_llm tokenize --tokenizer char - <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, b"tinygrad-llm: text: got no characters, expected at least one\n")


def test_resume_where_no_settings_are_known_is_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    code, _, err = run(capsys, "train", "--resume", "--out", tmp_path / "out")
    assert code == 2
    assert "without a checkpoint, and so without the settings of a run, expected a run's folder, or the settings" in err


def test_more_workers_than_rows_are_refused(text, tmp_path, capsys):
    code, _, err = run(capsys, "train", "--corpus", text, "--batch-size", 8, "--workers", 1000, "--out", tmp_path / "out")
    assert (code, err) == (2, "tinygrad-llm: --workers: got 1000, expected at most 8, the rows of a batch\n")


@pytest.mark.parametrize("options", [["-OO"], ["-O"], ["-X", "dev"], ["-E", "-s"]], ids=" ".join)
def test_python_may_be_told_otherwise(options):
    command = [sys.executable, *options, "-m", "tinygrad_llm", "tokenize", "--tokenizer", "char", "abc"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, b"gives the same text back" in done.stdout) == (0, True), done.stderr
