"""Judges: classifiers with a declared class list, a threshold and a version, behind one small protocol."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ...base.errors import InputError, NumericsError, UnknownName

NONE = "none"
"""Class of a judge for pictures that show nothing of its list."""
FAMILIES = {"icons": "icons.judges:load"}
"""First part of a judge's name -> function that loads its judges from the second part."""


@runtime_checkable
class Judge(Protocol):
    """Decides what a picture shows."""

    @property
    def name(self) -> str:
        """Family, head and copy: `icons/object/A`."""
        ...

    @property
    def version(self) -> str:
        """Changes when the judge would decide differently."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of weights and settings."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """What it can say, in the order of its scores; `NONE` for nothing of the list."""
        ...

    @property
    def threshold(self) -> float:
        """Probability that a class needs to be said."""
        ...

    @property
    def features_name(self) -> str:
        """Names the space of `features`; part of every figure computed in it."""
        ...

    def scores(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Probability of each class; rows sum to 1."""
        ...

    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Activations of the penultimate layer."""
        ...


def verdicts(judge: Judge, scores: Float[Tensor, "n classes"]) -> Int[Tensor, " n"]:
    """Index of the class said; -1 where it is `NONE`, or the largest probability is below the threshold.

    Raises:
        NumericsError: A score is not finite.
        InputError: Not one score a class.
    """
    if scores.shape[1] != len(judge.classes):
        raise InputError(f"judge {judge.name}: {scores.shape[1]} scores for {len(judge.classes)} classes")
    if not torch.isfinite(scores).all():
        raise NumericsError(f"judge {judge.name}: a score is NaN or infinite")
    best, said = scores.max(1)
    nothing = judge.classes.index(NONE) if NONE in judge.classes else -1
    return torch.where((best >= judge.threshold) & (said != nothing), said, -1)


def class_index(judge: Judge, name: str) -> int:
    """Place of a class.

    Raises:
        UnknownName: The judge has no such class.
    """
    if name not in judge.classes or name == NONE:
        raise UnknownName(f"class of judge {judge.name}", name, (c for c in judge.classes if c != NONE))
    return judge.classes.index(name)


def class_indices(judge: Judge, names: Iterable[str]) -> Int[Tensor, " n"]:
    """Places of several classes."""
    return torch.tensor([class_index(judge, n) for n in names], dtype=torch.long)


def load_judges(name: str) -> tuple[Judge, ...]:
    """The judges of a name as concept files have it: `icons/object` are its two copies, `icons/object/A` is one.

    Raises:
        UnknownName: No such family, head or copy.
        ArtefactError: Its weights are damaged.
    """
    family, _, rest = name.partition("/")
    if family not in FAMILIES:
        raise UnknownName("judge", name, [f"{f}/object" for f in FAMILIES])
    module, function = FAMILIES[family].split(":")
    load: Callable[[str], tuple[Judge, ...]] = getattr(import_module(f"...{module}", f"{__package__}.x"), function)
    return load(rest)
