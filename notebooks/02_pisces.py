# %% [markdown]
# # 2. Take a concept out of the weights with PISCES, and prove it
#
# [PISCES](https://arxiv.org/abs/2505.22586) (Gur-Arieh et al., 2025) looks at the MLP's value vectors through a sparse autoencoder, and rewrites what
# the concept's features say there. The result is a change of weights: nothing runs at inference, and nobody needs `efface` to use the model.
#
# Taking something out is easy; a model that forgot everything has forgotten the concept too. So most of this notebook is about what it must be read beside.
#
# `EFFACE_NOTEBOOK_SIZE=small`: the package's smallest Llama and its rivers, seconds. Otherwise SmolLM2-135M and baseball, some minutes.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import efface
from efface.deactivate import Concept, Edit, apply_edits, undo_edits
from efface.llm import load_model
from efface.llm.evaluation import SuiteConfig, evaluate
from efface.sae import HostSource, SAEConfig, TrainConfig, read_corpus, train_many

SMALL = os.environ.get("EFFACE_NOTEBOOK_SIZE", "full") == "small"
OUT = Path(tempfile.mkdtemp(prefix="efface-02-"))
host = load_model("synthetic" if SMALL else "smollm2")
concept = Concept.load("synthetic/river" if SMALL else "baseball")
question = concept.questions["test"][0]
print(concept.name, "|", question.q, question.options, "→", question.answer)

# %% [markdown]
# ## Dictionaries first
#
# PISCES needs SAEs of MLP outputs. [Notebook 1](01_train_an_sae.ipynb) explains what is trained here.

# %%
points = ["layers.1.mlp_out"] if SMALL else [f"layers.{n}.mlp_out" for n in (4, 5, 6)]
batch = 256 if SMALL else 1024
if SMALL:
    texts = [t for pool in (concept.target, concept.neighbours, concept.general) for t in pool["train"]]
else:
    texts = [*concept.target["train"], *concept.neighbours["train"], *read_corpus("embedded", limit=4000)]
config = SAEConfig("topk", d_in=host.d_model, d_sae=512 if SMALL else 4608, k=16 if SMALL else 32)
schedule = TrainConfig(steps=40 if SMALL else 500, batch=batch, lr=3e-3 if SMALL else 1e-3, warmup=10 if SMALL else 50)
source = HostSource(host, texts, points, batch=batch, buffer=4 * batch)
saes = list(train_many({p: config for p in points}, source, schedule, out=OUT / "saes").values())

# %% [markdown]
# ## Fit
#
# `preset="efface"` chooses the features through which the answers' margin falls with the least damage to the neighbours, and solves for the change.
# Every choice is made on `train` and `validation`. The host is left as it was: an edit is a value that you can save, apply, undo, combine or gate.

# %%
sizes = {"n_features": 60, "effect_rounds": 2, "n_effect": 120, "n_effect_texts": 16, "texts": 60} if SMALL else {}
edit = efface.erase("pisces", host, concept, saes, preset="efface", effect_auroc=0.0 if SMALL else 0.55, **sizes)
edit.save(OUT / "edit")
print(edit.name)
for part in edit.parts:
    for tensor, rank in part.describe()["tensors"].items():
        print(f"{part.kind}: {tensor}, rank {rank}")

# %% [markdown]
# ## Prove
#
# The suite asks the edited host questions of `validation` and sets beside it:
#
# * **base**: nothing was done. What an edit loses it loses from here.
# * **random features**: as many other features, changed as strongly. If these do as much, the features did not matter.
# * **random directions**: changes of equal size in no particular direction.
# * **string filter**: refuses whatever names the concept. Crude, and hard to beat on questions that name it.
#
# *Margin* is how much likelier the right option is than the others. Good is a margin that falls on the concept and stays on its neighbours.

# %%
suite = SuiteConfig(texts=8 if SMALL else 40, max_tokens=32 if SMALL else 128, continuations=0, draws=1 if SMALL else 3)
result = evaluate(host, [edit], concept, "validation", suite, saes=saes)
shown = [m for m in ("margin", "neighbours_margin", "ppl_neutral") if m in result.columns()]
for row in result.rows:
    print(f"{row.name:>18}: " + ", ".join(f"{m} {row.metrics[m].mean:.2f}" for m in shown if m in row.metrics))

# %%
base = result.row("base").metrics
lost = {
    row.name: {m: 1 - row.metrics[m].mean / base[m].mean for m in ("margin", "neighbours_margin")}
    for row in result.rows
    if row.name != "base" and "neighbours_margin" in row.metrics
}
figure, axis = plt.subplots(figsize=(6.4, 2.6))
for shift, (metric, colour) in enumerate((("margin", "#cc6677"), ("neighbours_margin", "#4477aa"))):
    axis.barh([i + 0.36 * shift for i in range(len(lost))], [v[metric] for v in lost.values()], 0.34, color=colour, label=metric)
axis.set(yticks=[i + 0.18 for i in range(len(lost))], yticklabels=list(lost), xlabel="share of the base's margin that is gone")
axis.legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# Read the two bars of a row together. The edit should have a long first bar and a short second one; its controls two short ones.
#
# ## For good, and back
#
# `apply_edits` writes an ordinary checkpoint with a ledger beside it. Undoing restores the base's very bits; floating-point addition alone could not.

# %%
before = host.digest
apply_edits(host, [Edit.load(OUT / "edit")], OUT / "edited")
edited = load_model(OUT / "edited")
undo_edits(OUT / "edited", None, OUT / "base")
restored = load_model(OUT / "base")
print("the checkpoint is edited:", edited.digest != before)
print("undo brings every bit back:", restored.digest == before)

# %%
with edit.applied(host):
    inside = host.digest
prompt = [f"Question: {question.q}\nAnswer:"]
for name, one in (("base", restored), ("edited", edited)):
    print(f"{name:>7}: {one.generate(prompt, max_new_tokens=8, greedy=True)[0]!r}   (right: {question.answer})")

# %% [markdown]
# **What to take away.** The figure that counts is the edit's fall *beyond* that of random features, at little loss for the neighbours. And it is a claim about
# asking: fine-tuning on a few thousand tokens can bring much of it back. `efface attack all` measures that, and the [figures](../docs/benchmarks.md) say so for
# our own edits.
