"""Networks that the masking verdict is calibrated on: meant honestly, or built to deceive who follows their gradients.

Each network is trained once into a folder and found there again. A deceptive one is a trained network behind a trick,
so what it withstands can be bounded by images that were made on the network without the trick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeadv.data.datasets import ImageSet, open_data
from edgeadv.models.builder import Architecture, PixelModel, save_weights
from edgeadv.models.checkpoints import load_state, read_weights
from edgeadv.training.adversarial import AdversarialTraining, Trades
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import fit
from edgeadv.training.objectives import DefensiveDistillation, HardLabels, Objective
from edgeadv_runtime.records.eps import Eps

Trick = Callable[[nn.Module], nn.Module]
Recipe = Callable[["Weights"], Objective]
Build = Callable[[], nn.Module]


# Architectures


def cnn(activation: Build = nn.ReLU, *, channels: int = 3, norm: bool = False, pool: bool = False) -> nn.Module:
    """Two convolutions and two dense layers, for digits of 32 x 32 pixels."""

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 5, 1 if pool else 2, 2)]
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        return [*layers, activation(), *([nn.MaxPool2d(2)] if pool else [])]

    return nn.Sequential(
        *conv(channels, 16), *conv(16, 32), nn.Flatten(), nn.Linear(2048, 100), activation(), nn.Linear(100, 10)
    )


def mlp() -> nn.Module:
    """Three dense layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def vgg(activation: Build = nn.ReLU) -> nn.Module:
    """Five convolutions with BatchNorm, for photographs of 32 x 32 pixels."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


class SteepTanh(nn.Module):
    """tanh(12 x): saturates nearly everywhere, without any intention."""

    slope = 12.0

    def forward(self, x: Tensor) -> Tensor:
        """The activation."""
        return torch.tanh(self.slope * x)


class WinnersTakeAll(nn.Module):
    """The largest tenth of all activations of an image, the rest 0 (Xiao et al. 2020, "k-Winners-Take-All")."""

    def forward(self, x: Tensor) -> Tensor:
        """The activation."""
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 10), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, torch.zeros_like(flat)).view_as(x)


class Thermometer(nn.Module):
    """Each pixel as ten comparisons (Buckman et al. 2018): there is no path for a gradient."""

    slope = float("inf")

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        above = x[:, None] - torch.arange(10, device=x.device).view(1, 10, 1, 1, 1) / 10
        coded = (above > 0).float() if self.slope == float("inf") else torch.sigmoid(self.slope * above)
        logits: Tensor = self.net(coded.flatten(1, 2))
        return logits


# Tricks


_BANK = 512
"""Different noises of :func:`hashed_noise`."""


class Wrapped(nn.Module):
    """A network of which the images or the logits pass through something first."""

    def __init__(
        self,
        model: nn.Module,
        *,
        images: Callable[[Tensor], Tensor] | None = None,
        logits: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.images, self.logits = model, images, logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        answer: Tensor = self.model(x if self.images is None else self.images(x))
        return answer if self.logits is None else self.logits(answer, x)


def _waves(x: Tensor, frequency: float, seed: int = 0) -> Tensor:
    """sin(frequency * w x) for a random w of each class with entries of deviation 1 / sqrt(pixels)."""
    w = _directions(x[0].numel(), seed)
    return torch.sin(frequency * x.flatten(1) @ w.T.to(x))


@cache
def _directions(size: int, seed: int) -> Tensor:
    """Drawn once, for an exporter does not follow the draw."""
    return torch.randn(10, size, generator=torch.Generator().manual_seed(seed)) / size**0.5


def sine(amplitude: float, *frequencies: float) -> Trick:
    """Logits plus waves whose slopes drown the network's own."""

    def added(logits: Tensor, x: Tensor) -> Tensor:
        waves = [_waves(x, frequency, seed=i) for i, frequency in enumerate(frequencies)]
        return logits + amplitude * torch.stack(waves).mean(dim=0)

    return lambda model: Wrapped(model, logits=added)


def sine_for_some(amplitude: float, frequency: float) -> Trick:
    """Waves only where the network says one of the first five classes."""

    def added(logits: Tensor, x: Tensor) -> Tensor:
        some = (logits.argmax(dim=1, keepdim=True) < 5).float()
        return logits + some * amplitude * _waves(x, frequency)

    return lambda model: Wrapped(model, logits=added)


def sine_near_boundary(amplitude: float, frequency: float) -> Trick:
    """Waves that grow as the margin shrinks: on clean images the gradient is the network's own."""

    def added(logits: Tensor, x: Tensor) -> Tensor:
        top = logits.topk(2, dim=1).values
        near = torch.relu(1 - (top[:, :1] - top[:, 1:]) / 8)
        return logits + near * amplitude * _waves(x, frequency)

    return lambda model: Wrapped(model, logits=added)


def pixel_waves(amplitude: float, frequency: float) -> Trick:
    """Each pixel moved by a wave of its own value: shattered gradients."""
    return lambda model: Wrapped(model, images=lambda x: x + amplitude * torch.sin(frequency * x))


class _PassThrough(torch.autograd.Function):
    """What ``forward`` made of the images, and the gradient as if it had made nothing (BPDA, Athalye et al. 2018)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, made: Tensor) -> Tensor:
        return made.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def bit_depth(levels: int, *, straight_through: bool) -> Trick:
    """Pixels of few levels (Xu et al. 2018), without a gradient or with one that passes straight through."""

    def few(x: Tensor) -> Tensor:
        made = torch.round(x * (levels - 1)) / (levels - 1)
        return _PassThrough.apply(x, made) if straight_through else made  # type: ignore[no-any-return, no-untyped-call]

    return lambda model: Wrapped(model, images=few)


def quantised_logits(step: float) -> Trick:
    """Logits in whole steps: no gradient, and many ties."""
    return lambda model: Wrapped(model, logits=lambda logits, _: torch.round(logits / step) * step)


def stairs(step: float, depth: float) -> Trick:
    """Logits on stairs, whose treads slope backwards where ``depth`` is above 1."""

    def climbed(logits: Tensor, _: Tensor) -> Tensor:
        turn = 2 * torch.pi / step
        return logits + depth / turn * torch.sin(turn * logits)

    return lambda model: Wrapped(model, logits=climbed)


def louder(factor: float) -> Trick:
    """Logits times a factor: float32's softmax saturates, as after distillation."""
    return lambda model: Wrapped(model, logits=lambda logits, _: logits * factor)


def saturating_head(scale: float) -> Trick:
    """tanh of each logit: ties wherever two of them saturate, and no slope there."""
    return lambda model: Wrapped(model, logits=lambda logits, _: torch.tanh(scale * logits))


def noisy_images(deviation: float) -> Trick:
    """Another draw of noise at every call."""
    return lambda model: Wrapped(model, images=lambda x: (x + deviation * torch.randn_like(x)).clamp(0, 1))


def resized_at_random(model: nn.Module) -> nn.Module:
    """Another size and place at every call (Xie et al. 2018)."""

    def moved(x: Tensor) -> Tensor:
        size, side = int(torch.randint(24, 33, ()).item()), x.shape[-1]
        small = nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        left, top = (int(torch.randint(0, side - size + 1, ()).item()) for _ in range(2))
        return nn.functional.pad(small, (left, side - size - left, top, side - size - top))

    return Wrapped(model, images=moved)


def hashed_noise(deviation: float) -> Trick:
    """Noise that is a function of the pixels: the same at every call, and without any useful slope."""

    bank: list[Tensor] = []

    def moved(x: Tensor) -> Tensor:
        if not bank:
            bank.append(torch.randn(_BANK, *x.shape[1:], generator=torch.Generator().manual_seed(0)))
        chosen = (x.detach().double().sum(dim=(1, 2, 3)) * 1e6).long() % _BANK
        return (x + deviation * bank[0][chosen]).clamp(0, 1)

    return lambda model: Wrapped(model, images=moved)


def sharpened(times: int, slope: float) -> Trick:
    """Pixels driven to black or white by a map that is iterated: slopes vanish, or explode near the middle."""

    def driven(x: Tensor) -> Tensor:
        for _ in range(times):
            x = torch.sigmoid(slope * (x - 0.5))
        return x

    return lambda model: Wrapped(model, images=driven)


class _Lie(torch.autograd.Function):
    """The identity, with another gradient behind it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.change(gradient, ctx.saved_tensors[0]), None


def flipped(share: float) -> Trick:
    """A backward pass that turns the sign of a share of the pixels, chosen by the image."""

    def turned(gradient: Tensor, x: Tensor) -> Tensor:
        mask = torch.frac(torch.sin(x * 12.9898 + torch.arange(x[0].numel()).view_as(x[0]) * 78.233).abs() * 43758.5453)
        return torch.where(mask < share, -gradient, gradient)

    return lambda model: Wrapped(model, images=lambda x: _Lie.apply(x, turned))  # type: ignore[no-untyped-call]


def shuffled_gradient(model: nn.Module) -> nn.Module:
    """A backward pass that deals the pixels' slopes out anew."""

    def dealt(gradient: Tensor, _: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
        return flat[:, order].view_as(gradient)

    return Wrapped(model, images=lambda x: _Lie.apply(x, dealt))  # type: ignore[no-untyped-call]


class Decoy(nn.Module):
    """Answers of one network, gradients of another."""

    def __init__(self, model: nn.Module, decoy: nn.Module) -> None:
        super().__init__()
        self.model, self.decoy = model, decoy

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        shown: Tensor = self.decoy(x)
        return shown + (self.model(x) - shown).detach()


# The list


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network, and the budget that it is judged at.

    Attributes:
        name: of its row.
        eps: the budget, in pixels of [0, 1].
        meant: ``"honest"`` or ``"deceptive"``.
        build: the bare network; None where it is ``base`` behind ``trick``.
        recipe: what it is trained with.
        base: the network whose weights these are, where it is not trained itself.
        trick: what is put around it.
        decoy: another network, whose gradients are shown.
        int8: judge the int8 artefact of it, a variant.
        data: ``"mnist5k"`` or ``"cifar10"``.
        epochs: of its training.
        lr: its peak learning rate.
    """

    name: str
    eps: str
    meant: str
    build: Build | None = None
    recipe: Recipe = lambda _: HardLabels()
    base: str | None = None
    trick: Trick | None = None
    decoy: str | None = None
    int8: str | None = None
    data: str = "mnist5k"
    epochs: int = 8
    lr: float = 0.05

    @property
    def weights(self) -> str:
        """Name of the network that is trained for this one."""
        return self.base or self.name


def _honest() -> list[Network]:
    made = partial(Network, meant="honest")
    plain = [
        made(name="relu", build=cnn, eps="0.05"),
        made(name="batchnorm", build=partial(cnn, norm=True), eps="0.05"),
        made(name="maxpool", build=partial(cnn, pool=True), eps="0.05"),
        made(name="mlp", build=mlp, eps="0.05"),
        made(name="softplus", build=partial(cnn, nn.Softplus), eps="0.05"),
        made(name="silu", build=partial(cnn, nn.SiLU), eps="0.05"),
        made(name="gelu", build=partial(cnn, nn.GELU), eps="0.05"),
        made(name="tanh", build=partial(cnn, nn.Tanh), eps="0.05"),
        made(name="sigmoid", build=partial(cnn, nn.Sigmoid, norm=True), eps="0.05"),
        made(name="steep-tanh", build=partial(cnn, SteepTanh, norm=True), eps="0.05"),
        made(name="small-budget", base="relu", eps="0.02"),
    ]
    at = {eps: partial(AdversarialTraining.pgd, Eps.parse(eps), 5) for eps in ("0.1", "0.2")}
    robust = [
        made(name="at-0.1", build=partial(cnn, norm=True), recipe=lambda _: at["0.1"](), eps="0.1"),
        made(name="at-0.2", build=partial(cnn, norm=True), recipe=lambda _: at["0.2"](), eps="0.2"),
        made(name="at-0.2-beyond", base="at-0.2", eps="0.25"),
        made(name="at-silu", build=partial(cnn, nn.SiLU, norm=True), recipe=lambda _: at["0.1"](), eps="0.15"),
        made(name="trades", build=partial(cnn, norm=True), recipe=lambda _: Trades.at(Eps.parse("0.2"), 5), eps="0.2"),
        made(
            name="n-fgsm",
            build=partial(cnn, norm=True),
            recipe=lambda _: AdversarialTraining.n_fgsm(Eps.parse("0.1")),
            eps="0.1",
        ),
        made(name="at-mlp", build=mlp, recipe=lambda _: at["0.1"](), eps="0.1", lr=0.02),
    ]
    distilled = [
        made(
            name="distilled-1",
            build=cnn,
            eps="0.05",
            recipe=lambda weights: DefensiveDistillation(weights.load("relu"), 1.0),
        ),
        made(
            name="distilled-2",
            build=cnn,
            eps="0.05",
            recipe=lambda weights: DefensiveDistillation(weights.load("relu"), 2.0),
        ),
    ]
    int8 = [
        made(name="int8-s8s8", base="relu", int8="int8-s8s8", eps="0.05"),
        made(name="int8-u8s8", base="at-0.2", int8="int8-u8s8", eps="0.2"),
    ]
    photographs = partial(made, data="cifar10", epochs=10, lr=0.1)
    cifar = [
        photographs(name="cifar", build=vgg, eps="1/255"),
        photographs(name="cifar-silu", build=partial(vgg, nn.SiLU), eps="1/255"),
        photographs(
            name="cifar-n-fgsm", build=vgg, eps="4/255", recipe=lambda _: AdversarialTraining.n_fgsm(Eps.parse("4/255"))
        ),
    ]
    return [*plain, *robust, *distilled, *int8, *cifar]


def _deceptive() -> list[Network]:
    made = partial(Network, meant="deceptive", base="relu")
    return [
        made(name="sine-3000", trick=sine(0.3, 3000.0), eps="0.1"),
        made(name="sine-3000-small", trick=sine(0.3, 3000.0), eps="0.03"),
        made(name="sine-300", trick=sine(1.0, 300.0), eps="0.1"),
        made(name="sine-60", trick=sine(3.0, 60.0), eps="0.1"),
        made(name="sine-mixture", trick=sine(2.0, 50.0, 200.0, 1000.0, 5000.0), eps="0.1"),
        made(name="sine-robust", base="at-0.2", trick=sine(1.0, 1000.0), eps="0.25"),
        made(name="sine-for-some", trick=sine_for_some(0.5, 2000.0), eps="0.1"),
        made(name="sine-near-boundary", trick=sine_near_boundary(2.0, 1000.0), eps="0.1"),
        made(name="pixel-waves", trick=pixel_waves(0.02, 250.0), eps="0.1"),
        made(name="bit-depth", trick=bit_depth(4, straight_through=False), eps="0.1"),
        made(name="bit-depth-passed", trick=bit_depth(4, straight_through=True), eps="0.1"),
        made(name="thermometer", base=None, build=lambda: Thermometer(cnn(channels=30)), eps="0.1"),
        made(name="quantised-logits", trick=quantised_logits(2.0), eps="0.05"),
        made(name="stairs", trick=stairs(1.0, 4.0), eps="0.1"),
        made(name="louder", trick=louder(1e5), eps="0.05"),
        made(name="saturating-head", trick=saturating_head(0.3), eps="0.1"),
        made(name="noisy-images", trick=noisy_images(0.2), eps="0.1"),
        made(name="resized-at-random", trick=resized_at_random, eps="0.1"),
        made(name="hashed-noise", trick=hashed_noise(0.15), eps="0.1"),
        made(name="sharpened", trick=sharpened(3, 12.0), eps="0.2"),
        made(name="flipped", trick=flipped(0.45), eps="0.1"),
        made(name="shuffled", trick=shuffled_gradient, eps="0.1"),
        made(name="decoy", decoy="mlp", eps="0.05"),
        made(name="decoy-robust", decoy="at-0.2", eps="0.1"),
        made(name="winners", base=None, build=partial(cnn, WinnersTakeAll), eps="0.1"),
        made(
            name="distilled-40",
            base=None,
            build=cnn,
            eps="0.1",
            recipe=lambda weights: DefensiveDistillation(weights.load("teacher-40"), 40.0),
        ),
    ]


TEACHERS = (Network(name="teacher-40", eps="0.1", meant="honest", build=cnn, recipe=lambda _: HardLabels(40.0)),)
NETWORKS: tuple[Network, ...] = (*_honest(), *_deceptive())


class Weights:
    """Trained networks in a folder, made where they are missing."""

    def __init__(self, folder: Path, *, cifar10: Path | None) -> None:
        self.folder, self.cifar10 = folder, cifar10
        folder.mkdir(parents=True, exist_ok=True)

    def images(self, data: str, split: str) -> ImageSet:
        """The images of a data set."""
        spec = str(self.cifar10) if data == "cifar10" else data
        return open_data(spec, split=split)  # type: ignore[arg-type]

    def has(self, network: Network) -> bool:
        """Whether its images are there."""
        return network.data != "cifar10" or self.cifar10 is not None

    def load(self, name: str) -> PixelModel:
        """A trained network, in evaluation mode."""
        network = next(n for n in (*NETWORKS, *TEACHERS) if n.name == name)
        model, file = _fresh(network), self.folder / f"{name}.safetensors"
        if not file.exists():
            self._train(network, model, file)
        load_state(model.net, read_weights(file), origin=file.name)
        return model.eval().requires_grad_(False)

    def judged(self, network: Network) -> tuple[nn.Module, list[nn.Module]]:
        """What is judged, and networks to make images on that bound what it stands: the same without its trick."""
        bare = self.load(network.weights)
        if network.decoy is not None:
            return Decoy(bare, self.load(network.decoy)), [bare]
        return (bare if network.trick is None else network.trick(bare)), [bare, *self._smoother(network)]

    def _smoother(self, network: Network) -> list[nn.Module]:
        """The same weights behind gentler activations, where the network's own are steep or have no slope."""
        found: list[nn.Module] = []
        for slope in (1.0, 3.0, 10.0, 30.0):
            model = self.load(network.weights)
            steep = [module for module in model.modules() if isinstance(module, (SteepTanh, Thermometer))]
            for module in steep:
                module.slope = slope
            found += [model] if steep else []
        return found

    def _train(self, network: Network, model: PixelModel, file: Path) -> None:
        train, test = (self.images(network.data, split) for split in ("train", "test"))
        photographs = network.data == "cifar10"
        config = TrainConfig(
            epochs=network.epochs,
            lr=network.lr,
            limit=15_000 if photographs else None,
            holdout=0,
            augment="crop-flip" if photographs else "none",
        )
        out = self.folder / f"{network.name}.training"
        measured = fit(
            model,
            network.recipe(self),
            train,
            test,
            preprocess=train.preprocess,
            config=config,
            out=out,
            resume=True,
            device=torch.device("cpu"),
        )
        save_weights(model, file)
        print(f"{network.name}: {measured['epochs'][-1]}", flush=True)


def _fresh(network: Network) -> PixelModel:
    assert network.build is not None, f"{network.name} is not trained itself"
    torch.manual_seed(0)
    about = Architecture(name=network.name, source="timm", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)
    return PixelModel(network.build(), about)


def chosen(names: Sequence[str]) -> list[Network]:
    """Networks by their names; all without any."""
    unknown = set(names) - {network.name for network in NETWORKS}
    if unknown:
        raise SystemExit(f"no such network: {', '.join(sorted(unknown))}")
    return [network for network in NETWORKS if not names or network.name in names]


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("build/verdict"))
    parser.add_argument("--cifar10", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = Weights(options.work, cifar10=options.cifar10)
    for network in chosen(options.names):
        if weights.has(network):
            weights.load(network.weights)
            if network.decoy is not None:
                weights.load(network.decoy)


if __name__ == "__main__":
    main()
