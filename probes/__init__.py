"""Linear probes and concept subspaces: mathematics and fitters, on tensors alone. Imports load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as _version

if TYPE_CHECKING:
    from .association import neighbours, weat
    from .erasers import AffineEraser, leace, mean_projection, orthogonal, rayleigh, regression, shrunk
    from .frozen import load_eraser
    from .linear import LinearConfig, LinearProbe, fit_linear
    from .mdl import description_length
    from .minimax import RlaceConfig, rlace
    from .minimax_sgd import RlaceSgdConfig, rlace_sgd
    from .moments import Moments, MomentsFitter
    from .nonlinear import MlpConfig, fit_mlp, fit_rbf
    from .nullspace import InlpConfig, inlp
    from .oracles import ClassMoments, OracleEraser, QuadraticEraser, oracle, quadratic
    from .scores import Score, control_labels, pooled, score

_HOMES = {
    "AffineEraser": "erasers",
    "ClassMoments": "oracles",
    "InlpConfig": "nullspace",
    "LinearConfig": "linear",
    "LinearProbe": "linear",
    "MlpConfig": "nonlinear",
    "Moments": "moments",
    "MomentsFitter": "moments",
    "OracleEraser": "oracles",
    "QuadraticEraser": "oracles",
    "RlaceConfig": "minimax",
    "RlaceSgdConfig": "minimax_sgd",
    "Score": "scores",
    "control_labels": "scores",
    "description_length": "mdl",
    "fit_linear": "linear",
    "fit_mlp": "nonlinear",
    "fit_rbf": "nonlinear",
    "inlp": "nullspace",
    "leace": "erasers",
    "load_eraser": "frozen",
    "mean_projection": "erasers",
    "neighbours": "association",
    "oracle": "oracles",
    "orthogonal": "erasers",
    "pooled": "scores",
    "quadratic": "oracles",
    "rayleigh": "erasers",
    "regression": "erasers",
    "rlace": "minimax",
    "rlace_sgd": "minimax_sgd",
    "score": "scores",
    "shrunk": "erasers",
    "weat": "association",
}
__all__ = [
    "AffineEraser",
    "ClassMoments",
    "InlpConfig",
    "LinearConfig",
    "LinearProbe",
    "MlpConfig",
    "Moments",
    "MomentsFitter",
    "OracleEraser",
    "QuadraticEraser",
    "RlaceConfig",
    "RlaceSgdConfig",
    "Score",
    "control_labels",
    "description_length",
    "fit_linear",
    "fit_mlp",
    "fit_rbf",
    "inlp",
    "leace",
    "load_eraser",
    "mean_projection",
    "neighbours",
    "oracle",
    "orthogonal",
    "pooled",
    "quadratic",
    "rayleigh",
    "regression",
    "rlace",
    "rlace_sgd",
    "score",
    "shrunk",
    "weat",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} (efface {_version}) has no attribute {name!r}")
