"""A trained model with all that it takes to use it."""

import contextlib
import io
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
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
from fcn_smp.inference import (
    Inference,
    blended,
    bytes_per_pixel,
    grid_of,
    places,
    side_that_fits,
    takes_windows,
    views,
)
from fcn_smp.models.any_size import AsItIs, Padded
from fcn_smp.models.base import Network
from fcn_smp.models.coarse import CoarseScores
from fcn_smp.models.encoder import Preprocessing

_WHOLE = Inference(window=None)


def most_likely(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the most likely class of each pixel, int64 (N, H, W).

    Args:
        logits: (N, C, H, W). A single one is class 1's against class 0.
        threshold: Probability in (0, 1) above which a pixel is of class 1, where there is a single logit.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0].sigmoid() > threshold).long()
    return logits.max(1).indices  # as argmax, which is ten times as slow on a CPU


class Segmenter:
    """Images in, labels out: a network, the preprocessing it was trained with, and its classes.

    Args:
        model: The network, ours or another one of SMP; it is put in evaluation mode.
        preprocessing: What the network expects of its input.
        classes: Name of each class.
        palette: Colour of each label, uint8 (256, 3), or of the first ones; None: VOC's.
        threshold: Of a network with a single logit for two classes: the probability above which a pixel is of class 1.

    Attributes:
        palette: Colour of each label, uint8 (256, 3).

    Raises:
        ValueError: The network gives scores of more or fewer classes than have a name, or colours are none.

    Examples:
        ```python
        segmenter = Segmenter.load("runs/voc2007")
        label = segmenter.predict(np.array(Image.open("dog.jpg").convert("RGB")))

        model = smp.create_model("unet", encoder_name="resnet34", classes=2)  # and its training
        colors = [(0, 0, 0), (128, 64, 128)]
        segmenter = Segmenter(model, encoder_preprocessing("resnet34"), ["background", "road"], colors)
        segmenter.save(Path("road"))
        ```
    """

    def __init__(
        self,
        model: SegmentationModel,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        palette: Array | Sequence[Sequence[int]] | None = None,
        threshold: float = 0.5,
    ) -> None:
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.classes = tuple(classes)
        scores = model.config["classes"]
        if scores != len(self.classes) and not self.binary:
            raise ValueError(f"The network gives scores of {scores} classes, but {len(self.classes)} have a name.")
        self.palette = _palette(palette)
        self.threshold = threshold
        self._preprocess = Preprocess(*preprocessing)
        stride = model.encoder.output_stride if model.requires_divisible_input_shape else 1
        self._fit = Padded((stride, stride)) if stride > 1 else AsItIs()

    def __repr__(self) -> str:
        """Name the network, and say how many classes it knows."""
        return f"Segmenter({type(self.model).__name__}, {len(self.classes)} classes, on {self.device})"

    @property
    def binary(self) -> bool:
        """Whether the network gives a single logit, of the second of two classes against the first."""
        scores: int = self.model.config["classes"]
        return scores == 1 and len(self.classes) == 2

    @property
    def chosen(self) -> dict[str, float]:
        """The threshold, where there is one."""
        return {"threshold": self.threshold} if self.binary else {}

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def check_labels(self) -> None:
        """See that labels of uint8, in which 255 is void, have room for all classes.

        Raises:
            UserError: There are more than 255.
        """
        if len(self.classes) > 255:
            raise UserError(f"The model has {len(self.classes)} classes; a label picture holds 255 at most.")

    def predict(self, image: Array, inference: Inference = _WHOLE) -> Array:
        """Map an RGB image, uint8 (H, W, 3), to the most likely class of each pixel, uint8 (H, W).

        Args:
            image: Any height and width.
            inference: How it is run through the network; by default whole, as it is.

        Raises:
            TypeError: The image is something else.
            UserError: The classes are too many for a uint8.
        """
        self.check_labels()
        bands = [most_likely(band, self.threshold)[0].to(torch.uint8) for band in self.bands([image], inference)]
        return np.asarray(torch.cat(bands).cpu())

    def logits(self, image: Array, inference: Inference = _WHOLE) -> Tensor:
        """Map an RGB image, uint8 (H, W, 3), to float logits (1, C, H, W).

        Args:
            image: Any height and width.
            inference: How it is run through the network; by default whole, as it is. Where several views are averaged,
                the logits are those of the mean probabilities.

        Raises:
            TypeError: The image is something else.
        """
        return torch.cat(list(self.bands([image], inference)), 2)

    @torch.inference_mode()
    def bands(self, images: Sequence[Array], inference: Inference = _WHOLE) -> Iterator[Tensor]:
        """Map a batch of RGB images of one size, uint8 (H, W, 3), to their logits.

        Args:
            images: N of them, at least one.
            inference: How they are run through the network; by default whole, as they are.

        Yields:
            Float logits (N, C, h, W) of the next h rows, from the top to the bottom, so that those of all pixels need
            not exist at a time.

        Raises:
            TypeError: The images are something else.
            UserError: The network takes no windows, but they are asked for.
        """
        for image in images:
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise TypeError("The image must be an array of uint8 with the shape (height, width, 3).")
        height, width = images[0].shape[:2]
        side = self.window_side(height, width, inference, len(images))

        def batch(rows: slice, columns: slice) -> Tensor:
            parts = np.stack([self._preprocess.resized(image[rows, columns]) for image in images])
            pixels = torch.from_numpy(parts).to(self.device)
            normal: Tensor = self._preprocess.normalize.to(self.device)(pixels.permute(0, 3, 1, 2).contiguous())
            return normal

        def logits(rows: slice, columns: slice) -> Tensor:
            return views(self._network, batch(rows, columns), inference, images[0][rows, columns].shape[:2])

        everything = slice(None), slice(None)
        if side is None and inference.is_plain and self.preprocessing.resize is None:
            yield from self._scores(batch(*everything)).logits()
            return
        if side is None:
            yield logits(*everything)
            return
        overlap = side // 4 if inference.overlap is None else inference.overlap
        rows, columns = (places(length, side, overlap, grid_of(self.model)) for length in (height, width))
        yield from blended(logits, rows, columns)

    def _scores(self, images: Tensor) -> CoarseScores:
        return self.model.coarse(images) if isinstance(self.model, Network) else CoarseScores(self._network(images))

    def _network(self, images: Tensor) -> Tensor:
        logits: Tensor = self._fit.restore(self.model(self._fit(images)), images)
        return logits

    def window_side(self, height: int, width: int, inference: Inference, images: int = 1) -> int | None:
        """Return the side of the windows in which so many images of a size are run through; None: whole.

        Args:
            height: Of an image in pixels.
            width: Likewise.
            inference: What was asked for.
            images: How many are run through at once.

        Raises:
            UserError: The network takes no windows, but they are asked for.
        """
        takes = self.preprocessing.resize is None and takes_windows(self.model)
        if inference.window is None or (inference.window == "auto" and not takes):
            return None
        if not takes:
            raise UserError("The network sees every image at one size, so there are no windows; leave --window away.")
        if inference.window != "auto":
            return inference.window if max(height, width) > inference.window else None
        per_pixel = self._bytes_per_pixel * images * max(1, *inference.scales) ** 2
        return side_that_fits(height, width, per_pixel, self.device)

    @cached_property
    def _bytes_per_pixel(self) -> float:
        return bytes_per_pixel(self.model)

    def save(self, directory: Path, card: str | None = None) -> None:
        """Write a model directory, which ``smp.from_pretrained`` loads too.

        SMP passes over keys of the configuration that begin with an underscore.

        Args:
            directory: Where; it must not exist.
            card: Markdown for ``README.md``, instead of SMP's.

        Raises:
            UserError: The disk is full.
            OSError: The directory holds something already, or cannot be written.
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

        Args:
            source: The directory, or the name on the Hub.
            device: Where it is to run; ``auto`` for an accelerator, if there is one.

        Returns:
            The model in evaluation mode, with its preprocessing, classes, colours and threshold.

        Raises:
            UserError: There is no model that was saved by this package, or no such device.
        """
        device = present_device(device)
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
            palette = model.config["_colors"]
        except KeyError as error:
            raise UserError(f"{source} was not saved by fcn-smp: its config.json lacks {error}.") from error
        threshold = model.config.get("_threshold", 0.5)  # models of release 0.1 have none
        return cls(model.to(device), Preprocessing(**preprocessing), classes, palette, threshold)


def _palette(colors: Array | Sequence[Sequence[int]] | None) -> Array:
    """Return 256 colours, those that are not given being VOC's."""
    palette = voc_palette()
    given = np.asarray(palette if colors is None else colors)
    if given.ndim != 2 or given.shape[1] != 3 or len(given) > 256 or given.min() < 0 or given.max() > 255:
        raise ValueError("The palette must be colours of red, green and blue from 0 to 255, 256 of them at most.")
    palette[: len(given)] = given
    return palette


def present_device(device: str | torch.device) -> torch.device:
    """Return a device by its name; ``auto`` is an accelerator, if there is one, else the CPU.

    Raises:
        UserError: There is no such device here.
    """
    try:
        found = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else device
        return torch.zeros(0, device=found or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} is not to be had here; cpu always is.") from error


def _model_directory(source: str) -> str:
    path = Path(source)
    for directory in (path / "model", path):
        if (directory / "config.json").is_file():
            return str(directory)
    if (path / "recipe.yaml").is_file():
        raise UserError(f"The run {path} has no model yet; finish it with fcn-smp train ... --resume.")
    if not path.exists() and path.parent.is_dir() and path.parent != Path():
        raise UserError(f"{source} is not there; name a run or model directory, or a model of the Hub.")
    if path.exists() or source.count("/") != 1 or source.startswith((".", "~")):
        raise UserError(f"{source} is neither a run nor a model directory: it has no config.json.")
    return source  # of the Hub
