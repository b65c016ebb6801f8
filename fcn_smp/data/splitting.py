"""Splits of data sets that have no official ones, and whether splits overlap."""

from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import accumulate

import numpy as np

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.errors import UserError

LISTS = resources.files("fcn_smp.data").joinpath("splits")


def packaged_ids(name: str) -> list[str]:
    """Return the ids of a list that comes with the package, such as ``voc2012_val``."""
    return LISTS.joinpath(f"{name}.txt").read_text(encoding="utf-8").split()


def random_split(ids: Sequence[str], shares: Mapping[str, float], split: str, seed: int) -> list[str]:
    """Return the ids of one of several disjoint random splits, the same for the same ids, shares and seed.

    Args:
        ids: Ids of all samples, in any order.
        shares: Share of each split by its name; their sum is 1.
        split: Name of the split, or ``"all"``.
        seed: Seed of the drawing.

    Returns:
        The ids of the split, sorted.

    Raises:
        UserError: There is no such split, or no id falls into it.
    """
    if split == "all":
        return sorted(ids)
    if split not in shares:
        raise UserError(f"There is no split {split!r}; there are {', '.join(shares)} and all.")
    order = np.random.default_rng(seed).permutation(sorted(ids))
    ends = [round(end * len(ids)) for end in accumulate(shares.values())]
    place = list(shares).index(split)
    chosen = sorted(map(str, order[ends[place - 1] if place else 0 : ends[place]]))
    if not chosen:
        raise UserError(f"{len(ids)} images are too few for a split {split!r} of {shares[split]:.0%}.")
    return chosen


def shared_samples(first: SegmentationDataset, second: SegmentationDataset) -> list[str]:
    """Return the ids of the samples of ``first`` that are in ``second`` too.

    What counts is the image's file: folders of different splits may each number their images from 1.
    """
    images = {image for _, image, _ in second.files}
    return [id_ for id_, image, _ in first.files if image in images]
