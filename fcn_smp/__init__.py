"""Fully convolutional networks (FCN) for segmentation-models-pytorch.

Importing this package is all it takes::

    import segmentation_models_pytorch as smp
    import fcn_smp

    model = smp.create_model("fcn8s", encoder_name="resnet18", classes=21)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from segmentation_models_pytorch import from_pretrained

    from fcn_smp.models.dilated import DilatedFCN
    from fcn_smp.models.fcn import FCN2s, FCN4s, FCN8s, FCN16s, FCN32s
    from fcn_smp.models.origins.classic_unet import ClassicUNet
    from fcn_smp.models.origins.feature_fcn import FeatureFCN2s, FeatureFCN8s
    from fcn_smp.models.origins.plain_fcn import PlainFCN
    from fcn_smp.models.origins.simplified_unet import SimplifiedUNet
    from fcn_smp.models.origins.transfer_fcn import TransferFCN

__version__ = version("fcn_smp")
__all__ = [
    "ClassicUNet",
    "DilatedFCN",
    "FCN2s",
    "FCN4s",
    "FCN8s",
    "FCN16s",
    "FCN32s",
    "FeatureFCN2s",
    "FeatureFCN8s",
    "PlainFCN",
    "SimplifiedUNet",
    "TransferFCN",
    "__version__",
    "from_pretrained",
]

# SMP takes seconds to import, so it is not imported here: the command line answers at once, and in user code the
# hook runs right after SMP's import, or now if SMP is there already.
register_post_import_hook(lambda _: import_module("fcn_smp.registry"), "segmentation_models_pytorch")


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "from_pretrained":
        return import_module("segmentation_models_pytorch").from_pretrained
    if name in __all__:
        return getattr(import_module("fcn_smp.registry"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
