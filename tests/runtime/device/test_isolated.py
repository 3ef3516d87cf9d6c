"""A call in a process of its own: its answer, its errors, its deaths, and that nothing of it is left."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgeadv_runtime.device.isolated import call_isolated
from edgeadv_runtime.errors import ExportError, InputError, MissingDependencyError
from tests.forking import children

KILL = "import os, signal; os.kill(os.getpid(), signal.{})"
ROOT = Path(__file__).resolve().parents[3]


def test_large_arrays_go_there_and_come_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 512, 512, 3), np.uint8)  # 48 MiB: no pipe holds it
    assert np.array_equal(call_isolated(np.flip, image, what="a flip"), np.flip(image))
    assert not children()


def test_the_process_is_another_one_in_the_same_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEADV_TEST", "seen")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    asked = "(os := __import__('os')).getpid(), os.getcwd(), os.environ['EDGEADV_TEST'], __import__('sys').path"
    pid, folder, variable, path = call_isolated(eval, asked, what="a question")
    assert pid != os.getpid()
    assert (folder, variable, path) == (str(tmp_path), "seen", sys.path)


def test_neither_torch_nor_onnx_is_loaded_there() -> None:
    assert not call_isolated(eval, "{'torch', 'onnx', 'edgeadv'} & set(__import__('sys').modules)", what="a question")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE", "SIGBUS"])
def test_a_signal_is_one_line_that_names_library_and_signal(name: str) -> None:
    import onnxruntime

    with pytest.raises(ExportError) as caught:
        call_isolated(exec, KILL.format(name), what="fp16 of tiny")
    crashed = f"fp16 of tiny crashed onnxruntime {onnxruntime.__version__} (signal {name})"
    assert str(caught.value) == f"{crashed}: install another version of it"
    assert not children()


def test_a_kill_is_said_to_be_the_memory() -> None:
    with pytest.raises(ExportError, match=r"was killed in onnxruntime .* \(signal SIGKILL\), probably out of memory"):
        call_isolated(exec, KILL.format("SIGKILL"), what="fp16 of tiny")


def test_too_little_memory_that_python_notices_is_said() -> None:
    limit = "import resource, numpy; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))"
    code = f"{limit}; numpy.zeros(2**32, numpy.uint8)"
    with pytest.raises(ExportError, match=r"^fp16 of tiny finds too little memory: close other programs"):
        call_isolated(exec, code, what="fp16 of tiny")


def test_last_words_are_told_and_advice_is_the_callers() -> None:
    code = "import os, sys; print('first'); print('terminate  called', file=sys.stderr, flush=True); os._exit(3)"
    with pytest.raises(ExportError) as caught:
        call_isolated(exec, code, what="a model", library="no_such_library", advice="do without")
    expected = "a model ended no_such_library with status 3, its last words: terminate called: do without"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "error", [InputError("eps", "must be above 0"), MissingDependencyError("onnxruntime", "ort"), ExportError("no")]
)
def test_our_errors_come_as_themselves(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        call_isolated(exec, f"import pickle; raise pickle.loads({pickle.dumps(error)!r})", what="a model")
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)
    assert caught.value.__cause__ is None


def test_other_errors_keep_their_class_and_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        call_isolated(exec, "def deep():\n  1 / 0\ndeep()", what="a model")
    assert "in deep" in str(caught.value.__cause__)


def test_an_error_that_cannot_be_pickled_is_still_told() -> None:
    with pytest.raises(RuntimeError, match="Odd: because"):
        call_isolated(exec, "class Odd(Exception):\n  pass\nraise Odd('because')", what="a model")


def test_what_it_prints_is_not_shown_and_does_not_harm(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys\nprint('x' * 200_000)\nos.write(1, b'out')\nos.write(2, b'err')"
    call_isolated(exec, code, what="a model")
    assert capfd.readouterr() == ("", "")


def test_threads_may_call_at_once() -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda i=i: found.append(call_isolated(abs, -i, what="abs"))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]


def test_it_serves_a_script_without_a_main_guard_that_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from edgeadv_runtime.device.isolated import call_isolated\nprint('once', call_isolated(abs, -3, what='abs'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "once 3\n"
    piped = subprocess.run(
        [sys.executable], env=environment, input=script.read_text(), capture_output=True, text=True, check=True
    )
    assert piped.stdout == "once 3\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_it_ends_with_what_interrupts_or_kills_the_caller(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    script = f"from edgeadv_runtime.device.isolated import call_isolated\ncall_isolated(exec, {code!r}, what='sleep')"
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = psutil.Process(int(mark.read_text()))
    caller.send_signal(getattr(signal, name))
    _, said = caller.communicate(timeout=60)
    assert ("KeyboardInterrupt" in said) == (name == "SIGINT")
    child.wait(timeout=60)
    assert not child.is_running()


def test_an_end_without_an_answer_is_told() -> None:
    with pytest.raises(ExportError, match=r"^fp16 ended a process of its own without an answer: "):
        call_isolated(os._exit, 0, what="fp16")


def test_what_computes_for_ever_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(ExportError, match=r"^fp16 of tiny was ended after 1 s: it may compute for ever; leave it out"):
        call_isolated(exec, "while True: pass", what="fp16 of tiny", advice="leave it out", seconds=1)
    assert time.monotonic() - start < 15


def test_what_takes_all_memory_is_ended_before_the_machine_is() -> None:
    code = "held = []\nwhile True: held.append(bytearray(1 << 24))"
    with pytest.raises(ExportError, match="fp16 of tiny finds too little memory"):
        call_isolated(exec, code, what="fp16 of tiny", memory_mib=512)
    assert call_isolated(eval, "len(bytearray(1 << 27))", what="less", memory_mib=512) == 1 << 27


def test_a_graph_that_takes_more_memory_than_there_is_is_one_line() -> None:
    """Twelve bytes of shape for a terabyte of zeros."""
    from onnx import TensorProto, helper

    from edgeadv_runtime.backends.first_run import try_graph

    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1 << 14, 1 << 14, 1 << 10])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["y"])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [output], initializer=[shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ExportError, match="a graph ") as raised:
        try_graph(model.SerializeToString(), {}, what="a graph", optimised=False)
    assert "\n" not in str(raised.value)
