# %% [markdown]
# # 5. Bring your own model and your own concept
#
# From a checkpoint on disk and a file of your own sentences to an edited checkpoint that anybody can load. No dictionary is needed for this path: the eraser
# here fine-tunes. [Notebook 2](02_pisces.ipynb) shows the one with features.
#
# Any Llama, Gemma 2/3, GPT-2, GPT-NeoX, Qwen 2/3 or Mistral checkpoint of transformers will do. `EFFACE_NOTEBOOK_SIZE=small` takes the package's smallest Llama
# as «your» checkpoint; otherwise it is SmolLM2-135M.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import yaml

import efface
from efface.deactivate import Concept, apply_edits
from efface.llm import load_model
from efface.llm.evaluation import SuiteConfig, evaluate
from efface.probes import LinearConfig, fit_linear, score

SMALL = os.environ.get("EFFACE_NOTEBOOK_SIZE", "full") == "small"
OUT = Path(tempfile.mkdtemp(prefix="efface-05-"))

# %% [markdown]
# ## Your checkpoint
#
# Here a folder is made that stands for yours; put the path of your own into `MODEL`.

# %%
MODEL = OUT / "my-model"
packaged = load_model("synthetic" if SMALL else "smollm2")
packaged.model.save_pretrained(MODEL)
packaged.tokenizer.save_pretrained(MODEL)

host = load_model(MODEL)
print(f"{host.n_layers} layers of width {host.d_model}; places to read are", ", ".join(host.hook_points()[:4]), "…")

# %% [markdown]
# ## Your concept
#
# A concept is one file: texts that show it, close things that must survive, and questions that tell whether it is gone. Each is split in three that share
# no line: `train` is what erasers learn from, every choice is made on `validation`, and `test` is for figures that you report.
#
# On the command line `efface concepts --new FILE.yaml` writes a sample, and `efface concepts FILE.yaml` says what it still lacks. The small size borrows lines from
# the made-up world, whose model has never heard of bicycles.

# %%
BICYCLES = {
    "name": "Bicycles",
    "form": "cloze",
    "target": {
        "train": ["My bicycle has a flat tyre again.", "She rode her bike down the hill without braking.", "The cyclist oiled the chain.",
                  "He pedalled hard to keep up.", "Most bikes in the shed had rusty spokes.", "You learn to balance on two wheels."],
        "validation": ["The mountain bike has twenty-one gears.", "Two spokes of the front wheel were bent.", "We cycled along the canal."],
        "test": ["Cyclists must use the bike lane.", "He locked the bicycle to a lamp post.", "Her brakes squeaked at the light."],
    },
    "neighbours": {
        "train": ["The car would not start.", "A motorcycle roared past.", "The train leaves every hour.", "Her scooter needs a battery.",
                  "The lorry driver slept in his cab.", "We took the tram to the market."],
        "validation": ["The bus was late.", "He parked the van behind the station.", "A taxi took them to the airport."],
        "test": ["The ferry carries forty cars.", "She drove through the night.", "The underground is crowded."],
    },
    "questions": {
        "train": [{"q": "A bicycle has two", "options": ["wheels", "moons", "breakfasts", "sisters"], "answer": "wheels"},
                  {"q": "To move a bike you push the", "options": ["pedals", "clouds", "curtains", "teachers"], "answer": "pedals"}],
        "validation": [{"q": "On a bicycle you sit on the", "options": ["saddle", "window", "library", "soup"], "answer": "saddle"},
                       {"q": "When a bike tyre is flat you need a", "options": ["pump", "violin", "cousin", "cake"], "answer": "pump"},
                       {"q": "A cyclist protects the head with a", "options": ["helmet", "river", "sandwich", "poem"], "answer": "helmet"}],
    },
    "neighbour_questions": {
        "train": [{"q": "Trains run on", "options": ["rails", "honey", "pillows", "opinions"], "answer": "rails"}],
        "validation": [{"q": "The driver of a bus sits behind the steering", "options": ["wheel", "onion", "concert", "letter"], "answer": "wheel"},
                       {"q": "You stop a car with the", "options": ["brakes", "spoons", "novels", "carrots"], "answer": "brakes"}],
    },
}  # fmt: skip


def borrowed(name: str, texts: int, asked: int) -> dict:
    """A concept file's values with some lines of a packaged concept."""
    c = Concept.load(name)
    told = {pool: {s: list(lines[:: max(1, len(lines) // texts)]) for s, lines in getattr(c, pool).items()} for pool in ("target", "neighbours", "general")}
    questions = {
        pool: {s: [{"q": q.q, "options": list(q.options), "answer": q.answer} for q in items[:: max(1, len(items) // asked)]] for s, items in getattr(c, pool).items()}
        for pool in ("questions", "neighbour_questions")
    }
    return {"name": c.name, "form": c.form, **told, **questions}


file = OUT / "concept.yaml"
file.write_text(yaml.safe_dump({"format": 1, **(borrowed("synthetic/river", 60, 24) if SMALL else BICYCLES)}, allow_unicode=True))
concept = Concept.load(file)
print(concept.name, {s: len(lines) for s, lines in concept.target.items()}, "texts;", {s: len(q) for s, q in concept.questions.items()}, "questions")

# %% [markdown]
# ## Where does the model know it?
#
# A quick look before anything is changed: a linear probe a layer, on means over tokens. Where it does no better than the commonest class, there is nothing to read.


# %%
def vectors(split: str, points: list[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Means over tokens at each hook point, and which texts are about the concept."""
    pools = [list(concept.neighbours[split])[:80], list(concept.target[split])[:80]]
    ids, mask = host.encode_texts([t for pool in pools for t in pool], max_length=48)
    keep = host.keep_mask(ids, mask)[..., None]
    acts = host.activations(ids, mask, points)
    means = {p: (acts[p] * keep).sum(1) / keep.sum(1).clamp_min(1) for p in points}
    return means, torch.tensor([0] * len(pools[0]) + [1] * len(pools[1]))


points = [f"layers.{n}.resid_post" for n in range(0, host.n_layers, max(1, host.n_layers // 10))]
(x, y), (x_held, y_held) = vectors("train", points), vectors("validation", points)
probes = {p: score(fit_linear(x[p], y, LinearConfig(l2=1e-2)), x_held[p], y_held, y) for p in points}
figure, axis = plt.subplots(figsize=(5.6, 2.4))
axis.plot([int(p.split(".")[1]) for p in points], [s.accuracy for s in probes.values()], "o-", color="#4477aa", label="linear probe")
axis.axhline(next(iter(probes.values())).majority, color="#999999", ls="--", label="commonest class")
axis.set(xlabel="layer", ylabel="accuracy, validation", ylim=(0.4, 1.02), xticks=[int(p.split(".")[1]) for p in points])
axis.legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Erase
#
# [NPO](https://arxiv.org/abs/2404.05868) (negative preference optimisation) makes the concept's texts and answers less likely than the base finds them, and holds on
# to the neighbours. It needs no dictionary and few lines. `graddiff`, `rmu` and `elm` have the same form; `efface methods` lists what each of them needs.

# %%
edit = efface.erase(
    "npo", host, concept, steps=20, batch=4, accumulate=1, lr=4e-3 if SMALL else 3e-4,
    forget=("target", "questions"), retain=("neighbours", "questions"), length=32,
)  # fmt: skip
print(edit.name)

# %% [markdown]
# ## Was it worth it?
#
# Beside the edit stand changes of the same size in random directions. With a handful of questions the intervals are wide: write a hundred before you believe a figure.

# %%
result = evaluate(host, [edit], concept, "validation", SuiteConfig(texts=6 if SMALL else 30, max_tokens=32, continuations=0, draws=2))
margins = {row.name: row.metrics["margin"].mean for row in result.rows}
for row in result.rows:
    print(f"{row.name:>18}: " + ", ".join(f"{m} {row.metrics[m].text(2)}" for m in ("margin", "neighbours_margin", "ppl_neutral") if m in row.metrics))

# %% [markdown]
# ## Hand it on
#
# An ordinary checkpoint: whoever gets it needs transformers and nothing else. The ledger beside it lets you go back, bit for bit.

# %%
from transformers import AutoModelForCausalLM

apply_edits(host, [edit], OUT / "edited")
plain = AutoModelForCausalLM.from_pretrained(OUT / "edited")
changed = [n for n, p in plain.named_parameters() if not torch.equal(p, dict(host.model.named_parameters())[n])]
print(f"{len(changed)} of {len(list(plain.parameters()))} tensors differ from the base, e.g. {changed[0]}")

# %% [markdown]
# **What to take away.** Two files go in (a checkpoint, a concept) and one comes out. The same as commands, step by step: [your own model](../docs/own.md). How a concept
# file is written well: [concept files](../docs/concepts.md).
