"""What a grid is: axes, what the cells share, what some of them get besides; read from YAML, on top of another grid where it says so."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...base.errors import InputError, MatchedNothing, UnknownName
from ...base.files import digest

FORMAT = 1
KEYS = ("format", "extends", "cell", "axes", "common", "where", "exclude")


@dataclass(frozen=True)
class Cell:
    """One point of a grid."""

    function: str
    """`package.module:function`."""
    axes: Mapping[str, Any]
    """Axis -> the value here."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """What every cell gets besides."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the function is called with."""
        return {**self.common, **self.axes}

    @property
    def key(self) -> str:
        """Digest of the function's name and all inputs: the cell's identity, whatever grid it stands in."""
        return digest({"function": self.function, "inputs": self.inputs})


@dataclass(frozen=True)
class Rule:
    """Inputs for some of the cells."""

    when: Mapping[str, Any]
    """Axis -> value, or a list of values: a cell that has it, or one of them, on each of these axes gets what follows."""
    use: Mapping[str, Any]
    """Inputs, laid over what is common and over earlier rules; mappings are merged key by key."""

    def fits(self, at: Mapping[str, Any]) -> bool:
        """Whether the cell at this point gets them."""
        return matches(self.when, at)


@dataclass(frozen=True)
class Grid:
    """A product of axes, less what is excluded."""

    cell: str
    """The function that computes a cell, as `package.module:function`; imported only where a cell is computed."""
    axes: Mapping[str, tuple[Any, ...]]
    """Axis -> its values (plain values or mappings of them)."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """Inputs that every cell shares."""
    exclude: tuple[Mapping[str, Any], ...] = ()
    """Patterns: a cell that has all values of one of them is left out; a list stands for any of its values."""
    where: tuple[Rule, ...] = ()
    """Inputs of some of the cells, in order. A cell's key depends on the rules alone that fit it."""

    def __post_init__(self) -> None:
        module, colon, function = self.cell.partition(":")
        if not (module and colon and function.isidentifier()):
            raise InputError(f"cell: {self.cell!r}; write package.module:function")
        if not self.axes or any(not values for values in self.axes.values()):
            raise MatchedNothing("axes: every axis needs at least one value, and there must be one axis")
        for name, inputs in (("common", self.common), *((f"where {dict(r.when)}", r.use) for r in self.where)):
            if shared := sorted(set(self.axes) & set(inputs)):
                raise InputError(f"{name}: {shared[0]} is an axis too; keep one of them")
        for rule in self.where:
            self.checked("where", rule.when)
            if not rule.when or not rule.use:
                raise MatchedNothing("where: a rule needs values of an axis under when, and inputs under use")
        for pattern in self.exclude:
            self.checked("exclude", pattern)
        if not self.cells():
            raise MatchedNothing("exclude: it leaves no cell")

    def checked(self, what: str, pattern: Mapping[str, Any]) -> Mapping[str, Any]:
        """The pattern.

        Raises:
            UnknownName: It names an axis that is not there.
            MatchedNothing: It names a value that is not on its axis.
        """
        for name, wanted in pattern.items():
            if name not in self.axes:
                raise UnknownName(f"axis in {what}", name, self.axes)
            for value in (wanted,) if wanted in self.axes[name] else values_of(wanted):
                if value not in self.axes[name]:
                    raise MatchedNothing(f"{what}: axis {name} has no value {value!r}; it would match nothing")
        return pattern

    @classmethod
    def load(cls, path: Path) -> "Grid":
        """Reads a YAML grid: `format: 1`, `cell`, `axes`, and optionally `common`, `where` and `exclude`.

        With `extends: FILE` (beside it) it says what is other than there: axes in their place, the rest added or laid over. What the
        other file says of values that are no longer on an axis goes with them.

        Raises:
            InputError: A file that is missing, no YAML, or holds something else; names the field.
        """
        values = _read(path)
        if (other := values.get("extends")) is None:
            return cls(**_fields(path, values))
        base = cls.load(path.parent / str(other))
        own = _fields(path, {"cell": base.cell, "axes": {}, **values})
        if unknown := [a for a in own["axes"] if a not in base.axes]:
            raise UnknownName(f"axis of {path}", unknown[0], base.axes)
        axes = {**base.axes, **own["axes"]}
        rules = [_pruned(r.when, axes) for r in base.where]
        patterns = [_pruned(p, axes) for p in base.exclude]
        return cls(
            own["cell"],
            axes,
            merged(base.common, own["common"]),
            (*(p for p in patterns if p is not None), *own["exclude"]),
            (*(Rule(w, r.use) for w, r in zip(rules, base.where, strict=True) if w is not None), *own["where"]),
        )

    def cells(self) -> list[Cell]:
        """All cells in the order of the axes; a cell given twice stands once."""
        found: dict[str, Cell] = {}
        for point in itertools.product(*self.axes.values()):
            at = dict(zip(self.axes, point, strict=True))
            if not any(matches(pattern, at) for pattern in self.exclude):
                common: Mapping[str, Any] = self.common
                for rule in self.where:
                    common = merged(common, rule.use) if rule.fits(at) else common
                cell = Cell(self.cell, at, common)
                found.setdefault(cell.key, cell)
        return list(found.values())


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: mappings key by key, all else in its place."""
    out = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = merged(out[name], value) if both else value
    return out


def values_of(value: Any) -> tuple[Any, ...]:
    """A list as its values, anything else as the only one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def matches(pattern: Mapping[str, Any], at: Mapping[str, Any]) -> bool:
    """Whether a point has, on each axis of the pattern, the value there or one of the list there."""
    return all(at[k] == wanted or (isinstance(wanted, list | tuple) and at[k] in wanted) for k, wanted in pattern.items())


def _pruned(pattern: Mapping[str, Any], axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any] | None:
    """The pattern less values that are on no axis any more; None where it can match nothing."""
    left = {k: wanted if wanted in axes[k] else [v for v in values_of(wanted) if v in axes[k]] for k, wanted in pattern.items()}
    return left if all(v != [] for v in left.values()) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"grid {path} is missing") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"grid {path} is not YAML ({' '.join(str(e).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"grid {path}: a mapping with {', '.join(KEYS)} expected")
    for key in values:
        if key not in KEYS:
            raise UnknownName("key in the grid", str(key), KEYS)
    if values.get("format") != FORMAT:
        raise InputError(f"grid {path}: format {values.get('format')!r}; this version reads format: {FORMAT}")
    return values


def _fields(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Grid from a file's mapping."""
    axes, common = values.get("axes"), values.get("common") or {}
    exclude, where = values.get("exclude") or [], values.get("where") or []
    if not isinstance(axes, dict) or not isinstance(common, dict) or not isinstance(exclude, list) or not isinstance(where, list):
        raise InputError(f"grid {path}: axes and common must be mappings, where and exclude lists")
    for rule in where:
        if not isinstance(rule, dict) or set(rule) != {"when", "use"} or not all(isinstance(v, dict) for v in rule.values()):
            raise InputError(f"grid {path}: where: when (axis: values) and use (inputs) expected in each rule, {rule!r} found")
    rules = tuple(Rule({str(k): v for k, v in r["when"].items()}, r["use"]) for r in where)
    listed = {str(k): values_of(v) for k, v in axes.items()}
    return {"cell": str(values.get("cell", "")), "axes": listed, "common": common, "exclude": tuple(exclude), "where": rules}
