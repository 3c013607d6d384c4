"""Linear erasers of a host's activations: LEACE, SAL, INLP, R-LACE; at run time, or folded into weights where algebra allows."""

from .config import InlpErasure, LeaceErasure, LinearErasure, RlaceErasure, SalErasure

__all__ = ["InlpErasure", "LeaceErasure", "LinearErasure", "RlaceErasure", "SalErasure"]
