"""Networks: pure torch, SMP and timm. Nothing here knows of data, recipes or training."""

# Importing SMP registers our classes with it (see fcn_smp/__init__.py), which imports fcn_smp.models.fcn. SMP must
# therefore be complete before that module begins.
import segmentation_models_pytorch  # noqa: F401
