"""Who trains on which sample, in which step."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_smp.data.sampling import StepSampler

BATCHES = st.tuples(st.integers(1, 4), st.integers(1, 3))
"""Processes, and samples of each in a step."""
SEEDS = st.integers(0, 2**40)
EXTRA = st.integers(0, 50)
"""Samples of a set besides those of one batch."""


def dealt(size: int, seed: int, batch: int, steps: range, world: int = 1) -> list[list[list[tuple[int, int]]]]:
    """Return what each process gets in each step, having checked the length."""
    hands = []
    for rank in range(world):
        sampler = StepSampler(size, batch, seed, steps, rank, world)
        hands.append(list(sampler))
        assert len(sampler) == len(hands[-1]) == len(steps)
    return hands


@settings(deadline=None)
@given(BATCHES, EXTRA, SEEDS, st.integers(0, 5))
def test_an_epoch_deals_out_different_samples_and_leaves_less_than_a_batch(shape, extra, seed, epoch):
    world, share = shape
    batch = world * share
    size, per_epoch = batch + extra, (batch + extra) // batch
    hands = dealt(size, seed, batch, range(epoch * per_epoch, (epoch + 1) * per_epoch), world)
    pairs = [pair for hand in hands for step in hand for pair in step]
    assert {len(step) for hand in hands for step in hand} == {share}
    assert {drawn for drawn, _ in pairs} == {epoch}
    indices = [index for _, index in pairs]
    assert len(set(indices)) == len(indices) == per_epoch * batch > size - batch
    assert set(indices) <= set(range(size))


@settings(deadline=None)
@given(BATCHES, EXTRA, SEEDS)
def test_a_step_has_the_same_samples_however_many_processes_share_it(shape, extra, seed):
    world, share = shape
    batch = world * share
    steps = range(3 * (batch + extra) // batch)
    [alone] = dealt(batch + extra, seed, batch, steps)
    shared = dealt(batch + extra, seed, batch, steps, world)
    for step in steps:
        together = [pair for turn in zip(*(hand[step] for hand in shared), strict=True) for pair in turn]
        assert together == alone[step]


@settings(deadline=None)
@given(st.integers(1, 6), EXTRA, SEEDS, st.integers(0, 40), st.integers(0, 40))
def test_going_on_from_any_step_gives_what_would_have_come(batch, extra, seed, first, more):
    [whole] = dealt(batch + extra, seed, batch, range(first + more))
    [rest] = dealt(batch + extra, seed, batch, range(first, first + more))
    assert rest == whole[first:]


@settings(deadline=None)
@given(SEEDS, st.integers(0, 5))
def test_order_changes_with_seed_and_epoch_and_with_nothing_else(seed, epoch):
    def order(seed, epoch):
        [[step]] = dealt(50, seed, 50, range(epoch, epoch + 1))
        return [index for _, index in step]

    assert order(seed, epoch) == order(seed, epoch)
    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order(seed + 1, epoch)


def test_samples_left_out_change_from_epoch_to_epoch():
    left_out = set()
    for epoch in range(60):
        [[step]] = dealt(7, 0, 4, range(epoch, epoch + 1))
        left_out |= set(range(7)) - {index for _, index in step}
    assert left_out == set(range(7))
