"""The loaders of a run."""

from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.sampling import EpochSampler
from fcn_smp.data.transforms import Augment, Preprocess
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.recipe import Recipe

Batch = tuple[Tensor, Tensor]
"""Images, float32 (N, 3, H, W), and labels, int64 (N, H, W)."""


class TrainingSamples(Dataset[Batch]):
    """Augmented samples by (epoch, index)."""

    def __init__(self, dataset: SegmentationDataset, augment: Augment, seed: int) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        sample = self.dataset[index]
        return self.augment(sample.image, sample.label, seed=(self.seed, epoch, index))


class WholeSamples(Dataset[Batch]):
    """Whole images at native size by (epoch, index)."""

    def __init__(self, dataset: SegmentationDataset, preprocess: Preprocess) -> None:
        self.dataset = dataset
        self.preprocess = preprocess

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        sample = self.dataset[key[1]]
        return self.preprocess(sample.image), torch.from_numpy(sample.label).long()


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
    )
    return TrainingSamples(dataset, augment, recipe.seed)


class SegmentationDataModule(lightning.LightningDataModule):
    """Loaders for augmented training crops and whole validation images.

    Args:
        recipe: Says how to augment and load.
        train: Samples to train on.
        val: Samples to validate on.
        preprocessing: What the network expects of its input.
    """

    def __init__(
        self, recipe: Recipe, train: SegmentationDataset, val: SegmentationDataset, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.train = train
        self.val = val
        self.preprocessing = preprocessing

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled batches; a last batch that is not full is left out."""
        samples = training_samples(self.recipe, self.train, self.preprocessing)
        if self.recipe.augmentation is None:
            return self._loader(samples, len(self.train), self.recipe.seed, batch_size=1)
        return self._loader(samples, len(self.train), self.recipe.seed, self.recipe.trainer.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation images one by one, since they differ in size."""
        samples = WholeSamples(self.val, Preprocess(*self.preprocessing))
        return self._loader(samples, len(self.val), None, batch_size=1)

    def _loader(
        self, samples: Dataset[Batch], size: int, seed: int | None, batch_size: int, **options: Any
    ) -> DataLoader[Batch]:
        assert self.trainer is not None
        sampler = EpochSampler(size, seed, self.trainer.global_rank, self.trainer.world_size)
        workers = self.recipe.trainer.workers
        return DataLoader(
            samples,
            batch_size,
            sampler=sampler,
            # A generator of its own, so that loading does not draw from the one that dropout draws from.
            generator=torch.Generator(),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
            **options,
        )
