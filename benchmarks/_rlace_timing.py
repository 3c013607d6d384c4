"""R-LACE on the gender task timed against the public code: rank 1 in interleaved rounds, and what a new probe reads afterwards (`glove.py`)."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface.base.errors import UnknownName
from efface.probes import RlaceConfig, RlaceSgdConfig, Score, fit_linear, rlace, rlace_sgd, score

Vectors, Labels = torch.Tensor, torch.Tensor
PEER = "rlace-icml"


def peer_of(folder: Path) -> Callable[[Vectors, Labels, int], torch.Tensor]:
    """`solve_adv_game` of a checkout of rlace-icml with the settings of its GloVe script: (x, y, seed) -> P."""
    spec = importlib.util.spec_from_file_location("rlace_peer", folder / "rlace.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.EVAL_CLF_PARAMS["loss"] = "log_loss"
    settings = {"lr": 0.005, "weight_decay": 1e-5}

    def run(x: Vectors, y: Labels, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        np.random.seed(seed)
        a, b = x.numpy(), y.numpy()
        found = module.solve_adv_game(
            a, b, a, b, rank=1, out_iters=50_000, epsilon=0.002, batch_size=128, optimizer_params_P=settings,
            optimizer_params_predictor=settings,
        )  # fmt: skip
        return torch.from_numpy(found["P"]).double()

    return run


def timing(
    x: Vectors, y: Labels, fold: tuple[torch.Tensor, torch.Tensor], peer: Path | None, rounds: int, timed: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seconds of rank-1 fits on one fold (its training and held-out rows), interleaved, and the worst that a new logistic probe reads afterwards.

    Raises:
        UnknownName: A row of `timed` is none, or is the peer's without `peer`.
    """
    train, test = fold
    x_train, y_train = x[train], y[train]
    official = RlaceSgdConfig(k=1, iterations=50_000, weight_decay=1e-5, eps=0.002)
    runs: dict[str, Callable[[int], torch.Tensor]] = {
        "R-LACE, best responses": lambda seed: rlace(x_train, y_train).eraser.P,
        "R-LACE, best responses, random start": lambda seed: (
            rlace(x_train, y_train, RlaceConfig(start="random", rounds=40, seed=seed)).eraser.P
        ),
        "R-LACE, compat": lambda seed: rlace_sgd(x_train, y_train, replace(official, seed=seed)).eraser.P,
    }
    if peer is not None:
        solve = peer_of(peer)
        runs[PEER] = lambda seed: solve(x_train, y_train, seed)
    if unknown := [name for name in timed if name not in runs]:
        raise UnknownName("row of --timed", unknown[0], runs, f"{PEER} needs --peer")
    runs = {name: runs[name] for name in timed or runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    read: dict[str, list[Score]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            P = run(turn)
            seconds[name].append(time.perf_counter() - start)
            seen = (x - x_train.mean(0)) @ P
            read[name].append(score(fit_linear(seen[train], y_train), seen[test], y[test], y_train))
            print(f"    round {turn + 1}, {name}: {seconds[name][-1]:.3f} s, held out {read[name][-1].accuracy:.4f}", flush=True)
    for name in runs:
        worst = max(read[name], key=lambda s: s.excess)
        row: dict[str, Any] = {"seconds": seconds[name], "held out, worst": worst.as_dict()}
        if PEER in runs and name != PEER:
            row[f"{PEER} over it"] = [a / b for a, b in zip(seconds[PEER], seconds[name], strict=True)]
        yield name, row
