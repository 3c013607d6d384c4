# %% [markdown]
# # 4. Linear erasure: what a straight line can no longer tell
#
# Can a linear classifier tell, from a vector inside the model, whether the text is about the concept? [LEACE](https://arxiv.org/abs/2306.03819) gives the
# smallest change of the vectors after which **no** linear classifier can, on the data it was fitted on. It is closed-form: no training, no dictionary.
#
# What it does not promise: a classifier with a bend may still tell, and so may the rest of the network. This notebook shows both sides.
#
# `EFFACE_NOTEBOOK_SIZE=small`: the package's smallest Llama, seconds. Otherwise SmolLM2-135M.

# %%
import os

import matplotlib.pyplot as plt
import torch

import efface
from efface.deactivate import Concept
from efface.llm import load_model
from efface.llm.evaluation import score_questions
from efface.probes import LinearConfig, MlpConfig, MomentsFitter, fit_linear, fit_mlp, leace, score

SMALL = os.environ.get("EFFACE_NOTEBOOK_SIZE", "full") == "small"
host = load_model("synthetic" if SMALL else "smollm2")
concept = Concept.load("synthetic/river" if SMALL else "baseball")
point = "layers.2.resid_post" if SMALL else "layers.15.resid_post"
TEXTS = 400

# %% [markdown]
# ## Vectors with labels
#
# A vector is the mean over a text's tokens; it is labelled 1 where the text is about the concept, 0 where it is about something close.


# %%
def vectors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean activations at the hook point, and whether each text is about the concept."""
    pools = [list(concept.neighbours[split][:TEXTS]), list(concept.target[split][:TEXTS])]
    lines, found = [t for pool in pools for t in pool], []
    for first in range(0, len(lines), 32):
        ids, mask = host.encode_texts(lines[first : first + 32], max_length=64)
        keep = host.keep_mask(ids, mask)[..., None]
        found.append((host.activations(ids, mask, [point])[point] * keep).sum(1) / keep.sum(1).clamp_min(1))
    return torch.cat(found), torch.tensor([0] * len(pools[0]) + [1] * len(pools[1]))


x, y = vectors("train")
x_test, y_test = vectors("validation")
print(f"{len(x)} vectors of width {x.shape[1]}, {int(y.sum())} about {concept.name}")

# %% [markdown]
# ## Erase
#
# All it needs is means and covariances. The result removes one direction (two classes differ by one). The control removes one drawn by lot.

# %%
moments = MomentsFitter().update(x, torch.nn.functional.one_hot(y).double()).moments()
eraser = leace(moments)
lot = torch.nn.functional.normalize(torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0)), dim=0)
print(f"LEACE removes {eraser.rank} of {x.shape[1]} directions")

# %% [markdown]
# ## Probe
#
# A new probe is fitted after each change, on the changed vectors: that a probe fitted *before* fails would say nothing. «Majority» is what always naming the
# commoner class reaches. «Fitted» are the vectors that eraser and probe were made from: there LEACE keeps its promise to the letter. «Held out» are sentences in
# frames that neither has seen: means and covariances were estimated on others, so a rest may be left, and that is what you will meet in practice.

# %%
changes = {"as they are": lambda v: v, "LEACE": eraser, "one direction by lot": lambda v: v - (v @ lot)[:, None] * lot}
fitted, linear, bent = {}, {}, {}
for name, change in changes.items():
    probe = fit_linear(change(x), y, LinearConfig(l2=1e-3))
    fitted[name], linear[name] = score(probe, change(x), y, y).accuracy, score(probe, change(x_test), y_test, y).accuracy
    bent[name] = score(fit_mlp(change(x), y, MlpConfig()), change(x_test), y_test, y).accuracy
majority = {"fitted": score(probe, x, y, y).majority, "held out": score(probe, x_test, y_test, y).majority}
for name in changes:
    print(f"{name:>22}: linear probe, fitted {fitted[name]:.3f}, held out {linear[name]:.3f}; perceptron, held out {bent[name]:.3f}")
print(f"{'majority':>22}:               {majority['fitted']:.3f},          {majority['held out']:.3f}")

# %% [markdown]
# Seen from the side: the difference of the class means is gone, everything at right angles to what was removed stays where it was.

# %%
gap = {name: float((change(x)[y == 1].mean(0) - change(x)[y == 0].mean(0)).norm()) for name, change in changes.items()}
direction = x[y == 1].mean(0) - x[y == 0].mean(0)
spread = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][0]
figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), sharex=True)
for axis, name in zip(axes, ("as they are", "LEACE"), strict=True):
    v = changes[name](x) - x.mean(0)
    for label, colour, text in ((0, "#4477aa", "close by"), (1, "#cc6677", concept.name)):
        axis.scatter(v[y == label] @ (direction / direction.norm()), v[y == label] @ spread, s=9, color=colour, alpha=0.6, label=text)
    axis.set(title=name, xlabel="along the difference of means")
axes[0].set_ylabel("first principal component")
figure.tight_layout()
figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, frameon=False, fontsize=8)
plt.show()
print("distance of the class means:", {name: round(value, 4) for name, value in gap.items()})

# %% [markdown]
# ## And the model?
#
# `erase` puts such a projection into the network, at every token that passes the hook point. It is an edit like any other: it lies on the host for a block, and is
# gone after it. Does the model still answer?

# %%
edit = efface.erase("leace", host, concept, at=[point], texts=TEXTS, probe=0)
questions = concept.questions["validation"][: 40 if SMALL else 100]
base = score_questions(host, questions, concept.form)
with edit.applied(host):
    edited = score_questions(host, questions, concept.form)
print(f"accuracy {base.accuracy:.2f} → {edited.accuracy:.2f}, margin {base.margin:.2f} → {edited.margin:.2f} (chance {base.chance:.2f})")

# %% [markdown]
# **What to take away.** Linear erasure is a guarantee about straight lines on fitted data, and it is cheap. It hides *whether a text is about the concept*; what the
# model knows of it may pass by other ways, as the last line shows. Scrubbing every layer (`at="layers.*.resid_post"`) closes more of them, at a cost:
# [what was measured](../docs/linear_erasure.md).
