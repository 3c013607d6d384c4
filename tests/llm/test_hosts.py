"""Every family against what transformers itself computes."""

import copy

import pytest
import torch
from tiny import D_MLP, D_MODEL, FAMILIES, N_LAYERS, tiny_host, tiny_tokenizer

from efface.base.errors import HookPointNotFound, InputError, MatchedNothing, NumericsError, UnknownName
from efface.llm.adapters import family_of
from efface.llm.host import Host
from efface.llm.logprobs import scored_rows

TEXTS = ["Harry Potter is a boy", "the dog", "Mars and Jupiter are planets in the sky"]


@pytest.fixture(params=FAMILIES)
def host(request: pytest.FixtureRequest) -> Host:
    return tiny_host(request.param)


def test_residuals_are_those_of_transformers(host: Host) -> None:
    ids, mask = host.encode_texts(TEXTS)
    with torch.no_grad():
        states = host.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    points = [f"layers.{i}.{p}" for i in range(N_LAYERS) for p in ("resid_pre", "resid_post")]
    acts = host.activations(ids, mask, points)
    for i in range(N_LAYERS):
        assert torch.equal(acts[f"layers.{i}.resid_pre"], states[i])
    for i in range(N_LAYERS - 1):  # the last hidden state of transformers is behind the final norm
        assert torch.equal(acts[f"layers.{i}.resid_post"], states[i + 1])
    assert torch.equal(host.final_norm()(acts[points[-1]]), states[-1])


def test_mlp_points_fit_together(host: Host) -> None:
    """down(mlp_hidden) is mlp_out, post-norm(mlp_out) is mlp_post, and the MLP maps mlp_in to mlp_out."""
    ids, mask = host.encode_texts(TEXTS)
    acts = host.activations(ids, mask, host.hook_points())
    layer = host.layers[1]
    at = {p: acts[f"layers.1.{p}"] for p in ("mlp_in", "mlp_hidden", "mlp_out")}
    assert at["mlp_hidden"].shape[-1] == host.d_mlp == D_MLP
    assert at["mlp_in"].shape[-1] == host.d_model == D_MODEL
    _, weight, transposed = host.down_proj(1)
    bias = getattr(layer.get_submodule(host.family.down), "bias", None)
    product = at["mlp_hidden"] @ (weight if transposed else weight.T) + (0 if bias is None else bias)
    torch.testing.assert_close(product, at["mlp_out"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.get_submodule(host.family.mlp)(at["mlp_in"]), at["mlp_out"])
    if host.post_norm:
        out, gain = at["mlp_out"], host.post_norm_gain(1)
        assert gain is not None
        normed = gain * out / (out.pow(2).mean(-1, keepdim=True) + host.model.config.rms_norm_eps).sqrt()
        torch.testing.assert_close(acts["layers.1.mlp_post"], normed, atol=1e-5, rtol=1e-4)
        assert (gain - 1).abs().max() > 0.1
    else:
        assert host.post_norm_gain(1) is None
        with pytest.raises(HookPointNotFound, match=r"nearest: layers\.1\.mlp_out"):
            host.resolve("layers.1.mlp_post")


def test_the_parts_add_up_to_the_residual(host: Host) -> None:
    """Swapping the MLP's contribution for zero changes resid_post by exactly that contribution."""
    ids, mask = host.encode_texts(TEXTS)
    point = "layers.1.mlp_post" if host.post_norm else "layers.1.mlp_out"
    acts = host.activations(ids, mask, [point, "layers.1.resid_post"])
    with host.replaced(point, torch.zeros_like) as fired:
        without = host.activations(ids, mask, ["layers.1.resid_post"])["layers.1.resid_post"]
    fired.check()
    torch.testing.assert_close(without + acts[point], acts["layers.1.resid_post"], atol=1e-5, rtol=1e-4)


def test_right_padding_does_not_leak(host: Host) -> None:
    ids, mask = host.encode_texts(TEXTS)
    acts = host.activations(ids, mask, ["layers.2.resid_post"])["layers.2.resid_post"]
    assert mask.sum(1).tolist() == [len(row) for row in host.token_ids(TEXTS)]
    for i, text in enumerate(TEXTS):
        one, one_mask = host.encode_texts([text])
        alone = host.activations(one, one_mask, ["layers.2.resid_post"])["layers.2.resid_post"][0]
        torch.testing.assert_close(acts[i, : len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_nothing_runs_behind_the_deepest_point(host: Host) -> None:
    ran: list[int] = []
    for i, layer in enumerate(host.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    ids, mask = host.encode_texts(TEXTS)
    host.activations(ids, mask, ["layers.1.mlp_out", "layers.0.resid_pre"])
    assert ran == [0]  # layer 1 never ended
    host.logits(ids, mask)
    assert ran == [0, 0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    host = tiny_host("gemma3", dtype=dtype)
    ids, mask = host.encode_texts(TEXTS)
    assert host.activations(ids, mask, ["layers.1.mlp_out"])["layers.1.mlp_out"].dtype == host.dtype == dtype
    assert host.token_logprobs(["the dog"], [" is red"])[0].dtype == torch.float32
    assert host.generate(["the dog"], 0, 3)


def test_gradients_only_on_request() -> None:
    host = tiny_host()
    ids, mask = host.encode_texts(TEXTS)
    assert not host.activations(ids, mask, ["layers.0.mlp_out"])["layers.0.mlp_out"].requires_grad
    host.activations(ids, mask, ["layers.0.mlp_out"], grad=True)["layers.0.mlp_out"].sum().backward()
    assert host.down_proj(0)[1].grad is not None
    assert host.down_proj(1)[1].grad is None


def test_logprobs_are_those_of_the_full_logits(host: Host) -> None:
    prompts = ["the dog is"] * 3 + ["Harry", "Question: Who is Harry? \nAnswer:", "the dog is", ""]
    endings = [" red", " a bird in the tree", " a bird", " Potter is a wizard", " a wizard", " a", "dog"]
    scores = host.token_logprobs(prompts, endings, batch_tokens=24)
    for prompt, ending, score in zip(prompts, endings, scores, strict=True):
        ids, mask = host.encode_texts([prompt + ending])
        start = len(host.token_ids([prompt])[0])
        with torch.no_grad():
            table = host.logits(ids, mask)[0].log_softmax(-1)
        expected = table[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
        torch.testing.assert_close(score, expected, atol=2e-5, rtol=1e-4)


def test_logprobs_share_forward_passes() -> None:
    host, shapes = tiny_host(), []
    host.base.register_forward_pre_hook(lambda _, __, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    prompts: list[tuple[str, ...] | None] = []
    host.layers[0].register_forward_pre_hook(lambda *_: prompts.append(host.prompts))
    host.token_logprobs(["the dog is"] * 4, [" red", " blue", " green", " a bird"])
    assert shapes == [(1, 5)]
    assert prompts == [("the dog is",)]
    assert host.prompts is None


def test_continuations_that_part_share_a_tree_below_the_sliding_window_only(host: Host) -> None:
    prompts, endings = ["the dog is"] * 4, [" a bird in the tree", " a bird in the house", " a cat", " red and blue"]
    (row,) = scored_rows(host, prompts, endings)
    assert len(row.ids) == len(host.token_ids(["the dog is a bird in the"])[0]) + 2  # and «red and»
    shapes: list[tuple[int, ...]] = []
    hook = host.base.register_forward_pre_hook(lambda _, __, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    found = host.token_logprobs(prompts, endings)
    hook.remove()
    assert shapes == [(1, len(row.ids))]
    alone = [host.token_logprobs([p], [e])[0] for p, e in zip(prompts, endings, strict=True)]
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert scored_rows(host, [""] * 2, [" the dog is red", " the dog is blue"])[0].parents is None  # texts, not options
    if getattr(host.model.config, "sliding_window", None):
        long = "the dog is red and " * 20 + "the dog is"
        assert len(scored_rows(host, [long] * 2, [" a bird in", " a cat in"])) == 2


def test_logprobs_across_a_merge_score_the_merged_token() -> None:
    """«wiz» + «ard» is one token together: it is scored from where the encodings part."""
    host = tiny_host(bos=True)
    (score,) = host.token_logprobs(["the doc"], ["tor"])
    assert len(score) == 1
    torch.testing.assert_close(score, host.token_logprobs(["the"], [" doctor"])[0])


def test_logprobs_refuse_what_cannot_be_scored() -> None:
    host = tiny_host()
    with pytest.raises(InputError, match="same length"):
        host.token_logprobs(["a"], [])
    with pytest.raises(InputError, match="no tokens"):
        host.token_logprobs(["the dog"], [""])
    assert host.token_logprobs([], []) == []
    with torch.no_grad():
        host.down_proj(1)[1].fill_(float("nan"))
    with pytest.raises(NumericsError, match="not a number"):
        host.token_logprobs(["the"], [" dog"])


def test_loss_is_the_mean_of_logprobs() -> None:
    host = tiny_host()
    scores = host.token_logprobs([""] * len(TEXTS), TEXTS)
    torch.testing.assert_close(host.loss(TEXTS), -torch.cat(scores).mean(), atol=1e-5, rtol=1e-5)
    assert host.loss(TEXTS).requires_grad
    with pytest.raises(MatchedNothing, match="single token"):
        host.loss([""])


def test_weights_by_role(host: Host) -> None:
    down = host.weights("down_proj")
    assert len(down) == N_LAYERS
    name, weight, transposed = host.down_proj(2)
    assert down[name] is weight
    assert transposed == (host.family.name == "gpt2")
    assert tuple(weight.shape) == ((D_MLP, D_MODEL) if transposed else (D_MODEL, D_MLP))
    assert len(host.weights("up_proj")) == N_LAYERS
    assert all(p.ndim == 2 for p in host.weights("attention").values())
    assert set(host.weights("all")) == {n for n, _ in host.model.named_parameters()}
    assert len(host.weights("embedding")) == (1 if host.model.config.tie_word_embeddings else 2)
    if host.family.gate is None:
        with pytest.raises(MatchedNothing, match="gate_proj"):
            host.weights("gate_proj")
    else:
        assert len(host.weights("gate_proj")) == N_LAYERS
    with pytest.raises(UnknownName, match="down_proj"):
        host.weights("downproj")
    with pytest.raises(InputError, match="layers 0 to 2"):
        host.down_proj(3)


def test_unembedding_and_head_give_the_logits(host: Host) -> None:
    ids, mask = host.encode_texts(TEXTS[:1])
    with torch.no_grad():
        hidden, logits = host.base(input_ids=ids, attention_mask=mask)[0], host.logits(ids, mask)
        torch.testing.assert_close(host.head(hidden), logits)
        linear = hidden @ host.unembedding()
    assert host.unembedding().shape == (D_MODEL, host.model.config.vocab_size)
    if cap := getattr(host.model.config, "final_logit_softcapping", None):
        linear = cap * torch.tanh(linear / cap)
    torch.testing.assert_close(linear, logits, atol=1e-5, rtol=1e-4)
    assert host.final_norm_gain().shape == (D_MODEL,)


def test_keep_mask_drops_padding_and_specials() -> None:
    host = tiny_host()
    ids, mask = host.encode_texts(["the dog<eos> is", "dog"])
    kept = [[host.tokenizer.convert_ids_to_tokens(int(t)) for t in row[k]] for row, k in zip(ids, host.keep_mask(ids, mask), strict=True)]
    assert kept == [["the", "▁dog", "▁is"], ["dog"]]
    assert mask.sum(1).tolist() == [5, 2]


def test_keep_mask_drops_the_first_token_where_no_bos_takes_the_attention_sink() -> None:
    host = tiny_host(bos=False)
    ids, mask = host.encode_texts(["the dog is", "dog"])
    assert host.sink_is_text
    assert not tiny_host().sink_is_text
    assert host.keep_mask(ids, mask).tolist() == [[False, True, True], [False, False, False]]
    left, left_mask = host.pad(host.token_ids(["the dog is", "dog dog"]), left=True)
    assert host.keep_mask(left, left_mask).tolist() == [[False, True, True], [False, False, True]]


def test_encoding() -> None:
    host = tiny_host()
    ids, mask = host.encode_texts(["the dog is red", ""], max_length=3)
    assert ids[0].tolist()[0] == host.tokenizer.bos_token_id
    assert ids.shape == (2, 3)
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    bare = tiny_host(bos=False)
    assert bare.token_ids(["dog", ""]) == [[bare.tokenizer.convert_tokens_to_ids("dog")], [bare.tokenizer.bos_token_id]]
    with pytest.raises(InputError, match="list"):
        host.encode_texts("the dog")
    with pytest.raises(InputError, match="at least one"):
        host.encode_texts([])


def test_token_roles() -> None:
    host = tiny_host()
    roles = host.token_roles("the wizard Harry Potter is a wizard.<eos>", "Harry Potter")
    assert [roles.tokens[i] for i in roles.subject] == ["▁Harry", "▁Potter"]
    assert roles.last_subject == roles.subject[-1]
    assert roles.specials == (0, len(roles.tokens) - 1)
    assert roles.eos == len(roles.tokens) - 1
    assert roles.padding == ()
    assert host.token_roles("the dog").subject == ()
    with pytest.raises(MatchedNothing, match="Frodo"):
        host.token_roles("the dog", "Frodo")


def test_digest_follows_the_parameters() -> None:
    host = tiny_host()
    first = host.digest
    assert first == tiny_host().digest != tiny_host(seed=1).digest
    assert first != tiny_host(dtype=torch.bfloat16).digest
    before = host.down_proj(1)[1].detach().clone()
    with torch.no_grad():
        host.down_proj(1)[1][0, 0] += 1
        assert host.digest != first
        host.down_proj(1)[1].copy_(before)
    assert host.digest == first


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny_host()
    with pytest.raises(HookPointNotFound, match=r"layers\.1\.mlp_out.*N from 0 to 2"):
        host.resolve("layers.1.mlp_ou")
    with pytest.raises(HookPointNotFound):
        host.resolve("layers.3.mlp_out")
    with pytest.raises(MatchedNothing):
        host.activations(*host.encode_texts(["dog"]), [])
    config = copy.deepcopy(host.model.config)
    monkeypatch.setattr(type(config), "model_type", "lama")
    with pytest.raises(UnknownName, match="llama"):
        family_of(config)
    assert len(tiny_tokenizer()) == host.model.config.vocab_size
