"""The dilated network that torchvision calls FCN (``fcn_resnet50``, ``fcn_resnet101``), for any encoder that dilates.

It is not the network of Long, Shelhamer and Darrell, which ``fcn_smp.models.fcn`` holds. That one scores maps of
several strides and sums the scores. This one trades the strides of the encoder's last stages for dilation, so that its
last map keeps stride 8, and scores that map alone:

    Fisher Yu, Vladlen Koltun, Thomas Funkhouser: Dilated residual networks.
    CVPR 2017, https://arxiv.org/abs/1705.09914

The auxiliary scores, for a second loss in training, are those of the PSPNet:

    Hengshuang Zhao, Jianping Shi, Xiaojuan Qi, Xiaogang Wang, Jiaya Jia: Pyramid scene parsing network.
    CVPR 2017, https://arxiv.org/abs/1612.01105

What mmsegmentation calls FCN (``fcn_r50-d8``) is of the same kind, with a deeper stem and two more convolutions.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from torch import Tensor, nn

from fcn_smp.models.any_size import for_any_size
from fcn_smp.models.base import Network
from fcn_smp.models.encoder import build_encoder


class DilatedFCNDecoder(nn.Module):
    """Score one map of the encoder and interpolate the scores to the input's size: torchvision's ``FCNHead``.

    Args:
        in_channels: Channels of the map.
        channels: Channels of the hidden layer.
        classes: Number of classes C.
        dropout: Dropout rate of the hidden layer, in [0, 1).
        level: Index of the map in the encoder's features; -1 for the last.
    """

    def __init__(self, in_channels: int, channels: int, classes: int, dropout: float, level: int) -> None:
        super().__init__()
        self.level = level
        self.hidden = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        self.score = nn.Conv2d(channels, classes, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features, the first of the input's size (H, W), to scores (N, C, H, W)."""
        scores = self.score(self.hidden(features[self.level]))
        # By size, as torchvision does: it stretches the scores where the size is no multiple of the stride, so that
        # those of the last rows and columns may lie off by almost a stride. The FCNs of fcn.py do not do that.
        return F.interpolate(scores, size=features[0].shape[2:], mode="bilinear", align_corners=False)


class DilatedFCN(Network):
    """The dilated network that torchvision calls FCN: a dilated encoder and one small head on its last map.

    Input: float tensor (N, in_channels, H, W), normalised as the encoder's weights expect, of any height and width
    that the encoder takes. Output: logits (N, classes, H, W), in training as in evaluation; with ``aux_params`` also
    (N, aux classes). ``forward_auxiliary`` gives the auxiliary logits.

    ``tu-resnet50`` and ``tu-resnet101`` are the encoders of torchvision's ``fcn_resnet50`` and ``fcn_resnet101``, and
    compute the same numbers from the same weights (``tu-resnet50.tv_in1k`` starts from torchvision's). SMP's own
    ``resnet50`` has the same weights but dilates the first block of a stage as much as the others, and differs.

    Args:
        encoder_name: An encoder of SMP (``"resnet34"``), a model of timm with the prefix ``tu-`` or without it
            (``"convnext_tiny"``). Where both exist, SMP's is meant.
        encoder_depth: Number of the encoder's levels, 3 to 5. The head scores the last.
        encoder_weights: ``"imagenet"`` or another name that SMP knows for the encoder; None for random weights; or
            the path of a file (``.safetensors``, ``.pth``) that holds the encoder's weights.
        encoder_output_stride: Stride of the encoder's last map: 8, 16, or 32 for an encoder without dilation.
        decoder_channels: Channels of the head's hidden layer. None (default): a quarter of the last map's.
        decoder_dropout: Dropout rate of the hidden layers, in [0, 1).
        decoder_auxiliary: Add a second head of the same kind for the map before the last (ResNet's layer3), with a
            quarter of its channels.
        in_channels: Channels of the input.
        classes: Number of classes, the background included.
        activation: Applied to the logits: ``"sigmoid"``, ``"softmax2d"``, ``"logsoftmax"``, ``"argmax2d"``, a
            callable, or None (default).
        aux_params: Arguments of SMP's classification head on the last map (``classes``, ``pooling``, ``dropout``,
            ``activation``); None (default) for no such head. It has nothing to do with ``decoder_auxiliary``.
        kwargs: Passed to the encoder, if it is timm's. Arguments of SMP's other decoders are left out with a warning.

    Raises:
        ValueError: An argument is out of range, the encoder is unknown or cannot be dilated, or its weights do not fit.

    Source: https://github.com/pytorch/vision/blob/main/torchvision/models/segmentation/fcn.py
    """

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = "tu-resnet50",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        encoder_output_stride: Literal[8, 16, 32] = 8,
        decoder_channels: int | None = None,
        decoder_dropout: float = 0.1,
        decoder_auxiliary: bool = False,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | Callable[..., Any] | None = None,
        aux_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        kwargs = self.without_other_decoders(kwargs)
        if encoder_output_stride not in (8, 16, 32):
            raise ValueError(f"encoder_output_stride must be 8, 16 or 32, got {encoder_output_stride}.")
        if decoder_channels is not None and decoder_channels < 1:
            raise ValueError(f"decoder_channels must be 1 or more, got {decoder_channels}.")
        if not 0 <= decoder_dropout < 1:
            raise ValueError(f"decoder_dropout must lie in [0, 1), got {decoder_dropout}.")
        if classes < 1:
            raise ValueError(f"classes must be 1 or more, got {classes}.")
        self.encoder = build_encoder(
            encoder_name,
            in_channels=in_channels,
            depth=encoder_depth,
            weights=encoder_weights,
            output_stride=encoder_output_stride,
            **kwargs,
        )
        self.any_size = for_any_size(self.encoder, encoder_name, in_channels)
        *_, before_last, last = self.encoder.out_channels
        self.decoder = DilatedFCNDecoder(last, decoder_channels or last // 4, classes, decoder_dropout, level=-1)
        self.auxiliary_decoder = (
            DilatedFCNDecoder(before_last, before_last // 4, classes, decoder_dropout, level=-2)
            if decoder_auxiliary
            else None
        )
        self.add_heads(encoder_name, activation, aux_params)
        # SMP's initialize() is not called: the heads start as PyTorch's layers do, as those of torchvision (and of
        # SMP's own dilated network, DeepLabV3).

    def forward_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the last map and, for a second loss in training, those of the map before it.

        The encoder runs once. torchvision's recipe weights the auxiliary loss by 0.5, mmsegmentation's by 0.4.

        Args:
            x: The input of ``forward``, (N, in_channels, H, W).

        Returns:
            Logits and auxiliary logits, both (N, classes, H, W), and both after ``activation``. The labels of
            ``aux_params`` are not among them.

        Raises:
            ValueError: The network was built without ``decoder_auxiliary``.
        """
        if self.auxiliary_decoder is None:
            raise ValueError("This network has no auxiliary logits; build it with decoder_auxiliary=True.")
        features = self.encoder(self.any_size(x))
        logits, auxiliary = (
            self.segmentation_head(self.any_size.restore(decoder(features), x))
            for decoder in (self.decoder, self.auxiliary_decoder)
        )
        return logits, auxiliary
