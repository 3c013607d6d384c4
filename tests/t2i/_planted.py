"""A tiny real pipeline whose SAE has planted features: one word, one feature."""

import torch
from t2i._kit import sae_at

from efface.deactivate import Concept, Edit, erase
from efface.sae import SAE
from efface.t2i.host import ImageHost

POINT = "text_encoder.layers.0.resid_pre"
WORDS = ("dog", "cat", "apple", "bus", "house", "tree")
CONTRAST = {"preset": "efface", "rule": "contrast", "gate": "energy", "n_contrast": 2, "fpr": 0.0}
MIXED = ["a red apple", "a big dog", "the blue bus", "a dog and a cat"]


def word_sae(host: ImageHost) -> SAE:
    """Feature i reads and writes the word i; the others never fire."""
    sae, reader = sae_at(host, POINT), host.reader([POINT])
    table = reader.module.get_input_embeddings().weight.detach()
    with torch.no_grad():
        for p in (sae.b_dec, sae.W_enc, sae.b_enc):
            p.zero_()
        for i, word in enumerate(WORDS):
            v = table[reader.token_ids([word])[0][1]]
            sae.W_enc[:, i], sae.W_dec[i], sae.b_enc[i] = v / v.norm(), v / v.norm(), -0.6 * float(v.norm())
    return sae


def concept(word: str, near: str, **more) -> Concept:
    pool = ["the blue bus", "an old house by the sea", "a green tree", "a red apple"]
    general = [p for p in pool if word not in p and near not in p]
    values = {
        "format": 1, "name": word, "kind": "object", "anchor": "tree",
        "target": {"train": [f"a big {word}", word], "validation": [f"the {word}", f"a red {word}"], "test": [f"my {word}"]},
        "neighbours": {"train": [f"a big {near}"], "validation": [f"the {near}", f"a red {near}"]},
        "general": {"train": general, "validation": [p.replace("a ", "the ") + " by the sea" for p in general]},
    }  # fmt: skip
    return Concept.from_mapping(values | more)


def fitted(host: ImageHost, *words: str, **config) -> Edit:
    concepts = [concept(w, "cat" if w != "cat" else "apple") for w in words]
    return erase("itd", host, concepts, [word_sae(host)], **CONTRAST, **config)
