"""What these networks share: one constructor, and maps that are exact halves of one another.

Their decoders double maps and add, append or return them as they are. An image is therefore continued to a multiple of
the coarsest stride, and the scores are cropped.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from torch import Tensor, nn

from fcn_smp.models.any_size import AsItIs, Enlarged, Padded, Resized, for_any_size, on_meta
from fcn_smp.models.base import Network
from fcn_smp.models.encoder import build_encoder


class OriginNetwork(Network):
    """An encoder and a decoder of one of the projects that this package grew out of.

    Input: float tensor (N, in_channels, H, W), normalised as the encoder's weights expect, of any height and width.
    Output: logits (N, classes, H, W); with ``aux_params`` also (N, aux classes). All layers of the decoder start as
    PyTorch's do.

    Args:
        encoder_name: An encoder of SMP (``"resnet34"``), a model of timm with the prefix ``tu-`` or without it
            (``"convnext_tiny"``), or one of ``fcn_smp.models.origins.encoders.ENCODERS``.
        encoder_depth: Number of halvings in the encoder, 3 to 5. With 5 the coarsest map has stride 32.
        encoder_weights: ``"imagenet"`` or another name that SMP knows for the encoder; None for random weights; or
            the path of a file (``.safetensors``, ``.pth``) that holds the encoder's weights.
        in_channels: Channels of the input.
        classes: Number of classes, the background included.
        activation: Applied to the logits: ``"sigmoid"``, ``"softmax2d"``, ``"logsoftmax"``, ``"argmax2d"``, a
            callable, or None (default).
        aux_params: Arguments of SMP's classification head on the coarsest map (``classes``, ``pooling``,
            ``dropout``, ``activation``); None (default) for no such head.
        kwargs: Passed to the encoder: ``output_stride`` (8 or 16 for dilated ResNets), or arguments of a timm model.
            Arguments of SMP's other decoders (``decoder_channels``) are left out with a warning.

    Raises:
        ValueError: An argument is out of range, the encoder is unknown, its weights do not fit, or its maps are not
            those that the decoder needs.
    """

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str,
        encoder_depth: int,
        encoder_weights: str | None,
        in_channels: int,
        classes: int,
        activation: str | Callable[..., Any] | None,
        aux_params: dict[str, Any] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        kwargs = self.without_other_decoders(kwargs)
        if classes < 1:
            raise ValueError(f"classes must be 1 or more, got {classes}.")
        self.encoder = build_encoder(
            encoder_name, in_channels=in_channels, depth=encoder_depth, weights=encoder_weights, **kwargs
        )
        any_size = for_any_size(self.encoder, encoder_name, in_channels)
        self.any_size = _in_multiples(any_size, self.encoder.output_stride)
        self.decoder = self.build_decoder(_true_strides(self.encoder, self.any_size, in_channels), classes)
        self.add_heads(encoder_name, activation, aux_params)

    def build_decoder(self, strides: list[float], classes: int) -> nn.Module:
        """Build what maps the encoder's features to scores (N, classes, H, W) of the first one's size.

        Args:
            strides: The true stride of each feature; 0 where there is none.
            classes: Number of classes.
        """
        raise NotImplementedError

    def require(self, needed: Sequence[float], found: Sequence[float]) -> None:
        """Raise a ValueError unless the encoder's strides are those that the decoder needs."""
        if list(found) != list(needed):
            theirs, ours = (", ".join(f"{stride:g}" for stride in strides) for strides in (found, needed))
            raise ValueError(
                f"{type(self).__name__} needs maps of the strides {ours}, but those of encoder"
                f" {self.config['encoder_name']!r} are {theirs}; vgg16 or resnet34, not dilated, would do."
            )


class LastMapDecoder(nn.Module):
    """Score the encoder's last map, once it has been enlarged.

    Args:
        layers: What enlarges the map.
        score: The last layer, which gives the scores.
        interpolate: Whether the scores are then interpolated to the size of the input.
    """

    def __init__(self, layers: Sequence[nn.Module], score: nn.Conv2d, *, interpolate: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.score = score
        self.interpolate = interpolate

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features, the first of the input's size (H, W), to scores (N, C, H, W)."""
        scores: Tensor = self.score(self.layers(features[-1]))
        if self.interpolate:
            scores = F.interpolate(scores, size=features[0].shape[2:], mode="bilinear", align_corners=False)
        return scores


def doublings(encoder: Any) -> int:
    """Return how many times the last map must be doubled to come nearest to the size of the input."""
    return round(math.log2(encoder.output_stride))


def _in_multiples(any_size: AsItIs, stride: int) -> AsItIs:
    """Continue images to multiples of ``stride`` as well."""
    if isinstance(any_size, Resized):
        return any_size
    smallest = any_size.smallest if isinstance(any_size, Enlarged) else 1
    height, width = any_size.multiple if isinstance(any_size, Padded) else (smallest, smallest)
    return Padded((math.lcm(height, stride), math.lcm(width, stride)))


def _true_strides(encoder: Any, any_size: AsItIs, in_channels: int) -> list[float]:
    """Return the stride of each feature, 0 where there is none: tried, since a model may round as it likes."""
    image = any_size(torch.empty(1, in_channels, 96, 160, device="meta"))
    try:
        features = on_meta(encoder)(image)
    except Exception:  # the pass depends on values; for_any_size has seen to all other reasons
        return list(encoder.strides)
    pixels = image.shape[2] * image.shape[3]
    return [math.sqrt(pixels / (map.shape[2] * map.shape[3])) if map.shape[1] else 0 for map in features]
