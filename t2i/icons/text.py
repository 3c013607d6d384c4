"""The miniature's tokenizer and text tower: a CLIP text model, trained to tell drawings from their captions, then frozen."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base.files import write_json, write_text
from ...deactivate.training import fit_loop
from .captions import caption, phrase
from .data import IconData
from .pairs import END_OF_WORD, byte_pair_merges, words_of
from .recipe import TextRecipe
from .table import Flag, Icon, Table

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789,.-!?'"
START, END = "<|startoftext|>", "<|endoftext|>"


def entries(data: IconData, table: Table) -> list[Icon | Flag]:
    """Everything that has a drawing and a name: the main set, all other icons by their keys, the flags (one a class)."""
    others = [Icon(k, k.replace("-", " "), "other", ()) for k in data.keys if k not in table.icons]
    return [*table.icons.values(), *others, *(table.flags[codes[0]] for codes in data.flag_classes)]


def corpus(found: Sequence[Icon | Flag], styles: Sequence[str]) -> list[str]:
    """Captions that the tokenizer is made from, a few of each way to ask."""
    rng, out = random.Random(0), []
    for e in found:
        ways = [f"the flag of {e.name}", f"the {e.adjective} flag"] if isinstance(e, Flag) else [e.name, *e.held_out]
        out += [caption(w, s, rng) for w in (*ways, *e.ask) for s in (None, rng.choice(styles))]
    return out


def train_tokenizer(texts: Sequence[str], size: int, folder: Path, tokens: int) -> Any:
    """A byte-pair `CLIPTokenizer` in lower case, saved into `folder`."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letter = bytes_to_unicode()
    words = Counter({"".join(letter[b] for b in w.encode()): n for w, n in words_of(texts).items()})
    letters = sorted({*ALPHABET, *(c for w in words for c in w)})
    base = [*letters, *(c + END_OF_WORD for c in letters)]
    merges = byte_pair_merges(words, max(0, size - len(base) - 2))
    pieces = dict.fromkeys([*base, *("".join(m) for m in merges), START, END])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocabulary)
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=tokens)
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_towers(recipe: TextRecipe, tokenizer: Any, size: int = 64) -> Any:
    """An untrained `CLIPModel`."""
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.projection,
    }
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**shared, **ids, "vocab_size": len(tokenizer), "num_hidden_layers": recipe.layers, "max_position_embeddings": recipe.tokens}
    image = {**shared, "num_hidden_layers": recipe.image_layers, "image_size": size, "patch_size": recipe.patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=recipe.projection))


def train_text(data: IconData, table: Table, recipe: TextRecipe, out: Path, *, resume: bool = False) -> tuple[Any, Any]:
    """(tokenizer, text model): trained contrastively, `batch` different things at a time."""
    found = entries(data, table)
    tokenizer = train_tokenizer(corpus(found, data.styles), recipe.vocabulary, out / "tokenizer", recipe.tokens)
    torch.manual_seed(recipe.loop.seed)
    model = new_towers(recipe, tokenizer, data.drawings.shape[-1])
    main = [i for i, e in enumerate(found) if isinstance(e, Flag) or e.category != "other"]
    rest = [i for i, e in enumerate(found) if isinstance(e, Icon) and e.category == "other"]
    place = {key: i for i, key in enumerate(data.keys)}
    codes = {code: i for i, code in enumerate(data.codes)}
    n_main = round(recipe.main_share * recipe.batch) if rest else recipe.batch

    def step(at: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(random.random())
        chosen = [found[i] for i in (*rng.sample(main, min(n_main, len(main))), *rng.sample(rest, min(recipe.batch - n_main, len(rest))))]
        pictures, texts = [], []
        for e in chosen:
            flag = isinstance(e, Flag)
            style = rng.randrange(len(data.flags if flag else data.drawings))
            pictures.append(data.flags[style, codes[e.code]] if flag else data.drawings[style, place[e.icon]])
            named = None if flag or rng.random() > 0.8 else data.styles[style]
            texts.append(caption(phrase(e, rng), named, rng))
        x = torch.stack(pictures).float() / 127.5 - 1
        x = torch.roll(x, (rng.randint(-6, 6), rng.randint(-6, 6)), (2, 3)) + 0.1 * rng.random() * torch.randn_like(x)
        ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")  # causal: what follows EOS changes nothing
        logits = model(input_ids=ids.input_ids, attention_mask=ids.attention_mask, pixel_values=x).logits_per_text
        right = torch.arange(len(logits))
        loss = (torch.nn.functional.cross_entropy(logits, right) + torch.nn.functional.cross_entropy(logits.T, right)) / 2
        return loss, {"right": float((logits.argmax(1) == right).float().mean())}

    fit_loop(step, dict(model.named_parameters()), recipe.loop, out / "towers", resume, desc="text tower")
    return tokenizer, model.text_model.eval()
