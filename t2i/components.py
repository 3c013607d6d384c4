"""The modules of a pipeline under one roof, so that edits and digests name parameters part first."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_PARTS: "WeakKeyDictionary[Any, Parts]" = WeakKeyDictionary()


class Parts(nn.ModuleDict):
    """The modules of a pipeline by component: `named_parameters` has the part first. One a pipeline."""

    name_or_path: str = ""
    """The folder it came from."""
    timestep: Tensor | None = None
    """See `ImageHost.timestep`."""


def parts_of(pipeline: Any) -> Parts:
    """The modules of a pipeline that are there; a compiled one by what was compiled."""
    found = {n: getattr(m, "_orig_mod", m) for n, m in pipeline.components.items() if isinstance(m, nn.Module)}
    if pipeline not in _PARTS or dict(_PARTS[pipeline].items()) != found:
        _PARTS[pipeline] = Parts(found)
        _PARTS[pipeline].name_or_path = str(getattr(pipeline, "name_or_path", "") or "")
    return _PARTS[pipeline]
