"""``edgeadv bundle``: look at a bundle, copy less of it, or sign it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime import Bundle, InputError
from edgeadv_runtime.bundle.entries import (
    ConfidenceEntry,
    GateEntry,
    PairedEntry,
    ParityEntry,
)
from edgeadv_runtime.bundle.manifest import MANIFEST
from edgeadv_runtime.bundle.variants import expanded
from edgeadv_runtime.files import sha256_file

from ..workflows.reporting import draw_preprocess
from ._arguments import BundleFile, BundlePath
from ._fields import say
from ._options import with_options
from ._shared import print_table

MIB = 1024 * 1024

app = typer.Typer(add_completion=False, help="Look at a bundle, copy less of it, or sign it.", no_args_is_help=True)


@app.command()
@with_options
def show(
    bundle: BundleFile,
    picture: Annotated[Path | None, "Draw what the model sees of a frame as this PNG."] = None,
    frame: Annotated[Path | None, "The picture to draw it of; by default a golden frame."] = None,
) -> None:
    """Check every hash of a bundle, then show what it is and what it holds.

    The errors are those of its artefacts against what they were made from: a network in PyTorch, or of an import the
    file that came in.
    """
    if frame is not None and picture is None:
        raise InputError("`frame` is what `picture` draws: add `picture` FILE.png, or leave it out")
    opened = bundle.open()
    if picture is not None:
        draw_preprocess(opened, picture, frame=frame)
    architecture, preprocess = opened.manifest.architecture, opened.preprocess
    say(f"title              {opened.manifest.title}")
    say(f"architecture       {architecture.source} {architecture.name}, upsample {architecture.upsample}")
    say(f"classes            {len(opened.classes)}: {', '.join(opened.classes.names[:5])}, ...")
    say(f"preprocess         {preprocess}")
    say(f"created            {opened.manifest.created} by edgeadv {opened.manifest.edgeadv_version}")
    say(f"signature          {_signature(opened, bundle.public_key)}")
    print_summary(opened)
    if picture is not None:
        say(f"written            {picture}")


@app.command()
@with_options
def slim(
    bundle: BundleFile,
    out: Annotated[Path, "The folder to make."],
    variant: Annotated[list[str], "A variant to keep, int8 or int8-u8in; give it again for another."],
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Keep the weights, to train on.")] = False,
    overwrite: Annotated[bool, "Replace a bundle that is there."] = False,
) -> None:
    """Copy a bundle without what a device does not need. The copy keeps the bundle id."""
    full = bundle.open()
    signed = full.signed  # asked first: the copy may take the place of the bundle
    kept = expanded(variant, full.variants)
    print_summary(full.slim(out, variants=kept, weights=weights, overwrite=overwrite))
    if signed:
        say(
            f"not signed: the copy has a manifest of its own; edgeadv bundle sign {shlex.quote(str(out))} --key "
            "PRIVATE.pem"
        )


@app.command()
@with_options
def sign(
    bundle: BundlePath,
    key: Annotated[Path, "Ed25519 private key, PEM: openssl genpkey -algorithm ed25519."],
) -> None:
    """Check every hash of a bundle, then sign its manifest, which names them all. A signature that is there is
    replaced."""
    opened = Bundle.open(bundle)
    signature = opened.sign(key)
    say(f"signed             {opened.path / MANIFEST}")
    say(f"manifest sha256    {sha256_file(opened.path / MANIFEST)}")
    say(f"written            {signature}")


def _signature(bundle: Bundle, public_key: Path | None) -> str:
    if public_key is not None:
        return f"fits {public_key}"
    return "there is one; whose it is, --public-key tells" if bundle.signed else "none"


def print_summary(bundle: Bundle) -> None:
    """Print path, id and manifest hash of ``bundle``, and a table of its files with their parity."""
    say(f"bundle             {bundle.path}")
    say(f"bundle id          {bundle.id}")
    say(f"manifest sha256    {sha256_file(bundle.path / MANIFEST)}")
    if bundle.manifest.left_out:
        say(f"left out           {', '.join(bundle.manifest.left_out)}")
    if bundle.manifest.weights is None:
        say("weights            none: it was imported from ONNX")
    if single := [variant for variant in bundle.variants if bundle.fixed_batch(variant)]:
        say(f"one image a call   {', '.join(single)}")
    known = bundle.training_images
    command = "import" if bundle.manifest.weights is None else "export"
    listed = f"not known, so evaluate cannot tell them: see {command} --training-data"
    say(f"training images    {listed if known is None else f'{len(known)}, known by hash'}")
    print_table(
        ("file", "MiB", "frames", "abs. error", "rel. error", "allowed", "min. cosine", "same top-1"), _rows(bundle)
    )
    for variant in bundle.variants:
        entry = bundle.manifest.variants[variant]
        if entry.gate is not None:
            for line in _gate(entry.gate, entry.float_layers or ()):
                say(f"{variant:<18} {line}")
        if entry.gradients is not None and entry.gradients.missing is not None:
            say(f"{variant:<18} no gradients of its own: {entry.gradients.missing}")
    for variant, why in bundle.manifest.refused.items():
        say(f"{variant:<18} refused at the export: {why}")
    if (confidence := bundle.manifest.confidence) is not None:
        say(f"confidence         {_confidence(confidence)}")


def _confidence(entry: ConfidenceEntry) -> str:
    rejection = entry.rejection
    return (
        f"temperature {entry.temperature:.3f} of {entry.n} images; on {entry.n_held_out} others of {entry.data.name} "
        f"ECE {entry.ece_before:.1%} before, {entry.ece_after:.1%} after; below probability {rejection.threshold:.3f} "
        f"unknown: {rejection.answered} answered, {rejection.wrong_answered} of them wrong, of {rejection.wrong} wrong "
        "in all"
    )


def _rows(bundle: Bundle) -> Iterator[list[str]]:
    manifest = bundle.manifest
    for variant in bundle.variants:
        entry = manifest.variants[variant]
        # int8 is judged by its gate; its tolerance is for other devices, against the golden logits
        allowed = f"{entry.tolerance:g}"
        yield _row(entry.file, entry.bytes, entry.parity, "see below" if entry.gate is not None else allowed)
    if manifest.weights is not None and manifest.weights.file not in manifest.left_out:
        yield _row(manifest.weights.file, manifest.weights.bytes, None, "")
    listed = {manifest.variants[variant].file for variant in bundle.variants}
    listed |= set() if manifest.weights is None else {manifest.weights.file}
    for file in sorted(bundle.path.iterdir()):
        if file.name not in listed and file.is_file():
            yield _row(file.name, file.stat().st_size, None, "")


def _row(file: str, size: int | None, parity: ParityEntry | None, allowed: str) -> list[str]:
    cells = [file, f"{(size or 0) / MIB:.2f}"]
    if parity is not None:
        cells += [
            str(parity.frames),
            f"{parity.max_abs_error:.2g}",
            f"{parity.max_relative_error:.2g}",
            allowed,
            f"{parity.min_cosine:.6f}",
            f"{parity.frames - len(parity.flips)}/{parity.frames}",
        ]
    return cells


def _gate(gate: GateEntry, float_layers: Sequence[str]) -> Iterator[str]:
    """What an int8 variant was measured to lose and to gain; one with uint8 input by that with float input."""
    worst, latency = gate.worst, gate.gain.latency
    if gate.of is not None:
        yield f"the same graph as {gate.of} after its input, with the gate of that:"
    yield f"on {gate.clean.n} images of {gate.data.name}: {_loss(gate.clean)}, {gate.max_drop:g} allowed"
    if worst is None:
        yield f"worst case under attack not measured: {gate.worst_case['not_measured']}"
    else:
        judged = f"{gate.max_drop:g} allowed" if worst.judged else f"not judged: verdict {worst.verdict}"
        own = "" if worst.threat == "transfer" else " and on itself"
        lacking = worst.no_own_gradients
        not_attacked = "" if lacking is None else f"; not attacked by its own gradients: {lacking}"
        yield f"worst case of attacks on fp32{own} at eps {worst.eps}: {_loss(worst)}, {judged}{not_attacked}"
    speed = f"latency not measured: {latency.not_measured}"
    if latency.faster is not None:
        speed = f"{latency.faster:.2f}x its speed at batch 1 ({latency.threads} thread, {latency.device})"
    yield f"{gate.gain.smaller:.1f}x smaller than fp32, {speed}"
    if float_layers:
        whole = gate.fully_quantised.drop
        yield f"in float32: {', '.join(float_layers)}; with every layer in int8 the drop was {whole:.2f} points"


def _loss(paired: PairedEntry) -> str:
    n, (low, high) = paired.n, paired.drop_ci95
    # bundles of an older edgeadv were judged at the drop itself
    judged = "" if paired.drop_upper is None else f", judged at {paired.drop_upper:.2f}"
    return (
        f"top-1 {paired.int8_correct / n:.1%} against {paired.fp32_correct / n:.1%} of fp32, drop {paired.drop:.2f} "
        f"points [{low:.2f}, {high:.2f}]{judged}"
    )
