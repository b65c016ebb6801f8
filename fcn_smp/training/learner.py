"""The network and what changes its weights."""

from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from fcn_smp.errors import UserError
from fcn_smp.models.base import Network
from fcn_smp.optim import batch_factor, build_optimizer, learning_rate_factor, parameter_groups
from fcn_smp.recipe import SGD, Recipe
from fcn_smp.training.health import symptoms
from fcn_smp.training.parts import Parts
from fcn_smp.training.stopwatch import Stopwatch


class Learner:
    """Learns from one batch after the other, together with its like in the other processes.

    Args:
        fabric: The processes and devices.
        recipe: Says how.
        parts: The network, the loss, and what is frozen.
        steps_per_epoch: Steps of an epoch.

    Attributes:
        model: The network, as it is in a single process.
        average: The moving average of its weights, if one is asked for.
        rates: Learning rate of each group of the optimiser, before the schedule.
        factor: The schedule: the factor of the rates in each step.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, parts: Parts, steps_per_epoch: int) -> None:
        self.fabric = fabric
        self.recipe = recipe
        self.loss = parts.loss.to(fabric.device)
        self.frozen = parts.frozen
        options = recipe.trainer
        self.memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = fabric.to_device(parts.model.to(memory_format=self.memory_format))
        if options.sync_batchnorm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.optimizer = self._build_optimizer()
        scale = batch_factor(recipe.optimizer.kind, options.batch_size, recipe.optimizer.reference_batch)
        self.rates = [scale * group["lr"] for group in self.optimizer.param_groups]
        self.factor = learning_rate_factor(
            **recipe.schedule.model_dump(),
            steps_per_epoch=steps_per_epoch,
            total_steps=options.epochs * steps_per_epoch,
        )
        self.average = ModelEmaV3(self.model, options.ema, use_warmup=True) if options.ema else None
        self._network: _FabricModule | None = None
        self._is_sorted = True

    def _build_optimizer(self) -> Any:
        options = self.recipe.optimizer
        for parameter in self.frozen:  # what is trained later belongs to the optimiser from the start
            parameter.requires_grad_(self.recipe.model.frozen_epochs is not None)
        groups = parameter_groups(
            self.model,
            options.lr,
            options.encoder_lr,
            options.weight_decay,
            options.bias_lr_factor,
            options.layer_decay,
        )
        more = options.model_dump(include={"momentum", "nesterov"}) if isinstance(options, SGD) else {}
        return self.fabric.setup_optimizers(build_optimizer(options.kind, groups, fused=self._is_fused(), **more))

    def _is_fused(self) -> bool:
        fused = self.recipe.optimizer.fused
        # Those kernels take back the scale of fp16 themselves, too late for a norm to be clipped.
        scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None
        if fused and scaled and self.recipe.trainer.gradient_clip:
            raise UserError("optimizer.fused does not go with trainer.gradient_clip in fp16; leave one of them out.")
        return (self.fabric.device.type == "cuda" and not scaled) if fused is None else fused

    @property
    def kept(self) -> Network:
        """The network that is validated and kept: the average, if there is one."""
        network: Network = self.average.module if self.average else self.model
        return network

    def begin_epoch(self, epoch: int) -> None:
        """Set the network's parts to what they do in an epoch, counted from 0: learn, or stay as they are."""
        frozen_epochs = self.recipe.model.frozen_epochs
        if self._network is None or epoch == frozen_epochs:
            for parameter in self.frozen:
                parameter.requires_grad_(frozen_epochs is not None and epoch >= frozen_epochs)
            # Anew where frozen parts thaw: whose gradients are shared is settled here.
            network: Any = torch.compile(self.model) if self.recipe.trainer.compile else self.model
            self._network = self.fabric.setup_module(network)
            self._is_sorted = self.fabric.world_size == 1
        self._set_modes()

    def _set_modes(self) -> None:
        self.model.train()
        for module in self.model.modules():
            parameters = list(module.parameters(recurse=False))
            if hasattr(module, "running_mean") and parameters and not any(p.requires_grad for p in parameters):
                module.eval()  # statistics are part of what is frozen

    def learn(self, images: Tensor, labels: Tensor, normalizer: Tensor, step: int, watch: Stopwatch) -> Tensor:
        """Take one step, counted from 0.

        Args:
            images: This process's share of the batch, float32 (N, 3, H, W).
            labels: Likewise, int64 (N, H, W).
            normalizer: What the loss of the whole batch is divided by.
            step: Which step it is.
            watch: Told what takes how long.

        Returns:
            This share's part of the loss, and the three numbers of ``fcn_smp.training.health.symptoms``.
        """
        pieces = self.recipe.trainer.accumulate
        if not self._is_sorted:
            self._sort_gradients(images.tensor_split(pieces)[0])
        self._seed(step)
        numbers = torch.zeros(4, device=images.device)
        for number, piece in enumerate(zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)):
            with self._apart(number < pieces - 1):
                numbers += self._forward_backward(*piece, normalizer, watch)
        with watch("step"):
            self._update(step)
        return numbers

    def _sort_gradients(self, images: Tensor) -> None:
        """Let DDP choose the order in which it adds gradients up, which it does after its first step.

        That step is none: else the first one of a resumed run would add up in another order than it would have.
        """
        assert self._network is not None
        self.model.eval()
        self.fabric.backward(self._network(images).sum() * 0)
        self.optimizer.zero_grad()
        self._set_modes()
        self._is_sorted = True

    def _seed(self, step: int) -> None:
        """Seed dropout for a step, so that a resumed run draws what it would have drawn."""
        key = (self.recipe.seed, step, self.fabric.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _apart(self, more: bool) -> Any:
        """Keep gradients from being shared before the last piece of a batch."""
        assert self._network is not None
        return self.fabric.no_backward_sync(self._network, enabled=more and self.fabric.world_size > 1)

    def _forward_backward(self, images: Tensor, labels: Tensor, normalizer: Tensor, watch: Stopwatch) -> Tensor:
        assert self._network is not None
        world = self.fabric.world_size
        with watch("forward"):
            # The loss upsamples by itself, some rows at a time.
            scores = self.model.place(self._network(images, upsample=False), images.shape[2:])
            loss = self.loss(scores, labels, normalizer, parts=self.recipe.trainer.accumulate * world)
        with watch("backward"):
            # Gradients are averaged over the processes, but the loss is a sum over them.
            self.fabric.backward(loss * world)
        return torch.cat([loss.detach()[None], symptoms(scores, labels)])

    def _update(self, step: int) -> None:
        clip = self.recipe.trainer.gradient_clip
        if clip:
            assert self._network is not None
            self.fabric.clip_gradients(self._network, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.model, step + 1)

    def decoder_rate(self, step: int) -> float:
        """Return the learning rate of the decoder in a step; that of its biases may be larger."""
        groups = zip(self.rates, self.optimizer.param_groups, strict=True)
        rates = [rate for rate, group in groups if group["name"] == "decoder"]
        return min(rates, default=float("nan")) * self.factor(step)

    def state_dict(self) -> dict[str, Any]:
        """Return all that it takes to go on."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.fabric.strategy.precision.load_state_dict(content["precision"])
        if self.average:
            self.average.module.load_state_dict(content["average"])
