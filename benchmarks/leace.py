"""Time of LEACE's streaming statistics against the bare covariance product, and of the eigensolve.

    python benchmarks/leace.py [--d 4096] [--n 8192] [--batch 2048] [--rounds 5] [--json FILE]

The floor is `total.addmm_(x.T, x)` over the same batches in the same dtype, what any covariance costs; «streaming» is `MomentsFitter.update` over them: shift,
sums, X and Z products, checks for NaN. Both run once a round, after a round that is not counted. Vectors are drawn beforehand; the eigensolve of LEACE (once a fit, whatever n) is timed apart.
"""

import argparse
import time
from pathlib import Path

import torch
from _timing import interleaved, quartiles, ratio, store

from efface.probes import MomentsFitter, leace


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--d", type=int, default=4096)
    args.add_argument("--n", type=int, default=8192)
    args.add_argument("--batch", type=int, default=2048)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--dtypes", nargs="*", default=["float32"], choices=["float32", "float64"])
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    torch.set_num_threads(options.threads)
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

        seconds = interleaved({"floor": floor, "streaming": streaming}, options.rounds)
        start = time.perf_counter()
        eraser = leace(streaming().moments(), tol=1e-3)
        solve = time.perf_counter() - start - quartiles(seconds["streaming"])[1]
        low, middle, high = ratio(seconds["streaming"], seconds["floor"])
        print(f"{name}: floor {quartiles(seconds['floor'])[1]:.2f} s, streaming {quartiles(seconds['streaming'])[1]:.2f} s, "
              f"ratio {middle:.2f} [{low:.2f}, {high:.2f}], moments and eigensolve {solve:.1f} s, rank {eraser.rank}")  # fmt: skip
        out[name] = {"seconds": seconds, "ratio": (low, middle, high), "moments and eigensolve": solve}
    store(options.json, out)


if __name__ == "__main__":
    main()
