"""The ``edgeadv`` command. Loading it loads neither PyTorch nor ONNX Runtime: a camera device runs it too.

A subcommand's module is imported when it is called, for all of them together take longer than most users wait for
``--help``.
"""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeadv_runtime import __version__
from edgeadv_runtime.errors import LONGEST_MESSAGE, EdgeAdvError, one_line

from ..workflows.processes import PeerError, is_first, refuse_processes
from ._fields import as_options, say
from ._streams import OutputError, standard_streams

_SUMMARIES = {
    "demo": "Train RegNetY-400MF on 4,000 digits, undefended and defensively distilled; export, attack, score, "
    "time, report.",
    "train": "Train a classifier: the undefended network that every defence is compared with, or one on adversarial "
    "images.",
    "distill": "Distil a teacher into a student; the student is the run.",
    "runs": "List training runs: recipe, clean accuracy, what stood on held-out images, and how long they took.",
    "export": "Export to ONNX, compare every artefact with PyTorch on real images, and write the bundle only if they "
    "agree.",
    "import": "Make a bundle of somebody else's ONNX file, if on real images it gives what the file gives.",
    "bundle": "Look at a bundle, copy less of it, or sign it.",
    "engine": "Build TensorRT plans, or find them in the cache, and prove those that can run here on the golden "
    "frames.",
    "verify": "Check every hash, then replay the golden frames: pixels must be exact, labels equal, logits within "
    "tolerance.",
    "diff": "Find where another preprocessing's pixels differ from a bundle's: the first step, the largest level, the "
    "labels that change.",
    "attack": "Attack the bundle's artefacts by their own gradients and write a pack that a device can score without "
    "PyTorch.",
    "evaluate": "Clean and adversarial accuracy of the artefacts in a bundle, all on the same images.",
    "study": "Top-1 and top-5 error of pre-trained ImageNet classifiers, without attack and under FGSM.",
    "bench": "Measure preprocessing, inference and both together: p50, p90, p99 and the slowest call, none of them "
    "trimmed.",
    "camera": "Classify live frames: one line in the terminal, and a page if asked for. Ctrl-C stops and prints "
    "where all frames went.",
    "perturbation": "Make one perturbation that is added to every frame by the slider of `edgeadv camera --serve`. It "
    "is a demonstration.",
    "patch": "Make one patch that turns the label of the pictures it is put on, as a PNG to print.",
    "gate": "Judge a results file, for a release or a CI job: one line for each rule.",
    "report": "Write one self-contained HTML page: the worst case first, with its masking verdict, then all the rest.",
    "card": "Write the card of a bundle: what it is, what it withstands with the verdict beside it, how fast it is, "
    "where that ends, and which file says so.",
    "doctor": "Show the machine, what is installed and what it can do; for each bundle what would run here, and why "
    "the rest not.",
}
"""What ``edgeadv --help`` says of each subcommand: the first sentence of its own help."""
_PANELS = {
    "Train": ("demo", "train", "distill", "runs"),
    "Ship": ("export", "import", "bundle", "verify", "diff"),
    "Measure": ("evaluate", "attack", "gate", "report", "card", "study", "perturbation", "patch"),
    "Device": ("doctor", "engine", "bench", "camera"),
}
"""The subcommands by what one wants to do, in the order in which one does it."""
_MODULES = {"distill": "train", "import": "importing"}
_FUNCTIONS = {"import": "import_onnx"}  # a word of Python's is no name of a function


_BUG = 70
"""What sysexits.h calls EX_SOFTWARE."""


class _Notices(logging.Handler):
    """What is logged, once of all processes, on standard error, where it does not mix with the results."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_first():
            say(record.getMessage(), err=True)


_LOGGED = ("edgeadv.workflows", "edgeadv_runtime.bundle.walk", "edgeadv_runtime.camera.video", "edgeadv_export.frames")
_LOGS = tuple(map(logging.getLogger, _LOGGED))
_NOTICES = _Notices(logging.INFO)


def subcommand(name: str) -> Any:
    """Import a subcommand.

    Args:
        name: as on the command line.

    Returns:
        Typer's command, or its group where it has subcommands of its own.
    """
    from ._options import with_options

    module = importlib.import_module(f".{_MODULES.get(name, name)}", __package__)
    group = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(add_completion=False)
        group.command()(with_options(getattr(module, _FUNCTIONS.get(name, name))))
    return typer.main.get_command(group)


class _Subcommands(TyperGroup):
    """What is listed are names and summaries; what runs is imported."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The subcommand that ``args`` begin with."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if name is None else subcommand(name), rest


app = typer.Typer(
    name="edgeadv",
    cls=_Subcommands,
    help="Train it robust, ship it small, prove it on the device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _panel, _names in _PANELS.items():
    for _name in _names:
        app.command(_name, help=_SUMMARIES[_name], rich_help_panel=_panel)(lambda: None)


def _version(value: bool) -> None:
    if value:
        say(f"edgeadv {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train it robust, ship it small, prove it on the device."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 from ``gate`` for a rule that failed and from ``diff`` for pixels that differ; 2 for bad
        input, or a standard output that does not take what there is to say, one line on standard error each; 70 for a
        bug of ours, which shows its traceback; 130 for Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with standard_streams() as output:
        status = 2 if output.failure is not None else _run(given)
        with suppress(OutputError):
            output.flush()
        return status if output.failure is None or status in (_BUG, 130) else _fail(str(output.failure))


def _run(given: list[str]) -> int:
    command = typer.main.get_command(app)
    for log in _LOGS:
        log.addHandler(_NOTICES)
        log.setLevel(logging.INFO)
    # Pillow's warnings of pictures are said in our own words
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if sys.platform != "linux":
        say(f"edgeadv is made for Linux, and was not tried on {sys.platform}", err=True)
    try:
        # not app(): typer would make a status of its own of Ctrl-C, of a reader that left, and of an EOFError anywhere
        refuse_processes(given)
        with command.make_context("edgeadv", given) as context:
            command.invoke(context)
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except (PeerError, OutputError):  # which others tell of
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(given)
    except SystemExit as stop:  # of somebody's code that was run
        return _fail(f"code that was run ended the program with {stop.code!r}: it must return or raise instead")
    except Exception as error:
        if _is_lack_of_memory(error):
            return _fail("there is too little memory: close other programs, or ask for less at once")
        if _came_of_ctrl_c(error):
            return _interrupted(given)
        if isinstance(error, EdgeAdvError):
            return _fail(as_options(str(error)))
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            # of a name that is too long, a folder that may not be entered, a disk that fails
            return _fail(f"{error.filename}: {error.strerror}; check its name, its permissions and its disk")
        # usage errors of the parser; which class they are depends on typer's version
        show = getattr(error, "format_message", None)
        if show is None:
            return _report(error)
        message = str(show())
        # without arguments the parser has already shown its help and has nothing to add
        return _fail(message, " (see edgeadv --help)") if message else 2


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: Python's, or one of PyTorch, whose CPU allocator has no class for it."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _came_of_ctrl_c(error: BaseException | None) -> bool:
    """Whether a library made an exception of its own of Ctrl-C, as those in C do that are just being imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _interrupted(given: list[str]) -> int:
    kept = ""
    # a library in C whose import was interrupted cannot be imported again
    with suppress(ImportError):
        kept = "; what was finished is kept; --resume continues" if _resumes(given) else ""
    say(f"edgeadv: interrupted{kept}", err=True)
    return 130


def _resumes(given: list[str]) -> bool:
    """Whether the command of this command line has the option ``--resume``."""
    known = bool(given) and given[0] in _SUMMARIES
    return known and any(parameter.name == "resume" for parameter in subcommand(given[0]).params)


def _fail(message: str, more: str = "") -> int:
    """Say in one line, which a person reads whole, what is wrong; returns the exit status of bad input."""
    begin = "edgeadv: "
    say(begin + one_line(message, most=LONGEST_MESSAGE - len(begin) - len(more)) + more, err=True)
    return 2


def _report(error: Exception) -> int:
    traceback.print_exception(error)
    say(
        f"edgeadv: this is a bug of edgeadv {__version__}: please report the lines above, and the command, to where "
        "you have edgeadv from",
        err=True,
    )
    return _BUG
