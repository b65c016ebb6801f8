"""Which samples each process trains on, in which step."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Give this process its share of each step's batch, as (epoch, index) pairs.

    What a step trains on depends on the seed and the step alone: not on how many processes share it, nor on where a
    run was resumed. The order is drawn anew for each epoch, and its last images that fill no batch are left out. The
    epoch goes along with the index so that a sample's augmentation, too, depends on seed, epoch and index only.

    Args:
        size: Number of samples of the set.
        batch_size: Samples of a step, over all processes.
        seed: Seed of the order.
        steps: The steps to give.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(self, size: int, batch_size: int, seed: int, steps: range, rank: int = 0, world: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.steps = steps
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        drawn, order = -1, list[int]()
        for step in self.steps:
            epoch, position = divmod(step, self.size // self.batch_size)
            if epoch != drawn:
                drawn = epoch
                order = np.random.default_rng((self.seed, epoch)).permutation(self.size).tolist()
            batch = order[position * self.batch_size :][: self.batch_size]
            yield [(epoch, index) for index in batch[self.rank :: self.world]]
