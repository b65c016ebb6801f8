"""What all our networks share."""

from typing import Any

from segmentation_models_pytorch.base import SegmentationModel


class Network(SegmentationModel):
    """A model of SMP that takes any input size and whose card tells the import that loading needs."""

    requires_divisible_input_shape = False
    config: dict[str, Any]

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """Return SMP's model card, with the import that loading needs and no word on the licence of the weights."""
        card = super().generate_model_card(*args, **kwargs)
        card.content = card.content.replace("license: mit\n", "", 1).replace(
            "import segmentation_models_pytorch as smp\n",
            "import fcn_smp  # registers the architecture\nimport segmentation_models_pytorch as smp\n",
        )
        return card
