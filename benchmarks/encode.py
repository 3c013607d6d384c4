"""Time encoding of a large batch to a sparse result against the encoder product alone.

And check what memory it takes.

    python benchmarks/encode.py
    python benchmarks/encode.py --sizes 768x16384x8192 --json out.json

The *floor* is `x @ W_enc` in float32, timed in the same rounds, over the same row chunks (so that
no row needs a dense matrix of the whole batch). «share of the floor» is floor / ours: the goal is
80 %.
"""

import argparse
import resource
from pathlib import Path

import torch
from _timing import interleaved, quartiles, ratio, store

from efface.sae.sparse import encode_batch_topk, encode_threshold, encode_topk

SIZES = ((576, 4608, 16384), (768, 6144, 16384), (768, 16384, 8192), (768, 2**17, 1024))


def time_size(size: tuple[int, int, int], k: int, rounds: int) -> dict:
    """Time one size; prints its table."""
    d_in, d_sae, n = size
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d_in, generator=g)
    W_enc = torch.randn(d_sae, d_in, generator=g).T / d_in**0.5
    b_enc = torch.zeros(d_sae)
    rows = max(1, 2**25 // d_sae)
    cut = float(torch.topk((x[:64] @ W_enc).flatten(), 64 * k).values[-1])
    runs = {
        "floor": lambda: sum(float((part @ W_enc)[0, 0]) for part in x.split(rows)),
        "top-k": lambda: encode_topk(x, W_enc, b_enc, k),
        "threshold": lambda: encode_threshold(x, W_enc, b_enc, cut),
        "batch top-k": lambda: encode_batch_topk(x, W_enc, b_enc, k),
        "torch top-k (dense)": lambda: [(part @ W_enc + b_enc).relu().topk(k, dim=1) for part in x.split(rows)],
    }
    seconds = interleaved(runs, rounds)
    print(f"\n{d_in} -> {d_sae}, {n} vectors, k {k}")
    print(f"{'':22}{'ms':>9}{'vectors/s':>11}{'share of the floor':>22}")
    rows_out = {}
    for name, values in seconds.items():
        _, middle, _ = quartiles(values)
        low, share, high = ratio(seconds["floor"], values)
        rows_out[name] = {"seconds": values, "share_of_floor": (low, share, high)}
        print(f"{name:22}{middle * 1e3:9.1f}{n / middle:11.0f}{share:12.0%} [{low:.0%}, {high:.0%}]")
    return {"size": size, "k": k, "rows": rows_out}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="*", help="d_in x d_sae x vectors, as 768x16384x8192")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="store results here")
    args = parser.parse_args()
    sizes = [tuple(map(int, s.split("x"))) for s in args.sizes] if args.sizes else SIZES
    results = [time_size(size, args.k, args.rounds) for size in sizes]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"\npeak resident memory of the whole run: {peak:.0f} MiB")
    store(args.json, {"timings": results, "peak_resident_mib": peak})


if __name__ == "__main__":
    main()
