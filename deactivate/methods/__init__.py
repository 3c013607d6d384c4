"""Erasers that work on any host, one folder a family; the registry in `efface.deactivate` names them."""

from ... import __version__ as __version__
