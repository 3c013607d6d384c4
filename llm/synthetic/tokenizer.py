"""The world's tokenizer: its words are tokens, names are two of them, all else is spelt by letters. Nothing is learnt."""

import re
from collections.abc import Iterator
from typing import Any

from .language import translate
from .templates import ANSWER, CLOSINGS, FRAMES, OPENINGS, QUESTION
from .words import DOMAINS, HEADS, KINDS, TAILS

SPECIALS = ("<unk>", "<bos>", "<eos>", "<pad>")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!:;-'\"()\n"
SPACE = "▁"
"""Stands for a blank, which belongs to the word behind it."""
_WORD_SCORE, _NAME_SCORE, _LETTER_SCORE = -1.0, -2.0, -20.0


def pieces() -> dict[str, float]:
    """Token -> score, specials left out: a text is cut so that the scores add up to most."""
    words = dict.fromkeys(_words())
    scored = dict.fromkeys([*words, *(translate(w) for w in words)], _WORD_SCORE)
    capitals = [w for w in scored if w[0].isupper()] + [QUESTION.strip(" :"), ANSWER.strip("\n :")]
    names = dict.fromkeys([*HEADS, *(SPACE + h for h in HEADS), *TAILS], _NAME_SCORE)
    whole = {**dict.fromkeys(capitals, _WORD_SCORE), **{SPACE + w: s for w, s in scored.items()}, **names}
    return {**whole, **{c: _LETTER_SCORE for c in [*LETTERS, SPACE] if c not in whole}}


def make_tokenizer() -> Any:
    """A `PreTrainedTokenizerFast` that puts `<bos>` before a text; equal in every run.

    Text in ASCII letters, digits and common punctuation survives encoding and decoding.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*((s, _LETTER_SCORE) for s in SPECIALS), *pieces().items()]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    core.normalizer = normalizers.Replace(" ", SPACE)
    core.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    core.decoder = decoders.Replace(SPACE, " ")
    core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", SPECIALS.index("<bos>"))])
    unk, start, end, pad = SPECIALS
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=unk, bos_token=start, eos_token=end, pad_token=pad)


def value_ids(tokenizer: Any) -> list[int]:
    """Tokens of the attributes' values, in both languages."""
    values = [v for _, words in KINDS.values() for v in words]
    return sorted(tokenizer.convert_tokens_to_ids([SPACE + w for v in values for w in (v, translate(v))]))


def _words() -> Iterator[str]:
    """Every word of the first language as it is written in texts."""
    for text in [*(f for fs in FRAMES.values() for f in fs), *OPENINGS, *CLOSINGS]:
        yield from re.findall(r"[A-Za-z]+", re.sub(r"\{\w\}", " ", text))
    yield from DOMAINS
    for nouns, values in KINDS.values():
        yield from (*nouns, *values)
