"""Times and sizes in words."""

from job.format import byte_size, duration


def test_times() -> None:
    times = [duration(seconds) for seconds in (0.4, 59.6, 3599, 3600, 90000, -5)]
    assert times == ["0s", "1m00s", "59m59s", "1h00m", "1d01h", "0s"]


def test_sizes() -> None:
    sizes = [byte_size(count) for count in (0, 999, 1000, 1_550_000, 10**9, 3 * 10**12)]
    assert sizes == ["0 bytes", "999 bytes", "1 kB", "1.6 MB", "1.0 GB", "3.0 TB"]
