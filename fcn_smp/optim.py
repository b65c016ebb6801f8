"""Optimisers, parameter groups and learning rate schedules."""

import math
from collections.abc import Callable
from typing import Any

from segmentation_models_pytorch.base import SegmentationModel
from torch import nn


def parameter_groups(
    model: SegmentationModel, lr: float, encoder_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Split the trainable parameters into encoder and decoder, each with and without weight decay.

    Biases and the factors of normalisation layers (all parameters of fewer than two dimensions) do not decay.
    """
    groups = []
    encoder = {id(parameter) for parameter in model.encoder.parameters()}
    for name, rate, inside in (("encoder", encoder_lr, True), ("decoder", lr, False)):
        parameters = [p for p in model.parameters() if p.requires_grad and (id(p) in encoder) == inside]
        groups += [
            _group(name, [p for p in parameters if p.ndim > 1], rate, weight_decay),
            _group(name, [p for p in parameters if p.ndim <= 1], rate, 0.0),
        ]
    return [group for group in groups if group["params"]]


def _group(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    return {"name": name, "params": parameters, "lr": lr, "weight_decay": weight_decay}


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
