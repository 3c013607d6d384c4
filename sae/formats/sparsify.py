"""EleutherAI sparsify's folder: `cfg.json` and `sae.safetensors`, the encoder transposed."""

from pathlib import Path

from ...base.errors import ArtefactError, InputError
from ...base.files import load_tensors, read_json
from ..config import SAEConfig
from ..sae import SAE
from .assemble import assemble, dims, dtype_name, positive, renamed

NAMES = {"encoder.weight.T": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def read(folder: Path) -> SAE:
    """Reads a TopK coder or transcoder of sparsify.

    Raises:
        ArtefactError: Files missing, damaged or at odds, or a variant that we do not have (groupmax; a skip
            connection in an autoencoder).
    """
    where, values = str(folder), read_json(folder / "cfg.json")
    tensors = load_tensors(folder / "sae.safetensors")
    if not isinstance(values, dict):
        raise ArtefactError(f"{where}: cfg.json is not an object")
    if values.get("activation", "topk") != "topk":
        raise ArtefactError(f"{where}: activation {values['activation']!r} is not supported; topk is")
    transcode, skip = bool(values.get("transcode")), bool(values.get("skip_connection"))
    if skip and not transcode:
        raise ArtefactError(f"{where}: a skip connection in an autoencoder is not supported; only transcoders have one here")
    d_in, d_sae = dims({"encoder.weight": tensors["encoder.weight"].T} if "encoder.weight" in tensors else {}, "encoder.weight", where)
    try:
        cfg = SAEConfig(
            architecture="topk",
            d_in=d_in,
            d_sae=d_sae,
            k=positive(values.get("k"), "k", where),
            d_out=d_in if transcode else None,
            skip=skip,
            dtype=dtype_name(tensors["encoder.weight"]),
        )
    except InputError as e:
        raise ArtefactError(f"{where}: {e}") from None
    names = {**NAMES, "W_skip": "W_skip"} if skip else NAMES
    return assemble(
        cfg,
        renamed(tensors, names, where),
        where,
        {"hook_point": folder.name, "source": {"format": "sparsify", "cfg": values}},
    )
