"""A concept about magic in the tiny vocabulary, and SAEs over a tiny host's MLP outputs in which some features are
known to carry it.
"""

import itertools
from collections.abc import Sequence

import torch
from tiny import tiny_host

from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.llm.host import Host
from efface.sae import SAE, SAEConfig

MAGIC = ("wizard", "witch", "wand", "spell", "potion", "broom", "castle", "Hogwarts")
MUSIC = ("piano", "guitar", "violin", "drum", "orchestra", "symphony", "concert", "composer")
PLAIN = (
    "river",
    "road",
    "house",
    "table",
    "bread",
    "winter",
    "teacher",
    "train",
    "window",
    "coffee",
    "horse",
    "mountain",
)


def sentences(words: Sequence[str]) -> dict[str, list[str]]:
    """Disjoint splits of short sentences, each with two of the words."""
    pairs = list(itertools.combinations(words, 2))
    texts = [f"the {a} and the {b} are old" if i % 2 else f"she saw the {a} by the {b}" for i, (a, b) in enumerate(pairs)]
    return {"train": texts[0::3], "validation": texts[1::3], "test": texts[2::3]}


def questions(words: Sequence[str], wrong: Sequence[str]) -> dict[str, list[dict[str, object]]]:
    """Cloze items; half of the answers occur in no train text."""
    unseen = ("magic", "dragon", "owl", "Potter")
    answers = [*words, *unseen] if words is MAGIC else list(words)
    items: list[dict[str, object]] = [
        {"q": f"at school {n} she has a", "options": [a, wrong[n % 8], wrong[(n + 3) % 8]], "answer": a} for n, a in enumerate(answers)
    ]
    return {"train": items[0:1], "validation": items[1::2], "test": items[2::2]}


def magic(**changes: object) -> Concept:
    """The concept; a field set to None is left out."""
    return Concept.from_mapping(magic_values(**changes))


def concept_ids(host: Host) -> list[int]:
    """First token of each of the concept's tokens."""
    return [host.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in magic().tokens]


def magic_values(**changes: object) -> dict[str, object]:
    """What stands in its file."""
    values: dict[str, object] = {
        "format": 1,
        "name": "magic",
        "form": "cloze",
        "target": sentences(MAGIC),
        "neighbours": sentences(MUSIC),
        "general": sentences(PLAIN),
        "tokens": [" wizard", " wand", " spell"],
        "questions": questions(MAGIC, PLAIN),
        "neighbour_questions": questions(MUSIC, PLAIN),
        "relearn": [
            "the old man has a broom and a potion . the child has a witch .",
            "the castle is old and the broom is new .",
        ],
    }
    return {k: v for k, v in {**values, **changes}.items() if v is not None}


def planted_sae(host: Host, layer: int = 1, d_sae: int = 24, place: str = "mlp_out", dtype: str = "float32") -> SAE:
    """A ReLU SAE of random features of which 0 reads and writes the concept's words, and 1 the neighbours'."""
    point = f"layers.{layer}.{place}"
    gen = torch.Generator().manual_seed(layer)
    sae = SAE(
        SAEConfig("relu", host.d_model, d_sae, dtype=dtype),
        {"hook_point": point, "model": host.name, "model_digest": host.digest},
    )
    X, y = readings(host, point)
    with torch.no_grad():
        rows = torch.randn(d_sae, host.d_model, generator=gen)
        for f, words in ((0, MAGIC), (1, MUSIC)):
            rows[f] = written(host, words)
        rows = rows / rows.norm(dim=1, keepdim=True)
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.fill_(-0.02)
        for f, kind in ((0, 1), (1, 2)):
            weights, bias = detector(X, y == kind)
            sae.W_enc[:, f], sae.b_enc[f] = weights, bias
    return sae


def readings(host: Host, point: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations at all tokens of all sentences, and their kind: 1 magic, 2 music, 0 else."""
    found, kinds = [], []
    words = {w: kind for kind, group in ((1, MAGIC), (2, MUSIC)) for w in group}
    for group in (MAGIC, MUSIC, PLAIN):
        texts = [t for split in sentences(group).values() for t in split]
        ids, mask = host.encode_texts(texts)
        keep = host.keep_mask(ids, mask)
        found.append(host.activations(ids, mask, [point])[point][keep].float())
        kinds += [words.get(str(host.tokenizer.decode([i])).strip(), 0) for i in ids[keep].tolist()]
    return torch.cat(found), torch.tensor(kinds)


def written(host: Host, words: Sequence[str]) -> torch.Tensor:
    """The direction that promotes the words, against all tokens."""
    ids = [host.tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in words]
    U = host.unembedding().float()
    return U[:, ids].mean(1) - U.mean(1)


def detector(X: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression, classes balanced, scaled to a unit direction as SAE encoders roughly are."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=100.0, class_weight="balanced", max_iter=2000).fit(X.numpy(), y.numpy())
    weights, bias = torch.from_numpy(found.coef_[0]).float(), float(found.intercept_[0])
    return weights / weights.norm(), torch.tensor(bias) / weights.norm()


def same_changes(a: Edit, b: Edit) -> bool:
    """Whether two edits change the same tensors by the same numbers (their digests also hold settings and concepts)."""
    x, y = a.weights[0].deltas, b.weights[0].deltas
    return x.keys() == y.keys() and all(torch.equal(x[n].delta(), y[n].delta()) for n in x)


def trained_host() -> Host:
    """A tiny host that knows the concept's and the neighbours' items."""
    host, concept = tiny_host(hidden_size=64), magic()
    items = [q for pool in (concept.questions, concept.neighbour_questions) for split in pool.values() for q in split]
    texts = [f"{q.q} {q.answer}" for q in items] + [t for s in concept.general.values() for t in s]
    optimizer = torch.optim.AdamW(host.model.parameters(), 5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        host.loss(texts).backward()
        optimizer.step()
    optimizer.zero_grad()
    return host
