"""The fully convolutional networks of Long, Shelhamer and Darrell, for any encoder.

    Jonathan Long, Evan Shelhamer, Trevor Darrell: Fully convolutional networks for semantic segmentation.
    CVPR 2015, https://arxiv.org/abs/1411.4038

One decoder serves all variants: FCN-32s scores the map of stride 32 alone; 16s, 8s, 4s and 2s each add one finer map.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn

from fcn_smp.models.any_size import AsItIs, Resized, for_any_size
from fcn_smp.models.base import Network
from fcn_smp.models.caffe import caffe_alignment, check_caffe, pad_and_round_up
from fcn_smp.models.coarse import CoarseScores
from fcn_smp.models.encoder import build_encoder
from fcn_smp.models.hidden import build_hidden, start_from_classifier
from fcn_smp.models.taps import Taps, is_vgg
from fcn_smp.models.upsampling import same_alignment


class FCNDecoder(nn.Module):
    """Score each tap with a 1x1 convolution, then fuse the scores from coarse to fine (section 4.2, figure 3).

    Args:
        taps: Chooses the maps to score among the encoder's features.
        hidden: The layers before the coarsest score, and the channels that they give.
        classes: Number of classes C.
        skip_scales: One factor for each tap but the coarsest, coarse to fine; applied before its score.
        fusions: One module for each tap but the coarsest, which brings coarser scores to its size and adds its own.
        upsample: Brings the last scores to the size of the input.
    """

    def __init__(
        self,
        taps: Taps,
        hidden: tuple[nn.Module, int],
        classes: int,
        skip_scales: Sequence[float],
        fusions: Sequence[nn.Module],
        upsample: nn.Module,
    ) -> None:
        super().__init__()
        self.taps = taps
        self.hidden, width = hidden
        self.score = _score(width, classes)
        self.skip_scores = nn.ModuleList(_score(channels, classes) for channels in taps.channels[1:])
        self.skip_scales = list(skip_scales)
        self.fusions = nn.ModuleList(fusions)
        self.upsample = upsample

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features (N, C_k, H_k, W_k), the first at stride 1, to scores (N, C, H, W) of its size."""
        output: Tensor = self.upsample(self.fuse(features), features[0])
        return output

    def fuse(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features to scores (N, C, h, w), those of the finest tap, before the last upsampling."""
        taps = self.taps(features)
        scores: Tensor = self.score(self.hidden(taps[0]))
        for k, (skip_score, fuse) in enumerate(zip(self.skip_scores, self.fusions)):  # noqa: B905
            tap, scale = taps[k + 1], self.skip_scales[k]
            scores = fuse(scores, skip_score(tap if scale == 1 else tap * scale))
        return scores


def _score(channels: int, classes: int) -> nn.Conv2d:
    """Build a score layer. It starts from zero, so that a new skip does not disturb what is there (section 4.2)."""
    conv = nn.Conv2d(channels, classes, kernel_size=1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class FCN(Network):
    """Fully convolutional network: an encoder, and a decoder that scores its maps and sums the scores.

    Input: float tensor (N, in_channels, H, W), normalised as the encoder's weights expect, of any height and width.
    Output: logits (N, classes, H, W); with ``aux_params`` also (N, aux classes).

    Use one of the subclasses ``FCN32s``, ``FCN16s``, ``FCN8s``, ``FCN4s``, ``FCN2s``, or
    ``smp.create_model("fcn8s", ...)``.

    Args:
        encoder_name: An encoder of SMP (``"resnet34"``), a model of timm with the prefix ``tu-`` or without it
            (``"convnext_tiny"``). Where both exist, SMP's is meant.
        encoder_depth: Number of halvings in the encoder, 3 to 5. With 5 the coarsest map has stride 32.
        encoder_weights: ``"imagenet"`` or another name that SMP knows for the encoder; None for random weights; or
            the path of a file (``.safetensors``, ``.pth``) that holds the encoder's weights.
        decoder_alignment: ``"same"`` (default) keeps every map aligned with the image and replicates borders;
            ``"caffe"`` is the geometry of the released networks, number for number, for VGG encoders: 100 pixels of
            padding, poolings that round up, crops (see docs/explained/alignment.md).
        decoder_hidden_weights: What fc6 and fc7 of a VGG start from: ``"classifier"`` (default), the fully connected
            layers that come with ``encoder_weights``, if any; ``"imagenet"``; the path of a file that holds them, as
            timm, torchvision or Caffe name them; or None for random weights. Narrower layers take evenly spaced
            channels of them.
        decoder_hidden_channels: Width of the hidden layers before the coarsest score. 0 for none. None (default):
            4096 for VGG encoders, whose hidden layers are fc6 and fc7 of the paper (convolution, ReLU, dropout,
            twice); 256 for others, whose hidden layers are a depthwise and a 1x1 convolution with batch norm, one
            ReLU and dropout.
        decoder_hidden_kernel: Kernel size of the first hidden layer, odd. None: 7, as in the paper.
        decoder_dropout: Dropout rate of the hidden layers, in [0, 1). None: 0.5 for VGG, 0.1 for others.
        decoder_skip_scales: Factors applied to the skip maps before their scores, coarse to fine. ``(0.01, 0.0001)``
            is the at-once FCN-8s of the authors' code. None: no scaling.
        decoder_learn_upsampling: Learn the upsampling between maps, from bilinear on, as section 4.1 of the paper
            does; by default it stays bilinear, as in the released networks. The last upsampling is always bilinear.
        in_channels: Channels of the input.
        classes: Number of classes C, the background included.
        activation: Applied to the logits: ``"sigmoid"``, ``"softmax2d"``, ``"logsoftmax"``, ``"argmax2d"``, a
            callable, or None (default).
        aux_params: Arguments of SMP's classification head on the coarsest map (``classes``, ``pooling``,
            ``dropout``, ``activation``); None (default) for no such head.
        kwargs: Passed to the encoder: ``output_stride`` (8 or 16 for dilated ResNets), or arguments of a timm model.
            Arguments of SMP's other decoders (``decoder_channels``) are left out with a warning.

    Raises:
        ValueError: An argument is out of range, the encoder is unknown, or its weights do not fit.

    Source: Long et al., CVPR 2015, https://arxiv.org/abs/1411.4038
    """

    finest_stride: ClassVar[int]
    """Stride of the finest map that is scored, and the factor of the last upsampling."""

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_alignment: Literal["same", "caffe"] = "same",
        decoder_hidden_weights: str | None = "classifier",
        decoder_hidden_channels: int | None = None,
        decoder_hidden_kernel: int | None = None,
        decoder_dropout: float | None = None,
        decoder_skip_scales: Sequence[float] | None = None,
        decoder_learn_upsampling: bool = False,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | Callable[..., Any] | None = None,
        aux_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        kwargs = self.without_other_decoders(kwargs)
        if classes < 1:
            raise ValueError(f"classes must be 1 or more, got {classes}.")
        if decoder_alignment not in ("same", "caffe"):
            raise ValueError(f"decoder_alignment must be 'same' or 'caffe', got {decoder_alignment!r}.")
        caffe = decoder_alignment == "caffe"
        if caffe:
            check_caffe(encoder_depth, decoder_hidden_channels, decoder_hidden_kernel)
        encoder = self.encoder = build_encoder(
            encoder_name, in_channels=in_channels, depth=encoder_depth, weights=encoder_weights, **kwargs
        )
        vgg = is_vgg(encoder)
        if caffe and not vgg:
            raise ValueError(f"decoder_alignment='caffe' needs a VGG encoder, such as vgg16; got {encoder_name!r}.")
        if caffe:
            pad_and_round_up(encoder)
        self.any_size = AsItIs() if caffe else for_any_size(encoder, encoder_name, in_channels)
        taps = Taps(encoder, self.finest_stride)
        align = caffe_alignment if caffe else same_alignment
        self.decoder = FCNDecoder(
            taps,
            build_hidden(
                taps.channels[0],
                vgg=vgg,
                channels=decoder_hidden_channels,
                kernel=decoder_hidden_kernel,
                dropout=decoder_dropout,
                padded=not caffe,
            ),
            classes,
            _checked_scales(decoder_skip_scales, skips=len(taps.channels) - 1),
            *align(classes, taps.strides, learned=decoder_learn_upsampling),
        )
        self.add_heads(encoder_name, activation, aux_params)
        # Where nothing but a crop comes behind the last upsampling, it can be left to those who use the scores.
        self.is_coarse = activation is None and not isinstance(self.any_size, Resized)
        self.config["decoder_hidden_weights"] = None
        self.initialize()
        if vgg and encoder_depth == 5 and decoder_hidden_channels != 0:
            start_from_classifier(self.decoder.hidden, decoder_hidden_weights, encoder_name, encoder_weights)
        elif decoder_hidden_weights not in ("classifier", None):
            raise ValueError("decoder_hidden_weights is for VGG encoders of encoder_depth 5 with fc6 and fc7.")

    def score(self, features: list[Tensor], x: Tensor, upsample: bool) -> Tensor:
        """Map the encoder's features of an image to logits (N, C, H, W), or to scores before the last upsampling."""
        if not upsample and self.is_coarse:
            scores: Tensor = self.decoder.fuse(features)
        else:
            scores = self.segmentation_head(self.any_size.restore(self.decoder(features), x))
        return scores

    def place(self, scores: Tensor, size: Sequence[int]) -> CoarseScores:
        """Say where the pixels of an image lie on the scores (N, C, h, w) that were not upsampled.

        Args:
            scores: What ``forward`` gave without the last upsampling.
            size: Height and width of the image in pixels.
        """
        if not self.is_coarse:
            return super().place(scores, size)
        upsample: Any = self.decoder.upsample
        rows, columns = map(upsample.places, scores.shape[2:], size)
        return CoarseScores(scores, rows, columns)

    def initialize(self) -> None:
        """Initialise what SMP initialises, but for the scores (zero) and the upsampling (bilinear)."""
        initialize_decoder(self.decoder.hidden)
        if self.classification_head is not None:
            initialize_head(self.classification_head)


def _checked_scales(scales: Sequence[float] | None, skips: int) -> Sequence[float]:
    if scales is None:
        return [1.0] * skips
    if len(scales) != skips:
        raise ValueError(f"decoder_skip_scales must have one factor for each of the {skips} skips, got {list(scales)}.")
    return scales


class FCN32s(FCN):
    """FCN-32s: the coarsest map alone, upsampled 32 times in one step (Long et al., CVPR 2015, section 4.1).

    Arguments, input and output are those of ``FCN``.
    """

    finest_stride = 32


class FCN16s(FCN):
    """FCN-16s: the maps of stride 32 and 16, the sum upsampled 16 times (section 4.2).

    Arguments, input and output are those of ``FCN``.
    """

    finest_stride = 16


class FCN8s(FCN):
    """FCN-8s: the maps of stride 32, 16 and 8, the sum upsampled 8 times (section 4.2).

    Arguments, input and output are those of ``FCN``.
    """

    finest_stride = 8


class FCN4s(FCN):
    """FCN-4s: one more skip than the paper takes, from the map of stride 4.

    Arguments, input and output are those of ``FCN``.
    """

    finest_stride = 4


class FCN2s(FCN):
    """FCN-2s: two more skips than the paper takes, from the maps of stride 4 and 2.

    Arguments, input and output are those of ``FCN``.
    """

    finest_stride = 2
