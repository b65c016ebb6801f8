"""SMP knows our networks, whatever is imported first."""

import os
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

import fcn_smp
from fcn_smp.registry import ARCHITECTURES, FCNS, register

NAMES = [
    "FCN32s",
    "FCN16s",
    "FCN8s",
    "FCN4s",
    "FCN2s",
    "DilatedFCN",
    "PlainFCN",
    "SimplifiedUNet",
    "ClassicUNet",
    "TransferFCN",
    "FeatureFCN8s",
    "FeatureFCN2s",
]
ENCODERS = ["strided_conv", "single_conv", "double_conv"]

# The libraries below SMP take seconds to import: once, then each order runs in a fork in which SMP is still unknown.
FORKS = """
import os, sys, timm, torch
from safetensors.torch import load_file

saved, *orders = sys.argv[1:]
data = load_file(f"{saved}/data.safetensors")
assert "segmentation_models_pytorch" not in sys.modules
for order in orders:
    child = os.fork()
    if child == 0:
        exec(order)
        fresh = smp.create_model("fcn8s", encoder_name="test_efficientnet", encoder_weights=None)
        assert type(fresh) is getattr(smp, "FCN8s")
        read = smp.from_pretrained(saved).eval()
        assert type(read) is smp.FCN8s
        torch.testing.assert_close(read(data["x"]), data["y"])
        smp.create_model("classicunet", encoder_name="double_conv", encoder_weights=None, encoder_depth=3)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"This fails: {order}")
"""


def run_python(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@torch.no_grad()
def test_every_order_of_imports_lets_smp_build_and_read_our_networks(tmp_path):
    model = smp.create_model("fcn8s", encoder_name="test_efficientnet", encoder_weights=None).eval()
    for parameter in model.decoder.parameters():
        parameter.normal_(std=0.1)
    x = torch.randn(2, 3, 65, 97)
    model.save_pretrained(tmp_path)
    save_file({"x": x, "y": model(x)}, tmp_path / "data.safetensors")
    done = run_python(
        FORKS,
        tmp_path,
        "import fcn_smp; import segmentation_models_pytorch as smp",
        "from fcn_smp import FCN8s; import segmentation_models_pytorch as smp",
        "from fcn_smp import from_pretrained; import segmentation_models_pytorch as smp",
        "import fcn_smp.models.fcn; import segmentation_models_pytorch as smp",
        "import fcn_smp.models.origins.encoders; import segmentation_models_pytorch as smp",
        # Without us, SMP has no encoder of these names that we could hide.
        "import segmentation_models_pytorch as smp; theirs = {*smp.encoders.encoders}; import fcn_smp;"
        f" assert theirs.isdisjoint({ENCODERS})",
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    done = run_python("import fcn_smp, sys; print(*sys.modules, sep='\\n')")
    heavy = {"torch", "segmentation_models_pytorch", "timm", "lightning", "albumentations", "scipy", "numpy"}
    assert done.returncode == 0, done.stderr
    assert "fcn_smp" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


def test_every_network_is_known_by_name_and_as_attribute():
    for name in NAMES:
        cls = getattr(fcn_smp, name)
        assert cls.__name__ == name
        assert smp.MODEL_ARCHITECTURES_MAPPING[name.lower()] is cls
        assert getattr(smp, name) is cls
        assert issubclass(cls, smp.base.SegmentationModel)
    assert [cls.__name__ for cls in ARCHITECTURES.values()] == NAMES
    assert [cls.__name__ for cls in FCNS.values()] == NAMES[:5]


def test_every_encoder_is_known_by_a_name_that_is_not_one_of_timm():
    assert {*ENCODERS} < {*smp.encoders.get_encoder_names()}
    assert not any(timm.is_model(name) for name in ENCODERS)


def known_to_smp():
    attributes = {name: getattr(smp, name) for name in dir(smp)}
    return dict(smp.MODEL_ARCHITECTURES_MAPPING), dict(smp.encoders.encoders), attributes


def test_registering_again_changes_nothing():
    before = known_to_smp()
    register()
    register()
    assert known_to_smp() == before
    assert smp.MODEL_ARCHITECTURES_MAPPING["unet"] is smp.Unet


def test_package_offers_what_it_lists_and_nothing_else():
    for name in fcn_smp.__all__:
        assert getattr(fcn_smp, name) is not None
    assert fcn_smp.from_pretrained is smp.from_pretrained
    with pytest.raises(AttributeError, match="FCN1s"):
        _ = fcn_smp.FCN1s
