"""Small networks for tests, with scores that say something."""

from contextlib import contextmanager, nullcontext
from copy import deepcopy
from unittest.mock import patch

import segmentation_models_pytorch as smp
import torch

import fcn_smp  # noqa: F401  (registers the architectures)

STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8, "fcn4s": 4, "fcn2s": 2}


class Unallocated(torch.nn.Linear):
    """Stands in for the 120 million random numbers of VGG's classifier, which SMP drops once they are drawn."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "device": "meta"})


def narrow_vgg(encoder, shrink):
    """Return what SMP knows of one of its VGGs, with so many times fewer channels; two at least."""

    def narrow(width):
        return max(2, width // shrink) if isinstance(width, int) else width

    vgg = smp.encoders.encoders[encoder]
    widths = {name: [narrow(width) for width in vgg["params"][name]] for name in ("config", "out_channels")}
    return {**vgg, "params": {**vgg["params"], **widths}}


def narrow_vgg16(shrink):
    return narrow_vgg("vgg16", shrink)


def narrowed(encoder, shrink):
    """Let one of SMP's VGGs be so many times narrower until this is left."""
    return patch.dict(smp.encoders.encoders, {encoder: narrow_vgg(encoder, shrink)})


@contextmanager
def lean_vgg(encoder="vgg11", shrink=8):
    """Let one of SMP's VGGs be so many times narrower, and draw no weights of its classifier."""
    with narrowed(encoder, shrink), patch.object(torch.nn, "Linear", Unallocated):
        yield


def build(arch, encoder="test_efficientnet", **options):
    options = {"encoder_weights": None, "classes": 2, **options}
    if "vgg" in encoder and arch in STRIDES:
        options.setdefault("decoder_hidden_channels", 16)
    if encoder.startswith("tu-vgg"):
        options.setdefault("mlp_ratio", 0.001)
    torch.manual_seed(0)
    with patch.object(torch.nn, "Linear", Unallocated) if encoder == "vgg11" else nullcontext():
        return smp.create_model(arch, encoder_name=encoder, **options).eval()


def scores_of(model):
    return [model.decoder.score, *getattr(model.decoder, "skip_scores", [])]


def with_random_scores(model):
    """Return a copy whose scores say something; those of a new network are zero."""
    generator = torch.Generator().manual_seed(0)
    model = deepcopy(model)
    with torch.no_grad():
        for score in scores_of(model):
            score.weight.normal_(std=score.in_channels**-0.5, generator=generator)
            if score.bias is not None:
                score.bias.normal_(generator=generator)
    return model


def with_constant_scores(model):
    """Return a copy whose scores are the same everywhere, and their sum."""
    model = deepcopy(model)
    with torch.no_grad():
        for index, score in enumerate(scores_of(model)):
            score.weight.zero_()
            score.bias.fill_(2.0**index)
    return model, 2.0 ** len(scores_of(model)) - 1


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
