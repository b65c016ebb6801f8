"""Scores of the network while it is trained, on whole images, each seen by one of the processes."""

from collections.abc import Iterator, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.transforms import Preprocess
from fcn_smp.inference import stretched
from fcn_smp.metrics import ConfusionMatrix, Scores, Thresholds
from fcn_smp.models.base import Network
from fcn_smp.models.coarse import CoarseScores
from fcn_smp.segmenter import most_likely
from fcn_smp.training.loaders import Batch, stop_workers, validation_batches
from fcn_smp.training.parts import Parts
from fcn_smp.training.processes import Interruption, add_up


class Validation:
    """Scores a network on the validation set.

    Args:
        fabric: The processes and devices.
        parts: Has the validation set.
        workers: Processes that load images.
        samples: How many predictions to keep.
        limit: How many images to look at.

    Attributes:
        share: The images that this process sees.
        predictions: Predicted classes (H, W) of the first of them.
    """

    def __init__(self, fabric: Fabric, parts: Parts, workers: int, samples: int, limit: int | None) -> None:
        self.fabric = fabric
        self.parts = parts
        self.workers = workers
        self.samples = samples
        self.share: Sequence[int] = range(len(parts.val))[:limit][fabric.global_rank :: fabric.world_size]
        self.predictions: list[Tensor] = []
        self.normalize = Preprocess(*parts.preprocessing).normalize.to(fabric.device)
        self._batches: DataLoader[Batch] | None = None

    @property
    def batches(self) -> DataLoader[Batch]:
        """The images, one by one; their loader is made once, since its workers take time to start."""
        if self._batches is None:
            on_cuda = self.fabric.device.type == "cuda"
            self._batches = validation_batches(
                self.parts.val, self.parts.preprocessing, self.share, self.workers, pin_memory=on_cuda
            )
        return self._batches

    def close(self) -> None:
        """End the workers."""
        if self._batches is not None:
            stop_workers(self._batches._iterator)

    @torch.inference_mode()
    def scores(self, model: Network, interruption: Interruption) -> Scores | None:
        """Score a network; None if the run is to stop."""
        model.eval()
        self._agree_on_statistics(model)
        self.predictions.clear()
        counter = self._counter()
        for batch in self.batches:
            if interruption.asked:
                break
            images = self.normalize(batch.images.to(self.fabric.device).permute(0, 3, 1, 2).contiguous())
            with self.fabric.autocast():
                scores = model.coarse(images)
            labels, top, predictions = batch.labels.to(self.fabric.device), 0, []
            for logits in self._bands(scores, labels.shape[1:]):
                rows = slice(top, top := top + logits.shape[2])
                predictions.append(most_likely(logits))
                found = logits[:, 0].sigmoid() if isinstance(counter, Thresholds) else predictions[-1]
                counter.update(found, labels[:, rows])
            if len(self.predictions) < self.samples:
                self.predictions.append(torch.cat(predictions, 1)[0].cpu())
        asked = torch.tensor([interruption.asked], dtype=torch.int64, device=self.fabric.device)
        *counts, asked = add_up(self.fabric, torch.cat([counter.counts.flatten(), asked])).cpu()
        counter.counts = torch.stack(counts).view_as(counter.counts)
        confusion = counter.confusion() if isinstance(counter, Thresholds) else counter
        return None if asked else confusion.scores()

    def _bands(self, scores: CoarseScores, size: Sequence[int]) -> Iterator[Tensor]:
        """Yield the logits of some rows after the other, or all, where the network saw the image at another size."""
        if scores.size == tuple(size):
            return scores.logits()
        return iter([stretched(torch.cat(list(scores.logits()), 2), size)])

    def _counter(self) -> ConfusionMatrix | Thresholds:
        """Return what counts; of a single score, so that each epoch is judged at its own best threshold."""
        if self.parts.loss.binary:
            return Thresholds(IGNORE_INDEX).to(self.fabric.device)
        return ConfusionMatrix(len(self.parts.val.classes), IGNORE_INDEX).to(self.fabric.device)

    def _agree_on_statistics(self, model: nn.Module) -> None:
        """Take the first process's statistics of batch norms in all; they are the ones that are saved."""
        if self.fabric.world_size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
