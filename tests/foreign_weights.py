"""Files as Caffe, torchfcn and Keras write them, of random numbers, and what the networks in them compute.

Nothing here knows the code under test: the bytes of a caffemodel are put together by hand from caffe.proto, and the
networks are straight lines of torch, after the authors' net.py and kevinddchen/Keras-FCN's models.py.
"""

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

WIDTHS = (64, 128, 256, 512, 512)
BLOCKS = (2, 2, 3, 3, 3)
SCALES = (0.01, 0.0001)
CAFFE_MEAN = (104.00699, 116.66877, 122.67892)

# Kernel of each upsampling.
UPSAMPLINGS = {
    "fcn32s": {"upscore": 64},
    "fcn16s": {"upscore2": 4, "upscore16": 32},
    "fcn8s": {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16},
}
# Layers behind fc7, as they follow each other in a net and its file.
ORDER = {
    "fcn32s": ["score_fr", "upscore"],
    "fcn16s": ["score_fr", "upscore2", "score_pool4", "upscore16"],
    "fcn8s": [
        *["score_fr", "upscore2", "scale_pool4", "score_pool4"],
        *["upscore_pool4", "scale_pool3", "score_pool3", "upscore8"],
    ],
}


def random_network(arch, classes=3, *, hidden=8, shrink=1, scales=None, seed=0):
    """Return the tensors of a network by Caffe's names; its VGG16 is ``shrink`` times narrower than the true one.

    Networks of one seed, width and number of classes have the same VGG16, fc6, fc7 and scores.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}

    def conv(name, out, given, kernel):
        deviation = (2 / (given * kernel**2)) ** 0.5
        tensors[f"{name}.weight"] = torch.randn(out, given, kernel, kernel, generator=generator) * deviation
        tensors[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    widths = [max(2, width // shrink) for width in WIDTHS]
    channels = 3
    for block, (width, count) in enumerate(zip(widths, BLOCKS, strict=True), 1):
        for k in range(1, count + 1):
            conv(f"conv{block}_{k}", width, channels, 3)
            channels = width
    conv("fc6", hidden, channels, 7)
    conv("fc7", hidden, hidden, 1)
    conv("score_fr", classes, hidden, 1)
    conv("score_pool4", classes, widths[3], 1)
    conv("score_pool3", classes, widths[2], 1)
    for name, kernel in UPSAMPLINGS[arch].items():
        tensors[f"{name}.weight"] = bilinear(classes, kernel)
    if scales:
        tensors["scale_pool4.weight"] = torch.full((widths[3],), scales[0])
        tensors["scale_pool3.weight"] = torch.full((widths[2],), scales[1])
    # In the order of the network, which is that of a file.
    order = [name for name in ORDER[arch] if f"{name}.weight" in tensors]
    tail = {key: tensors.pop(key) for key in list(tensors) if key.startswith(("score", "scale", "upscore"))}
    return tensors | {key: tail[key] for name in order for key in (f"{name}.weight", f"{name}.bias") if key in tail}


def bilinear(classes, kernel):
    """Return what the authors' surgery.interp puts into a deconvolution."""
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    tent = 1 - abs(torch.arange(kernel) - centre) / factor
    weight = torch.zeros(classes, classes, kernel, kernel)
    weight[range(classes), range(classes)] = tent[:, None] * tent
    return weight


def caffe_pools(tensors, x):
    """Return pool3, pool4 and pool5."""
    maps = []
    padding = 100
    for block, count in enumerate(BLOCKS, 1):
        for k in range(1, count + 1):
            name = f"conv{block}_{k}"
            x = F.relu(F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=padding))
            padding = 1
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        maps.append(x)
    return maps[2:]


def caffe_network(tensors, x, scales=None, pools=None):
    """Compute the scores of an image, or of the ``pools`` of one of the size of ``x``, as the authors' nets do."""
    pool3, pool4, pool5 = pools or caffe_pools(tensors, x)
    scale4, scale3 = scales or (1, 1)

    def conv(name, x):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def deconv(name, x, stride):
        return F.conv_transpose2d(x, tensors[f"{name}.weight"], stride=stride)

    def crop(x, offset, like):
        return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]

    scores = conv("score_fr", F.relu(conv("fc7", F.relu(conv("fc6", pool5)))))
    if "upscore.weight" in tensors:
        return crop(deconv("upscore", scores, 32), 19, x)
    scores = deconv("upscore2", scores, 2)
    scores = scores + crop(conv("score_pool4", pool4 * scale4), 5, scores)
    if "upscore16.weight" in tensors:
        return crop(deconv("upscore16", scores, 16), 27, x)
    scores = deconv("upscore_pool4", scores, 2)
    scores = scores + crop(conv("score_pool3", pool3 * scale3), 9, scores)
    return crop(deconv("upscore8", scores, 8), 31, x)


def caffe_image(image, mean=CAFFE_MEAN):
    """Prepare a uint8 RGB image as the authors' infer.py does."""
    prepared = np.array(image, dtype=np.float32)[:, :, ::-1] - np.array(mean, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(prepared.transpose(2, 0, 1)))[None]


def varint(number):
    groups = [number & 127]
    while number := number >> 7:
        groups[-1] |= 128
        groups.append(number & 127)
    return bytes(groups)


def integer(field, number):
    return varint(field << 3) + varint(number)


def chunk(field, content):
    return b"".join([varint(field << 3 | 2), varint(len(content)), content])


def blob(tensor, *, legacy=False, double=False, records=1, diff=False):
    """Encode a BlobProto.

    Args:
        tensor: Its numbers.
        legacy: Whether num, channels, height and width tell the shape, as in V1 layers, not a BlobShape.
        double: Whether the numbers are double_data.
        records: Among how many packed records the numbers are split; a reader has to join them.
        diff: Whether the gradients were saved too.
    """
    numbers = tensor.numpy().astype("<f8" if double else "<f4").ravel()
    field = 8 if double else 5
    parts = [chunk(field, part.tobytes()) for part in np.array_split(numbers, records)]
    if diff:
        parts.append(chunk(field + 1, np.ones_like(numbers).tobytes()))
    if legacy:
        # Caffe put ones before what had fewer dimensions.
        shape = (1,) * (4 - tensor.ndim) + tuple(tensor.shape)
        parts[:0] = [integer(number, size) for number, size in enumerate(shape, 1)]
    else:
        parts.append(chunk(7, chunk(1, b"".join(varint(size) for size in tensor.shape))))
    return b"".join(parts)


def caffemodel(tensors, *, v1=False, **options):
    """Encode a NetParameter with the layers in ``tensors``, and with others that have no blobs, as all nets do."""
    # Field numbers of a layer in a net, and of its name, its blobs and something to skip in a layer.
    layer_field, name_field, blobs_field = (2, 4, 6) if v1 else (100, 1, 7)
    # V1: bottom, top, type (an enumeration) and blobs_lr (two floats). Now: type, bottom, top and two ParamSpecs.
    skipped_before = chunk(2, b"data") + chunk(3, b"conv") + integer(5, 4) if v1 else chunk(2, b"Convolution")
    skipped_behind = (
        b"".join(varint(7 << 3 | 5) + np.float32(rate).tobytes() for rate in (1, 2))
        if v1
        else chunk(3, b"data") + chunk(4, b"conv") + 2 * chunk(6, varint(3 << 3 | 5) + np.float32(1).tobytes())
    )
    layers = {}
    for name, tensor in tensors.items():
        layers.setdefault(name.rpartition(".")[0], []).append(tensor)

    def layer(name, blobs=()):
        encoded = [chunk(blobs_field, blob(tensor, legacy=v1, **options)) for tensor in blobs]
        parts = [chunk(name_field, name.encode()), skipped_before, *encoded, skipped_behind]
        return chunk(layer_field, b"".join(parts))

    parts = [chunk(1, b"FCN"), chunk(3, b"data"), integer(5, 1), layer("data")]
    for name, blobs in layers.items():
        parts += [layer(name, blobs), layer(f"relu_{name}")]
    # A field that no version knows.
    return b"".join([*parts, chunk(3000, b"unknown")])


def write_torch(path, tensors, form="state dict"):
    """Save as torchfcn's models or training script do."""
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return
    content = dict(tensors)
    if form == "checkpoint":
        optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 1e-10, "params": [0]}]}
        content = {
            "epoch": 3,
            "iteration": 96000,
            "arch": "FCN8s",
            "optim_state_dict": optimizer,
            "model_state_dict": content,
            "best_mean_iu": 0.65,
        }
    torch.save(content, path, _use_new_zipfile_serialization=form != "old pickle")


def hollow(state):
    """Return tensors of the same shapes that take no space in a file."""
    return {name: value.new_zeros((), device="cpu").expand(value.shape) for name, value in state.items()}


def keras_network(arch, classes=3, *, hidden=8, shrink=1, seed=0):
    """Return kernels and biases of a network by Keras-FCN's layer names, in Keras' layout."""
    rng = np.random.default_rng(seed)
    layers = {}

    def conv(name, out, given, kernel):
        deviation = (2 / (given * kernel**2)) ** 0.5
        layers[name] = {
            "kernel": (rng.standard_normal((kernel, kernel, given, out)) * deviation).astype(np.float32),
            "bias": (rng.standard_normal(out) * 0.1).astype(np.float32),
        }

    def deconv(name, kernel):  # (height, width, out, in)
        layers[name] = {"kernel": bilinear(classes, kernel).permute(2, 3, 1, 0).contiguous().numpy()}

    widths = [max(2, width // shrink) for width in WIDTHS]
    channels = 3
    for block, (width, count) in enumerate(zip(widths, BLOCKS, strict=True), 1):
        for k in range(1, count + 1):
            conv(f"block{block}_conv{k}", width, channels, 3)
            channels = width
    conv("conv6", hidden, channels, 7)
    conv("conv7", hidden, hidden, 1)
    conv("score7", classes, hidden, 1)
    if arch == "fcn32s":
        deconv("fcn32", 64)
        return layers
    deconv("score7_upsample", 4)
    conv("score4", classes, widths[3], 1)
    if arch == "fcn16s":
        deconv("fcn16", 32)
        return layers
    deconv("skip4_upsample", 4)
    conv("score3", classes, widths[2], 1)
    deconv("fcn8", 16)
    return layers


def keras_features(layers, x, layer_name="block{}_conv{}"):
    """Return the third, fourth and fifth pooling of a batch (N, C, H, W)."""
    maps = []
    for block, count in enumerate(BLOCKS, 1):
        for k in range(1, count + 1):
            x = F.relu(keras_conv(layers[layer_name.format(block, k)], x))
        x = F.max_pool2d(x, 2)
        maps.append(x)
    return maps[2:]


def keras_conv(layer, x):
    """Convolve with padding 'same'."""
    kernel = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1)).to(x)
    return F.conv2d(x, kernel, torch.from_numpy(layer["bias"]).to(x), padding="same")


def keras_network_scores(layers, x):
    """Compute the logits of a batch (N, C, H, W) with height and width divisible by 32."""

    def deconv(name, x, stride):
        kernel = layers[name]["kernel"].transpose(3, 2, 0, 1)
        padding = (kernel.shape[2] - stride) // 2
        return F.conv_transpose2d(x, torch.from_numpy(kernel).to(x), stride=stride, padding=padding)

    pool3, pool4, pool5 = keras_features(layers, x)
    hidden = F.relu(keras_conv(layers["conv7"], F.relu(keras_conv(layers["conv6"], pool5))))
    scores = keras_conv(layers["score7"], hidden)
    if "fcn32" in layers:
        return deconv("fcn32", scores, 32)
    scores = deconv("score7_upsample", scores, 2) + keras_conv(layers["score4"], pool4)
    if "fcn16" in layers:
        return deconv("fcn16", scores, 16)
    scores = deconv("skip4_upsample", scores, 2) + keras_conv(layers["score3"], pool3)
    return deconv("fcn8", scores, 8)


def write_keras(path, layers, form="weights"):
    """Write the HDF5 file of ``save_weights`` or ``save``, of Keras 2 ("weights", "model"), 1 ("old") or 3 ("new")."""
    names = {
        "weights": "{layer}/{kind}:0",
        "model": "{layer}/{kind}:0",
        "old": "{layer}_{letter}_1:0",
        "new": "vgg16/{layer}/{kind}",
    }[form]
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.5.0"
        root = file.create_group("model_weights") if form == "model" else file
        root.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, arrays in layers.items():
            group = root.create_group(layer)
            weight_names = [
                names.format(layer=layer, kind=kind, letter={"kernel": "W"}.get(kind, "b")) for kind in arrays
            ]
            group.attrs["weight_names"] = [name.encode() for name in weight_names]
            for name, array in zip(weight_names, arrays.values(), strict=True):
                group[name] = array
        # Layers without weights have a group too, and Keras 3 saves the state of dropout's generator.
        root.create_group("block1_pool").attrs["weight_names"] = []
        if form == "new":
            root["drop6/seed_generator_state"] = np.zeros(2, np.uint32)
        if form == "model":
            root["top_level_model_weights/rate"] = np.float32(0.5)
            file["optimizer_weights/Adam/iter:0"] = 17
            for layer, arrays in layers.items():
                for kind, array in arrays.items():
                    file[f"optimizer_weights/Adam/{layer}/{kind}/m:0"] = np.zeros_like(array)
