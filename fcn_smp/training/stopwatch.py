"""Where the time of a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("wait", "forward", "backward", "step", "validate")


class Stopwatch:
    """Adds up seconds by part.

    On CUDA they are the device's, which lags behind the program; reading waits for it. ``wait``, for the loader, is
    the program's own time everywhere.

    Args:
        device: The device that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._running: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside as ``part``."""
        if self.on_cuda and part != "wait":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._running.append((part, start, end))
        else:
            started = time.perf_counter()
            yield
            self.seconds[part] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the seconds by part, and begin anew."""
        for part, start, end in self._running:
            end.synchronize()
            self.seconds[part] += start.elapsed_time(end) / 1000
        taken, self.seconds, self._running = self.seconds, dict.fromkeys(PARTS, 0.0), []
        return taken


class Deferred:
    """A small tensor on its way from the device, read later, so that the program need not wait for the device now."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.detach().to("cpu", non_blocking=tensor.is_cuda)
        self._arrived = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived:
            self._arrived.record()

    def read(self) -> list[float]:
        """Return the numbers."""
        if self._arrived:
            self._arrived.synchronize()
        numbers: list[float] = self._copy.tolist()
        return numbers
