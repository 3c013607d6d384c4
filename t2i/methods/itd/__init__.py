"""Interpret-then-Deactivate: concept features of a text encoder's SAE, scaled down behind a gate (arXiv:2503.09446)."""
