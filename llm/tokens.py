"""What a tokenizer says about single tokens: special ones, padding, the role each plays in a prompt."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..base.errors import InputError, MatchedNothing


@dataclass(frozen=True)
class TokenRoles:
    """Positions in one encoded prompt (design.md §6)."""

    input_ids: tuple[int, ...]
    """The prompt as the host encodes it, special tokens included."""
    tokens: tuple[str, ...]
    """The tokens as the tokenizer spells them."""
    subject: tuple[int, ...]
    """Positions of the subject's tokens; empty if no subject was named."""
    last_subject: int | None
    """The last of them."""
    eos: int | None
    """First EOS token, if the tokenizer adds one."""
    padding: tuple[int, ...]
    """Positions of padding."""
    specials: tuple[int, ...]
    """Positions of special tokens."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """BOS, EOS, padding, chat markers and every other token that the tokenizer calls special."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def special_table(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Bool[Tensor, "V"]:
    """True at special ids."""
    ids = special_ids(tokenizer)
    table = torch.zeros(max([vocabulary, len(tokenizer), *(i + 1 for i in ids)]), dtype=torch.bool)
    table[sorted(ids)] = True
    return table


def begins_special(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a special token (BOS) before a text by itself."""
    first = list(tokenizer("a")["input_ids"])[:1]
    return bool(first) and first[0] in special_ids(tokenizer)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, else EOS, else 0: padding is masked, the id only has to exist."""
    for name in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(name, int):
            return name
    return 0


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What an empty text is encoded as: BOS, else EOS.

    Raises:
        InputError: The tokenizer has neither.
    """
    for name in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(name, int):
            return name
    raise InputError("an empty text cannot be encoded: the tokenizer has neither a BOS nor an EOS token")


def token_roles(tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str | None = None, *, length: int | None = None) -> TokenRoles:
    """Roles of the tokens of `prompt`, padded to `length` tokens where one is given; the subject is its last occurrence in the prompt.

    Raises:
        MatchedNothing: The subject does not occur in the prompt.
    """
    padded = {} if length is None else {"padding": "max_length", "max_length": length}
    encoded = tokenizer(prompt, return_offsets_mapping=True, verbose=False, **padded)
    ids: list[int] = list(encoded["input_ids"])
    special = special_ids(tokenizer)
    specials = tuple(i for i, t in enumerate(ids) if t in special)
    places: tuple[int, ...] = ()
    if subject is not None:
        start = prompt.rfind(subject) if subject else -1
        if start < 0:
            raise MatchedNothing(f"subject {subject!r} does not occur in the prompt {prompt!r}")
        end = start + len(subject)
        spans = enumerate(encoded["offset_mapping"])
        places = tuple(i for i, (a, b) in spans if a < end and b > start and i not in specials and prompt[max(a, start) : b].strip())
    eos = next((i for i, t in enumerate(ids) if t == tokenizer.eos_token_id and t != tokenizer.bos_token_id), None)
    padding = tuple(i for i, m in enumerate(encoded["attention_mask"]) if not m)
    tokens = tuple(map(str, tokenizer.convert_ids_to_tokens(ids)))
    return TokenRoles(tuple(ids), tokens, places, places[-1] if places else None, eos, padding, specials)
