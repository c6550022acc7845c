"""Every example runs, and what it says is true; the notebook's saved outputs are those of its cells."""

from __future__ import annotations

import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbclient
import nbformat
import pytest
from opchecks import check_adjoint, check_float32, check_float64

from reference.opdraw import Seeded, draw_call
from tinygrad_llm.ops import REGISTRY

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "llm_from_scratch.ipynb"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def environment(folder: Path) -> dict[str, str]:
    """This checkout first, one BLAS thread (tests share the cores), and nothing written outside of folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    return threads | {"PYTHONPATH": path, "PYTHONUTF8": "1", "IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}


def run_example(name: str, arguments: tuple[str, ...], folder: Path) -> str:
    """What the example prints. It must succeed from any folder, warn of nothing, and leave nothing behind."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment(folder), capture_output=True, encoding="utf-8", timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert not list(folder.iterdir())
    return result.stdout


# What each example claims ---------------------------------------------------------------------------------------------


def tape_is_shown(out: str) -> None:
    assert re.search(r"#2 tanh +\(3,\) +#1 add +t 12 B +tanh x", out)
    assert out.count("is added to what waits there") == 1
    assert "The engine's own backward() agrees:  w.grad = [ 0.964  -2.2378  3.4054],  b.grad = 0.9802" in out
    assert "keep the loss:  t is alive" in out
    assert re.search(r"let go of the loss: +t is freed", out)


def gradient_is_checked(out: str) -> None:
    def error(name: str) -> float:
        return float(re.search(rf"  {re.escape(name)} +(\S+)", out)[1])

    assert error("the formula by hand") < 1e-15
    assert 1e-13 < error("finite differences, h = 1e-5") < 1e-8
    assert error("the complex step, h = 1e-30") < 1e-15
    assert error("PyTorch in float64") < 1e-15
    table = {int(k): (float(d), float(s)) for k, d, s in re.findall(r"  1e-(\d\d) +(\S+)  ▆* +(\S+)", out)}
    assert min(table, key=lambda k: table[k][0]) in (4, 5, 6)  # the cube root of 2e-16
    assert min(table, key=lambda k: table[k][1]) in (1, 2, 3)  # the cube root of 1e-7
    assert "np.allclose(ours, torch, 2e-5)     False" in out
    assert re.search(r"the verdict of this project: +(equal|no worse than torch)$", out, re.M)


def op_is_refused_then_tested(out: str) -> None:
    assert "TypeError: op softplus: got no torch expression" in out
    assert out.count("\n  pass  ") == 6
    assert re.findall(r"FAIL  (\w+) +(\w+)", out) == [("gradient", "float64"), ("gradient", "float32")]


def sequence_is_learned(out: str) -> None:
    assert "input   [1 5 2 6 3 7 4 8]\ntarget  [5 2 6 3 7 4 8 9]" in out
    assert "8 of 8\n\nEvery next number is right. After [1, 5], the model writes [2, 6, 3, 7, 4, 8, 9]." in out


def text_is_learned(out: str) -> None:
    chance = float(re.search(r"chance is ln V = (\S+)", out)[1])
    losses = [float(x) for x in re.findall(r"^step .* loss (\S+)", out, re.M)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert float(re.search(r"^test: loss (\S+)", out, re.M)[1]) < 0.85 * chance
    assert len(out.partition("A sample:\n\n")[2]) >= 300


def capture_is_shown(out: str) -> None:
    recorded, planned = re.search(r"gradient\)\.\n\n(.*?)\n\nThe same .*?\n\n(.*?)\n\nBoth", out, re.S).groups()
    assert recorded.startswith("inputs   in0, in1")
    assert recorded.count("linear") == 5
    assert " @" not in recorded
    assert " @0 = " in planned
    before, after = map(int, re.search(r"^  calls +(\d+) +(\d+)$", out, re.M).groups())
    assert (len(recorded.splitlines()) - 2, len(planned.splitlines()) - 2) == (before, after)
    assert after <= 0.7 * before
    assert "bit for bit as without capture: True" in out


def decoding_is_the_whole_model_and_cheaper(out: str) -> None:
    assert "Shape (4, 2, 1, 4, 8, 32)" in out
    kept, rounding, moved, size = re.search(
        r"have changed by (\S+)\.$.*after 1 tokens: (.*?)\.$.*change by up to (\S+), where the largest is (\S+)\.$",
        out, re.M | re.S).groups()
    assert float(kept) < 1e-5
    assert [int(n) for n in re.findall(r"(\d+) tokens", rounding)] == [16, 64, 256]
    assert all(float(x) < 1e-5 for x in re.findall(r"\de[+-]\d\d", rounding))
    assert float(moved) > 0.01 * float(size)
    times = [tuple(map(float, row)) for row in re.findall(r"^ +(\d+) +(\d+\.\d\d) +(\d+\.\d\d)$", out, re.M)]
    assert [n for n, _, _ in times] == [15, 63, 127, 255]
    assert times[-1][1] > 3 * times[-1][2]


def fused_ops_are_their_definitions(out: str) -> None:
    table = re.findall(r"^  (\w+) +(\d\S*) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", out, re.M)
    assert len(table) == 6
    assert all(max(float(fused), float(plain)) < 2e-6 for _, _, _, fused, _, _, plain in table)
    memory = {name: float(plain) / float(fused) for name, _, fused, _, _, plain, _ in table}
    assert memory["attention"] > 3
    assert memory["linear_cross_entropy"] > 2
    assert re.search(r"e / Σ e +\[nan nan nan nan\]\n  attention +\[1\. 2\. 1\. 2\.\]", out)
    assert re.search(r"for rows in .*\n.* = add\(.*\n.* = clip\(", out)


CLAIMS: dict[str, tuple[tuple[str, ...], Callable[[str], None]]] = {
    "01_watch_the_tape.py": ((), tape_is_shown),
    "02_check_a_gradient.py": ((), gradient_is_checked),
    "03_add_an_op.py": ((), op_is_refused_then_tested),
    "04_number_sequences.py": ((), sequence_is_learned),
    "05_train_text.py": (("--steps", "60"), text_is_learned),
    "06_capture.py": ((), capture_is_shown),
    "07_decoding.py": ((), decoding_is_the_whole_model_and_cheaper),
    "08_fused_ops.py": ((), fused_ops_are_their_definitions),
}


def test_the_example_of_the_page_of_fused_ops_runs_and_the_page_names_them_all() -> None:
    page = (ROOT / "docs" / "fused.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], {})
    assert [name for name, op in REGISTRY.items() if op.definition is not None and f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(name: str, tmp_path: Path) -> None:
    arguments, holds = CLAIMS[name]
    holds(run_example(name, arguments, tmp_path))


def test_every_claim_has_its_example() -> None:
    assert set(CLAIMS) == {path.name for path in EXAMPLES.glob("*.py")}


def test_the_added_op_passes_the_tests_of_all_ops_and_leaves_no_trace() -> None:
    before = dict(REGISTRY)
    for _ in range(2):
        names = runpy.run_path(str(EXAMPLES / "03_add_an_op.py"))
        assert before == REGISTRY
    for case in (draw_call(names["softplus"], Seeded(seed)) for seed in range(20)):
        assert check_float64(case) + check_float32(case) + check_adjoint(case) == []
    for case in (draw_call(names["hasty_softplus"], Seeded(seed)) for seed in range(20)):
        assert check_float64(case)
        assert check_adjoint(case)


# The notebook ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(saved: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook run from its first cell to its last in a new kernel; raises where a cell does."""
    notebook = nbformat.from_dict(saved)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": folder}}
        )
        return client.execute()


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def pictures(cell: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_notebook_is_saved_with_its_outputs(saved: nbformat.NotebookNode) -> None:
    cells = code_cells(saved)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for cell in cells for output in cell.outputs} <= {"stream", "display_data"}
    assert all(output.name == "stdout" for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert all(bool(printed(cell)) for cell in cells if re.search(r"^print\(|^same\(", cell.source, re.M))
    assert sum(map(pictures, cells)) == 6
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_notebook_names_no_machine_and_keeps_its_lines_short(saved: nbformat.NotebookNode) -> None:
    words = "\n".join([cell.source for cell in saved.cells] + [printed(cell) for cell in code_cells(saved)])
    assert not re.search(r"/home/|/Users/|/root|/tmp|[A-Z]:\\\\|0x[0-9a-f]{6}", words)
    assert max(len(line) for cell in saved.cells for line in cell.source.splitlines()) <= 100
    assert set(saved.metadata) == {"kernelspec", "language_info"}


def test_notebook_goes_in_order_from_data_to_inference(saved: nbformat.NotebookNode) -> None:
    titles = re.findall(r"^## \d+\. (.*)$", "\n".join(cell.source for cell in saved.cells), re.M)
    assert titles == [
        "Data", "Tokenization", "Embedding", "Positions", "Attention", "Masking", "Multi-head attention",
        "Feed-forward network", "The block", "The model", "Training", "Inference", "PyTorch agrees",
    ]


def words(cell: nbformat.NotebookNode) -> str:
    return NUMBER.sub("#", printed(cell))


def numbers(cell: nbformat.NotebookNode) -> Iterator[float]:
    return map(float, NUMBER.findall(printed(cell)))


def trained_model_knows_the_rhyme(notebook: nbformat.NotebookNode) -> None:
    out = "\n".join(map(printed, code_cells(notebook)))
    first, *_, last = [tuple(map(float, row)) for row in re.findall(r"^ +(\d+) +(\d\.\d\d) +(\d\.\d\d)$", out, re.M)]
    assert first[1:] == pytest.approx((math.log(27), math.log(27)), abs=0.3)
    assert last[0] == 400
    assert last[1] < 0.3
    assert last[2] < float(re.search(r"knows the pairs +(\S+)", out)[1])
    new, known = (float(re.search(rf"{name} +(\S+) nats", out)[1]) for name in ("the new line", "the repetition"))
    assert known < 0.6 < 2 < new
    assert re.search(r"^This is the man .* the dog that worried the cat", out, re.M)


def test_notebook_runs_and_gives_its_saved_outputs(saved: nbformat.NotebookNode, tmp_path: Path) -> None:
    """Word for word, numbers nearly; where 400 steps of rounding may have led elsewhere, only what is claimed."""
    executed = execute(saved, tmp_path)
    for before, after in zip(code_cells(saved), code_cells(executed)):
        assert pictures(before) == pictures(after), after.source
        if "trained" not in before.metadata.get("tags", ()):
            assert words(before) == words(after), after.source
            assert list(numbers(after)) == pytest.approx(list(numbers(before)), rel=0.02, abs=1e-9), after.source
    trained_model_knows_the_rhyme(saved)
    trained_model_knows_the_rhyme(executed)
