"""The miniature's tokenizer and text tower: a CLIP text model, trained to tell drawings from their captions, then frozen."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ...base.files import write_json, write_text
from ...deactivate.training import fit_loop
from .captions import MARKED, WITH_STYLE, any_way, caption
from .data import IconData
from .pairs import END_OF_WORD, byte_pair_merges, words_of
from .recipe import TextRecipe
from .table import Flag, Icon, Table

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789,.-!?'"
NAMED_MARK = 0.03
"""Share of captions in the text tower's training that name the mark."""
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


class Proxies(nn.Module):
    """A learned direction for each thing and each style, to which captions and pictures of it are both drawn.

    All of them are negatives at every step, where a contrast within a batch knows only the batch (proxies: Movshovitz-Attias et al.,
    arXiv:1703.07464): after 200 steps captions are told from those of all 1,260 things as they were not after 1,800 of the other.
    """

    def __init__(self, things: int, styles: int, width: int) -> None:
        super().__init__()
        self.things = nn.Parameter(normalize(torch.randn(things, width), dim=1))
        self.styles = nn.Parameter(normalize(torch.randn(styles, width), dim=1))

    def loss(
        self, x: Float[Tensor, "b d"], scale: Float[Tensor, ""], things: Sequence[int], styles: Sequence[int | None], weight: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """(cross-entropy over all things plus `weight` times over the styles that are given, share of things told right)."""
        x, right = normalize(x, dim=1), torch.tensor(things)
        logits = scale * x @ normalize(self.things, dim=1).T
        named = torch.tensor([s is not None for s in styles])
        loss = cross_entropy(logits, right)
        if named.any():
            drawn = torch.tensor([s for s in styles if s is not None])
            loss = loss + weight * cross_entropy(scale * x[named] @ normalize(self.styles, dim=1).T, drawn)
        return loss, (logits.argmax(1) == right).float().mean()


def train_text(data: IconData, table: Table, recipe: TextRecipe, out: Path, *, resume: bool = False) -> tuple[Any, Any]:
    """(tokenizer, text model): captions and pictures of a thing contrasted with those of all others, through `Proxies`."""
    found = entries(data, table)
    tokenizer = train_tokenizer(corpus(found, data.styles), recipe.vocabulary, out / "tokenizer", recipe.tokens)
    torch.manual_seed(recipe.loop.seed)
    model = new_towers(recipe, tokenizer, data.drawings.shape[-1])
    proxies = Proxies(len(found), len(data.styles), recipe.projection)
    main = [i for i, e in enumerate(found) if isinstance(e, Flag) or e.category != "other"]
    concepts = [i for i, e in enumerate(found) if isinstance(e, Icon) and e.icon in table.evaluated]
    rest = [i for i, e in enumerate(found) if isinstance(e, Icon) and e.category == "other"]
    place = {key: i for i, key in enumerate(data.keys)}
    codes = {code: i for i, code in enumerate(data.codes)}

    def drawn(rng: random.Random, n: int) -> list[int]:
        n_concepts = round(recipe.concepts_share * n)
        n_main = round(recipe.main_share * (n - n_concepts)) if rest else n - n_concepts
        chosen = [*rng.choices(concepts, k=n_concepts), *rng.choices(main, k=n_main)]
        return [*chosen, *(rng.choices(rest, k=n - len(chosen)) if rest else ())]

    def written(rng: random.Random) -> tuple[list[str], list[int], list[int | None]]:
        who = drawn(rng, recipe.batch)
        styles = [None if isinstance(found[i], Flag) or rng.random() > WITH_STYLE else rng.randrange(len(data.styles)) for i in who]
        texts = [caption(any_way(found[i], rng), None if s is None else data.styles[s], rng) for i, s in zip(who, styles, strict=True)]
        texts = [rng.choice(MARKED).format(caption=t) if rng.random() < NAMED_MARK else t for t in texts]
        return texts, who, styles

    def pictured(rng: random.Random) -> tuple[Tensor, list[int], list[int | None]]:
        pictures, who, styles = [], drawn(rng, recipe.pictures), list[int | None]()
        for i in who:
            e = found[i]
            drawings, at = (data.flags, codes[e.code]) if isinstance(e, Flag) else (data.drawings, place[e.icon])
            style = rng.randrange(len(drawings))
            pictures.append(drawings[style, at])
            styles.append(None if isinstance(e, Flag) else style)
        x = torch.stack(pictures).float() / 127.5 - 1
        return torch.roll(x, (rng.randint(-6, 6), rng.randint(-6, 6)), (2, 3)) + 0.1 * rng.random() * torch.randn_like(x), who, styles

    def step(at: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(random.random())
        scale = model.logit_scale.exp().clamp(max=100)
        texts, things, styles = written(rng)
        of_texts, right = proxies.loss(_embedded(model, tokenizer, texts), scale, things, styles, recipe.style_weight)
        x, things, styles = pictured(rng)
        seen = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
        of_pictures, recognised = proxies.loss(seen, scale, things, styles, recipe.style_weight)
        return of_texts + of_pictures, {"right": float(right), "pictures": float(recognised)}

    params = {**dict(model.named_parameters()), **{f"proxies.{n}": p for n, p in proxies.named_parameters()}}
    fit_loop(step, params, recipe.loop, out / "towers", resume, desc="text tower")
    return tokenizer, model.text_model.eval()


def _embedded(model: Any, tokenizer: Any, texts: Sequence[str], groups: int = 4) -> Float[Tensor, "b d"]:
    """Projected states at the end of each text. Texts of like length run together: half the time of one padded batch."""
    rows = tokenizer(list(texts), truncation=True).input_ids
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts, n = [], -(-len(rows) // groups)
    for some in (order[i : i + n] for i in range(0, len(order), n)):
        width = max(len(rows[i]) for i in some)
        ids = torch.tensor([rows[i] + [tokenizer.eos_token_id] * (width - len(rows[i])) for i in some])  # causal: padding changes nothing
        parts.append(model.text_projection(model.text_model(input_ids=ids).pooler_output))
    return torch.cat(parts)[torch.tensor(order).argsort()]
