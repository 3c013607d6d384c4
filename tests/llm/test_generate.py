"""Generation: greedy against transformers, sampling against probabilities, seeds that belong to prompts."""

import pytest
import torch
from tiny import FAMILIES, tiny_host

from efface.base.errors import InputError, NumericsError
from efface.llm.generate import Sampling, choose

PROMPTS = ["the dog is", "Harry", "Mars and Jupiter are planets in the sky"]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_what_full_forward_passes_give(family: str) -> None:
    """Cache, left padding and positions leave no trace."""
    host = tiny_host(family)
    texts = host.generate(PROMPTS, 0, 8, greedy=True)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = host.token_ids([prompt])[0]
        new: list[int] = []
        for _ in range(8):
            one, mask = host.pad([ids + new])
            with torch.no_grad():
                new.append(int(host.logits(one, mask)[0, -1].argmax()))
            if new[-1] == host.tokenizer.eos_token_id:
                break
        assert text == host.tokenizer.decode(new, skip_special_tokens=True)


def test_the_ith_prompt_has_seed_plus_i() -> None:
    host = tiny_host()
    texts = host.generate(PROMPTS, 5, 8)
    assert texts == host.generate(PROMPTS, 5, 8, batch_size=2)
    for i, prompt in enumerate(PROMPTS):
        assert host.generate([prompt], 5 + i, 8) == [texts[i]]
    assert texts != host.generate(PROMPTS, 6, 8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert texts == host.generate(PROMPTS, 5, 8)
    assert torch.equal(before, torch.get_rng_state())


def test_same_prompt_twice_differs_by_seed() -> None:
    first, second = tiny_host().generate(["the dog"] * 2, 0, 12)
    assert first != second


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    share = torch.bincount(choose(logits, generators, Sampling(top_k=0)), minlength=4) / 4000
    assert (share - logits[0].softmax(0)).abs().max() < 0.03
    share = torch.bincount(choose(logits, generators, Sampling(top_k=2, temperature=0.5)), minlength=4) / 4000
    assert (share - torch.tensor([4.0, 2.0, -1e9, -1e9]).softmax(0)).abs().max() < 0.03
    share = torch.bincount(choose(logits, generators, Sampling(top_p=0.7)), minlength=4) / 4000
    assert share[2:].sum() == 0
    assert share[1] > 0.1
    assert choose(logits[:5], generators[:5], Sampling(top_p=0.01)).tolist() == [0] * 5


def test_a_row_ends_at_eos_and_the_others_go_on() -> None:
    host = tiny_host()
    base = host.generate(PROMPTS, 0, 6, greedy=True)
    first = host.token_ids([base[0]])[0][1]
    host.model.generation_config.eos_token_id = [first]
    ended = host.generate(PROMPTS, 0, 6, greedy=True)
    assert ended[0] == ""
    assert any(ended[1:])


def test_bad_settings() -> None:
    host = tiny_host()
    with pytest.raises(InputError, match="temperature"):
        host.generate(["dog"], temperature=0.0)
    with pytest.raises(InputError, match="top_p"):
        host.generate(["dog"], top_p=0.0)
    with pytest.raises(InputError, match="top_k"):
        host.generate(["dog"], top_k=-1)
    with pytest.raises(InputError, match="max_new_tokens"):
        host.generate(["dog"], max_new_tokens=0)
    with pytest.raises(InputError, match="prompts"):
        host.generate([])
    with torch.no_grad():
        host.down_proj(0)[1].fill_(float("nan"))
    with pytest.raises(NumericsError):
        host.generate(["dog"])
