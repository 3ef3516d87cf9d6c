"""The ``edgeadv`` command. Loading it loads neither PyTorch nor ONNX Runtime: a camera device runs it too."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from edgeadv_runtime import __version__
from edgeadv_runtime.errors import EdgeAdvError

from . import (
    attack,
    bench,
    bundle,
    camera,
    demo,
    doctor,
    engine,
    evaluate,
    export,
    gate,
    guard,
    perturbation,
    report,
    runs,
    study,
    train,
    verify,
)
from ._processes import refuse_processes
from ._shared import nobody_reads

app = typer.Typer(
    name="edgeadv",
    help="Train it robust, ship it small, prove it on the device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(train.distill)
app.command()(runs.runs)
app.command()(export.export)
app.add_typer(bundle.app, name="bundle")
app.command()(engine.engine)
app.command()(verify.verify)
app.command()(attack.attack)
app.command()(evaluate.evaluate)
app.command()(study.study)
app.command()(guard.guard)
app.command()(bench.bench)
app.command()(camera.camera)
app.command()(perturbation.perturbation)
app.command()(gate.gate)
app.command()(report.report)
app.command()(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgeadv {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train it robust, ship it small, prove it on the device."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 from ``gate`` for a rule that failed, 2 for bad input (one line on
    standard error), 130 for Ctrl-C.
    """
    command = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # not app(): typer would make a status of its own of Ctrl-C, of a reader that left, and of an EOFError anywhere
        refuse_processes(given)
        with command.make_context("edgeadv", given) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except EdgeAdvError as error:
        return _fail(" ".join(str(error).split()))
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(
            "edgeadv: interrupted; what was finished is kept"
            + ("; --resume continues" if _resumes(command, given) else ""),
            err=True,
        )
        return 130
    except BrokenPipeError:
        nobody_reads()
        return 0
    except Exception as error:
        # usage errors of the parser; which class they are depends on typer's version
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        message = " ".join(str(show()).split())
        # without arguments the parser has already shown its help and has nothing to add
        return _fail(f"{message} (see edgeadv --help)") if message else 2


def _resumes(command: Any, given: list[str]) -> bool:
    """Whether the command of this command line has the option ``--resume``."""
    named = command.commands.get(given[0]) if given else None
    return named is not None and any(parameter.name == "resume" for parameter in named.params)


def _fail(message: str) -> int:
    typer.echo(f"edgeadv: {message}", err=True)
    return 2
