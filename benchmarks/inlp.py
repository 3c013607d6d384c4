"""INLP on the gender task of glove.py beside the public code: what each removes, what a new probe reads then, and the time, in turn.

    python benchmarks/inlp.py --peer nullspace_projection/ [--removed 20] [--rounds 3] [--json FILE]

`--peer` names a checkout of nullspace_projection (Ravfogel et al., ACL 2020); its `get_debiasing_projection` is given scikit-learn's classifiers with
the penalty of ours (C = 1 / (l2 n)) and, as it does not centre, the centred vectors. First fold: 12,000 words, 3,000 held out. Overlap is the mean
squared cosine of the principal angles between the two subspaces removed: 1 where they are one.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _timing import machine
from glove import folds, load, task
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from efface.base.files import write_json
from efface.probes import InlpConfig, fit_linear, inlp, score

L2 = 1e-4


def peer_of(folder: Path) -> Callable[..., Any]:
    """`get_debiasing_projection` of a checkout."""
    sys.path.insert(0, str(folder))
    from src.debias import get_debiasing_projection  # pyright: ignore[reportMissingImports]: the peer's own package

    return get_debiasing_projection


def public(solve: Callable[..., Any], kind: str, x: torch.Tensor, y: torch.Tensor, n: int) -> torch.Tensor:
    """Basis of what the public code removes in `n` rounds, a column a round."""
    c, a, b = 1 / (L2 * len(x)), (x - x.mean(0)).numpy(), y.numpy()
    made = {
        "logistic": (LogisticRegression, {"C": c, "max_iter": 200, "tol": 1e-8}),
        "svm": (LinearSVC, {"C": c, "loss": "squared_hinge", "dual": False, "max_iter": 2000, "tol": 1e-6}),
    }[kind]
    _, _, weights = solve(*made, n, x.shape[1], True, 0.0, a, b, a, b)
    return torch.linalg.qr(torch.cat([torch.from_numpy(w) for w in weights]).T.double())[0]


def ours(kind: Any, x: torch.Tensor, y: torch.Tensor, n: int) -> torch.Tensor:
    """The same of ours."""
    return torch.linalg.qr(torch.cat(inlp(x, y, InlpConfig(rounds=n, kind=kind, l2=L2)).directions, 1))[0]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--peer", type=Path, required=True, help="checkout of nullspace_projection")
    args.add_argument("--removed", type=int, default=20, help="classifiers")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--json", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    x, y, _ = task(*load())
    train, test = folds(len(x))[0]
    a, b, solve = x[train], y[train], peer_of(o.peer)
    out: dict[str, Any] = {"machine": machine(), "words": len(a), "removed": o.removed, "kinds": {}}
    for kind in ("logistic", "svm"):
        runs = {"ours": partial(ours, kind), "public": partial(public, solve, kind)}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        found: dict[str, torch.Tensor] = {}
        for _ in range(o.rounds):
            for name, run in runs.items():
                begun = time.perf_counter()
                found[name] = run(a, b, o.removed)
                seconds[name].append(time.perf_counter() - begun)
        rows = []
        for n in sorted({1, o.removed // 4, o.removed // 2, o.removed} - {0}):
            one, other = (found[name][:, :n] for name in runs)
            row: dict[str, Any] = {"directions": n, "overlap": float((one.T @ other).square().sum() / n)}
            for name in runs:
                seen = x - (x - a.mean(0)) @ found[name][:, :n] @ found[name][:, :n].T
                row[name] = score(fit_linear(seen[train], b), seen[test], y[test], b).as_dict()
            rows.append(row)
            told = ", ".join(f"{name} {row[name]['accuracy']:.4f}" for name in runs)
            print(f"{kind}, {n} directions: overlap {row['overlap']:.6f}; held out {told}", flush=True)
        ratio = [p / q for p, q in zip(seconds["public"], seconds["ours"], strict=True)]
        out["kinds"][kind] = {"seconds": seconds, "public over ours": ratio, "rows": rows}
        print(f"{kind}: seconds {seconds}, public over ours {ratio}", flush=True)
    if o.json:
        write_json(o.json, out)


if __name__ == "__main__":
    main()
