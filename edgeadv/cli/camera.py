"""``edgeadv camera``: classify the frames of a camera, live."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.live import Live

from edgeadv_runtime import Classifier, InputError, Smoother, Stream
from edgeadv_runtime.attacks.stored_patch import StoredPatch
from edgeadv_runtime.camera import Answer, Counts, Event, open_source
from edgeadv_runtime.camera.demonstration import StoredPerturbation
from edgeadv_runtime.camera.recognizer import Recognition, Recognizer
from edgeadv_runtime.camera.serve import PageServer, View
from edgeadv_runtime.camera.sources import Folder
from edgeadv_runtime.corruptions.kinds import SETS, kinds_of

from ..workflows.durations import seconds
from ._arguments import BundleFile, Provider, at_least
from ._fields import say
from ._shared import cell

_REFRESH_S, _LINE_S = 0.25, 10.0


@dataclass(kw_only=True)
class _Camera:
    source: Annotated[
        str, "/dev/video0, a GStreamer pipeline, a URL such as rtsp://, a video file or a folder of pictures."
    ]
    precision: Annotated[str | None, "The artefact: fp32, fp16, int8 or a variant; by default the bundle's first."] = (
        None
    )
    provider: Provider = "cpu"
    threads: Annotated[int | None, at_least(1, "CPU threads of a call; else the library decides.")] = None
    spin: Annotated[bool, "Let threads keep their cores busy between frames: only for frames that come at once."] = (
        False
    )
    policy: Annotated[
        str | None,
        "latest: a newer frame replaces one that waits; every: capture waits, nothing is dropped. By default latest, "
        "of a folder of pictures every.",
    ] = None
    fps: Annotated[float | None, "Pace of a video file or folder; a file has its own."] = None
    loop: Annotated[bool, "Begin a video file or folder again at its end."] = False
    duration: Annotated[str | None, "Stop after 90s, 10m or 2h; by default at the source's end or Ctrl-C."] = None
    serve: Annotated[str | None, "Show a page at this address, e.g. 127.0.0.1:8080."] = None
    token: Annotated[str | None, "What the page asks for; needed for an address that others can reach."] = None
    perturbation: Annotated[Path | None, "What the page's slider adds, made by edgeadv perturbation."] = None
    patch: Annotated[Path | None, "What the page puts on the picture, made by edgeadv patch."] = None
    corruptions: Annotated[
        str | None, f"What the page's list offers: comma-separated kinds of evaluate, or {', '.join(SETS)}."
    ] = None
    smooth: Annotated[
        int,
        at_least(
            1, "Show what so many frames vote for, unknown below the bundle's threshold if it has one; 1 does not vote."
        ),
    ] = 1

    def __post_init__(self) -> None:
        if self.serve is None and any((self.token, self.perturbation, self.patch, self.corruptions)):
            raise InputError(
                "`token`, `perturbation`, `patch` and `corruptions` belong to the page: add `serve` 127.0.0.1:8080, or "
                "leave them out"
            )


def camera(bundle: BundleFile, asked: _Camera) -> None:
    """Classify live frames: one line in the terminal, and a page if asked for. Ctrl-C stops and prints where all frames
    went."""
    limit_s = math.inf if asked.duration is None else seconds(asked.duration, field="duration")
    with ExitStack() as stack:
        classifier = stack.enter_context(
            Classifier.open(
                variant=asked.precision,
                provider=asked.provider,
                threads=asked.threads,
                spin=asked.spin,
                **vars(bundle),
            )
        )
        stream, line = _stream(stack, classifier, asked)
        end = time.monotonic() + limit_s
        with line.shown(), _until_interrupted(), stream:
            while not stream.join(max(0.0, min(_REFRESH_S, end - time.monotonic()))):
                line.refresh(stream.counts())
                if time.monotonic() >= end:
                    break
    counts = stream.counts()
    left = counts.waiting + counts.working
    if line.last_label:
        say(f"last: {line.last_label}")
    unfinished = f" + {left} not finished" if left else ""
    say(
        f"{counts.captured} frames captured = {counts.classified} classified + {counts.dropped} dropped{unfinished}; "
        f"{_figures(counts)}; {counts.losses} losses, {counts.stalls} stalls"
    )


def _stream(stack: ExitStack, classifier: Classifier, asked: _Camera) -> tuple[Stream[Any], _Line]:
    """The stream of frames and the line that tells of it; what must be closed goes on ``stack``."""
    stored = None if asked.perturbation is None else StoredPerturbation.load(asked.perturbation, classifier.bundle)
    title = f"{classifier.bundle.manifest.title}, {classifier.backend.variant}"
    patch = None if asked.patch is None else StoredPatch.load(asked.patch, classifier.bundle)
    view = View(
        title=title,
        eps=None if stored is None else stored.eps.text,
        patch=None if patch is None else patch.area.text,
        corruptions=() if asked.corruptions is None else kinds_of(asked.corruptions),
    )
    frames = open_source(asked.source, fps=asked.fps, loop=asked.loop, preprocess=classifier.bundle.preprocess)
    smoother = None if asked.smooth == 1 else _smoother(classifier, asked.smooth)
    recognizer = Recognizer(classifier, smoother=smoother, perturbation=stored, patch=patch, view=view)
    line = _Line(frames.name, recognizer, view)
    # pictures do not come by themselves: each is meant to be seen
    how = asked.policy or ("every" if isinstance(frames, Folder) and asked.fps is None else "latest")
    stream = Stream(frames, recognizer, on_answer=line.answered, on_event=line.happened, policy=how)  # type: ignore[arg-type]
    # asked for by the page, four times a second: too much work for each frame
    view.figures = lambda: {"counts": vars(stream.counts())}
    if asked.serve is not None:
        say(stack.enter_context(PageServer(view, asked.serve, token=asked.token)).url, err=True)
    return stream, line


def _smoother(classifier: Classifier, window: int) -> Smoother:
    """A vote of ``window`` frames; a bundle without a rejection threshold rejects nothing."""
    threshold = None
    if classifier.bundle.confidence is None:
        threshold = 0.0
        say("this bundle has no threshold, so no answer becomes unknown: export it with --confidence-data", err=True)
    return Smoother.of(classifier.bundle, threshold=threshold, window=window)


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C, or SIGTERM as systemd sends it, is how a camera is stopped: no error."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Line:
    """The live line: the last answer and the counts."""

    def __init__(self, source: str, recognizer: Recognizer, view: View) -> None:
        self._console, self._status = Console(stderr=True), f"{source}: opening"
        self._recognizer, self._view = recognizer, view
        self._live: Live | None = None
        self._printed = 0.0
        self.last_label = ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A line that is written over on a terminal, else one every ten seconds."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            yield

    def answered(self, answer: Answer[Recognition]) -> None:
        """In the inference thread."""
        result, label = answer.result, answer.result.label
        name = "unknown" if label is None else label.name
        self.last_label = name if label is None else f"{name} {label.probability:.1%}"
        state = {
            "label": name,
            "unknown": label is None,
            "levels": result.levels,
            "labels": [{"name": each.name, "probability": each.probability} for each in result.labels],
            "age_ms": round(1000 * answer.age_s, 3),
        }
        self._view.show(result.pixels, state)

    def happened(self, event: Event) -> None:
        """In either thread."""
        self._status = self._view.status = event.text
        if event.kind == "connected":
            self._recognizer.restart()
        else:
            self._console.print(cell(event.text))

    def refresh(self, counts: Counts) -> None:
        """Write the line again."""
        line = f"{self.last_label}  {_figures(counts)}  dropped {counts.dropped}" if self.last_label else self._status
        if self._live is not None:
            shown = cell(line)
            shown.no_wrap, shown.overflow = True, "ellipsis"
            self._live.update(shown, refresh=True)
        elif time.monotonic() - self._printed >= _LINE_S and self.last_label:
            self._printed = time.monotonic()
            say(line, err=True)


def _figures(counts: Counts) -> str:
    fps = "" if counts.fps is None else f"{counts.fps:.1f} per second, "
    p99 = "" if counts.age_p99_ms is None else f", p99 {counts.age_p99_ms:.1f}"
    age = "" if counts.age_p50_ms is None else f"age p50 {counts.age_p50_ms:.1f}{p99} ms"
    return f"{fps}{age}"
