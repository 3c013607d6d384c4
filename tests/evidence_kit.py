"""A tiny host, SAEs whose features fire on one word each, and documents of random words."""

import random

import torch
from planted import MAGIC, MUSIC, PLAIN

from efface.llm.host import Host
from efface.sae import SAE, SAEConfig

POINT = "layers.0.resid_pre"
PLANTED = (*MAGIC, *MUSIC)
"""Feature i fires on word i alone."""
OTHERS = (*PLAIN, "the", "and", "old", "by", "she", "saw", "on", "with", "small", "red", "day", "water", "king", "ship", "gold")


def documents(n: int, length: int = 24, seed: int = 0) -> list[str]:
    """Random words; about every second document holds a planted one, in a sentence of its own making."""
    rng = random.Random(seed)
    texts = []
    for _ in range(n):
        words = rng.choices(OTHERS, k=length)
        for place in rng.sample(range(length), rng.randint(0, 3)):
            words[place] = rng.choice(PLANTED)
        texts.append(" ".join(words))
    return texts


def word_sae(host: Host, d_sae: int = 24, seed: int = 0) -> SAE:
    """A ReLU SAE on the embeddings: the first features fire on one planted word, the others on half of all tokens."""
    sae = SAE(SAEConfig("relu", host.d_model, d_sae), {"hook_point": POINT, "model": host.name, "model_digest": host.digest})
    embedding = host.model.get_input_embeddings().weight.detach().float()
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(d_sae, host.d_model, generator=gen), dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
        for i, word in enumerate(PLANTED[:d_sae]):
            own = embedding[host.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]]
            sae.W_enc[:, i] = own / own.norm()
            sae.W_dec[i] = own / own.norm()
            sae.b_enc[i] = -0.9 * own.norm()
    return sae


def dense(host: Host, sae: SAE, text: str) -> torch.Tensor:
    """Every feature at every token of a text, [t d_sae]: the oracle."""
    ids, mask = host.encode_texts([text])
    return sae.encode(host.activations(ids, mask, [POINT])[POINT][host.keep_mask(ids, mask)]).detach()
