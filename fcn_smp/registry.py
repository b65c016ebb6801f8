"""Which name is which class, and how SMP is told."""

import segmentation_models_pytorch as smp

from fcn_smp.models.base import Network
from fcn_smp.models.dilated import DilatedFCN
from fcn_smp.models.fcn import FCN, FCN2s, FCN4s, FCN8s, FCN16s, FCN32s
from fcn_smp.models.origins.classic_unet import ClassicUNet
from fcn_smp.models.origins.encoders import ENCODERS
from fcn_smp.models.origins.feature_fcn import FeatureFCN2s, FeatureFCN8s
from fcn_smp.models.origins.plain_fcn import PlainFCN
from fcn_smp.models.origins.simplified_unet import SimplifiedUNet
from fcn_smp.models.origins.transfer_fcn import TransferFCN

FCNS: dict[str, type[FCN]] = {cls.__name__.lower(): cls for cls in (FCN32s, FCN16s, FCN8s, FCN4s, FCN2s)}
"""The networks of the paper, which turn into each other, by the names that SMP and recipes use."""

ARCHITECTURES: dict[str, type[Network]] = {
    cls.__name__.lower(): cls
    for cls in (
        *FCNS.values(),
        DilatedFCN,
        PlainFCN,
        SimplifiedUNet,
        ClassicUNet,
        TransferFCN,
        FeatureFCN8s,
        FeatureFCN2s,
    )
}
"""All our networks, by the names that SMP and recipes use."""


def register() -> None:
    """Make SMP know our architectures and encoders; doing it again changes nothing.

    SMP has no plugin mechanism: ``smp.create_model`` looks a name up in a public dictionary, ``smp.from_pretrained``
    looks the class up as an attribute of the package, and encoders stand in a public dictionary of their own.
    """
    for name, cls in ARCHITECTURES.items():
        smp.MODEL_ARCHITECTURES_MAPPING[name] = cls
        setattr(smp, cls.__name__, cls)
    smp.encoders.encoders.update(ENCODERS)


register()
