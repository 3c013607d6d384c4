"""Erasers for text-to-image models, one folder a method; the registry in `efface.deactivate` names them."""

from ... import __version__ as __version__
