# %% [markdown]
# # 3. Interpret and deactivate in a text-to-image model
#
# `icons` is a whole latent diffusion pipeline in the package: it draws a thing in a style at 64 × 64 pixels. Small as it is, it has everything that
# Stable Diffusion has (CLIP text encoder, U-Net, VAE), and everything here works on those too.
#
# [Interpret-then-Deactivate](https://arxiv.org/abs/2503.09446) puts a layer into the text encoder that turns features of an SAE down, behind a *gate*:
# a score of the prompt, computed on the unedited encoder. Below the gate's threshold the picture is the base's, bit for bit.
#
# `EFFACE_NOTEBOOK_SIZE=small` draws fewer pictures; the model is the same.

# %%
import os
import textwrap

import matplotlib.pyplot as plt
import torch

import efface
from efface.deactivate import Concept, DeactivationPart, Edit
from efface.sae import SAE
from efface.t2i import FeatureConfig, find_features, load_pipeline, packaged_saes
from efface.t2i.evaluation import load_judges, verdicts

SMALL = os.environ.get("EFFACE_NOTEBOOK_SIZE", "full") == "small"
host = load_pipeline("icons")
sae = SAE.load(packaged_saes("icons")[0])
concept = Concept.load("icons/dog")
print(host, sae.cfg.d_sae, "features at", sae.card["hook_point"])

# %% [markdown]
# ## Interpret
#
# Which features fire on prompts with a dog, and not on a wolf, a fox, or anything else? Each is shown with the tokens at which it is strongest and with its
# score as a detector on `validation` prompts, which had no part in the choice of the order. AUROC .5 is a coin.

# %%
report = find_features(host, concept, [sae], FeatureConfig(texts=60 if SMALL else 200))
for f in report.features[:5]:
    print(f"feature {f.id:>4}: AUROC {f.auroc['validation']:.3f}, strongest at «{f.label}», e.g. {f.prompts[0]!r}")

# %% [markdown]
# ## Deactivate
#
# `preset="efface"` takes the features to which a regression of the concept's prompts against all others gives weight; the same regression is the gate, and
# its threshold comes from held-out prompts at a stated rate of false alarms.

# %%
edit = efface.erase("itd", host, concept, [sae], preset="efface", n_retain=200 if SMALL else 2000)
print(edit.name)
print(textwrap.fill(edit.gate.summary(), 90))

# %% [markdown]
# ## Look
#
# Same prompts, same seeds, with and without the edit. Dogs should go, all else should stay as it is to the last pixel.
#
# What is drawn where a dog's features were turned down is nobody's choice. `form="replace"` makes it one: behind the same gate, the words at which the features
# are active give way to the concept's *anchor*, here a wolf, and the rest of the prompt stays.

# %%
instead = efface.erase("itd", host, concept, [sae], preset="efface", form="replace", n_retain=200 if SMALL else 2000)
STYLES = ("twemoji", "noto") if SMALL else ("twemoji", "noto", "flat", "blob")
asked = [f"a dog, {s} style" for s in STYLES] + [f"a picture of a dog, {s} style" for s in STYLES]
kept = [f"a {thing}, {s} style" for thing in ("wolf", "guitar") for s in STYLES]
prompts = asked + kept
before = host.generate(prompts, seed=0)
with edit.applied(host):
    after = host.generate(prompts, seed=0)
with instead.applied(host):
    anchored = host.generate(prompts, seed=0)


def sheet(rows: dict[str, torch.Tensor], titles: list[str]) -> None:
    """A row of pictures each."""
    figure, axes = plt.subplots(len(rows), len(titles), figsize=(1.25 * len(titles), 1.45 * len(rows)), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=11)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title.replace("picture of ", "picture of\n").replace(", ", ",\n"), fontsize=9)
    figure.tight_layout()
    plt.show()


sheet({"base": before, "turned down": after, f"{concept.anchor} instead": anchored}, prompts)

# %% [markdown]
# ## Judge
#
# Eyes are easily pleased. Two classifiers of different architecture and with training data of different seeds say what they see. The control is a layer of equal
# size that turns down features drawn by lot, *without* a gate, so that it has every chance to do harm.

# %%
part = edit.parts[0]
chosen = set(int(f) for f in part.features)
others = [f for f in torch.randperm(sae.cfg.d_sae, generator=torch.Generator().manual_seed(0)).tolist() if f not in chosen]
lot = Edit([DeactivationPart(sae, tuple(sorted(others[: len(chosen)])), part.value)], "features by lot")
with lot.applied(host):
    by_lot = host.generate(prompts, seed=0)


def seen(pictures: torch.Tensor, word: str) -> float:
    """Share of pictures in which the judges, in the mean of both, see the thing."""
    judges = load_judges("icons/object")
    return sum(float((verdicts(j, j.scores(pictures)) == j.classes.index(word)).double().mean()) for j in judges) / len(judges)


n = len(asked)
dogs = {name: seen(pictures[:n], "dog") for name, pictures in (("base", before), ("edited", after), ("anchor", anchored), ("features by lot", by_lot))}
same = {
    name: float((pictures[n:] == before[n:]).flatten(1).all(1).double().mean())
    for name, pictures in (("edited", after), ("anchor", anchored), ("features by lot", by_lot))
}
print("dogs seen:", dogs)
print("other pictures that are the base's to the bit:", same)
print("wolves seen where a dog was asked for:", seen(anchored[:n], "wolf"))

# %% [markdown]
# **What to take away.** The gate is what keeps all else untouched, and it only knows the ways of asking that it was shown: `efface eval` draws prompts that ask for
# a dog in other words, and counts. Before you use this on a model of yours, read what it [fell short of](../docs/icons.md).
#
# A feature layer is run-time surgery: it has no permanent form. What stays in a checkpoint are weights; see [notebook 2](02_pisces.ipynb).
