"""What goes wrong in training without an error, said at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.models.coarse import CoarseScores
from fcn_smp.training.loaders import Batch

WAITING = 0.2
"""Share of the time spent waiting for data from which a run says so."""
VOID = 0.1
"""Share of crops without a labelled pixel, likewise."""


class NotFinite(Exception):  # noqa: N818  (it becomes a UserError where the batch has been saved)
    """The loss or a weight is not a finite number any more.

    Args:
        what: A sentence that says which, without its end.
        step: After which step, from 0.
        batch: What the network was given in that.
    """

    def __init__(self, what: str, step: int, batch: Batch) -> None:
        super().__init__(what)
        self.step = step
        self.batch = batch


@torch.no_grad()
def symptoms(scores: CoarseScores, labels: Tensor) -> Tensor:
    """Return how many crops are void all over, and 1 or 0 for: is more predicted, and is there more, than background?

    For these two, every eighth pixel of every eighth row is looked at, and the score that is nearest to it.

    Args:
        scores: Of N images.
        labels: int64 (N, H, W).
    """
    void = (labels == IGNORE_INDEX).flatten(1).all(1).sum()
    sample, truth = scores.sample(8), labels[..., ::8, ::8]
    something = ((truth != 0) & (truth != IGNORE_INDEX)).any()
    # Ties count as background, which comes first; a single logit stands against 0.
    background = sample[:, :1] if sample.shape[1] > 1 else sample.new_zeros(())
    other = (background < sample).any()
    return torch.stack([void, other, something]).float()


class Health:
    """Watches the steps of one process.

    Args:
        warn: Called with a sentence for each thing that is wrong.
        ids: What the training images are called.
        background: Name of the first class.
        collapse_steps: Steps in a row with nothing but background that are worth a warning.
    """

    def __init__(self, warn: Callable[[str], None], ids: Sequence[str], background: str, collapse_steps: int) -> None:
        self.warn = warn
        self.ids = ids
        self.background = background
        self.collapse_steps = collapse_steps
        self.collapsed = 0
        self.something = False
        self.void = 0
        self.crops = 0
        self._said: set[str] = set()

    def step(self, step: int, batch: Batch, void: int, other: bool, something: bool) -> None:
        """Look at what ``symptoms`` found in a step, counted from 0."""
        self.void += void
        self.crops += len(batch.indices)
        if void == len(batch.indices):
            self._once(
                "void",
                f"No crop of step {step + 1} has a labelled pixel ({self.names(batch)}); enlarge augmentation.crop or"
                " set augmentation.class_balance.",
            )
        self.collapsed = 0 if other else self.collapsed + 1
        self.something = not other and (self.something or something)
        if self.collapsed >= self.collapse_steps and self.something:
            self._once(
                "collapsed",
                f"For {self.collapsed} steps all pixels have been called {self.background}, though the labels have"
                " more; try other optimizer.lr and optimizer.encoder_lr, loss.class_weights: median_frequency or"
                " augmentation.class_balance: 0.5.",
            )

    def epoch(self, epoch: int, wait: float, seconds: float, workers: int) -> None:
        """Look back at an epoch, counted from 0, of so many seconds, some of which went into waiting for data."""
        if self.void > VOID * self.crops:
            self._once(
                "some void",
                f"In epoch {epoch + 1} {self.void} of {self.crops} crops had no labelled pixel; enlarge"
                " augmentation.crop or set augmentation.class_balance.",
            )
        if wait > WAITING * seconds:
            self._once(
                "wait",
                f"In epoch {epoch + 1} {wait / seconds:.0%} of the time went into waiting for data; with more"
                f" trainer.workers than {workers}, or data.cache: ram, the device would have more to do.",
            )
        self.void, self.crops = 0, 0

    def names(self, batch: Batch) -> str:
        """Return what the images of a batch are called."""
        return ", ".join(self.ids[index] for index in batch.indices.tolist())

    def _once(self, what: str, sentence: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self.warn(sentence)


def check_rates(factor: Callable[[int], float], steps: int) -> list[str]:
    """Return what is wrong with a schedule of so many steps, given the rate's factor at each."""
    highest = max(factor(step) for step in range(steps))
    if highest < 1:
        return [
            f"The learning rate gets no further than {highest:.0%} of what the recipe says, since"
            f" schedule.warmup_steps is more than the {steps} steps of the run."
        ]
    return []
