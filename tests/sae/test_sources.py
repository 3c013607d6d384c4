"""Sources: what a real (tiny) model gives is masked, mixed, bounded in memory and resumable.

A store is whole or refused.
"""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from efface.base.errors import ArtefactError, InputError, MatchedNothing, NumericsError
from efface.sae.sources import ActivationSource, ActivationStore, Feed, HostSource, MixingBuffer, store

torch.set_num_threads(1)
WORDS = [f"w{i}" for i in range(60)]
POINTS = ["layers.0.resid_post", "layers.1.resid_post"]


class TinyHost:
    """A Llama of two layers with random weights and a tokenizer that adds BOS."""

    def __init__(self, bos=True):
        torch.manual_seed(0)
        vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        if bos:
            inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.model = LlamaModel(LlamaConfig(vocab_size=len(vocabulary), **sizes)).eval()
        self.shapes = []

    def activations(self, input_ids, attention_mask, hook_points):
        self.shapes.append(tuple(input_ids.shape))
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        return {p: out.hidden_states[int(p.split(".")[1]) + 1] for p in hook_points}

    def keep_mask(self, input_ids, attention_mask):
        return attention_mask.bool() & (input_ids > 2)


def texts(n=40, seed=0, longest=25):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest, (n,), generator=g).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(60, (m,), generator=g).tolist()) for m in lengths]


def source(host, corpus=None, **options):
    return HostSource(host, corpus or texts(), POINTS, **{"batch": 16, "context": 12, "buffer": 64, "forward_tokens": 64, **options})


def sorted_rows(batches, point):
    rows = torch.cat([b[point] for b in batches])
    return rows[rows[:, 0].argsort()]


def test_filling_the_buffer_is_seen_where_it_takes_time(monkeypatch, capsys):
    monkeypatch.delenv("EFFACE_QUIET", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    host = TinyHost()
    list(source(host))
    assert not capsys.readouterr().err  # the control: over in less than two seconds
    monkeypatch.setattr("efface.base.running.SHOWN_AFTER", 0)
    batches = iter(source(host, part="train"))
    next(batches)
    shown = capsys.readouterr().err
    assert "first activations" in shown
    assert "/64" in shown
    assert shown.endswith("\r")  # it went away before the first batch came
    list(batches)
    assert "first activations" not in capsys.readouterr().err
    next(iter(source(host, texts(400), part="held_out")))
    assert "held-out activations" in capsys.readouterr().err


def test_every_token_once_and_none_of_the_special_ones():
    host = TinyHost()
    got = list(source(host))
    want = []
    for text in texts():  # one window at a time, without padding
        ids = host.tokenizer(text, add_special_tokens=False).input_ids
        for i in range(0, len(ids), 11):
            window = torch.tensor([[1, *ids[i : i + 11]]])
            acts = host.activations(window, torch.ones_like(window), POINTS)
            want.append({p: a[0, 1:].detach() for p, a in acts.items()})
    assert [len(b[POINTS[0]]) for b in got[:-1]] == [16] * (len(got) - 1)
    for p in POINTS:
        torch.testing.assert_close(sorted_rows(got, p), sorted_rows(want, p), atol=1e-5, rtol=0)
    assert all(b * t <= 64 for b, t in host.shapes if b > 1)
    assert source(host).token_policy == {"context": 12, "bos": True, "padding": "dropped", "special_tokens": "dropped"}
    assert source(TinyHost(bos=False)).token_policy["bos"] is False
    assert isinstance(source(host), ActivationSource)
    assert not isinstance([torch.zeros(1, 1)], ActivationSource)


def test_rows_of_several_hook_points_are_the_same_tokens():
    host = TinyHost()
    layer = host.model.layers[1]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()  # the layer now passes its input through
    host.model.norm.weight.data.fill_(1.0)
    for b in source(host):
        normed = host.model.norm(b[POINTS[0]])
        torch.testing.assert_close(normed, b[POINTS[1]], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(normed.roll(1, 0), b[POINTS[1]])


def test_order_is_mixed_and_seeded():
    host = TinyHost()
    one, same, other = (list(source(host, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(a[POINTS[0]], b[POINTS[0]]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][POINTS[0]], other[0][POINTS[0]])
    again = source(host)
    first, second = list(again), list(again)
    assert again.epoch == 2
    assert not torch.equal(first[0][POINTS[0]], second[0][POINTS[0]])
    torch.testing.assert_close(sorted_rows(first, POINTS[0]), sorted_rows(second, POINTS[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("taken", [1, 7, 28])
def test_a_resumed_source_goes_on_where_it_was(taken):
    host = TinyHost()
    whole = source(host)
    rest = iter(whole)
    for _ in range(taken):
        next(rest)
    state = whole.state()
    state.values.update(json.loads(json.dumps(state.values)))
    left = list(rest)
    fresh = source(TinyHost())
    fresh.restore(state)
    resumed = list(fresh)
    assert len(resumed) == len(left) > 0
    assert all(torch.equal(a[p], b[p]) for a, b in zip(resumed, left, strict=True) for p in POINTS)
    with pytest.raises(InputError, match=r"context was 12 .* is 10 now"):
        source(host, context=10).restore(state)


def test_train_and_held_out_share_whole_documents_out():
    host = TinyHost()
    corpus = texts(200)
    sides = {p: set(source(host, corpus, part=p)._documents()) for p in ("train", "held_out")}
    assert sides["train"] | sides["held_out"] == set(corpus)
    assert not sides["train"] & sides["held_out"]
    assert 0 < len(sides["held_out"]) < 30
    with pytest.raises(MatchedNothing, match="held_out"):
        list(source(host, [next(iter(sides["train"]))], part="held_out"))


def test_shards_are_disjoint_and_complete(monkeypatch):
    monkeypatch.setattr("efface.sae.sources.host.GROUP", 8)
    host = TinyHost()
    whole = list(source(host))
    halves = [b for r in (0, 1) for b in source(host, shard=(r, 2))]
    torch.testing.assert_close(sorted_rows(halves, POINTS[0]), sorted_rows(whole, POINTS[0]), atol=1e-5, rtol=0)


def test_the_buffer_does_not_grow_with_the_stream():
    host = TinyHost()
    small = source(host, lambda: iter(texts(20)))
    large = source(host, lambda: iter(texts(300)))
    list(small)
    sizes = {large.buffer.store[POINTS[0]].shape[0] for _ in large}
    assert max(sizes) <= 64 + 64
    assert max(sizes) <= small.buffer.store[POINTS[0]].shape[0] + 64


def test_bad_settings():
    host = TinyHost()
    for options, words in [
        ({"context": 1}, "context"),
        ({"forward_tokens": 4}, "forward_tokens"),
        ({"shard": (2, 2)}, "rank"),
        ({"batch": 0}, "batch"),
    ]:
        with pytest.raises(InputError, match=words):
            source(host, **options)
    with pytest.raises(InputError, match="hook_points"):
        HostSource(host, texts(), POINTS[0])
    with pytest.raises(InputError, match="no file or folder"):
        list(source(host, "no-such-corpus.txt"))


def test_buffer_pops_each_vector_once():
    buffer = MixingBuffer(40, 8, seed=0)
    rows = torch.arange(100.0)[:, None]
    out = []
    for part in rows.split(10):
        buffer.add({"a": part, "b": -part})
        out += buffer.drain(buffer.capacity)
    out += buffer.drain(1)
    a = torch.cat([o["a"] for o in out])
    assert torch.equal(a.sort(0).values, rows)
    assert not torch.equal(a, rows)
    assert torch.equal(a, -torch.cat([o["b"] for o in out]))
    with pytest.raises(InputError, match="same hook points"):
        buffer.add({"a": rows, "b": rows[:3]})


def vectors(n=300, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_store_round_trip_shuffled_and_resumed(tmp_path):
    x = vectors()
    folder = ActivationStore.write(tmp_path / "s", [{"p": x[:170], "q": x[:170] * 2}, {"p": x[170:], "q": x[170:] * 2}], 250, shard=64)
    store = ActivationStore(folder, batch=32, seed=1)
    assert len(store) == 250
    assert store.hook_points == ["p", "q"]
    rest = iter(store)
    taken = [next(rest) for _ in range(3)]
    state = store.state()
    left = list(rest)
    got = torch.cat([b["p"] for b in taken + left])
    assert torch.equal(got.sort(0).values, x[:250].sort(0).values)
    assert not torch.equal(got, x[:250])
    assert all(torch.equal(b["q"], b["p"] * 2) for b in left)
    fresh = ActivationStore(folder, batch=32, seed=1)
    fresh.restore(state)
    assert all(torch.equal(a["p"], b["p"]) for a, b in zip(fresh, left, strict=True))
    with pytest.raises(InputError, match="seed"):
        ActivationStore(folder, batch=32, seed=2).restore(state)


def test_shards_are_bounded_in_bytes_whatever_the_hook_points(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 4096)
    rows = {}
    for n in (1, 8):
        folder = ActivationStore.write(tmp_path / str(n), [{f"p{i}": torch.randn(300, 8) for i in range(n)}], 300)
        rows[n] = [e["n"] for e in json.loads((folder / "manifest.json").read_text())["shards"]]
    assert rows == {1: [128, 128, 44], 8: [16] * 18 + [12]}


def test_a_damaged_store_is_refused(tmp_path):
    folder = ActivationStore.write(tmp_path / "s", [vectors()], 300, shard=100)
    shard = folder / "shard-00001.safetensors"
    whole = shard.read_bytes()
    for damage in (whole[:-5], whole[:-1] + b"\x00"):
        shard.write_bytes(damage)
        with pytest.raises(ArtefactError, match="shard-00001"):
            list(ActivationStore(folder))
    shard.write_bytes(whole)
    assert sum(len(b["x"]) for b in ActivationStore(folder)) == 300
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../../secret.safetensors"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="outside the folder"):
        ActivationStore(folder)
    (folder / "manifest.json").write_text('{"format": 7}')
    with pytest.raises(ArtefactError, match="format 7"):
        ActivationStore(folder)


def test_a_store_that_fails_leaves_nothing(tmp_path):
    bad = vectors()
    bad[200, 1] = torch.nan
    with pytest.raises(NumericsError, match="NaN"):
        ActivationStore.write(tmp_path / "s", [bad], 300, shard=100)
    with pytest.raises(MatchedNothing):
        ActivationStore.write(tmp_path / "s", [], 300)
    assert list(tmp_path.iterdir()) == []
    ActivationStore.write(tmp_path / "s", [vectors()], 300)
    with pytest.raises(InputError, match="exists already"):
        ActivationStore.write(tmp_path / "s", [vectors()], 300)


def test_feed_rebatches_and_begins_again():
    x = vectors(100)
    feed = Feed([x[:30], x[30:37], x[37:]], 16)
    ahead = feed.peek(3)["x"]
    got = torch.cat([feed.next()["x"] for _ in range(12)])
    assert torch.equal(ahead, x[:48])
    assert torch.equal(got, torch.cat([x, x])[: 12 * 16])


@pytest.mark.parametrize("taken", [0, 3, 9])
def test_feed_resumes(taken):
    parts = list(vectors(100).split(7))
    feed = Feed(parts, 16)
    feed.peek(2)
    for _ in range(taken):
        feed.next()
    state = feed.state()
    after = [feed.next()["x"] for _ in range(5)]
    fresh = Feed(parts, 16)
    fresh.restore(state)
    assert all(torch.equal(fresh.next()["x"], a) for a in after)
    with pytest.raises(InputError, match="read only once"):
        Feed(iter(parts), 16).restore(state)


def test_feed_refuses_what_it_cannot_use():
    once = Feed(iter([vectors(20)]), 16)
    once.next()
    with pytest.raises(MatchedNothing, match="fewer steps"):
        once.next()
    with pytest.raises(MatchedNothing):
        Feed([], 4).next()
    with pytest.raises(MatchedNothing):
        Feed([torch.zeros(0, 3)], 4).next()
    with pytest.raises(InputError, match=r"\[n, d\]"):
        Feed([torch.zeros(2, 3, 4)], 4).next()
    with pytest.raises(InputError, match="widths"):
        Feed([torch.zeros(2, 3), torch.zeros(2, 4)], 4).next()
