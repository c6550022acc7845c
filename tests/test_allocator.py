"""What is done with freed memory: kept for the next arrays, given back when asked, and the environment is obeyed."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, numpy as np
from tinygrad_llm import allocator, tensor
x = tensor(np.ones((1000, 1000), np.float32), requires_grad=True)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    (x * 2 * 3 * 4 * 5).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    x.grad = None
    last = faults()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
x.grad, before = None, resident()
allocator.give_back_freed()
print(last, before - resident())
"""


def measured(**environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_freed_arrays_stay_for_the_next_until_they_are_given_back():
    faults, given_back = measured()
    assert faults < 500  # each array of 4 MB is 1000 pages
    assert given_back > 4e6
    assert measured(MALLOC_TRIM_THRESHOLD_="100000")[0] > 3000
