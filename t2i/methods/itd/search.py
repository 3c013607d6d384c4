"""Choosing the multiplier on `validation`."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....deactivate.edit import Edit
from ....deactivate.layer import DeactivationPart
from ...evaluation.judging import Judge
from .. import searching
from .config import ItdConfig

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ...host import ImageHost


def mildest(host: "ImageHost", edit: Edit, concepts: Sequence["Concept"], config: ItdConfig, judges: Sequence[Judge] | None = None) -> Edit:
    """`edit` with the mildest multiplier of `grid_value` that is enough; see `searching.mildest`."""
    candidates = (({"value": v}, with_value(edit, v)) for v in config.grid_value)
    return searching.mildest(host, candidates, concepts, searching.Goal(config.n_search, config.enough, config.seed), judges)


def with_value(edit: Edit, value: float) -> Edit:
    """The edit with another multiplier in every deactivation layer and in its settings."""
    parts = [dataclasses.replace(p, value=value) if isinstance(p, DeactivationPart) else p for p in edit.parts]
    return dataclasses.replace(edit, parts=parts, config={**edit.config, "value": value})
