"""Time of LEACE's streaming statistics against the bare covariance product, and of the eigensolve.

    python benchmarks/leace.py [--d 4096] [--n 8192] [--batch 2048] [--rounds 5] [--peer FOLDER] [--json FILE]

The floor is `total.addmm_(x.T, x)` over the same batches in the same dtype, what any covariance costs; «streaming» is `MomentsFitter.update` over them: shift,
sums, X and Z products, checks for NaN. Both run once a round, after a round that is not counted. Vectors are drawn beforehand; the eigensolve of LEACE (once a fit, whatever n) is timed apart.
`--peer` names a folder that holds concept_erasure (0.2.4): its `LeaceFitter.update` then is a row, and the largest difference between its P and ours, float64, with and without
shrinkage, is printed from 2,000 vectors of 64 dimensions.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _timing import interleaved, quartiles, ratio, store

from efface.probes import MomentsFitter, leace, orthogonal, shrunk


def parity(fitter: Any) -> dict[str, float]:
    """Largest absolute difference of P from the peer's."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(2000) % 3
    x = (
        torch.randn(2000, 64, generator=g).double() @ torch.randn(64, 64, generator=g).double()
        + torch.randn(3, 64, generator=g).double()[y]
    )
    z = torch.nn.functional.one_hot(y).double()
    m = MomentsFitter().update(x, z).moments()
    cases = {
        "leace": (leace(m), {"shrinkage": False}),
        "leace, shrunk": (leace(shrunk(m)), {"shrinkage": True}),
        "orthogonal": (orthogonal(m), {"method": "orth"}),
    }
    return {n: float((e.P - fitter.fit(x, z, svd_tol=1e-8, **o).eraser.P).abs().max()) for n, (e, o) in cases.items()}


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--d", type=int, default=4096)
    args.add_argument("--n", type=int, default=8192)
    args.add_argument("--batch", type=int, default=2048)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--dtypes", nargs="*", default=["float32"], choices=["float32", "float64"])
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--peer", type=Path, help="folder that holds concept_erasure")
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    peer: Any = None
    if options.peer:
        sys.path.insert(0, str(options.peer))
        from concept_erasure import LeaceFitter as peer
    out: dict[str, object] = {"d": options.d, "n": options.n, "batch": options.batch}
    for name in options.dtypes:
        dtype = getattr(torch, name)
        g = torch.Generator().manual_seed(0)
        y = torch.arange(options.n) % 2
        z = torch.nn.functional.one_hot(y).to(dtype)
        x = torch.randn(options.n, options.d, generator=g, dtype=dtype) + y[:, None]
        parts = list(zip(x.split(options.batch), z.split(options.batch), strict=True))

        def floor(dtype: torch.dtype = dtype, parts: list = parts) -> torch.Tensor:
            total = torch.zeros(options.d, options.d, dtype=dtype)
            for a, _ in parts:
                total.addmm_(a.T, a)
            return total

        def streaming(dtype: torch.dtype = dtype, parts: list = parts) -> MomentsFitter:
            fitter = MomentsFitter(dtype)
            for a, b in parts:
                fitter.update(a, b)
            return fitter

        def theirs(dtype: torch.dtype = dtype, parts: list = parts) -> object:
            fitter = peer(options.d, 2, dtype=dtype)
            for a, b in parts:
                fitter.update(a, b)
            return fitter

        runs = {"floor": floor, "streaming": streaming, **({"concept-erasure": theirs} if peer else {})}
        seconds = interleaved(runs, options.rounds)
        start = time.perf_counter()
        eraser = leace(streaming().moments(), tol=1e-3)
        solve = time.perf_counter() - start - quartiles(seconds["streaming"])[1]
        low, middle, high = ratio(seconds["streaming"], seconds["floor"])
        print(f"{name}: floor {quartiles(seconds['floor'])[1]:.2f} s, streaming {quartiles(seconds['streaming'])[1]:.2f} s, "
              f"ratio {middle:.2f} [{low:.2f}, {high:.2f}], moments and eigensolve {solve:.1f} s, rank {eraser.rank}")  # fmt: skip
        if peer:
            print(f"  concept-erasure {quartiles(seconds['concept-erasure'])[1]:.2f} s")
        out[name] = {"seconds": seconds, "ratio": (low, middle, high), "moments and eigensolve": solve}
    if peer:
        out["parity"] = parity(peer)
        print("largest difference of P:", out["parity"])
    store(options.json, out)


if __name__ == "__main__":
    main()
