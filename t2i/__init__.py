"""Text-to-image hosts, erasers and their evaluation."""

from .. import __version__ as _version

__all__: list[str] = []
__version__ = _version
