"""Memory that is freed and allocated again: who clears its pages."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

# ten times three blocks of 40 MB, more than glibc's largest threshold, without huge pages (PR_SET_THP_DISABLE of
# prctl(2)). Prints what was told, and the page faults
PROBE = """
import ctypes
import resource
import numpy as np
from edgeadv.models.allocator import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
told = keep_freed_memory()
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(10_000_000, np.float32) for _ in range(3)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(told, min(faults), max(faults))
"""
BLOCKS = 3 * 40_000_000 // resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("settled", "told"),
    [({}, True), ({"MALLOC_MMAP_MAX_": "65536"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, False)],
)
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise(settled, told):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROBE]
    outcome = subprocess.run(command, env={**environment, **settled}, capture_output=True, text=True, check=True)
    said, fewest, most = outcome.stdout.split()
    assert said == str(told)
    assert int(most) > 0.9 * BLOCKS  # the first time nobody has cleared them yet
    assert int(fewest) < 0.01 * BLOCKS if told else int(fewest) > 0.9 * BLOCKS
