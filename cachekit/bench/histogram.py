"""Latencies in logarithmic buckets: fixed memory, percentiles within 1.6 percent."""

from __future__ import annotations

_BITS = 6  # 64 buckets per power of two: a bucket is at most 1/64 wide
_SUB = 1 << _BITS
_EXACT = _SUB << 1  # below this every nanosecond has its own bucket
_MAX_BITS = 44  # about five hours in nanoseconds
_SIZE = (_MAX_BITS - _BITS) * _SUB + _EXACT


class Histogram:
    """Counts of durations in nanoseconds (after HdrHistogram: exponent and 6-bit mantissa).

    Not thread-safe: one per worker, merged afterwards.
    """

    __slots__ = ("_counts", "largest")

    def __init__(self) -> None:
        self._counts = [0] * _SIZE
        self.largest = 0

    def record(self, nanoseconds: int) -> None:
        if nanoseconds > self.largest:
            self.largest = nanoseconds
        shift = nanoseconds.bit_length() - _BITS - 1
        if shift <= 0:
            self._counts[nanoseconds] += 1
        elif shift > _MAX_BITS - _BITS:
            self._counts[-1] += 1
        else:
            self._counts[(shift << _BITS) + (nanoseconds >> shift)] += 1

    def merge(self, other: Histogram) -> None:
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self.largest = max(self.largest, other.largest)

    @property
    def count(self) -> int:
        return sum(self._counts)

    def percentile(self, percent: float) -> float | None:
        """The duration (nanoseconds) that ``percent`` of all did not exceed; None when empty."""
        total = self.count
        if not total:
            return None
        wanted = max(1, -(-total * percent // 100))
        seen = 0
        for bucket, n in enumerate(self._counts):
            seen += n
            if seen >= wanted:
                return min(_middle(bucket), float(self.largest))
        return float(self.largest)


def _middle(bucket: int) -> float:
    if bucket < _EXACT:
        return float(bucket)
    shift = (bucket >> _BITS) - 1
    low = (bucket - (shift << _BITS)) << shift
    return low + ((1 << shift) - 1) / 2
