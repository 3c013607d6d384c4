"""A measured figure: mean, interval, count, and how the interval was made."""

import dataclasses
import math
from dataclasses import dataclass

from ...base.errors import InputError, NumericsError


@dataclass(frozen=True)
class Value:
    """One figure of a table. Without an interval (`low` and `high` both None) it prints as a bare number."""

    mean: float
    """The figure itself."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    n: int = 1
    """Number of units behind the figure; `unit` says which."""
    unit: str = ""
    """What `n` counts: «concepts», «items», …"""
    method: str = ""
    """How the interval was made: «Wilson», «t», «hierarchical bootstrap», …"""
    level: float = 0.95
    """Coverage of the interval."""

    def __post_init__(self) -> None:
        for name in ("mean", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise NumericsError(f"value: {name} is {number}; find the item that made it and drop or mend it")
        if (self.low is None) != (self.high is None):
            raise InputError("value: low and high go together; give both or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InputError(f"value: low {self.low} lies above high {self.high}")
        if self.n < 1:
            raise InputError(f"value: n is {self.n}; a figure of nothing is not a figure")

    def scaled(self, factor: float) -> "Value":
        """The same figure in another unit (`factor` 100 for percent); a negative factor swaps the ends."""
        if self.low is None or self.high is None:
            return dataclasses.replace(self, mean=self.mean * factor)
        ends = sorted((self.low * factor, self.high * factor))
        return dataclasses.replace(self, mean=self.mean * factor, low=ends[0], high=ends[1])

    def overlaps(self, other: "Value") -> bool:
        """Whether the two intervals share a point (a bare number is an interval of no width)."""
        mine, theirs = self.interval, other.interval
        return mine[0] <= theirs[1] and theirs[0] <= mine[1]

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high), both the mean where there is no interval."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)

    def text(self, digits: int = 3) -> str:
        """`0.512 [0.470, 0.554]`, or `0.512` without an interval."""
        if self.low is None or self.high is None:
            return _fixed(self.mean, digits)
        return f"{_fixed(self.mean, digits)} [{_fixed(self.low, digits)}, {_fixed(self.high, digits)}]"


def _fixed(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text  # no «-0.000»
