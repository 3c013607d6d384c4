# %% [markdown]
# # 6. Write an eraser of your own, and benchmark it beside ours
#
# An eraser is one function, `fit(host, concepts, preserve, config, saes=…) -> Edit`, and one row in a table. Everything else comes with it: the command line
# and its help, undo, gates, export, controls, attacks, benchmark grids.
#
# The eraser here is a simple one from the literature: *selective pruning*. Find the MLP neurons that work harder on the concept's texts than on others, and take
# away what they write. `EFFACE_NOTEBOOK_SIZE=small`: the package's smallest Llama, seconds; otherwise SmolLM2-135M.

# %%
import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import efface
from efface.deactivate import register
from efface.deactivate.evaluation import Grid, run_grid
from efface.llm import load_model

SMALL = os.environ.get("EFFACE_NOTEBOOK_SIZE", "full") == "small"
OUT = Path(tempfile.mkdtemp(prefix="efface-06-"))

# %% [markdown]
# ## The eraser
#
# It lives in a module of its own, since the table keeps names of modules and loads them when they are needed: listing methods stays quick. Settings are a frozen
# dataclass; the string under each field is its help, here and on the command line.

# %%
(OUT / "my_eraser.py").write_text('''
from dataclasses import asdict, dataclass

import torch

from efface.deactivate import Edit, LowRank, WeightsPart


@dataclass(frozen=True)
class PruningConfig:
    """How many neurons go, and from how many texts they are chosen."""

    share: float = 0.1
    """Share of each layer's MLP neurons that is pruned."""
    texts: int = 200
    """Texts read of each side, at most."""


def work(host, texts, points):
    """Mean absolute activation of every neuron over all tokens of the texts, {point: [m]}."""
    total, n = dict.fromkeys(points, 0), 0
    for first in range(0, len(texts), 32):
        ids, mask = host.encode_texts(texts[first : first + 32], max_length=64)
        acts, keep = host.activations(ids, mask, points), host.keep_mask(ids, mask)
        total = {p: total[p] + acts[p][keep].double().abs().sum(0) for p in points}
        n += int(keep.sum())
    return {p: t / n for p, t in total.items()}


def fit(host, concepts, preserve, config, saes=()):
    """Selective pruning (Pochinkov & Schoots, 2024): neurons by the ratio of their mean absolute activation, concept over the rest."""
    with_it = [t for c in concepts for t in c.require("target", "train")][: config.texts]
    without = list(preserve or [t for c in concepts for t in c.require("neighbours", "train")])[: config.texts]
    points = [f"layers.{i}.mlp_hidden" for i in range(host.n_layers)]
    own, other, deltas, evidence = work(host, with_it, points), work(host, without, points), {}, {}
    for layer, point in enumerate(points):
        ratio = own[point] / (other[point] + 1e-3 * other[point].mean())
        chosen = ratio.topk(max(1, round(config.share * len(ratio)))).indices
        name, weight, transposed = host.down_proj(layer)
        W, rows = (weight.detach().float().T if transposed else weight.detach().float()), torch.eye(len(ratio))[chosen]
        deltas[name] = LowRank(rows.T.contiguous(), -W[:, chosen].T.contiguous()) if transposed else LowRank(-W[:, chosen].contiguous(), rows)
        evidence[point] = chosen.tolist()
    return Edit([WeightsPart(deltas)], "my-pruning", asdict(config), list(concepts), evidence=evidence)
''')
sys.path.insert(0, str(OUT))

# %% [markdown]
# ## One row
#
# `register` refuses a name that is taken, a row without a paper, and parts or needs that it does not know.

# %%
row = register(
    name="my-pruning",
    domain="llm",
    parts=["weights"],
    config="my_eraser:PruningConfig",
    fit="my_eraser:fit",
    paper="Dissecting Language Models: Machine Unlearning via Selective Pruning (Pochinkov & Schoots, 2024)",
    needs=["neighbours"],
    several_concepts=True,
)
print(f"{row.name}, for {row.domain} hosts, needs {', '.join(row.needs)}; {row.paper}")

# %% [markdown]
# A package that brings erasers names such a module as an *entry point*. Once it is installed, `efface methods`, `efface erase my-pruning --help` and grids know the
# eraser without anybody importing anything:
#
# ```toml
# [project.entry-points."efface.erasers"]
# mine = "my_package.rows"        # a module that calls register(…), and imports nothing heavy
# ```
#
# From here on it is an eraser like all others:

# %%
host = load_model("synthetic" if SMALL else "smollm2")
edit = efface.erase("my-pruning", host, "synthetic/river" if SMALL else "baseball")
before = host.digest
with edit.applied(host):
    inside = host.digest
print("in force:", inside != before, "· gone without a trace:", host.digest == before)

# %% [markdown]
# ## The benchmark
#
# A grid names cells; each is fitted, measured and set beside its controls. Cells that are there are not computed again, so a grid can be interrupted and grows with
# you. The settings are chosen on `validation` among equally many `trials` for every method: an eraser that may look more often looks better.
#
# The row `random directions` is drawn for *your* edit: as large a change, in no particular direction.

# %%
(OUT / "grid.yaml").write_text(f"""
format: 1
cell: efface.llm.evaluation.cells:erasure
axes:
  concept: [{"synthetic/river" if SMALL else "baseball"}]
  eraser: [identity, my-pruning, random directions, leace]
common:
  model: {"synthetic" if SMALL else "smollm2"}
  split: validation
  budget: 2
  draws: 0
  texts: {6 if SMALL else 24}
  max_tokens: {24 if SMALL else 64}
  questions: {16 if SMALL else 64}
  fits: {OUT / "fits"}
where:
  - {{when: {{eraser: identity}}, use: {{row: base}}}}
  - {{when: {{eraser: [my-pruning, random directions]}}, use: {{set: {{texts: 200}}, trials: [{{share: 0.1}}, {{share: 0.3}}]}}}}
  - {{when: {{eraser: random directions}}, use: {{method: my-pruning, row: random directions, draws: {1 if SMALL else 4}}}}}
  - {{when: {{eraser: leace}}, use: {{set: {{texts: 60}}, trials: [{{at: layers.{1 if SMALL else 10}.resid_post}}, {{at: layers.{2 if SMALL else 15}.resid_post}}]}}}}
""")
table = run_grid(Grid.load(OUT / "grid.yaml"), OUT / "grid")
found = {o.cell.axes["eraser"]: o.figures for o in table.outcomes}
for name, figures in found.items():
    print(f"{name:>18}: efficacy {figures['efficacy']:.2f}, specificity {figures['specificity']:.2f}, HM-local {figures['hm local']:.2f}, "
          f"{figures['seconds to fit']:.1f} s")  # fmt: skip

# %% [markdown]
# Efficacy is the share of the concept's margin that is gone, specificity the share of the neighbours' that stays. Top right is good; whatever does no better than random
# directions has not found the concept.

# %%
figure, axis = plt.subplots(figsize=(4.6, 3.2))
for name, figures in found.items():
    axis.plot(figures["efficacy"], figures["specificity"], "o" if name in ("my-pruning", "leace") else "x", ms=8, label=name)
axis.set(xlabel="efficacy →", ylabel="specificity →", xlim=(-0.05, 1.05), ylim=(-0.05, 1.1))
axis.legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# **What to take away.** The table keeps what a reader needs to disbelieve you: controls, the number of looks at `validation`, seeds, versions. `efface bench grid.yaml
# --out DIR` runs the same from the command line, and attacks (`attacks:` in the grid) belong in it before anybody is told that something is erased.
