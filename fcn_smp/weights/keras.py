"""Keras' ``.h5``: VGG16 as Keras' applications name its layers, and the networks of kevinddchen/Keras-FCN.

Source: https://github.com/kevinddchen/Keras-FCN, models.py
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from fcn_smp.errors import UserError

# From Keras' layer names to Caffe's; block1_conv1 and the like follow a rule.
_LAYERS = {
    "fc1": "fc6", "conv6": "fc6", "fc2": "fc7", "conv7": "fc7", "predictions": "fc8", "pred": "fc8",
    "score7": "score_fr", "score4": "score_pool4", "score3": "score_pool3",
    "score7_upsample": "upscore2", "skip4_upsample": "upscore_pool4",
    "fcn32": "upscore", "fcn16": "upscore16", "fcn8": "upscore8",
}  # fmt: skip


def read_keras(path: Path) -> dict[str, Tensor]:
    """Read the weights of a VGG16 or a Keras-FCN from a file of weights or of a whole model.

    Returns:
        ``<layer>.weight`` and ``<layer>.bias`` by Caffe's layer names and in PyTorch's layout; layers of other names
        keep theirs.

    Raises:
        UserError: The file is damaged, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} is an HDF5 file; reading it takes h5py: pip install 'fcn_smp[keras]'.") from error
    weights: dict[str, Tensor] = {}

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim > 0 and item.dtype.kind == "f":
            # model_weights/<layer>/.../<kernel or bias>; optimizer_weights/ holds the optimiser's.
            parts = name.removeprefix("model_weights/").split("/")
            tensor = torch.from_numpy(item[()]).float()
            key = f"{_caffe_name(parts[0])}.{'bias' if tensor.ndim == 1 else 'weight'}"
            weights[key] = _in_torch_layout(tensor, parts[0])

    try:
        with h5py.File(path) as file:
            file.visititems(collect)
    except Exception as error:  # of HDF5: OSError, RuntimeError, KeyError and others
        raise UserError(f"{path} cannot be read as HDF5; it is damaged or cut off.") from error
    return weights


def _caffe_name(layer: str) -> str:
    return _LAYERS.get(layer) or re.sub(r"^block(\d)_conv(\d)$", r"conv\1_\2", layer)


def _in_torch_layout(tensor: Tensor, layer: str) -> Tensor:
    if tensor.ndim == 1:
        return tensor
    if tensor.ndim == 4:  # (height, width, in, out); of a transposed convolution (height, width, out, in)
        return tensor.permute(3, 2, 0, 1)
    if layer == "fc1" and len(tensor) == 7 * 7 * 512:
        return tensor.view(7, 7, 512, -1).permute(3, 2, 0, 1)
    return tensor.mT if tensor.ndim > 1 else tensor
