"""Prints, as constraints for pip, the lowest version of each dependency that pyproject.toml admits, for `make test-lowest`."""

import re
import tomllib
from itertools import chain
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
groups = {name: group for name, group in project["dependency-groups"].items() if name != "lint"}
lists = [project["build-system"]["requires"], project["project"]["dependencies"],
         *project["project"]["optional-dependencies"].values(), *groups.values()]
for line in chain.from_iterable(lists):
    if isinstance(line, str):  # or it is {include-group = ...}
        name, lowest = re.fullmatch(r"([\w-]+)(?:\[\w+\])?[=>]=([\d.]+)(?:,<[\d.]+)?", line).groups()
        print(f"{name}=={lowest}")
