"""What the README shows runs, and what it points to is there."""

import re
from pathlib import Path

import numpy as np
import pytest

import benchmarks.__main__ as benchmarks
from tinygrad_llm.ops import REGISTRY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OP, USE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_code_runs_and_prints_what_its_comments_say(capsys):
    exec(USE, {})
    printed = capsys.readouterr().out.splitlines()
    assert re.match(r"0\.0\d* \[\[5, 2, 6, 3, 7, 4, 8, 9\]\]", printed[0])
    assert "[ 7., 11.]" in printed[1]


def test_the_op_shown_is_the_op_declared():
    declared = REGISTRY.pop("mul")
    try:
        exec(OP, names := {})
    finally:
        REGISTRY["mul"] = declared
    shown, x, y = names["mul"], np.array([2.0, 3.0]), np.array([5.0, 7.0])
    assert (shown.torch, shown.args, shown.__doc__) == (declared.torch, declared.args, declared.__doc__)
    np.testing.assert_array_equal(shown(x, y)[1](x), declared(x, y)[1](x))


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 6
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_commands_of_the_readme_are_targets_and_subcommands():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = {path.stem for path in (ROOT / "tinygrad_llm" / "cli").glob("*.py")}
    used = set(re.findall(r"tinygrad-llm (\w+)", README))
    assert used == {"train", "eval", "generate", "tokenize", "check", "profile"}
    assert used - {"eval"} <= commands


def test_the_ratios_of_the_readme_are_those_that_report_makes_of_the_records(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the dependency group `test`")
    page, records = ROOT / "docs" / "rival.md", ROOT / "docs" / "records"
    files = [str(records / f"rival-{name}.jsonl") for name in ("small", "train", "long")]
    assert benchmarks.main(["report", *files, "--out", str(tmp_path / "rival.md")]) == 0
    made = (tmp_path / "rival.md").read_text(encoding="utf-8")
    assert made == page.read_text(encoding="utf-8")
    words = ("torch with everything", "the same instruction set", "each library as installed")
    number = r"([\d.]+(?: \(provisional\))?) \|"
    shown = re.findall(rf"^\| (S\d).* \| {number} {number} {number}$", README, re.MULTILINE)
    assert len(shown) == 4
    for case, *ratios in shown:
        row, *_ = re.findall(rf"^\| {case} \| numpy-fast \| (.*?) \|", made, re.MULTILINE)
        found = [re.search(rf"([\d.]+) {kind} \([\w-]+\)( provisional)?", row) for kind in words]
        assert ratios == [f"{float(f[1]):.2f}{' (provisional)' * bool(f[2])}" for f in found]
    long = re.findall(r"^\| one sequence of .* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    cells = re.findall(r"^\| d = 256 \| ([\d.]+); .* \| ([\d.]+);", made, re.MULTILINE)  # sdpa, intel, best
    short, sequence = [[round(float(cell[i]), 2) for cell in cells] for i in (0, 1)]
    for (everything, same, installed), (sdpa, intel, best) in zip(long, (sequence, short), strict=True):
        assert [float(everything), float(same), float(installed)] == [min(intel, best), intel, sdpa]
