"""Which samples each process sees, in which order, in which epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Give (epoch, index) pairs, shuffled anew each epoch, the same on every run with the same seed.

    The epoch goes along with the index so that a sample's augmentation depends on seed, epoch and index only, not
    on how many workers or processes there are or whether the run was resumed.

    Args:
        size: Number of samples of the whole set.
        seed: Seed of the order; None keeps the order.
        rank: Number of this process.
        world: Number of processes. The set is dealt out to them. With a seed the last few samples of an epoch's
            order are left out so that all get the same number; without one nothing is left out or repeated, so that
            scores are exact.
    """

    def __init__(self, size: int, seed: int | None, rank: int = 0, world: int = 1) -> None:
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch; the trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.seed is not None:
            return self.size // self.world
        return len(range(self.rank, self.size, self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = list(range(self.size))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()
        mine = order[self.rank :: self.world][: len(self)]
        return iter([(self.epoch, index) for index in mine])
