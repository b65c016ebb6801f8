"""Threads beside the network: they read what it takes next, and work on what it gave last.

Neither gets far from the network, so that memory does not grow with the number of images.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TypeVar

from fcn_smp.errors import UserError

COUNT, MEMORY = 32, 2**28
"""How many images, and bytes of images, may wait to be read, to be run, and to be worked on, each; one may always."""


class Bulky(Protocol):
    """An array, or something that holds some."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


T = TypeVar("T")
R = TypeVar("R")
B = TypeVar("B", bound=Bulky)


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give threads, and on the way out, also by Ctrl-C, forget what they have not begun."""
    # One pool for all: what is to be read waits for what was to be worked on before, which cannot pile up.
    pool = ThreadPoolExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(
    pool: ThreadPoolExecutor,
    items: Iterable[T],
    read: Callable[[T], B],
    failed: Callable[[T, UserError], None] | None = None,
) -> Iterator[tuple[T, B]]:
    """Yield items and what is read of them, in order, while the next ones are being read.

    Args:
        pool: The threads that read.
        items: What to read.
        read: Reads an item.
        failed: Called with an item that cannot be read, in its turn, and why; None: that is raised.
    """
    remaining = iter(items)
    ahead: deque[tuple[T, Future[B]]] = deque()
    room = 1  # until it is known how large images are
    while True:
        for item in islice(remaining, max(0, room - len(ahead))):
            ahead.append((item, pool.submit(read, item)))
        if not ahead:
            return
        item, future = ahead.popleft()
        try:
            image = future.result()
        except UserError as error:
            if failed is None:
                raise
            failed(item, error)
        else:
            room = max(1, min(COUNT, MEMORY // max(1, image.nbytes)))
            yield item, image


def work_behind(
    pool: ThreadPoolExecutor, items: Iterable[tuple[T, int]], work: Callable[[T], R]
) -> Iterator[tuple[T, Future[R]]]:
    """Yield items and the work on them when it is done, in order, while the next items are being made.

    Args:
        pool: The threads that work.
        items: What to work on, each with its size in bytes.
        work: Works on an item.
    """
    waiting: deque[tuple[T, Future[R], int]] = deque()
    for item, size in items:
        waiting.append((item, pool.submit(work, item), size))
        while waiting and (waiting[0][1].done() or len(waiting) > COUNT or sum(size for *_, size in waiting) > MEMORY):
            yield waiting.popleft()[:2]
    while waiting:
        yield waiting.popleft()[:2]
