"""SMP knows our networks, whatever is imported first."""

import os
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp

import fcn_smp
from fcn_smp.registry import register

NAMES = ["FCN32s", "FCN16s", "FCN8s", "FCN4s", "FCN2s"]

CHECK = """
model = smp.create_model("fcn8s", encoder_name="test_efficientnet", encoder_weights=None)
assert type(model) is getattr(smp, "FCN8s")
"""


@pytest.mark.parametrize(
    "imports",
    [
        """
        import fcn_smp, sys
        assert not {"torch", "segmentation_models_pytorch", "timm", "lightning"} & set(sys.modules)
        import segmentation_models_pytorch as smp
        """,
        """
        import segmentation_models_pytorch as smp
        import fcn_smp
        """,
        """
        from fcn_smp import FCN8s
        import segmentation_models_pytorch as smp
        assert smp.FCN8s is FCN8s
        """,
        """
        import fcn_smp.models.fcn
        import segmentation_models_pytorch as smp
        """,
    ],
    ids=["this package first, which is light", "SMP first", "one class alone", "the module alone"],
)
def test_every_order_of_imports_registers_the_networks(imports, tmp_path):
    script = "\n".join(line.strip() for line in imports.splitlines()) + CHECK
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_network_is_known_by_name_and_as_attribute():
    for name in NAMES:
        cls = getattr(fcn_smp, name)
        assert cls.__name__ == name
        assert smp.MODEL_ARCHITECTURES_MAPPING[name.lower()] is cls
        assert getattr(smp, name) is cls
        assert issubclass(cls, smp.base.SegmentationModel)


def test_registering_again_changes_nothing():
    before = dict(smp.MODEL_ARCHITECTURES_MAPPING), {name: getattr(smp, name) for name in dir(smp)}
    register()
    register(smp)
    assert (dict(smp.MODEL_ARCHITECTURES_MAPPING), {name: getattr(smp, name) for name in dir(smp)}) == before
    assert smp.MODEL_ARCHITECTURES_MAPPING["unet"] is smp.Unet


def test_package_offers_what_it_lists_and_nothing_else():
    for name in fcn_smp.__all__:
        assert getattr(fcn_smp, name) is not None
    assert fcn_smp.from_pretrained is smp.from_pretrained
    with pytest.raises(AttributeError, match="FCN1s"):
        _ = fcn_smp.FCN1s
