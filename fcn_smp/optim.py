"""Optimisers, parameter groups and learning rate schedules."""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, Literal

import timm
import torch
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from segmentation_models_pytorch.encoders.mix_transformer import MixVisionTransformerEncoder
from timm.models._manipulate import flatten_modules, group_with_matcher
from torch import nn

# The blocks of SMP's MiT, which registers the patch embeddings of all stages before the first block.
_MIT_BLOCKS = {"stages": [(r"^patch_embed(\d+)", (-1,)), (r"^block(\d+)\.(\d+)", None), (r"^norm(\d+)", (99999,))]}


def parameter_groups(
    model: SegmentationModel,
    lr: float,
    encoder_lr: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters by part (encoder or decoder), rate and weight decay.

    Biases and the factors of normalisation layers (all parameters of fewer than two dimensions) do not decay, nor do
    those that the encoder's authors except, such as position embeddings.

    Args:
        model: The network.
        lr: Learning rate of all but the encoder.
        encoder_lr: Learning rate of the encoder.
        weight_decay: Weight decay of what decays.
        bias_lr_factor: Factor of the rates for biases; 2 in the authors' networks.
        layer_decay: Factor of the rate from each block of the encoder to the one before it, in (0, 1]; the last block
            has ``encoder_lr`` (Bao et al., ICLR 2022, BEiT).
    """
    original, named = _original(model.encoder)
    undecayed = _without_decay(original, named)
    distances = _distances_from_end(model.encoder, original, named) if layer_decay < 1 else {}
    inside = {id(parameter) for parameter in model.encoder.parameters()}
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part, rate = ("encoder", encoder_lr) if id(parameter) in inside else ("decoder", lr)
            rate *= layer_decay ** distances.get(id(parameter), 0)
            rate *= bias_lr_factor if name.endswith("bias") else 1
            decay = weight_decay if parameter.ndim > 1 and id(parameter) not in undecayed else 0.0
            group = {"name": part, "params": [], "lr": rate, "weight_decay": decay}
            groups.setdefault((part, rate, decay), group)["params"].append(parameter)
    return list(groups.values())


def _original(encoder: nn.Module) -> tuple[Any, dict[str, nn.Parameter]]:
    """Return the model as its authors wrote it, without values, and the encoder's parameters by the names it uses.

    timm takes a model apart to get at its features; what remains no longer knows how it is to be trained.
    """
    if not isinstance(encoder, TimmUniversalEncoder):
        return encoder, dict(encoder.named_parameters())
    with torch.device("meta"):
        whole = timm.create_model(encoder.name)
    # timm has called stages_0 what was stages.0, and has put some models under `model` or `body`.
    kept = "|".join(name for name, _ in whole.named_children())
    opened = "|".join(name for name, child in whole.named_children() if isinstance(child, nn.Sequential))
    named = ((re.sub(r"^(model|body)\.", "", name), each) for name, each in encoder.model.named_parameters())
    return whole, {re.sub(rf"^(?!({kept})\.)({opened})_", r"\2.", name): each for name, each in named}


def _without_decay(original: Any, named: Mapping[str, nn.Parameter]) -> set[int]:
    """Return the ids of the parameters that the model names as not decaying."""
    patterns: Iterable[str] = original.no_weight_decay() if hasattr(original, "no_weight_decay") else ()
    return {id(each) for name, each in named.items() if any(fnmatch(name, pattern) for pattern in patterns)}


def _distances_from_end(encoder: nn.Module, original: Any, named: Mapping[str, nn.Parameter]) -> dict[int, int]:
    """Return for the id of each of the encoder's parameters how many blocks come after its own."""
    matcher = original.group_matcher(coarse=False) if hasattr(original, "group_matcher") else None
    if isinstance(encoder, MixVisionTransformerEncoder):
        matcher = _MIT_BLOCKS
    if matcher is None:
        numbers = _number_blocks(encoder)
    else:
        numbers = {id(named[name]): n for name, n in group_with_matcher(named.items(), matcher, reverse=True).items()}
    last = max(numbers.values(), default=0)
    return {id(parameter): last - numbers.get(id(parameter), 0) for parameter in encoder.parameters()}


def _number_blocks(network: nn.Module) -> dict[int, int]:
    """Number the blocks in the order of their modules; return the number for each parameter's id.

    A block is a child of the network or, where that is a container, of this. One without a weight of two dimensions,
    a normalisation, belongs to the block before it.
    """
    children = list(network.children())
    if len(children) == 1:
        return _number_blocks(children[0])
    numbers: dict[int, int] = {}
    number = 0
    for _, module in flatten_modules(network.named_children(), depth=1, module_types="container"):
        number += any(parameter.ndim > 1 for parameter in module.parameters())
        numbers |= {id(parameter): number for parameter in module.parameters()}
    return numbers


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


def batch_factor(kind: Literal["adamw", "adam", "sgd"], batch_size: int, reference_batch: int | None) -> float:
    """Return the factor of rates that are meant for another batch.

    Args:
        kind: The optimiser: with SGD the rate follows the batch in proportion (Goyal et al., 2017, section 2.1), with
            Adam and AdamW by the square root (Malladi et al., NeurIPS 2022).
        batch_size: Images of a step, on all devices together.
        reference_batch: Those for which the rates are meant. None: the rates stay.
    """
    if reference_batch is None:
        return 1.0
    ratio = batch_size / reference_batch
    return ratio if kind == "sgd" else math.sqrt(ratio)


def build_optimizer(
    kind: Literal["adamw", "adam", "sgd"],
    groups: list[dict[str, Any]],
    *,
    fused: bool,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimiser.

    Args:
        kind: Its name.
        groups: As ``parameter_groups`` gives them.
        fused: Update all weights in one kernel.
        momentum: Of SGD.
        nesterov: Of SGD: look ahead (Sutskever et al., ICML 2013).
    """
    fast = fused or None  # False would also forbid torch to update many weights at a time
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, fused=fast)
    build = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    return build(groups, fused=fast)


def learning_rate_factor(
    kind: Literal["cosine", "poly", "step", "constant"],
    *,
    warmup_steps: int,
    steps_per_epoch: int,
    total_steps: int,
    final: float = 0.0,
    power: float = 0.9,
    epochs: Sequence[int] = (),
    factor: float = 0.1,
) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step: a linear rise over the warm-up, then a fall from 1.

    Progress goes from 0 after the warm-up to 1 at the end of the training.

    Args:
        kind: How the rate falls. ``"cosine"``: by half a cosine of the progress (Loshchilov and Hutter, ICLR 2017,
            without restarts). ``"poly"``: as (1 - progress) ** power (Chen et al., DeepLab, 2018, section 4.1).
            ``"step"``: after certain epochs. ``"constant"``: not at all.
        warmup_steps: Steps of the rise; the first has 1 / ``warmup_steps`` of the rate.
        steps_per_epoch: Steps of an epoch.
        total_steps: Steps of the whole training.
        final: Where the cosine ends, in [0, 1).
        power: Of ``"poly"``.
        epochs: Of ``"step"``: after how many epochs of the training, warm-up included, the rate falls.
        factor: Of ``"step"``: what it is multiplied by then.
    """

    def factor_at(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        match kind:
            case "cosine":
                return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
            case "poly":
                return float((1 - progress) ** power)
            case "step":
                return float(factor ** sum(step >= epoch * steps_per_epoch for epoch in epochs))
            case "constant":
                return 1.0

    return factor_at
