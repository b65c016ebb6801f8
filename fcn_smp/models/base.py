"""What all our networks share."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from segmentation_models_pytorch.base import ClassificationHead, SegmentationModel
from segmentation_models_pytorch.base.modules import Activation
from torch import Tensor, nn

from fcn_smp.models.any_size import AsItIs
from fcn_smp.models.coarse import CoarseScores


class Network(SegmentationModel):
    """A model of SMP that takes any input size and whose card tells the import that loading needs.

    Attributes:
        encoder: Maps an image to a list of features, the first of the image's size.
        decoder: Maps these to scores of the classes.
        segmentation_head: The activation behind the scores, most often none.
        classification_head: What ``aux_params`` asked for, or None.
        name: The architecture and the encoder: ``"fcn8s-resnet34"``.
        config: The arguments, as ``save_pretrained`` keeps them.
    """

    requires_divisible_input_shape = False
    config: dict[str, Any]
    if TYPE_CHECKING:  # TorchScript takes no annotation of a submodule
        any_size: AsItIs

    def without_other_decoders(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Drop what other decoders of SMP take (``decoder_use_norm``) with a warning, so that scripts for them run.

        Raises:
            ValueError: A name looks like a mistyped argument of this network, or lacks the ``encoder_`` before it.
        """
        for name in kwargs:
            if f"encoder_{name}" in inspect.signature(type(self)).parameters:
                raise ValueError(f"There is no argument {name!r}; did you mean 'encoder_{name}'?")
        foreign = [name for name in kwargs if name.startswith("decoder_")]
        for name in foreign:
            near = difflib.get_close_matches(name, inspect.signature(type(self)).parameters, n=1, cutoff=0.85)
            if near:
                raise ValueError(f"There is no argument {name!r}; did you mean {near[0]!r}?")
            warnings.warn(f"{type(self).__name__} has no {name}; it is left out.", stacklevel=5)
            self.config.pop(name, None)
        return {name: value for name, value in kwargs.items() if name not in foreign}

    def add_heads(
        self, encoder_name: str, activation: str | Callable[..., Any] | None, aux_params: dict[str, Any] | None
    ) -> None:
        """Add what SMP expects behind a decoder whose scores are the logits, and the network's name.

        Args:
            encoder_name: What the name ends with.
            activation: Applied to the logits, as SMP knows it.
            aux_params: Arguments of SMP's classification head, if there is to be one.
        """
        self.segmentation_head = nn.Sequential(nn.Identity(), Activation(activation))
        width = self.encoder.out_channels[-1]
        self.classification_head = ClassificationHead(in_channels=width, **aux_params) if aux_params else None
        self.name = f"{type(self).__name__.lower()}-{encoder_name}"
        # A saved model holds its weights: loading it must not fetch those that it started from.
        self.config["encoder_weights"] = None

    def forward(self, x: Tensor, upsample: bool = True) -> Any:
        """Map an image (N, in_channels, H, W) to logits (N, classes, H, W), with ``aux_params`` also to its labels.

        Args:
            x: Float images, normalised as the encoder's weights expect.
            upsample: Where it is False, and the network ends in an interpolation of scores, that is left out, and the
                scores are (N, classes, h, w); ``place`` says where these lie in the image.

        Returns:
            The logits; with ``aux_params`` a pair of them and the labels' logits (N, aux classes).
        """
        features = self.encoder(self.any_size(x))
        masks = self.score(features, x, upsample)
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks

    def score(self, features: list[Tensor], x: Tensor, upsample: bool) -> Tensor:
        """Map the encoder's features of an image to the first of what ``forward`` returns.

        Args:
            features: What the encoder gives, each (N, C_k, H_k, W_k).
            x: The image (N, in_channels, H, W), for its size.
            upsample: As of ``forward``.
        """
        masks: Tensor = self.segmentation_head(self.any_size.restore(self.decoder(features), x))
        return masks

    def coarse(self, x: Tensor) -> CoarseScores:
        """Map an image (N, in_channels, H, W) to its scores before the last upsampling, where that is interpolation.

        The same as ``forward``, but the logits of the pixels, many times as large, are left to be interpolated:
        ``fcn_smp.losses.SegmentationLoss`` takes the scores as they are. Networks that do not end in an interpolation
        give their logits.
        """
        output = self(x, upsample=False)
        scores = output if self.classification_head is None else output[0]
        return self.place(scores, x.shape[2:])

    def place(self, scores: Tensor, size: Sequence[int]) -> CoarseScores:
        """Say where the pixels of an image lie on the scores that were not upsampled.

        ``coarse`` in two steps, for a network that is wrapped, by ``torch.compile`` or ``DistributedDataParallel``:
        ``model.place(wrapped(images, upsample=False), images.shape[2:])``.

        Args:
            scores: What ``forward`` gave without the last upsampling, (N, classes, h, w).
            size: Height and width of the image in pixels.
        """
        return CoarseScores(scores)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """Return SMP's model card, with the import that loading needs and no word on the licence of the weights."""
        card = super().generate_model_card(*args, **kwargs)
        card.content = card.content.replace("license: mit\n", "", 1).replace(
            "import segmentation_models_pytorch as smp\n",
            "import fcn_smp  # registers the architecture\nimport segmentation_models_pytorch as smp\n",
        )
        return card
