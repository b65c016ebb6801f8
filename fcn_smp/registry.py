"""Which name is which class, and how SMP is told."""

import segmentation_models_pytorch as smp

from fcn_smp.models.dilated import DilatedFCN
from fcn_smp.models.fcn import FCN, FCN2s, FCN4s, FCN8s, FCN16s, FCN32s

ARCHITECTURES: dict[str, type[FCN]] = {cls.__name__.lower(): cls for cls in (FCN32s, FCN16s, FCN8s, FCN4s, FCN2s)}
"""The networks of the paper, by the names that SMP and recipes use."""


def register() -> None:
    """Make SMP know our architectures; doing it again changes nothing.

    SMP has no plugin mechanism: ``smp.create_model`` looks a name up in a public dictionary, ``smp.from_pretrained``
    looks the class up as an attribute of the package.
    """
    for cls in (*ARCHITECTURES.values(), DilatedFCN):
        smp.MODEL_ARCHITECTURES_MAPPING[cls.__name__.lower()] = cls
        setattr(smp, cls.__name__, cls)


register()
