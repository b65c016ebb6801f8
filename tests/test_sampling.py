"""Who sees which sample, in which order, in which epoch."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_smp.data.sampling import EpochSampler

SIZES = st.integers(0, 60)
WORLDS = st.integers(1, 4)
SEEDS = st.integers(0, 2**40)


def dealt(size: int, seed: int | None, world: int, epoch: int = 0) -> list[list[int]]:
    """Return what each process gets in an epoch, having checked the epoch and the length."""
    hands = []
    for rank in range(world):
        sampler = EpochSampler(size, seed, rank, world)
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert len(sampler) == len(pairs)
        assert all(pair[0] == epoch for pair in pairs)
        hands.append([index for _, index in pairs])
    return hands


@settings(deadline=None)
@given(SIZES, WORLDS, st.integers(0, 5))
def test_validation_covers_each_sample_once_and_in_order(size: int, world: int, epoch: int) -> None:
    hands = dealt(size, None, world, epoch)
    assert sorted(index for hand in hands for index in hand) == list(range(size))
    assert all(hand == sorted(hand) for hand in hands)
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


@settings(deadline=None)
@given(SIZES, SEEDS, WORLDS, st.integers(0, 5))
def test_training_deals_out_equally_many_different_samples(size: int, seed: int, world: int, epoch: int) -> None:
    hands = dealt(size, seed, world, epoch)
    together = [index for hand in hands for index in hand]
    assert {len(hand) for hand in hands} == {size // world}
    assert len(set(together)) == len(together) > size - world
    assert set(together) <= set(range(size))


@settings(deadline=None)
@given(SIZES, SEEDS, st.integers(2, 4), st.integers(0, 5))
def test_order_does_not_depend_on_the_number_of_processes(size: int, seed: int, world: int, epoch: int) -> None:
    together = [index for turn in zip(*dealt(size, seed, world, epoch), strict=True) for index in turn]
    [alone] = dealt(size, seed, 1, epoch)
    assert together == alone[: len(together)]


@settings(deadline=None)
@given(SEEDS, st.integers(0, 5))
def test_order_changes_with_seed_and_epoch_and_with_nothing_else(seed: int, epoch: int) -> None:
    assert dealt(50, seed, 1, epoch) == dealt(50, seed, 1, epoch)
    assert dealt(50, seed, 1, epoch) != dealt(50, seed, 1, epoch + 1)
    assert dealt(50, seed, 1, epoch) != dealt(50, seed + 1, 1, epoch)


def test_epoch_may_be_set_again_as_a_resumed_run_does() -> None:
    sampler = EpochSampler(50, seed=7)
    epochs = []
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]


def test_samples_left_out_change_from_epoch_to_epoch() -> None:
    left_out = set()
    for epoch in range(60):
        hands = dealt(7, 0, 4, epoch)
        left_out |= set(range(7)) - {index for hand in hands for index in hand}
    assert left_out == set(range(7))
