"""Mean IU and pixel accuracy as other projects count them, from the same predictions.

The same label maps score very differently from one project to the next: per image or over the whole set, with void
left out, called background or called a class, with 0 or 1 for a class that is nowhere. The paper's way
(``fcn_smp.metrics``) is the default of each switch here; ``PROTOCOLS`` has those of public projects, so that
their figures can be compared with ours.

One thing cannot be had from predictions at native size: the projects that score at another size feed the network the
resized image. Here both label maps are resized instead, the prediction like the truth, by nearest neighbour. So a
protocol tells what the way of counting does to a score, not what a smaller input does.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.errors import UserError
from fcn_smp.metrics import ConfusionMatrix


@dataclass(frozen=True)
class Protocol:
    """How a mean IU and a pixel accuracy are counted, as independent switches; by default as in the paper.

    Attributes:
        size: Size in pixels to which prediction and truth are brought by nearest neighbour. None: native; (height,
            width): both are stretched; a number: that of the longer side, smaller or larger than it was. The latter is
            a letterbox: its padding to a square is void that never counts, so it need not be there.
        void: What becomes of pixels whose truth is void (255): they count nowhere (``"ignore"``), they are class 0
            (``"background"``), or they are one class more (``"class"``). That class is never predicted; a network that
            was trained with void as a class leaves nothing void, and then there is none more.
        over: What is averaged over: nothing, since the whole set is one count (``"set"``); or images (``"image"``),
            the IU of each class as well as the pixel accuracy.
        absent: IU of a class that is neither in the truth nor in the prediction, of the set or of an image. None: it
            has none, and the means skip it.
        mean: What the mean IU is: the mean over classes (``"classes"``); the sum of all intersections over the sum of
            all unions (``"micro"``); or None, for a project that has none.
    """

    size: tuple[int, int] | int | None = None
    void: Literal["ignore", "background", "class"] = "ignore"
    over: Literal["set", "image"] = "set"
    absent: float | None = None
    mean: Literal["classes", "micro"] | None = "classes"

    @property
    def about(self) -> str:
        """The switches in words, one short line."""
        size = "x".join(map(str, self.size)) if isinstance(self.size, tuple) else f"longer side {self.size}"
        absent = "skipped" if self.absent is None else f"count {self.absent:g}"
        return ", ".join(
            (
                "native size" if self.size is None else size,
                {"set": "whole set", "image": "mean of images"}[self.over],
                {"ignore": "void ignored", "background": "void is background", "class": "void is a class"}[self.void],
                {"classes": f"absent classes {absent}", "micro": "classes pooled", None: "no IU"}[self.mean],
            )
        )


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        # https://github.com/jackljk/Semantic-Segementation-VOC2007, util.py, voc.py. Images of VOC2007 val hold 2.6
        # classes each, so that a perfect prediction comes to .125; the .157 of its report was counted in another way.
        "jackljk": Protocol(size=(224, 224), void="background", over="image", absent=0.0),
        # https://github.com/kevinddchen/Keras-FCN, models.py; so does
        # https://github.com/Eslam-Zaher/Fully-Convolutional-Networks-for-Semantic-Segmentation. Their pixel accuracy
        # is a mean of batches, which is not made here: it would depend on how they were drawn.
        "keras-fcn": Protocol(size=512),
        # https://github.com/ashsne/semantic-segmentation; labels are resized bilinearly there.
        "ashsne": Protocol(size=(224, 224), mean=None),
        # https://github.com/albertnew2012/Fully-Convolutional-Networks-for-Semantic-Segmentation-tensorflow-2.x,
        # FCN.py. Classes end at the largest label of the truth, and an absent one before makes the mean 0/0 there;
        # labels are resized bilinearly.
        "albertnew2012": Protocol(size=(224, 224), void="class"),
        # https://github.com/divamgupta/image-segmentation-keras, keras_segmentation/predict.py; at the size of the
        # network's output there, which is the user's choice.
        "divamgupta": Protocol(void="class", absent=0.0),
        # https://github.com/qubvel-org/segmentation_models.pytorch, examples/camvid_segmentation_multiclass.ipynb
        "smp-camvid": Protocol(void="class", mean="micro"),
    }
)
"""Ways in which public projects count, by the name of the project."""


class ProtocolResult(NamedTuple):
    """Scores in [0, 1]; NaN where nothing defines them.

    Attributes:
        mean_iu: As ``Protocol.mean`` says.
        pixel_accuracy: Share of the pixels that count which are right.
        iu: IU of each class; where void is a class, that comes last.
    """

    mean_iu: float
    pixel_accuracy: float
    iu: list[float]


class ProtocolScore:
    """Adds up images and gives their scores as a protocol counts them.

    Args:
        protocol: How to count.
        classes: Number of classes C, void not among them.
    """

    def __init__(self, protocol: Protocol, classes: int) -> None:
        self.protocol = protocol
        self.classes = classes
        self._counts: list[Tensor] = []
        self._label = np.arange(256, dtype=np.uint8)
        self._label[IGNORE_INDEX] = {"ignore": IGNORE_INDEX, "background": 0, "class": classes}[protocol.void]
        self._ignore_index = IGNORE_INDEX if protocol.void == "ignore" else -1

    def update(self, prediction: Array, truth: Array) -> None:
        """Add an image: predicted classes, and true classes or 255, both uint8 (H, W) at native size."""
        self.add(self.count(prediction, truth))

    def count(self, prediction: Array, truth: Array) -> Tensor:
        """Return what ``add`` takes of an image, given as to ``update``."""
        prediction, truth = (_resized(label, self.protocol.size) for label in (prediction, truth))
        confusion = ConfusionMatrix(self.classes + 1, self._ignore_index)
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(self._label[truth]))
        counts = confusion.counts
        return torch.stack([counts.diag(), counts.sum(1), counts.sum(0)])

    def add(self, counts: Tensor) -> None:
        """Add what was counted of an image."""
        self._counts.append(counts)

    def scores(self) -> ProtocolResult:
        """Return the scores of all images that were added, one at least."""
        counts = torch.stack(self._counts).double()  # of each image, (N, 3, C + 1)
        if self.protocol.over == "set":
            counts = counts.sum(0, keepdim=True)
        if not counts[:, 1, -1].any():
            counts = counts[..., :-1]  # void is no class, or nothing is void
        hits, truth, predicted = counts.unbind(1)
        union = truth + predicted - hits
        iu = hits / union
        if self.protocol.absent is not None:
            iu = iu.nan_to_num(self.protocol.absent)
        iu = iu.nanmean(0)
        pooled = (hits.sum(1) / union.sum(1)).nanmean()
        mean_iu = {"classes": iu.nanmean().item(), "micro": pooled.item(), None: math.nan}[self.protocol.mean]
        return ProtocolResult(mean_iu, (hits.sum(1) / truth.sum(1)).nanmean().item(), iu.tolist())


def protocol_scores(names: Iterable[str], classes: int) -> dict[str, ProtocolScore]:
    """Return what adds up each of the protocols ``names``, or all for the name ``all``.

    Args:
        names: Names in ``PROTOCOLS``, or ``all``.
        classes: Number of classes C, void not among them.

    Raises:
        UserError: A name is unknown.
    """
    names = set(names)
    for name in sorted(names - {"all", *PROTOCOLS}):
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]}? Known" if near else "known"
        raise UserError(f"There is no protocol {name}; {hint} are {', '.join(PROTOCOLS)} and all.")
    chosen = {name: protocol for name, protocol in PROTOCOLS.items() if names & {name, "all"}}
    return {name: ProtocolScore(protocol, classes) for name, protocol in chosen.items()}


def _resized(label: Array, size: tuple[int, int] | int | None) -> Array:
    """Bring a label (H, W) to a size by nearest neighbour, whose centre is taken."""
    if size is None:
        return label
    if isinstance(size, int):
        # TensorFlow's resize_with_pad, which Keras-FCN uses, rounds down.
        height, width = (max(1, side * size // max(label.shape)) for side in label.shape)
    else:
        height, width = size
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), label.shape, strict=True)
    )
    return label[np.ix_(rows, columns)]
