"""Optimisers, parameter groups and learning rate schedules."""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

from segmentation_models_pytorch.base import SegmentationModel
from torch import nn


def parameter_groups(
    model: SegmentationModel, lr: float, encoder_lr: float, weight_decay: float, bias_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters by part (encoder or decoder), rate and weight decay.

    Biases and the factors of normalisation layers (all parameters of fewer than two dimensions) do not decay.

    Args:
        model: The network.
        lr: Learning rate of all but the encoder.
        encoder_lr: Learning rate of the encoder.
        weight_decay: Weight decay of what decays.
        bias_lr_factor: Factor of the rates for biases; 2 in the authors' networks.
    """
    encoder = {id(parameter) for parameter in model.encoder.parameters()}
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part, rate = ("encoder", encoder_lr) if id(parameter) in encoder else ("decoder", lr)
            rate *= bias_lr_factor if name.endswith("bias") else 1
            decay = weight_decay if parameter.ndim > 1 else 0.0
            group = {"name": part, "params": [], "lr": rate, "weight_decay": decay}
            groups.setdefault((part, rate, decay), group)["params"].append(parameter)
    return list(groups.values())


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Exclude parts of a network from training.

    Args:
        model: The network.
        parts: Names of modules or parameters, such as ``encoder`` or ``encoder.features.0``.

    Raises:
        ValueError: The network has no such part, or nothing is left to train.
    """
    for part in parts:
        inside = [
            parameter for name, parameter in model.named_parameters() if f"{name}.".startswith(part and f"{part}.")
        ]
        for parameter in inside:
            parameter.requires_grad_(False)
        if not inside:
            near = difflib.get_close_matches(part, [name for name, _ in model.named_modules()], n=3)
            hint = f"; near ones are {', '.join(near)}" if near else ", such as encoder or decoder.hidden"
            raise ValueError(f"The network has no part {part!r} with weights{hint}.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("All parts are frozen; at least one must be trained.")


def warm_up_then(decay: Callable[[float], float], warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step: a linear rise over the warm-up, then ``decay``.

    Args:
        decay: Factor at a progress in [0, 1).
        warmup_steps: Steps of the rise; the first has 1 / ``warmup_steps`` of the rate.
        total_steps: Steps of the whole training.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return decay((step - warmup_steps) / max(1, total_steps - warmup_steps))

    return factor


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, ICLR 2017, without restarts)."""
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def poly(power: float) -> Callable[[float], float]:
    """Return the polynomial decay ``(1 - progress) ** power`` (Chen et al., DeepLab, 2018, section 4.1)."""
    return lambda progress: float(max(0.0, 1 - progress) ** power)


def constant(progress: float) -> float:
    """Keep the rate."""
    return 1.0
