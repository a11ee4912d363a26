"""The batch order: every window once in an epoch, the same on any machine at any step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from corpus import DataError
from corpus.dataset import BatchOrder


def epoch(order: BatchOrder, number: int) -> np.ndarray:
    first = number * order.windows_per_epoch
    steps = range(
        first // order.sequences_per_step,
        (first + order.windows_per_epoch) // order.sequences_per_step + 1,
    )
    starts = np.concatenate([order.windows(step) for step in steps])
    skip = first - steps[0] * order.sequences_per_step
    return starts[skip : skip + order.windows_per_epoch]


@pytest.mark.parametrize("num_tokens", [17, 31, 32, 33, 48, 1000, 16 * 1009, 123_457])
def test_an_epoch_reads_each_window_once(num_tokens: int) -> None:
    order = BatchOrder(num_tokens, 16, 7, seed=1)
    for number in (0, 1, 5):
        starts = np.sort(epoch(order, number))
        assert starts[0] >= 0
        assert (np.diff(starts) == 16).all()
        assert starts[-1] + 17 <= num_tokens
        assert starts[0] < 16 or order.windows_per_epoch == 1
        assert num_tokens - 16 * len(starts) <= 32


def test_epochs_differ_in_order_and_in_their_windows() -> None:
    order = BatchOrder(100_000, 64, 8, seed=1)
    epochs = [epoch(order, number) for number in range(8)]
    assert len({int(starts.min()) for starts in epochs}) > 4
    assert all((a // 64 != b // 64).mean() > 0.9 for a, b in pairwise(epochs))


def test_seeds_differ() -> None:
    one, two = (BatchOrder(100_000, 64, 8, seed) for seed in (1, 2))
    assert (epoch(one, 0) // 64 != epoch(two, 0) // 64).mean() > 0.9


def test_the_order_looks_random() -> None:
    windows = epoch(BatchOrder(64 * 40_001, 64, 8, seed=3), 0) // 64
    assert len(windows) == 40_000
    assert abs(np.corrcoef(windows[:-1], windows[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(windows, np.arange(40_000))[0, 1]) < 0.02
    # A random permutation has one fixed point on average, also with 40,000 elements.
    assert (windows == np.arange(40_000)).sum() < 8


def test_small_permutations_are_uniform() -> None:
    order = BatchOrder(5 * 4 + 1, 4, 4, seed=0)
    assert order.windows_per_epoch == 4
    counts: dict[tuple[int, ...], int] = {}
    for number in range(1200):
        key = tuple(np.argsort(epoch(order, number)).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert min(counts.values()) > 20
    assert max(counts.values()) < 90


def test_a_step_is_the_same_for_any_split_of_the_batch() -> None:
    whole = BatchOrder(50_000, 32, 12, seed=5)
    parts = BatchOrder(50_000, 32, 4, seed=5)
    for step in (0, 1, 200, 100_000):
        thirds = [parts.windows(3 * step + i) for i in range(3)]
        assert (whole.windows(step) == np.concatenate(thirds)).all()


def test_the_order_is_the_recorded_one() -> None:
    # A run of an older release must resume with the same data.
    assert BatchOrder(1_003_854, 64, 6, seed=1337).windows(1000).tolist() == [
        153409,
        894785,
        121537,
        432833,
        979265,
        145089,
    ]


def test_a_hundred_billion_tokens_need_no_memory() -> None:
    order = BatchOrder(10**11, 1024, 512, seed=1)
    starts = np.concatenate([order.windows(step) for step in range(0, 200_000, 2000)])
    assert len(np.unique(starts)) == len(starts)
    assert starts.max() + 1025 <= 10**11
    assert starts.max() > 9 * 10**10


def test_data_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"has 64 tokens.*needs at least 65; use model\.block_size=63 or more text"
    ):
        BatchOrder(64, 64, 1, seed=0)
    assert BatchOrder(65, 64, 2, seed=0).windows(3).tolist() == [0, 0]
