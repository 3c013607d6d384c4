"""Time one TopK training step against the encoder product alone and against other packages.

Or compare the quality reached.

    python benchmarks/topk_step.py                       # the three sizes, AuxK off
    python benchmarks/topk_step.py --dead 0.1            # with 10 % dead latents and AuxK on, for
    every package python benchmarks/topk_step.py --quality --json out.json

A *floor* is `x @ W_enc` in float32, timed in the same rounds. Ratios are medians over rounds, with
quartiles.
"""

import argparse
from pathlib import Path

import torch
from _timing import interleaved, quartiles, ratio, store
from _topk_steps import PEERS, Ours, Setting
from torch import Tensor

SIZES = ((576, 4608, 1024), (768, 6144, 1024), (768, 16384, 2048))


def planted(n: int, d: int, seed: int, features: int = 8192) -> Tensor:
    """Vectors with structure: 12 of `features` fixed directions each.

    Of Zipf frequency and exponential size, and noise.
    """
    g = torch.Generator().manual_seed(1)
    directions = torch.randn(features, d, generator=g)
    directions /= directions.norm(dim=1, keepdim=True)
    weight = 1 / torch.arange(5.0, features + 5)
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(weight, n * 12, replacement=True, generator=g).view(n, 12)
    size = torch.empty(n, 12).exponential_(generator=g) + 0.5
    bag = torch.nn.functional.embedding_bag(which, directions, per_sample_weights=size, mode="sum")
    return bag + 0.05 * torch.randn(n, d, generator=g)


def contestants(setting: Setting, names: list[str]) -> tuple[dict, list[str]]:
    """Contestants by name, and the names of those whose package is missing."""
    found, missing = {"ours": Ours(setting)}, []
    for name, maker in PEERS.items():
        if name not in names:
            continue
        try:
            found[name] = maker(setting)
        except ImportError:
            missing.append(name)
    return found, missing


def time_size(size: tuple[int, int, int], args: argparse.Namespace) -> dict:
    """Time one size; prints its table."""
    d_in, d_sae, batch = size
    dead = None
    if args.dead:
        shuffled = torch.randperm(d_sae, generator=torch.Generator().manual_seed(0))
        dead = shuffled[: int(args.dead * d_sae)].sort().values
    rivals, missing = contestants(Setting(d_in, d_sae, batch, dead=dead), args.peers)
    x, W_enc = planted(batch, d_in, 2), rivals["ours"].W_enc.detach()
    runs = {"floor": lambda: x @ W_enc}
    runs |= {name: (lambda r=rival: r.step(x)) for name, rival in rivals.items()}
    seconds = interleaved(runs, args.rounds)
    print(f"\n{d_in} -> {d_sae}, batch {batch}, k 32, dead {args.dead:.0%}")
    print(f"{'':22}{'ms':>9}{'vectors/s':>11}{'floors':>9}{'':16}{'ours is faster by':>18}")
    rows = {}
    for name, values in seconds.items():
        _, middle, _ = quartiles(values)
        floors, speed = ratio(values, seconds["floor"]), ratio(values, seconds["ours"])
        rows[name] = {
            "seconds": values,
            "floors": floors,
            "ours_is_faster_by": speed,
            "vectors_per_second": batch / middle,
        }
        spread = f"[{floors[0]:.2f}, {floors[2]:.2f}]"
        print(
            f"{name:22}{middle * 1e3:9.1f}{batch / middle:11.0f}{floors[1]:9.2f} {spread:15}"
            f"{speed[1]:10.2f} x [{speed[0]:.2f}, {speed[2]:.2f}]"
        )
    if missing:
        print("left out, not installed:", ", ".join(missing))
    return {"size": size, "dead": args.dead, "rows": rows, "missing": missing}


def fvu(rival: object, held_out: Tensor) -> float:
    """Fraction of variance unexplained on held-out vectors, in float64."""
    error = variance = 0.0
    mean = held_out.double().mean(0)
    for part in held_out.split(2048):
        error += float((rival.reconstruct(part).double() - part).pow(2).sum())
        variance += float((part.double() - mean).pow(2).sum())
    return error / variance


def quality(args: argparse.Namespace) -> dict:
    """Train each contestant on the same batches in the same order and print held-out FVU."""
    if args.acts is None:
        pool, held_out, source = planted(args.pool, 576, 2), planted(8192, 576, 3), "synthetic"
    else:
        from safetensors.torch import load_file

        vectors = torch.cat([t.float() for t in load_file(args.acts).values()])
        vectors = vectors - vectors.mean(0)
        vectors *= vectors.shape[1] ** 0.5 / vectors.norm(dim=1).mean()
        pool, held_out, source = vectors[:-8192], vectors[-8192:], args.acts.name
    d_in, batch = pool.shape[1], 1024
    setting = Setting(d_in, args.width or 8 * d_in, batch, lr=args.lr, total_steps=args.steps)
    rivals, missing = contestants(setting, args.peers)
    g = torch.Generator().manual_seed(5)
    print(f"quality on {source}: {d_in} -> {setting.d_sae}, {args.steps} steps, lr {args.lr}")
    trace: dict[str, list[float]] = {name: [] for name in rivals}
    for step in range(1, args.steps + 1):
        x = pool[torch.randint(len(pool), (batch,), generator=g)]
        if step == 1:
            rivals["ours"].start(x)
        for rival in rivals.values():
            rival.step(x)
        if step % max(1, args.steps // 4) == 0:
            for name, rival in rivals.items():
                trace[name].append(fvu(rival, held_out))
            print(f"step {step:6}", *(f"{n} FVU {v[-1]:.5f}" for n, v in trace.items()), sep="  ")
    return {"source": source, "steps": args.steps, "lr": args.lr, "fvu": trace, "missing": missing}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds a size")
    parser.add_argument("--sizes", type=int, nargs="*", default=[0, 1, 2], help="which of the sizes")
    parser.add_argument("--dead", type=float, default=0.0, help="share of latents held dead")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="which peers")
    parser.add_argument("--quality", action="store_true", help="train and compare held-out FVU")
    parser.add_argument("--acts", type=Path, help="activations (safetensors, [n, d]) for --quality")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, help="d_sae for --quality (default 8 d_in)")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--pool", type=int, default=200_000, help="synthetic vectors for --quality")
    parser.add_argument("--json", type=Path, help="store results here")
    args = parser.parse_args()
    torch.manual_seed(0)
    results = {"quality": quality(args)} if args.quality else {"timings": [time_size(SIZES[i], args) for i in args.sizes]}
    store(args.json, results)


if __name__ == "__main__":
    main()
