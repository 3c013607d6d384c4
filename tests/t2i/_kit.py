"""What the tests of image hosts share: edits of a text encoder and of a denoiser, and a gate that opens at the word dog."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from tiny_pipelines import tiny_image_host

from efface.deactivate.edit import Edit
from efface.deactivate.gate import Gate, GateSource
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.parts import LowRank, Part, ProjectionPart, WeightsPart
from efface.sae import SAE, SAEConfig
from efface.t2i.host import ImageHost

CONCEPT = {"name": "dogs", "digest": "0" * 64}
DOGS, REST = ["a big dog", "a dog and a cat"], ["a red apple", "the blue bus", "a green tree"]
MIXED = [REST[0], DOGS[0], REST[1], DOGS[1]]
ON = torch.tensor([False, True, False, True])
SIZE = (32, 32)
LAST = {
    "sd": "unet.up_blocks.1.attentions.1.out",
    "sdxl": "unet.up_blocks.1.attentions.1.out",
    "sd3": "transformer.transformer_blocks.0.out",
    "flux": "transformer.single_transformer_blocks.0.out",
}
"""A hook point in the denoiser of each family."""


def draw(host: ImageHost, prompts: list[str] = MIXED, **options: object) -> torch.Tensor:
    """Pictures in two steps."""
    return host.generate(prompts, **{"steps": 2, "size": SIZE, **options})


def changed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Rows that are not the same to the bit."""
    return (a != b).flatten(1).any(1)


def sae_at(host: ImageHost, point: str, d_sae: int = 24) -> SAE:
    """A random SAE at a hook point."""
    torch.manual_seed(0)
    return SAE(SAEConfig("relu", host.resolve(point).d, d_sae), {"hook_point": point})


def layer_part(host: ImageHost, point: str = "text_encoder.layers.1.resid_post") -> Part:
    """A deactivation layer that does a lot."""
    return DeactivationPart(sae_at(host, point), tuple(range(16)), -6.0, "scale")


def projection(host: ImageHost, point: str) -> Part:
    """A projection that takes out most of what passes."""
    d = host.resolve(point).d
    basis = torch.linalg.qr(torch.randn(d, d - 2, generator=torch.Generator().manual_seed(1)))[0]
    return ProjectionPart(point, basis, basis.T.contiguous(), torch.zeros(d))


def weights_part(host: ImageHost, role: str, seed: int = 0, size: float = 0.5) -> Part:
    """Low-rank changes of all matrices of a role."""
    g = torch.Generator().manual_seed(seed)
    deltas = {
        n: LowRank(size * torch.randn(p.shape[0], 2, generator=g), torch.randn(2, p.shape[1], generator=g))
        for n, p in host.weights(role).items()
        if p.ndim == 2
    }
    return WeightsPart(deltas)


def parts_of_kind(host: ImageHost, family: str, kind: str) -> list:
    """One kind of edit."""
    return {
        "text hook": lambda: [layer_part(host)],
        "text weights": lambda: [weights_part(host, "text_mlp")],
        "denoiser hook": lambda: [projection(host, LAST[family])],
        "denoiser weights": lambda: [weights_part(host, "cross_attention", size=2.0)],
        "all": lambda: [layer_part(host), weights_part(host, "cross_attention", size=2.0), projection(host, LAST[family])],
    }[kind]()


@contextmanager
def all_applied(host: ImageHost, edits: list[Edit]) -> Iterator[None]:
    """All edits at once."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(host))
        yield


def edit_of(host: ImageHost, *parts: Part, seed: int = 0) -> Edit:
    """The parts as an edit, bound."""
    return Edit(list(parts), "test", {"seed": seed}, [CONCEPT]).bound(host)


def dog_gate(host: ImageHost, part: str = "text_encoder") -> Gate:
    """Reads the token «dog» off the first layer's input."""
    point = f"{part}.layers.0.resid_pre"
    sae = sae_at(host, point)
    reader = host.reader([point])
    table = reader.module.get_input_embeddings().weight.detach()
    word = table[reader.token_ids(["a big dog"])[0][3 if reader.tokenizer.bos_token_id is not None else 2]]
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.W_enc.zero_()
        sae.W_enc[:, 0] = word / word.norm()
        sae.b_enc.fill_(-0.7 * float(word.norm()))
    return Gate([GateSource(sae, (0,))]).calibrated(host, DOGS, [*REST, "an old house by the sea"], fpr=0.0)


def bits(host: ImageHost) -> dict[str, torch.Tensor]:
    """Every parameter, cloned."""
    return {n: p.detach().clone() for n, p in host.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


__all__ = ["tiny_image_host"]


class Unmoved:
    """A judge that sees a dog where a picture is, to the bit, a given one."""

    name, version, digest, classes, threshold, features_name = "icons/object/A", "1", "0", ("dog", "none"), 0.5, "none"

    def __init__(self, base: torch.Tensor) -> None:
        self.base = base

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """1 for the base picture, 0 for others."""
        same = (images == self.base).flatten(1).all(1).float()
        return torch.stack([same, 1 - same], 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels."""
        return images.flatten(1).float()
