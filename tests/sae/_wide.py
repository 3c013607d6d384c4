"""A program: peak memory over the training and the loading of a wide dictionary, in multiples of its parameters' bytes, as JSON.

null where the system cannot start counting anew.
"""

import json
import sys
from pathlib import Path

import torch

from efface.base import blocks
from efface.base.memory import peak_memory
from efface.sae import SAE, SAEConfig, TrainConfig, train

D, D_SAE = 256, 2**15
PARAMETERS = 2 * 4 * D * D_SAE


def fit(folder: Path, d_sae: int) -> None:
    vectors = [torch.randn(16, D, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    config = TrainConfig(steps=2, batch=16, normalize_vectors=16)
    train(SAEConfig("topk", d_in=D, d_sae=d_sae, k=4, k_aux=16), vectors, config, out=folder, held_out=vectors[:1])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    blocks.BLOCK = 2**21  # as small beside these parameters as it is beside the widest
    fit(folder / "small", 64)  # what is imported and compiled does not count
    with peak_memory() as idle:
        pass
    with peak_memory() as training:
        fit(folder / "wide", D_SAE)
    with peak_memory() as loading:
        SAE.load(folder / "wide")
    peaks = {"training": training, "loading": loading}
    sys.stdout.write(json.dumps({n: (p.bytes - idle.bytes) / PARAMETERS for n, p in peaks.items()} if idle.own else None))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
