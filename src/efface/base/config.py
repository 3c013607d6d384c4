"""Frozen dataclasses as configs: built from mappings and from `key=value`, unknown keys refused, help taken from the fields' docstrings."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import yaml

from .errors import InputError, UnknownName

T = TypeVar("T")
SEEDS = 2**32
"""Below this a seed does for numpy's generators as well as for torch's."""


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
    """An instance of the dataclass `cls`; values are cast to the fields' types, absent fields keep their defaults.

    Where `cls` has `PRESETS` (name -> field -> value), those of the `preset` named in `values` stand before the defaults.

    Raises:
        UnknownName: A key that is not a field; names the nearest.
        InputError: A value of another type, or a missing one without a default.
    """
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    values = {**getattr(cls, "PRESETS", {}).get(str(values.get("preset")), {}), **values}
    for key in values:
        if key not in fields:
            raise UnknownName(f"key in {where}", key, fields)
    hints = typing.get_type_hints(cls)
    kwargs = {k: cast(v, hints[k], f"{where}: {k}") for k, v in values.items()}
    if not 0 <= (seed := kwargs.get("seed") or 0) < SEEDS:
        raise InputError(f"{where}: seed must lie in [0, {SEEDS}), as every generator takes it; {seed} found")
    missing = [n for n, f in fields.items() if n not in kwargs and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} must be given")
    return cls(**kwargs)


def parse_assignments(pairs: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """`["k=32", "mu=[4, 7]"]` -> values read as YAML; errors name the option."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, eq, text = pair.partition("=")
        if not eq or not key:
            raise InputError(f"{option} {pair!r}: write key=value")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise InputError(f"{option} {pair!r}: the value is no YAML ({' '.join(str(e).split())})") from None
    return values


def cast(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind` (int, float, str, bool, None, Literal, unions and tuples of those)."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in args:
            raise UnknownName(where, str(value), map(str, args))
        return value
    if origin in (types.UnionType, typing.Union):
        return _cast_union(value, args, where)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        inner = [args[0]] * len(items) if args[-1] is Ellipsis else list(args)
        if len(items) != len(inner):
            raise InputError(f"{where}: {len(inner)} values expected, {len(items)} found")
        return tuple(cast(v, k, where) for v, k in zip(items, inner, strict=True))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            raise InputError(f"{where}: a number expected, {value!r} found") from None
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise InputError(f"{where}: {getattr(kind, '__name__', kind)} expected, {value!r} found")


def choices(kind: Any) -> list[str]:
    """The words that the annotated type `kind` leaves to choose from; empty where it is no `Literal` of words."""
    if typing.get_origin(kind) is typing.Literal:
        return [a for a in typing.get_args(kind) if isinstance(a, str)]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return [c for inner in typing.get_args(kind) for c in choices(inner)]
    return []


def _cast_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    error: InputError | None = None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return cast(value, kind, where)
        except InputError as e:
            error = e
    raise error or InputError(f"{where}: {value!r} is of none of the types allowed")


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the docstring literal written under it in the class body: the one place where an option is explained."""
    docs: dict[str, str] = {}
    names = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    for base in reversed(cls.__mro__[:-1]):
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for here, after in pairwise(body):
            if (
                isinstance(here, ast.AnnAssign)
                and isinstance(here.target, ast.Name)
                and here.target.id in names
                and isinstance(after, ast.Expr)
            ):
                if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                    docs[here.target.id] = " ".join(after.value.value.split())
    return docs
