"""Prompts are read without the padding behind them where no token sees it, and come back in their own order."""

import pytest
import torch
from t2i._kit import sae_at, tiny_image_host

from efface.t2i.methods.itd.reading import read_peaks

PROMPTS = ["the dog bit", "dog", "the bus", "cat", "a cat"]
POINT = "text_encoder.layers.1.resid_post"


def test_peaks_are_those_at_the_fixed_length_in_the_prompts_order(monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny_image_host("sd")
    reader, sae = host.reader([POINT]), sae_at(host, POINT)
    ids, mask = reader.pad(reader.token_ids(PROMPTS))
    acts = sae.encode(reader.activations(ids, mask, [POINT])[POINT])
    wanted = torch.where(reader.keep_mask(ids, mask)[..., None], acts, 0).amax(1)
    assert not torch.allclose(wanted, wanted[[1, 0, 2, 3, 4]])  # prompts in another order would be seen

    lengths = []
    plain = type(reader).pad
    monkeypatch.setattr(
        type(reader), "pad", lambda self, rows, **how: lengths.append((found := plain(self, rows, **how))[0].shape[1]) or found
    )
    peaks = read_peaks(host, sae, PROMPTS, batch=2).to_dense()
    assert lengths == sorted(lengths)
    assert max(lengths) < reader.fixed_length
    assert len(set(lengths)) > 1, "each batch as long as its longest"
    torch.testing.assert_close(peaks, wanted, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_looks_ahead_keeps_its_padding() -> None:
    host = tiny_image_host("sd3")
    for part, reader in host.readers.items():
        ids, _ = reader.pad(reader.token_ids(["dog", "cat"]), trim=True)
        assert (ids.shape[1] < reader.fixed_length) == reader.family.causal, part
    assert {r.family.causal for r in host.readers.values()} == {True, False}
