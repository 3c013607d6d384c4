"""Which layers are worth an SAE: the damage of taking half of a concept's margin by the best change of one layer, or of several.

    python benchmarks/which_layers.py --model gemma3-270m --concept aviation [--layers 0 1 2 3] [--sets 2-8 0-8]

To first order, and in the span of no dictionary (any change of the down-projections); units as in `llm/methods/pisces/coefficients.py`,
only ratios mean anything. Reads `train` alone: 100 questions of the concept and of its neighbours, 30 neutral texts; two minutes on a core.
"""

import argparse

import torch

from efface.deactivate.concept import Concept
from efface.llm.methods.pisces.coefficients import Round
from efface.llm.methods.pisces.config import PiscesConfig
from efface.llm.methods.pisces.effect import gather
from efface.llm.models import load_model


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", required=True)
    args.add_argument("--concept", required=True)
    args.add_argument("--layers", type=int, nargs="*", help="these alone; all unless given")
    args.add_argument("--sets", nargs="*", default=[], help="ranges to weigh together, as 2-8")
    args.add_argument("--fall", type=float, default=0.5)
    args.add_argument("--threads", type=int, default=2)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    host, concept = load_model(o.model), Concept.load(o.concept)
    ranges = [tuple(map(int, s.split("-"))) for s in o.sets]
    wanted = {*(o.layers or range(host.n_layers)), *(x for lo, hi in ranges for x in range(lo, hi + 1))}
    config = PiscesConfig(preset="efface", n_effect=100, n_effect_texts=30)
    round_ = Round(gather(host, concept, sorted(wanted), config))
    for layers in [[x] for x in sorted(wanted)] + [list(range(lo, hi + 1)) for lo, hi in ranges]:
        print(f"{layers[0]}{f' to {layers[-1]}' if len(layers) > 1 else '':8}", f"{round_.least(layers, o.fall):10.3f}", flush=True)


if __name__ == "__main__":
    main()
