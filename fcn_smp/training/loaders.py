"""What a run trains and validates on, batch by batch."""

import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.sampling import StepSampler
from fcn_smp.data.transforms import Augment, Preprocess
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.recipe import Recipe


class Batch(NamedTuple):
    """What the device is given; of a single sample the first dimension is missing.

    Attributes:
        images: RGB, uint8 (N, H, W, 3), for ``fcn_smp.data.transforms.Normalize`` on the device.
        labels: uint8 (N, H, W).
        indices: Place of each in its data set, int64 (N,).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


class TrainingSamples(Dataset[Batch]):
    """Augmented samples by (epoch, index).

    Args:
        dataset: The images.
        augment: What happens to them.
        seed: Of the augmentation, together with epoch and index.
    """

    def __init__(self, dataset: SegmentationDataset, augment: Augment, seed: int) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        sample = self.dataset[index]
        image, label = self.augment(sample.image, sample.label, seed=(self.seed, epoch, index))
        return Batch(torch.from_numpy(image), torch.from_numpy(label), torch.tensor(index))


class WholeSamples(Dataset[Batch]):
    """Whole images at native size by (epoch, index).

    Args:
        dataset: The images.
        preprocess: May resize them.
    """

    def __init__(self, dataset: SegmentationDataset, preprocess: Preprocess) -> None:
        self.dataset = dataset
        self.preprocess = preprocess

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        index = key[1]
        sample = self.dataset[index]
        image = self.preprocess.resized(sample.image)
        return Batch(torch.from_numpy(image), torch.from_numpy(sample.label), torch.tensor(index))


def training_samples(recipe: Recipe, dataset: SegmentationDataset, preprocessing: Preprocessing) -> Dataset[Batch]:
    """Return what the network is trained on, by (epoch, index)."""
    options, preprocess = recipe.augmentation, Preprocess(*preprocessing)
    if options is None:
        return WholeSamples(dataset, preprocess)
    augment = Augment(
        preprocess,
        crop=options.crop if isinstance(options.crop, tuple) else (options.crop, options.crop),
        scale=options.scale,
        flip=options.flip,
        color_jitter=options.color_jitter,
        class_balance=options.class_balance,
    )
    return TrainingSamples(dataset, augment, recipe.seed)


def training_batches(
    samples: Dataset[Batch], sampler: StepSampler, workers: int, *, pin_memory: bool
) -> DataLoader[Batch]:
    """Return all batches of a run, without a break between epochs in which the workers would have nothing to do."""
    return _loader(samples, workers, batch_sampler=sampler, pin_memory=pin_memory)


def validation_batches(
    dataset: SegmentationDataset,
    preprocessing: Preprocessing,
    share: Sequence[int],
    workers: int,
    *,
    pin_memory: bool,
) -> DataLoader[Batch]:
    """Return the images ``share`` of a data set, whole and one by one, since they differ in size."""
    samples = WholeSamples(dataset, Preprocess(*preprocessing))
    keys = [(0, index) for index in share]
    return _loader(samples, workers, sampler=keys, batch_size=1, pin_memory=pin_memory, persistent_workers=workers > 0)


def _loader(samples: Dataset[Batch], workers: int, **options: Any) -> DataLoader[Batch]:
    return DataLoader(
        samples,
        num_workers=workers,
        # A generator of its own, so that loading does not draw from the one that dropout draws from.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_run,
        **options,
    )


def stop_workers(batches: Any) -> None:
    """End the workers behind an iterator of batches, if there are any.

    Python would end them by the signal that they ignore, and wait.
    """
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


def _leave_signals_to_the_run(worker: int) -> None:
    # Ctrl-C and a cluster's SIGTERM go to the workers too, which are needed until the run has stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
