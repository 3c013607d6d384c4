"""The miniature's text tower: captions of one thing end near each other, whatever words they use."""

import math
import random
from pathlib import Path

import pytest
import torch
from t2i.test_icons_training import pictures
from torch.nn.functional import cosine_similarity

from efface.deactivate.training.config import LoopConfig
from efface.t2i.icons.captions import any_way
from efface.t2i.icons.recipe import TextRecipe
from efface.t2i.icons.table import Flag, Icon, Table
from efface.t2i.icons.text import Proxies, _embedded, new_towers, train_text, train_tokenizer

WAYS = {"apple": ("red fruit", "orchard ware"), "ball": ("round toy", "what is thrown"), "bus": ("coach", "many seats")}


def table() -> Table:
    icons = {k: Icon(k, k, "thing", (ask,), (held,)) for k, (ask, held) in WAYS.items()}
    return Table(icons, {}, {"fr": Flag("fr", "flag-france", "France", ("the tricolour",), "French")})


def test_ways_to_ask_for_one_thing_end_near_each_other(tmp_path: Path) -> None:
    recipe = TextRecipe(150, 12, 24, 1, 2, 1, 16, 16, 32, 8, loop=LoopConfig(steps=80, lr=5e-3))
    tokenizer, text = train_text(pictures(), table(), recipe, tmp_path / "text")
    torch.manual_seed(recipe.loop.seed)
    fresh = new_towers(recipe, tokenizer, 64).text_model.eval()

    def nearest(model: torch.nn.Module) -> float:
        """Share of ways whose nearest other way asks for the same thing."""
        ways = [(k, w) for k, some in WAYS.items() for w in (k, *some)]
        ids = tokenizer([w for _, w in ways], padding=True, return_tensors="pt").input_ids
        with torch.no_grad():
            x = model(input_ids=ids).pooler_output
        x = x - x.mean(0)
        like = cosine_similarity(x[:, None], x[None], dim=-1).fill_diagonal_(-2)
        return sum(ways[int(i)][0] == k for (k, _), i in zip(ways, like.argmax(1), strict=True)) / len(ways)

    assert nearest(text) == 1.0
    assert nearest(fresh) < 0.8


def test_texts_of_like_length_run_together_and_come_back_in_their_order(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["apple ball bus cube a picture of"], 60, tmp_path, 24)
    model = new_towers(TextRecipe(60, 24, 16, 1, 2, 1, 16, 8), tokenizer).eval()
    texts = ["a picture of apple", "ball", "a bus", "cube of cube of cube", "apple", "a"]
    alone = torch.cat([_embedded(model, tokenizer, [t], 1) for t in texts])
    for groups in (1, 2, 4):
        torch.testing.assert_close(_embedded(model, tokenizer, texts, groups), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_loss_of_proxies_is_the_cross_entropy_over_all_things_and_the_named_styles() -> None:
    proxies = Proxies(3, 2, 4)
    with torch.no_grad():
        proxies.things.copy_(3 * torch.eye(3, 4))  # their lengths do not count
        proxies.styles.copy_(torch.tensor([[0, 0, 0, 1.0], [1, 0, 0, 0]]))
    x, scale = torch.tensor([[5.0, 0, 0, 0], [0, 0, 0, 2.0]]), torch.tensor(2.0)
    of_thing = (math.log(math.exp(2) + 2) - 2 + math.log(3)) / 2
    loss, right = proxies.loss(x, scale, [0, 1], [None, None], 0.5)
    assert float(loss) == pytest.approx(of_thing, abs=1e-5)
    assert float(right) == 0.5
    both, _ = proxies.loss(x, scale, [0, 1], [None, 0], 0.5)
    assert float(both) == pytest.approx(of_thing + 0.5 * (math.log(math.exp(2) + 1) - 2), abs=1e-5)


def test_every_way_to_ask_is_drawn_and_the_name_more_often() -> None:
    rng, apple = random.Random(0), table().icons["apple"]
    drawn = [any_way(apple, rng) for _ in range(600)]
    assert set(drawn) == {"apple", "red fruit", "orchard ware"}
    assert 0.38 < drawn.count("apple") / 600 < 0.55
    assert {any_way(table().flags["fr"], rng) for _ in range(99)} == {"the flag of France", "the French flag", "the tricolour"}
