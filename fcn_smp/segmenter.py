"""A trained model with all that it takes to use it."""

import contextlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor

import fcn_smp.models  # noqa: F401  (registers our classes, so that SMP can load them)
from fcn_smp.data.labels import Array
from fcn_smp.data.transforms import Preprocess
from fcn_smp.data.voc import voc_palette
from fcn_smp.errors import UserError
from fcn_smp.files import whole
from fcn_smp.models.encoder import Preprocessing


def stretched(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate logits (N, C, h, w) of an image that was resized for the network to the image's size (N, C, H, W)."""
    if logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def most_likely(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the most likely class of each pixel, int64 (N, H, W).

    Args:
        logits: (N, C, H, W). A single one is class 1's against class 0.
        threshold: Probability in (0, 1) above which a pixel is of class 1, where there is a single logit.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0].sigmoid() > threshold).long()
    return logits.argmax(1)


class Segmenter:
    """Images in, labels out: a network, the preprocessing it was trained with, and its classes.

    Args:
        model: The network; it is put in evaluation mode.
        preprocessing: What the network expects of its input.
        classes: Name of each class.
        palette: Colour of each label, uint8 (256, 3).
        threshold: Of a network with a single logit for two classes: the probability above which a pixel is of class 1.

    Example::

        segmenter = Segmenter.load("runs/voc2007")
        label = segmenter.predict(np.array(Image.open("dog.jpg").convert("RGB")))
    """

    def __init__(
        self,
        model: SegmentationModel,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        palette: Array,
        threshold: float = 0.5,
    ) -> None:
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.classes = tuple(classes)
        self.palette = palette
        self.threshold = threshold
        self._preprocess = Preprocess(*preprocessing)

    @property
    def binary(self) -> bool:
        """Whether the network gives a single logit, of the second of two classes against the first."""
        scores: int = self.model.config["classes"]
        return scores == 1 and len(self.classes) == 2

    @property
    def chosen(self) -> dict[str, float]:
        """The threshold, where there is one."""
        return {"threshold": self.threshold} if self.binary else {}

    def predict(self, image: Array) -> Array:
        """Map an RGB image, uint8 (H, W, 3), to the most likely class of each pixel, uint8 (H, W).

        Raises:
            TypeError: The image is something else.
            UserError: The classes are too many for a uint8.
        """
        if len(self.classes) > 255:
            raise UserError(f"The model has {len(self.classes)} classes; a label picture holds 255 at most.")
        label = most_likely(self.logits(image), self.threshold)[0]
        return np.asarray(label.to(torch.uint8).cpu())

    @torch.inference_mode()
    def logits(self, image: Array) -> Tensor:
        """Map an RGB image, uint8 (H, W, 3), to float logits (1, C, H, W).

        Raises:
            TypeError: The image is something else.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError("The image must be an array of uint8 with the shape (height, width, 3).")
        device = next(self.model.parameters()).device
        logits: Tensor = self.model(self._preprocess(image)[None].to(device))
        return stretched(logits, image.shape[:2])

    def save(self, directory: Path, card: str | None = None) -> None:
        """Write a model directory, which ``smp.from_pretrained`` loads too.

        SMP passes over keys of the configuration that begin with an underscore.

        Args:
            directory: Where; it must not exist.
            card: Markdown for ``README.md``, instead of SMP's.
        """
        self.model.config["_preprocessing"] = self.preprocessing._asdict()
        self.model.config["_classes"] = list(self.classes)
        self.model.config["_colors"] = self.palette[: len(self.classes)].tolist()
        self.model.config["_threshold"] = self.threshold
        with whole(directory) as temporary:
            try:
                self.model.save_pretrained(temporary)
            except SafetensorError as error:  # of a full disk
                raise UserError(f"{directory} cannot be written: {error}.") from error
            if card:
                (temporary / "README.md").write_text(card, encoding="utf-8")
            # safetensors hides its files from other users.
            shutil.copymode(temporary / "config.json", temporary / "model.safetensors")

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a run directory, a model directory or a model of the Hugging Face Hub.

        Raises:
            UserError: There is no model that was saved by this package.
        """
        directory = _model_directory(str(source))
        try:
            # The hub library prints where it loads from.
            with contextlib.redirect_stdout(io.StringIO()):
                model = smp.from_pretrained(directory)
        except Exception as error:
            raise UserError(
                f"{source} cannot be loaded as a model: {str(error).splitlines()[0].rstrip('.')}."
            ) from error
        try:
            preprocessing, classes = model.config["_preprocessing"], model.config["_classes"]
            palette = voc_palette()
            palette[: len(classes)] = np.array(model.config["_colors"], dtype=np.uint8)
        except KeyError as error:
            raise UserError(f"{source} was not saved by fcn-smp: its config.json lacks {error}.") from error
        threshold = model.config.get("_threshold", 0.5)  # models of release 0.1 have none
        return cls(model.to(device), Preprocessing(**preprocessing), classes, palette, threshold)


def _model_directory(source: str) -> str:
    path = Path(source)
    for directory in (path / "model", path):
        if (directory / "config.json").is_file():
            return str(directory)
    if (path / "recipe.yaml").is_file():
        raise UserError(f"The run {path} has no model yet; finish it with fcn-smp train ... --resume.")
    if path.exists() or source.count("/") != 1 or source.startswith((".", "~")):
        raise UserError(f"{source} is neither a run nor a model directory: it has no config.json.")
    return source  # of the Hub
