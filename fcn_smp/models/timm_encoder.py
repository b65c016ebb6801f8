"""Any model of timm as an encoder."""

import inspect
import math
from itertools import groupby
from operator import itemgetter
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import Tensor, nn

# How timm's models for images of one size are told to take others; a model is given those that it knows.
_OTHER_SIZES = {"dynamic_img_size": True, "strict_img_size": False}


class TimmEncoder(TimmUniversalEncoder):
    """A model of timm as an encoder of SMP, whatever maps it gives.

    SMP's own class takes the models whose maps have the strides 2, 4, 8 ..., 4, 8, 16 ... or 1, 2, 4 ...; for these
    it and this class give the same. Here a feature list may also have gaps (LeViT has no map finer than 16), start or
    end elsewhere, and have strides that are no powers of two (PiT: 7, 14, 28). Each map takes the **level** ``k`` whose
    nominal stride ``2 ** k`` is nearest to its own. Where a model ends in many maps of one stride, evenly spaced ones
    take the levels up to 5: of a plain vision transformer those after one, two, three and four quarters of its blocks.

    Args:
        name: A model of timm, with or without a tag (``"resnet50.a1_in1k"``).
        in_channels: Channels of the input.
        depth: The highest level, 3 to 5; what the model has beyond it is not built, where timm can leave it out.
        pretrained: Load timm's weights.
        output_stride: Stride of the last map: 32, or 8 or 16 where the model can dilate.
        kwargs: Other arguments of the model (``img_size``).

    Attributes:
        strides: Stride of each feature; 0 where there is none, as its number of channels is.
        image_size: Height and width for which the model was built, in pixels.

    Raises:
        ValueError: The model has no map at these levels.
        TypeError: It does not know an argument, such as ``output_stride`` where it cannot dilate.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int,
        depth: int,
        pretrained: bool,
        output_stride: int = 32,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)  # SMP's own constructor refuses what this class is for
        self.name = name
        if output_stride != 32:  # many models do not know the argument
            kwargs["output_stride"] = output_stride
        kwargs = _other_sizes(name) | kwargs
        places = {level: index for level, index in _levels(name, kwargs).items() if level <= depth}
        if not any(places):
            raise ValueError(f"{name} has no map of stride {2**depth} or finer; take a larger encoder_depth.")
        self.model = timm.create_model(
            name,
            pretrained=pretrained,
            in_chans=in_channels,
            features_only=True,
            out_indices=tuple(places.values()),
            **kwargs,
        )
        self._is_channel_last = getattr(self.model, "output_fmt", None) == "NHWC"
        self._out_channels, self.strides = [in_channels] + [0] * max(places), [1] + [0] * max(places)
        for level, channels, stride in zip(
            places, self.model.feature_info.channels(), self.model.feature_info.reduction(), strict=True
        ):
            self._out_channels[level], self.strides[level] = channels, stride
        self._levels = list(places)
        self.image_size = _image_size(name, kwargs.get("img_size"))

    @property
    def output_stride(self) -> int:
        """Stride of the last feature."""
        return self.strides[-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image (N, in_channels, H, W) to features (N, C_k, about H / s_k, about W / s_k), level by level.

        Where there is no map, C_k is 0; feature 0 is the image itself unless the model has a map of stride 1.
        """
        features = [x] + [x[:, :0]] * (len(self.strides) - 1)
        for level, feature in zip(self._levels, self.model(x)):  # noqa: B905  (TorchScript)
            features[level] = feature.permute(0, 3, 1, 2).contiguous() if self._is_channel_last else feature
        return features


def _other_sizes(name: str) -> dict[str, Any]:
    """Return the arguments by which a model for images of one size takes others, as far as it has them."""
    with torch.device("meta"):
        bases = type(timm.create_model(name)).__mro__
    known = {argument for base in bases for argument in inspect.signature(base).parameters}
    return {key: value for key, value in _OTHER_SIZES.items() if key in known}


def _levels(name: str, kwargs: dict[str, Any]) -> dict[int, int]:
    """Return, for each level at which a model has a map, the index of that map among all that it can give."""
    with torch.device("meta"):
        features = timm.create_model(name, features_only=True, **kwargs).feature_info.info
    # A stem without a name (TResNet's) cannot be tapped.
    strides = [(index, info["reduction"]) for index, info in enumerate(features) if info["module"]]
    stages = [(stride, [index for index, _ in maps]) for stride, maps in groupby(strides, itemgetter(1))]
    places: dict[int, int] = {}
    for stride, indices in stages:
        places[max(round(math.log2(stride)), max(places, default=-1) + 1)] = indices[-1]
    _, indices = stages[-1]
    if len(indices) > 1:  # a transformer's blocks, or dilated stages: evenly spaced up to level 5
        places.popitem()
        first = max(places, default=1) + 1
        count = 6 - first
        for step in range(1, count + 1):
            places[first + step - 1] = indices[math.ceil(len(indices) * step / count) - 1]
    return places


def _image_size(name: str, asked: int | tuple[int, int] | None) -> tuple[int, int]:
    if isinstance(asked, int):
        return asked, asked
    config = timm.models.get_pretrained_cfg(name)
    height, width = asked or (config.input_size[1:] if config else (224, 224))
    return height, width
