"""Fully convolutional networks (FCN) for segmentation-models-pytorch.

Importing this package is all it takes:

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

    from fcn_smp.evaluation import evaluate
    from fcn_smp.inference import Inference
    from fcn_smp.models.dilated import DilatedFCN
    from fcn_smp.models.fcn import FCN2s, FCN4s, FCN8s, FCN16s, FCN32s
    from fcn_smp.models.origins.classic_unet import ClassicUNet
    from fcn_smp.models.origins.feature_fcn import FeatureFCN2s, FeatureFCN8s
    from fcn_smp.models.origins.plain_fcn import PlainFCN
    from fcn_smp.models.origins.simplified_unet import SimplifiedUNet
    from fcn_smp.models.origins.transfer_fcn import TransferFCN
    from fcn_smp.prediction import predict
    from fcn_smp.reporting import report
    from fcn_smp.segmenter import Segmenter

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
    "Inference",
    "PlainFCN",
    "Segmenter",
    "SimplifiedUNet",
    "TransferFCN",
    "__version__",
    "evaluate",
    "from_pretrained",
    "predict",
    "report",
]

_TOOLS = {
    "Inference": "fcn_smp.inference",
    "Segmenter": "fcn_smp.segmenter",
    "evaluate": "fcn_smp.evaluation",
    "from_pretrained": "segmentation_models_pytorch",
    "predict": "fcn_smp.prediction",
    "report": "fcn_smp.reporting",
}
"""What is no network, and where it is; imported when it is asked for."""

# SMP takes seconds to import, so it is not imported here: the command line answers at once, and in user code the
# hook runs right after SMP's import, or now if SMP is there already.
register_post_import_hook(lambda _: import_module("fcn_smp.registry"), "segmentation_models_pytorch")


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_TOOLS.get(name, "fcn_smp.registry")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
