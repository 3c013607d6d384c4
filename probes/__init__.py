"""Linear probes and concept subspaces: mathematics and fitters."""

from .. import __version__ as _version

__all__: list[str] = []
__version__ = _version
