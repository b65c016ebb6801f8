"""What one training and one validation step are."""

from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor

from fcn_smp.losses import SegmentationLoss
from fcn_smp.metrics import ConfusionMatrix, Scores
from fcn_smp.optim import constant, cosine, parameter_groups, poly, warm_up_then
from fcn_smp.recipe import SGD, Recipe
from fcn_smp.training.data_module import Batch


class SegmentationTask(lightning.LightningModule):
    """Trains a network by a recipe and scores it on whole images.

    Args:
        model: The network.
        loss: Loss of logits and labels.
        recipe: Says how to optimise.
        classes: Number of classes.

    Attributes:
        scores: Metrics of the last validation, None before the first.
    """

    def __init__(self, model: SegmentationModel, loss: SegmentationLoss, recipe: Recipe, classes: int) -> None:
        super().__init__()
        # Channels last is what convolutions on CPUs with bfloat16 and on GPUs with tensor cores want.
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = loss
        self.recipe = recipe
        self.confusion = ConfusionMatrix(classes, loss.ignore_index)
        self.scores: Scores | None = None

    def on_train_epoch_start(self) -> None:
        """Seed dropout anew, so that a resumed run draws what it would have drawn, and hold what is frozen still."""
        for module in self.model.modules():
            parameters = list(module.parameters(recurse=False))
            if hasattr(module, "running_mean") and parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        state = np.random.SeedSequence((self.recipe.seed, self.current_epoch, self.global_rank)).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch of crops."""
        images, labels = batch
        loss: Tensor = self.loss(self.model(images.contiguous(memory_format=torch.channels_last)), labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(loss.item())
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin a new confusion matrix."""
        self.confusion.reset()

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Score one whole image; return the predicted labels (1, H, W)."""
        images, labels = batch
        prediction: Tensor = self.model(images).argmax(1)
        self.confusion.update(prediction, labels)
        return prediction

    def on_validation_epoch_end(self) -> None:
        """Add up the confusion matrices of all processes."""
        counts: Any = self.trainer.strategy.reduce(self.confusion.counts, reduce_op="sum")
        self.confusion.counts.copy_(counts)
        self.scores = self.confusion.scores()
        self.log("mean_iu", self.scores.mean_iu)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimiser and its schedule, stepped with every batch."""
        options = self.recipe.optimizer
        groups = parameter_groups(
            self.model, options.lr, options.encoder_lr, options.weight_decay, options.bias_lr_factor
        )
        optimizer: torch.optim.Optimizer
        if isinstance(options, SGD):
            optimizer = torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov)
        else:
            optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.kind](groups)
        schedule = self.recipe.schedule
        decay = {"cosine": cosine, "poly": poly(schedule.power), "constant": constant}[schedule.kind]
        factor = warm_up_then(decay, schedule.warmup_steps, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
