"""What decoders cost beside their encoder: time, memory and work of networks on one encoder, which take turns."""

import difflib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import segmentation

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.errors import UserError
from fcn_smp.losses import SegmentationLoss
from fcn_smp.models.base import Network
from fcn_smp.models.encoder import resolve_encoder_name
from fcn_smp.registry import FCNS
from fcn_smp.segmenter import present_device
from fcn_smp.training.record import environment

ENCODER = "encoder"
"""The contestant to which all others are compared."""
CONTESTANTS = (
    "fcn32s", "fcn16s", "fcn8s", "fcn8s-no-hidden",
    "fpn", "unet", "deeplabv3plus", "pan", "linknet", "upernet", "torchvision",
)  # fmt: skip
"""The networks that are measured beside the encoder, unless others are asked for."""
COMPILED = "*"
"""What the name of a compiled network ends with."""

_NO_HIDDEN = {f"{name}-no-hidden": name for name in FCNS}


class Setting(NamedTuple):
    """Under which conditions all contestants are measured."""

    encoder: str = "resnet50"
    """An encoder of SMP or a model of timm."""
    size: tuple[int, int] = (512, 512)
    """Height and width of the images, in pixels."""
    batch_size: int = 2
    """Images at once."""
    classes: int = 21
    """Number of classes."""
    device: str = "auto"
    """Where the networks run: ``auto``, ``cpu``, ``cuda`` ..."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the arithmetic; bf16 is autocast."""
    compiled: bool = False
    """Measure each network compiled by torch as well."""
    optimizer: bool = False
    """A training step ends with AdamW's; without, with the gradients."""


class Contestant:
    """A network and what has been measured of it.

    Args:
        network: Maps images to logits (N, C, H, W); or an ``EncoderAlone``.
        setting: The conditions.
        images: Float tensor (N, 3, H, W).
        labels: Integer tensor (N, H, W).
        compiled: Whether torch compiles it.

    Attributes:
        seconds: Of each forward pass and each training step so far.
        step_bytes: Peak memory of a training step beside weights, batch and the optimiser's averages; None: unknown.

    Raises:
        Exception: Whatever the network raises that does not take such images.
    """

    def __init__(
        self, network: nn.Module, setting: Setting, images: Tensor, labels: Tensor, *, compiled: bool = False
    ) -> None:
        self.network, self.setting, self.images, self.labels = network, setting, images, labels
        self._forward: Any = torch.compile(network) if compiled else network
        self._loss: Any = torch.compile(training_loss) if compiled else training_loss
        self._optimizer = torch.optim.AdamW(network.parameters()) if setting.optimizer else None
        self._actions = {"forward": self.forward, "step": self.step}
        self.seconds: dict[str, list[float]] = {name: [] for name in self._actions}
        self.take_turn()
        self.step_bytes = peak_bytes(self.step, images.device)
        for seconds in self.seconds.values():
            seconds.clear()  # the first turn warms up

    @torch.inference_mode()
    def forward(self) -> None:
        """Run the network as one that is used."""
        with self._autocast():
            self._forward(self.images)

    def step(self) -> None:
        """Run a training step and leave no gradients behind."""
        with self._autocast():
            loss = self._loss(self.network, self.images, self.labels)
        loss.backward()
        if self._optimizer:
            self._optimizer.step()
        self.network.zero_grad()

    def take_turn(self) -> None:
        """Take the time of a forward pass and of a training step."""
        for name, action in self._actions.items():
            self.network.train(name == "step")
            self.seconds[name].append(_seconds(action, self.images.device))

    def forward_flops(self) -> int:
        """Count the operations of a forward pass, a multiplication and an addition as two."""
        self.network.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.network(self.images)
        flops: int = counter.get_total_flops()
        return flops

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.setting.precision == "bf16")


class EncoderAlone(nn.Module):
    """The encoder, with the maps that an FCN-8s scores as its result.

    Args:
        encoder: Name of the encoder, as SMP knows it.
    """

    def __init__(self, encoder: str) -> None:
        super().__init__()
        network = smp.create_model("fcn8s", encoder_name=encoder, encoder_weights=None, decoder_hidden_channels=0)
        self.any_size, self.encoder = network.any_size, network.encoder
        self.levels = sorted(set(network.decoder.taps.sources))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to maps (N, C_k, H_k, W_k)."""
        features = self.encoder(self.any_size(images))
        return [features[level] for level in self.levels]


class TorchvisionFCN(nn.Module):
    """torchvision's ``fcn_resnet50`` or ``fcn_resnet101``.

    Args:
        encoder: Name of the encoder, as SMP knows it.
        classes: Number of classes C.

    Raises:
        ValueError: torchvision has no FCN with this encoder.
    """

    def __init__(self, encoder: str, classes: int) -> None:
        super().__init__()
        builders = {"resnet50": segmentation.fcn_resnet50, "resnet101": segmentation.fcn_resnet101}
        if encoder.removeprefix("tu-") not in builders:
            raise ValueError(f"torchvision has an FCN for {' and '.join(builders)} alone.")
        build = builders[encoder.removeprefix("tu-")]
        self.network = build(weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, C, H, W)."""
        logits: Tensor = self.network(images)["out"]
        return logits


def training_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a training step: cross-entropy; for the encoder alone the sum of its maps' means.

    Our networks leave their last upsampling to the loss, as they do where recipes train them.

    Args:
        network: A contestant's.
        images: Float tensor (N, 3, H, W).
        labels: Integer tensor (N, H, W).
    """
    if isinstance(network, EncoderAlone):
        return torch.stack([map_.float().mean() for map_ in network(images)]).sum()
    if isinstance(network, Network):
        loss: Tensor = SegmentationLoss(None, IGNORE_INDEX)(network.coarse(images), labels)
        return loss
    return F.cross_entropy(network(images).float(), labels)


def benchmark(
    setting: Setting,
    archs: Sequence[str] = CONTESTANTS,
    rounds: int = 3,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure networks of random weights beside their encoder, all in turn and on the same batch.

    Args:
        setting: The conditions.
        archs: Names of architectures, ours or SMP's; ``torchvision``; ``fcn8s-no-hidden`` and its like.
        rounds: How often each takes its turn; of the times the median counts.
        advance: Called whenever one of the contestants, with the encoder one more than ``archs``, has been warmed up or
            has had its turn: ``1 + rounds`` times for each.

    Returns:
        ``environment``, ``hardware``, ``setting``, ``peak_flops`` (operations a second of a large matrix product) and
        ``networks``, as JSON can hold it. Times are in seconds for a batch, memory is in bytes, ratios are to the
        encoder, not compiled. A network that does not fit the encoder or the size has but a ``name`` and a ``reason``.

    Raises:
        UserError: There is no such encoder, architecture or device, or the encoder does not take such images.
    """
    setting = setting._replace(encoder=_known_encoder(setting.encoder), device=str(present_device(setting.device)))
    names = [ENCODER, *map(_known_arch, archs)]
    # Compiled networks share code, and torch gives up on a piece of code when it meets the ninth network. On a GPU
    # convolutions are chosen as the trainer has them chosen.
    limits = torch._dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=1000)
    with limits, torch.backends.cudnn.flags(enabled=True, benchmark=True):
        contestants, reasons = _warmed_up(names, setting, advance)
        peak = 0.0
        product = _product(setting)
        for _ in range(rounds):
            peak = max(peak, product())
            for name in names:
                for contestant in contestants.get(name, {}).values():
                    contestant.take_turn()
                advance()
    rows = [_costs(name, contestant) for pair in contestants.values() for name, contestant in pair.items()]
    record, cuda = environment(), setting.device.startswith("cuda")
    return {
        "environment": record,
        "hardware": torch.cuda.get_device_name(setting.device) if cuda else record["cpu"]["name"],
        "setting": {**setting._asdict(), "rounds": rounds},
        "peak_flops": peak,
        "networks": [
            *(row | _beside(row, rows[0], peak, setting.batch_size) for row in rows),
            *({"name": name, "reason": reason} for name, reason in reasons.items()),
        ],
    }


def peak_bytes(action: Callable[[], Any], device: torch.device) -> int | None:
    """Return the most bytes that ``action`` holds at a time of what it allocates itself.

    Args:
        action: What is run, once. On a CPU, what it frees of older memory does not count.
        device: Whose memory is meant; None is returned where nobody counts it (MPS).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells the user that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak: int = max(accumulate((event.nbytes() for event in events), initial=0))
    return peak


def _known_encoder(name: str) -> str:
    try:
        return resolve_encoder_name(name)
    except ValueError as error:
        raise UserError(str(error)) from error


def _known_arch(name: str) -> str:
    known = [*smp.MODEL_ARCHITECTURES_MAPPING, *_NO_HIDDEN, "torchvision"]
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
    raise UserError(f"There is no architecture {name}; {hint}")


def _build(name: str, setting: Setting) -> nn.Module:
    if name == ENCODER:
        return EncoderAlone(setting.encoder)
    if name == "torchvision":
        return TorchvisionFCN(setting.encoder, setting.classes)
    network: nn.Module = smp.create_model(
        _NO_HIDDEN.get(name, name),
        encoder_name=setting.encoder,
        encoder_weights=None,
        classes=setting.classes,
        **({"decoder_hidden_channels": 0} if name in _NO_HIDDEN else {}),
    )
    return network


def _warmed_up(
    names: Sequence[str], setting: Setting, advance: Callable[[], None]
) -> tuple[dict[str, dict[str, Contestant]], dict[str, str]]:
    """Return the contestants by what was asked for and by their own names, and why some cannot be measured."""
    images, labels = _batch(setting)
    contestants, reasons = {}, {}
    for name in names:
        try:
            network: Any = _build(name, setting)
            network = network.to(images.device, memory_format=torch.channels_last)
            contestants[name] = {
                name + COMPILED * compiled: Contestant(network, setting, images, labels, compiled=compiled)
                for compiled in ([False, True] if setting.compiled else [False])
            }
        except Exception as error:  # whatever SMP, timm and torch raise where parts do not fit
            reasons[name] = _reason(error)
            if name == ENCODER:
                raise UserError(f"{setting.encoder} cannot be measured: {reasons[name]}") from error
        advance()
    return contestants, reasons


def _reason(error: Exception) -> str:
    message = str(error.args[0] if error.args else "").strip() or type(error).__name__
    return message.splitlines()[0]


def _batch(setting: Setting) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((setting.batch_size, 3, *setting.size), generator=generator)
    labels = torch.randint(setting.classes, (setting.batch_size, *setting.size), generator=generator)
    # The order of memory is the trainer's.
    return images.to(setting.device, memory_format=torch.channels_last), labels.to(setting.device)


def _product(setting: Setting) -> Callable[[], float]:
    """Return what measures the operations a second of a large matrix product, for which devices are built."""
    device = torch.device(setting.device)
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return lambda: 2 * side**3 / _seconds(lambda: matrix @ matrix, device)


def _seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Return how long ``action`` takes, from as many in a row as fill a tenth of a second."""
    _wait(device)
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < 0.1:
        action()
        calls += 1
    _wait(device)
    return (time.perf_counter() - started) / calls


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _costs(name: str, contestant: Contestant) -> dict[str, Any]:
    medians = {f"{what}_seconds": statistics.median(seconds) for what, seconds in contestant.seconds.items()}
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in contestant.network.parameters()),
        "forward_flops": contestant.forward_flops(),
        **medians,
        "step_bytes": contestant.step_bytes,
    }


def _beside(row: dict[str, Any], encoder: dict[str, Any], peak: float, batch_size: int) -> dict[str, Any]:
    """Return a network's ratios to the encoder, its images a second of training and its share of the peak."""
    counted = row["step_bytes"] is not None
    return {
        "forward_ratio": row["forward_seconds"] / encoder["forward_seconds"],
        "step_ratio": row["step_seconds"] / encoder["step_seconds"],
        "memory_ratio": row["step_bytes"] / encoder["step_bytes"] if counted else None,
        "images_per_second": batch_size / row["step_seconds"],
        # By custom a step is three forward passes' work: the gradients of a layer's input and weights cost one each.
        "peak_share": 3 * row["forward_flops"] / row["step_seconds"] / peak,
    }
