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


class Segmenter:
    """Images in, labels out: a network, the preprocessing it was trained with, and its classes.

    Args:
        model: The network; it is put in evaluation mode.
        preprocessing: What the network expects of its input.
        classes: Name of each class.
        palette: Colour of each label, uint8 (256, 3).

    Example::

        segmenter = Segmenter.load("runs/voc2007")
        label = segmenter.predict(np.array(Image.open("dog.jpg").convert("RGB")))
    """

    def __init__(
        self, model: SegmentationModel, preprocessing: Preprocessing, classes: Sequence[str], palette: Array
    ) -> None:
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.classes = tuple(classes)
        self.palette = palette
        self._preprocess = Preprocess(*preprocessing)

    @torch.inference_mode()
    def predict(self, image: Array) -> Array:
        """Map an RGB image, uint8 (H, W, 3), to the most likely class of each pixel, uint8 (H, W).

        Raises:
            TypeError: The image is something else.
            UserError: The classes are too many for a uint8.
        """
        if len(self.classes) > 255:
            raise UserError(f"The model has {len(self.classes)} classes; a label picture holds 255 at most.")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError("The image must be an array of uint8 with the shape (height, width, 3).")
        device = next(self.model.parameters()).device
        logits: Tensor = self.model(self._preprocess(image)[None].to(device))
        return np.asarray(logits[0].argmax(0).to(torch.uint8).cpu())

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
        return cls(model.to(device), Preprocessing(**preprocessing), classes, palette)


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
