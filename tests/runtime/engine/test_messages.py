"""What TensorRT-RTX says, and to whom: one logger for the process, and a listener for each operation."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from edgeadv_runtime.engine import Library, find_library
from edgeadv_runtime.engine.messages import Heard, listening, logger_of, one_line

ERROR, WARNING, INFO = (SimpleNamespace(name=name) for name in ("ERROR", "WARNING", "INFO"))


@pytest.fixture
def logger() -> Any:
    """Of a module without TensorRT in it."""
    return logger_of(SimpleNamespace(ILogger=type("ILogger", (), {})))


def test_there_is_one_logger_for_a_module(rtx: Library) -> None:
    first = rtx.logger()
    assert rtx.logger() is first and find_library("tensorrt-rtx").logger() is first
    assert logger_of(SimpleNamespace(ILogger=type("ILogger", (), {}))) is not first


# the first logger that TensorRT is given stays the one of its plugin registry while anything lives, whoever else is
# there
TWO_PLANS = """
import gc, sys
from edgeadv_runtime.engine import find_library
from edgeadv_runtime.engine.messages import listening
from edgeadv_runtime.engine.plan import LoadedPlan
from edgeadv_runtime.errors import EngineError
library = find_library("tensorrt-rtx")
kept = []
def open_one():
    plan = LoadedPlan.__new__(LoadedPlan)
    try:
        plan.__init__(library, b"garbage!" * 500)
    except EngineError as error:
        assert "magicTag" in str(error), error
    return plan
first, second = open_one(), open_one()
first.close()
del first
gc.collect()
kept = [bytearray(200) for _ in range(20000)]
with listening() as heard:
    try:
        library.module.get_plugin_registry().load_library("/nowhere/no.so")
    except Exception as error:
        print(type(error).__name__)
print("heard", heard.first_error())
third = open_one()
print("alive", flush=True)
# and at the end of the interpreter a runtime is still there
"""


def test_a_plan_that_is_closed_takes_no_logger_from_another(rtx: Library) -> None:
    done = subprocess.run([sys.executable, "-c", TWO_PLANS], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stdout.splitlines()[-1] == "alive"
    assert "no.so" in done.stdout, "the registry speaks to the one logger"


def test_real_errors_are_heard_and_nothing_is_printed(rtx: Library, capfd: pytest.CaptureFixture[str]) -> None:
    with listening() as heard:
        assert heard.errors == []
        builder = rtx.make("Builder", heard)
        # without a GPU the first error has an echo, of the same severity
        profile = builder.create_optimization_profile()
        profile.set_shape("image", (2, 3, 4, 4), (1, 3, 4, 4), (3, 3, 4, 4))
        assert builder.create_builder_config().add_optimization_profile(profile) == -1
    assert "MIN<=OPT<=MAX" in heard.first_error()
    with listening() as later:
        pass
    assert later.errors == [], "what another operation was told is not ours"
    assert capfd.readouterr() == ("", "")


def test_an_operation_hears_its_own(logger: Any) -> None:
    logger.log(ERROR, "to nobody")
    with listening() as outer:
        logger.log(ERROR, "one")
        with listening() as inner:
            logger.log(ERROR, "a\n two")
            logger.log(INFO, "nothing of interest")
        logger.log(WARNING, "three")
    logger.log(ERROR, "to nobody")
    assert (outer.errors, outer.warnings, inner.errors, inner.warnings) == (["one"], ["three"], ["a two"], [])


def test_threads_hear_their_own_and_share_what_is_said_in_nobody_s(logger: Any) -> None:
    ready, done = threading.Barrier(2), threading.Barrier(2)
    other: list[Heard] = []

    def work() -> None:
        with listening() as heard:
            ready.wait(30)
            logger.log(ERROR, "theirs")
            other.append(heard)
            done.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    with listening() as heard:
        ready.wait(30)
        logger.log(ERROR, "ours")
        # a thread of TensorRT's own
        builder = threading.Thread(target=lambda: logger.log(ERROR, "a kernel failed"))
        builder.start()
        builder.join(30)
        done.wait(30)
    thread.join(30)
    assert sorted(heard.errors) == ["a kernel failed", "ours"]
    assert "theirs" in other[0].errors and "ours" not in other[0].errors


def test_what_is_kept_is_bounded(logger: Any) -> None:
    """A service that warns at every frame must not grow."""
    with listening() as heard:
        for number in range(5000):
            logger.log(WARNING, "the same again")
            logger.log(WARNING, f"warning {number}")
            logger.log(ERROR, f"error {number}")
    assert heard.warnings[:2] == ["the same again", "warning 0"]
    assert len(heard.warnings) == len(heard.errors) == 100 and heard.first_error() == "error 0"


def test_an_echo_is_not_the_first_error() -> None:
    heard = Heard()
    heard.add("ERROR", "catchCudaError: no device")
    assert heard.first_error() == "catchCudaError: no device"
    heard.add("INTERNAL_ERROR", "what is wrong")
    assert heard.first_error() == "what is wrong"


def test_one_line() -> None:
    assert one_line(" a\n  b\tc ") == "a b c"
    assert len(one_line("x" * 5000)) < 700
