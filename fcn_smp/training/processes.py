"""The processes that share a run, on one machine or several: started, kept in step and stopped together."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed import DistError

from fcn_smp.errors import UserError
from fcn_smp.recipe import Trainer

T = TypeVar("T")
Counter = TypeVar("Counter", bound=torch.nn.Module)


def launch(settings: Trainer) -> Fabric:
    """Start the other processes of a run, which go through the same command up to here, and connect to them.

    Under ``torchrun`` they are there already, as many as that was told.

    Raises:
        UserError: There are no such devices.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    devices: int | str = settings.devices
    nodes = settings.num_nodes
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    try:
        fabric = _fabric(settings, devices, nodes)
        try:
            fabric.launch()
        except ValueError as error:  # Slurm was asked for other tasks
            raise _refused(error) from error
    except UserError:
        if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) > 0:  # the others would say the same
            sys.exit(2)
        raise
    if not fabric.is_global_zero:
        warnings.simplefilter("ignore")  # the first process says it
    return fabric


def _fabric(settings: Trainer, devices: int | str, nodes: int) -> Fabric:
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=settings.strategy,
            precision=_precision(settings.precision, settings.accelerator),
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise _refused(error) from error
    if settings.precision == "fp16" and fabric.device.type == "cpu":
        raise UserError("trainer.precision: fp16 needs a GPU; on a CPU bf16 and fp32 do.")
    if settings.sync_batchnorm and fabric.device.type != "cuda":
        raise UserError("trainer.sync_batchnorm works on GPUs alone; leave it out.")
    return fabric


def _refused(error: Exception) -> UserError:
    return UserError(f"trainer: {' '.join(str(error).split())}")


@contextmanager
def in_company(fabric: Fabric) -> Iterator[None]:
    """Turn what is raised when another process has ended into a UserError."""
    try:
        yield
    except RuntimeError as error:
        lost = ("Connection closed", "Connection reset", "Broken pipe", "NCCL", "[c10d]")
        if fabric.world_size > 1 and (isinstance(error, DistError) or any(word in str(error) for word in lost)):
            raise UserError(
                "Another process of the run has ended, by a message of its own or killed; --resume goes on."
            ) from error
        raise


def together(fabric: Fabric, action: Callable[[], T]) -> T:
    """Do the same in all processes; if one of them fails, all do, and the first one says why.

    Raises:
        UserError: In the first process.
        SystemExit: With 2, in the others.
    """
    result, failure = None, None
    try:
        result = action()
    except UserError as error:
        failure = error
    if fabric.world_size > 1:
        failures: list[str | None] = [None] * fabric.world_size
        torch.distributed.all_gather_object(failures, str(failure) if failure else None)
        first = next((message for message in failures if message is not None), None)
        if first is not None and not fabric.is_global_zero:
            sys.exit(2)
        if first is not None and failure is None:
            failure = UserError(first)
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def add_up(fabric: Fabric, values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over the processes."""
    if fabric.world_size == 1:
        return values
    total = fabric.all_reduce(values, reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return total


def add_up_counts(fabric: Fabric, counter: Counter) -> Counter:
    """Add up the buffers of what counts over the processes, in place."""
    for buffer in counter.buffers():
        buffer.copy_(add_up(fabric, buffer.to(fabric.device)))
    return counter


class Interruption:
    """Takes note of Ctrl-C and SIGTERM, for the run to stop where it can be resumed; a second one stops at once.

    Attributes:
        asked: There was one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _precision(asked: str, accelerator: str) -> Any:
    names = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
    if asked != "auto":
        return names[asked]
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return names["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
    # Without such instructions bfloat16 is emulated, which is slower than float32.
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return names["bf16" if on_cpu and fast else "fp32"]
