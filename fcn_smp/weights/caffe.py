"""Caffe's ``.caffemodel``: a protocol buffer, read with the few fields that weights need.

Source: https://github.com/BVLC/caffe, src/caffe/proto/caffe.proto
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from torch import Tensor

from fcn_smp.errors import UserError

# Message: (field, number, type); a type in capitals is another message. Fields that are not listed are skipped.
# Packed numbers are declared as the bytes that they are on the wire, since 134 million of them need no Python object
# each; "repeated", since a writer may split them.
_SCHEMA = {
    "NetParameter": [("layers", 2, "V1LayerParameter"), ("layer", 100, "LayerParameter")],
    "V1LayerParameter": [("name", 4, "string"), ("blobs", 6, "BlobProto")],
    "LayerParameter": [("name", 1, "string"), ("blobs", 7, "BlobProto")],
    "BlobProto": [
        ("num", 1, "int32"),
        ("channels", 2, "int32"),
        ("height", 3, "int32"),
        ("width", 4, "int32"),
        ("data", 5, "bytes"),
        ("shape", 7, "BlobShape"),
        ("double_data", 8, "bytes"),
    ],
    "BlobShape": [("dim", 1, "int64")],
}
_REPEATED = ("layers", "layer", "blobs", "data", "double_data", "dim")


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """Read the weights of a ``.caffemodel``, with layers of the present or of the older (V1) form.

    Returns:
        ``<layer>.weight`` and ``<layer>.bias``, float32, for each layer that has them; a convolution's weight is
        (out, in / groups, k, k), a transposed convolution's (in, out / groups, k, k), a fully connected layer's
        (out, in), all as in PyTorch; biases are (n).

    Raises:
        UserError: The file is damaged or something else.
    """
    net = _message_class("NetParameter")()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(
            f"{path} has no known format (Caffe, torchfcn, torchvision, timm, Keras), or is a caffemodel, cut off."
        ) from error
    weights: dict[str, Tensor] = {}
    for layer in [*net.layers, *net.layer]:
        for kind, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            tensor = _tensor(blob, f"{path}: the layer {layer.name!r}")
            weights[f"{layer.name}.{kind}"] = tensor.flatten() if kind == "bias" else tensor
    return weights


def _tensor(blob: Any, where: str) -> Tensor:
    data, dtype = (b"".join(blob.data), "<f4") if blob.data else (b"".join(blob.double_data), "<f8")
    if len(data) % np.dtype(dtype).itemsize:
        raise UserError(f"{where} has {len(data)} bytes, which are no whole number of floats; the file is damaged.")
    numbers = np.frombuffer(data, dtype)
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    if numbers.size != math.prod(shape) or min(shape, default=0) < 1:
        raise UserError(f"{where} has {numbers.size} numbers, its shape is {shape}; the file is damaged.")
    return torch.from_numpy(numbers.astype(np.float32)).reshape(shape)


def _message_class(name: str) -> Any:
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fcn_smp_caffe.proto", package="fcn_smp.caffe", syntax="proto2")
    for message_name, fields in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for field_name, number, kind in fields:
            label = field_type.LABEL_REPEATED if field_name in _REPEATED else field_type.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            if kind in _SCHEMA:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".fcn_smp.caffe.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
            if kind == "int64":
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fcn_smp.caffe.{name}"))
