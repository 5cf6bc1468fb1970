"""The steering spec of EasySteer (a vLLM with steering): JSON whose vectors travel inside it.

A spec has `vectors`, each with a payload `data`, the algorithm `direct` (h' = h + scale * v at the outputs of `layers`), and a
clause `apply` that says which tokens; `conflict` is "sequential" where all vectors add up. A payload of kind "direction" has
float32 tensors `layer.N` as base64, and a sha256 of its content. Files are used as `SteeringSpec.model_validate_json(text)`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saekit.errors import InterventionError, NotExportable
from saekit.files import write_whole
from saekit.json_files import read_json
from saekit.names.positions import POLICIES, TokenPositions
from saekit.steer.exchange.gguf import direction, directions
from saekit.steer.exchange.pushes import by_block, pushes
from saekit.steer.intervention import Intervention, combine

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_VERSION = 1
_HINT = "Choose a spec of EasySteer with the algorithm direct."
_EVERY = {"prompt": "all", "generation": "all"}


def write(lm: LanguageModel, intervention: Intervention, path: Path) -> dict[str, Any]:
    """Write a spec, whole or not at all. Changes without positions are made where `lm.generate` makes them by default.

    Raises:
        NotExportable: the intervention is no addition to outputs of blocks, or its positions have no counterpart.
    """
    found = pushes(lm, intervention, "easysteer")
    by_positions: dict[TokenPositions, list[Any]] = {}
    for push in found:
        by_positions.setdefault(push.positions or TokenPositions("last+generated"), []).append(push)
    specs: list[dict[str, Any]] = []
    layers: list[int] = []
    for positions, several in by_positions.items():
        blocks = by_block(lm, several, "easysteer")
        layers += list(blocks)
        specs.append(
            {
                "data": _payload(blocks),
                "algorithm": "direct",
                "scale": 1.0,
                "layers": list(blocks),
                "normalize": False,
                "apply": _clause(lm, positions),
            }
        )
    write_whole(path, json.dumps({"vectors": specs, "conflict": "sequential"}, indent=1) + "\n")
    return {"layers": sorted(set(layers)), "positions": [str(positions) for positions in by_positions]}


def _payload(blocks: Mapping[int, Tensor]) -> dict[str, Any]:
    tensors: dict[str, Any] = {
        f"layer.{layer}": {"shape": [len(values)], "data": base64.b64encode(values.float().numpy().tobytes()).decode()}
        for layer, values in blocks.items()
    }
    payload: dict[str, Any] = {"version": _VERSION, "kind": "direction", "tensors": tensors, "extra": {}}
    return payload | {"sha256": _digest(payload)}


def _digest(payload: Mapping[str, Any]) -> str:
    """The identity of a payload: sha256 of kind and version, then of name, shape and bytes of each tensor by name."""
    digest = hashlib.sha256(f"{payload['kind']}:{_VERSION}".encode())
    for name, tensor in sorted(payload["tensors"].items()):
        digest.update(name.encode() + str(tuple(tensor["shape"])).encode() + base64.b64decode(tensor["data"], validate=True))
    return digest.hexdigest()


def _clause(lm: LanguageModel, positions: TokenPositions) -> dict[str, Any]:
    """The `apply` of positions: policies leave special tokens and the first of the context alone, as they do here."""
    if positions.policy is None:
        if positions.places is None or not positions.places or max(positions.places) > 0:
            raise NotExportable(
                f"EasySteer has no counterpart of the positions {positions}: it moves a place past the prompt to its last token.",
                "Use a policy such as last+generated, or places counted from the end of the prompt, such as -1.",
            )
        return {"prompt_positions": list(positions.places)}
    clauses: dict[str, dict[str, Any]] = {
        "last+generated": {"prompt_positions": [-1], "generation": "all"},
        "generated": {"generation": "all"},
        "prompt": {"prompt": "all"},
        "last": {"prompt_positions": [-1]},
        "all": dict(_EVERY),
    }
    clause = clauses[positions.policy]
    phases = [phase for phase in ("prompt", "generation") if any(key.startswith(phase) for key in clause)]
    if special := sorted(lm.text.special_ids):
        clause |= {f"exclude_{phase}_tokens": special for phase in phases}
    if "prompt" in phases and not positions.keep_first:
        clause["exclude_prompt_positions"] = [0]
    return clause


def read(lm: LanguageModel, path: Path) -> Intervention:
    """The additions of a spec, with their positions.

    `prompt` and `generation` of "all" without exclusions become the positions all+first, which leave special tokens alone; the
    note "import" of the intervention says so.

    Raises:
        InterventionError: the file is damaged, uses another algorithm or a clause without counterpart, or is for a model of
            another width or with fewer blocks.
    """
    spec = read_json(path, error=InterventionError, hint=_HINT)
    vectors = spec.get("vectors") if isinstance(spec, Mapping) else None
    if not isinstance(vectors, list) or not vectors or not all(isinstance(each, Mapping) for each in vectors):
        raise InterventionError(f"{path} is no steering spec: it lacks a list of vectors.", _HINT)
    if len(vectors) > 1 and spec.get("conflict", "priority") != "sequential":
        raise InterventionError(f"{path} lets one of several vectors win; saekit adds vectors up.", "Set conflict to sequential.")
    parts = []
    for number, each in enumerate(vectors):
        try:
            parts.append(_addition(lm, each, path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InterventionError(
                f"Vector {number} of {path} cannot be read: {type(error).__name__}: {error}.", _HINT
            ) from error
    return combine(parts)


def _addition(lm: LanguageModel, vector: Mapping[str, Any], path: Path) -> Intervention:
    if (algorithm := vector.get("algorithm", "direct")) != "direct" or vector.get("normalize") or vector.get("params"):
        raise InterventionError(f"{path} uses {algorithm!r:.40} with settings that saekit does not have.", _HINT)
    positions, note = _positions(lm, vector["apply"], path)
    scale, layers = float(vector.get("scale", 1.0)), vector.get("layers")
    if isinstance(source := vector.get("source"), str):
        found = directions(path.parent / source)
    else:
        found = _directions(vector["data"], path)
    kept = {layer: values for layer, values in found.items() if layers is None or layer in layers}
    made = combine(direction(lm, layer, scale * values, path) for layer, values in sorted(kept.items()) if scale * values.any())
    if not made.changes:
        raise InterventionError(f"{path} has a vector that adds nothing.", _HINT)
    made = made.at(positions)
    return made if note is None else Intervention(made.changes, notes={"import": note})


def _directions(payload: Mapping[str, Any], path: Path) -> dict[int, Tensor]:
    if payload["kind"] != "direction" or payload["version"] != _VERSION:
        raise InterventionError(f"{path} has a payload {payload['kind']!r:.40} of version {payload['version']!r:.20}.", _HINT)
    if payload["sha256"] != _digest(payload):
        raise InterventionError(f"{path} was changed after it was written: its checksum differs.", "Write it again.")
    found = {}
    for name, tensor in payload["tensors"].items():
        values = np.frombuffer(base64.b64decode(tensor["data"]), dtype=np.float32)
        if tensor["shape"] != [prod(values.shape)]:
            raise ValueError(f"{name} has the shape {tensor['shape']}")
        found[int(name.removeprefix("layer."))] = torch.from_numpy(values.copy())
    return found


def _positions(lm: LanguageModel, clause: Mapping[str, Any], path: Path) -> tuple[TokenPositions, str | None]:
    given = {key: value for key, value in clause.items() if value is not None}
    if set(given) == {"prompt_positions"} and all(place <= 0 for place in given["prompt_positions"]):
        return TokenPositions.parse(given["prompt_positions"]), None
    known = [TokenPositions(policy, keep_first=first) for policy in POLICIES for first in (False, True)]
    for each in known:
        if given == _clause(lm, each):
            return each, None
    if given == _EVERY:
        return TokenPositions("all", keep_first=True), "Special tokens, which the spec includes, are left alone."
    raise InterventionError(f"{path} acts at tokens that saekit has no positions for: {given!r:.120}.", "Change its `apply`.")
