"""What tells one SAE from another: the digest of its configuration and weights, and the facts that are recorded about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.sae.config import SAEConfig
from saekit.sae.format import VERSION_KEYS, config_to_dict
from saekit.sae.origin import KEY

if TYPE_CHECKING:
    from saekit.sae.modules import SAE

_UNREAD = (*VERSION_KEYS, KEY)  # the same weights are the same SAE, whichever version wrote them and wherever they came from


def config_text(cfg: SAEConfig) -> bytes:
    """The configuration as a digest reads it."""
    facts = config_to_dict(cfg)
    facts["metadata"] = {key: value for key, value in facts["metadata"].items() if key not in _UNREAD}
    return json.dumps(facts, sort_keys=True).encode()


def digest(config: bytes, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a configuration and tensors."""
    found = hashlib.sha256(config)
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return found.hexdigest()


def facts(sae: SAE) -> dict[str, Any]:
    """See :meth:`saekit.sae.SAE.identity`."""
    cfg = sae.cfg
    return {
        "name": sae.name,
        "architecture": cfg.architecture,
        "site": cfg.site and str(cfg.site),
        "site_out": cfg.site_out and str(cfg.site_out),
        **({"sites": list(map(str, cfg.sites)), "sites_out": list(map(str, cfg.sites_out))} if cfg.crosses else {}),
        "d_in": cfg.d_in,
        "d_out": cfg.d_out,
        "n_latents": cfg.n_latents,
        "k": cfg.k,
        "model_name": cfg.model_name,
        "dtype": cfg.dtype,
        "fingerprint": sae.fingerprint(),
    }
