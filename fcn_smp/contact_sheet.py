"""A picture of some samples of a data set, as they are and as the network sees them."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from fcn_smp import drawing
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.drawing import Tile
from fcn_smp.errors import UserError
from fcn_smp.models.encoder import encoder_preprocessing
from fcn_smp.recipe import Recipe

DRAWS = 3
"""How often a sample is augmented."""


def contact_sheet(recipe: Recipe, split: str, samples: int, *, augmented: bool = False) -> Image.Image:
    """Draw samples of a split, chosen at random by the recipe's seed, each with its label.

    Args:
        recipe: Says what the data set is, and how it is augmented.
        split: The split to draw from.
        samples: How many samples, or all if there are fewer.
        augmented: Show beside each sample what the network is given of it in the first epochs of training.

    Raises:
        UserError: The split is unknown or empty, a file is missing or damaged, or the recipe does not augment.
    """
    if augmented and recipe.augmentation is None:
        raise UserError("augmentation is null in the recipe: the network sees the samples as they are.")
    dataset = recipe.data.load(split)
    draw = _augmentation(recipe, dataset) if augmented else None
    tiles = []
    for index in sorted(np.random.default_rng(recipe.seed).permutation(len(dataset))[:samples].tolist()):
        sample = dataset[index]
        tiles.append(Tile(sample.image, sample.label, sample.id))
        if draw:
            tiles += [draw(epoch, index) for epoch in range(DRAWS)]
    return drawing.contact_sheet(tiles, dataset.palette, dataset.classes, columns=DRAWS + 1)


def _augmentation(recipe: Recipe, dataset: SegmentationDataset) -> Callable[[int, int], Tile]:
    from fcn_smp.training.loaders import training_samples

    # Not that of the weights, which may have to be fetched: it but colours the padding.
    preprocessing = encoder_preprocessing(recipe.model.encoder_name)._replace(resize=recipe.preprocessing.resize)
    samples = training_samples(recipe, dataset, preprocessing)

    def draw(epoch: int, index: int) -> Tile:
        image, label, _ = samples[epoch, index]
        return Tile(image.numpy(), label.numpy(), f"in epoch {epoch + 1}")

    return draw
