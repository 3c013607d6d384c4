"""Evidence of a text encoder's features, prompt by prompt; pictures with and without a feature, drawn once."""

import base64
import io

import pytest
import torch
from PIL import Image
from t2i._kit import tiny_image_host
from t2i._planted import POINT, WORDS, word_sae

from efface.base.errors import InputError
from efface.deactivate.inspect.prompts import PromptReader
from efface.sae.evidence import EvidenceConfig, FeatureStore
from efface.t2i.evaluation.sheets import png
from efface.t2i.feature_stores import make_stores, spelled
from efface.t2i.inspecting import SIDE, FeaturePictures

PROMPTS = [
    f"{a} {n}"
    for a in ("a big", "the", "a red", "my", "an old", "the blue", "a green", "a")
    for n in ("dog", "cat", "bus", "tree", "apple", "house")
]
CONFIG = EvidenceConfig(before=8, after=8, held=6, background=40, held_out=2, least=2)


def size(host) -> None:
    """Two steps at the smallest size."""
    draw = host.generate
    host.steps = 2
    host.generate = lambda prompts, **o: draw(prompts, size=(32, 32), **o)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    host = tiny_image_host("sd")
    sae = word_sae(host)
    out = tmp_path_factory.mktemp("stores") / "features"
    return host, sae, out, make_stores(host, PROMPTS, {out: sae}, CONFIG)


def test_a_feature_fires_on_its_word_in_whole_prompts(made) -> None:
    host, _, out, reports = made
    store = FeatureStore.open(out)
    for f in (0, 1):
        contexts = store.contexts(f, "top")
        assert contexts
        for c in contexts:
            assert c.pieces[c.peak].strip() == WORDS[f]
            words = "".join(c.pieces)
            assert words.endswith("(end)")  # BOS is left out, EOS is not
            assert words.removesuffix("(end)").strip() in PROMPTS
            assert sum(a > 0 for a in c.activations) == 1
    fires = sum(WORDS[0] in p.split() for p in PROMPTS)
    counted = store.row(0).fired + sum(len(store.contexts(0, k)) for k in ("validation", "test"))
    assert counted == fires
    assert store.row(20).status == "silent"
    assert reports[POINT]["labels"]["status"]
    reader = host.reader([POINT])
    assert "".join(spelled(reader, reader.token_ids(["a big dog"])[0][1:-1])) == "a big dog "


def test_stores_refuse_what_they_cannot_do(made, tmp_path) -> None:
    host, sae, out, _ = made
    with pytest.raises(InputError, match="exists already"):
        make_stores(host, PROMPTS, {out: sae}, CONFIG)
    with pytest.raises(InputError, match="writes no words"):
        make_stores(host, PROMPTS, {tmp_path / "x": sae}, EvidenceConfig(labels="host"))
    assert not list(tmp_path.iterdir())


def test_pictures_differ_by_the_feature_alone_and_are_drawn_once(made, cache) -> None:
    host, sae, out, _ = made
    size(host)
    store, drawn = FeatureStore.open(out), []
    plain = host.generate
    host.generate = lambda prompts, **o: drawn.append(len(prompts)) or plain(prompts, **o)
    pictures = FeaturePictures(host, prompts=2, seed=3)
    found = pictures.of(sae, store, 0)
    assert [p["seed"] for p in found] == [3, 4]
    assert all("dog" in p["prompt"] for p in found)
    images = [[_pixels(p[side]) for side in ("with", "without")] for p in found]
    assert all(not torch.equal(a, b) for a, b in images)
    again = plain([p["prompt"] for p in found], seeds=[3, 4])
    small = [base64.b64encode(png(b, SIDE)).decode() for b in again]
    assert [p["with"].partition(",")[2] for p in found] == small
    assert all(len(png(b, SIDE)) <= len(png(b)) for b in again)
    before = list(drawn)
    assert pictures.of(sae, store, 0) == found
    assert drawn == before  # from the cache
    assert pictures.of(sae, store, 20) == []  # nothing fires it
    other = FeaturePictures(host, prompts=2, seed=3).of(sae, store, 1)
    assert {p["prompt"] for p in other}.isdisjoint({p["prompt"] for p in found})


def _pixels(address: str) -> torch.Tensor:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3).permute(2, 0, 1)


def test_a_prompt_is_read_by_the_text_encoder_and_not_by_a_denoisers_sae(made) -> None:
    host, sae, *_ = made
    foreign = type(sae)(sae.cfg, {**sae.card, "hook_point": "unet.up_blocks.1.attentions.1.out"})
    reader = PromptReader(host, {0: sae, 1: foreign}, spell=spelled)
    got = reader.read("a big dog")
    assert [layer["sae"] for layer in got["layers"]] == [0]
    assert got["layers"][0]["tokens"] == ["a ", "big ", "dog ", "(end)"]
    assert got["layers"][0]["strongest"][0][::2] == [0, 2]
    assert reader.read("the cat")["layers"][0]["strongest"][0][0] == 1
