"""Key statistics: second moments C = E[k k^T] of the inputs of MLPs' down projections, over the tokens of a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.batches import BEGINNING, Cursor, TokenLayout, token_batches
from saekit.errors import InterventionError, StoreMismatch
from saekit.lm.fingerprint import differs
from saekit.names.site import Site
from saekit.progress import track
from saekit.steer.weights.delta import checksum
from saekit.tensor_files import SUFFIX, read_tensors, write_tensors

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

FORMAT = "saekit-key-statistics"
VERSION = 1
RIDGE = 1e-4
"""Added to the diagonal of C when a system is solved, as a share of its mean: neurons that never fire make C singular."""
_MAX_BYTES = 1 << 38
_HINT = "Collect the statistics again: `saekit edit rome --statistics FILE` makes them."
_EVERY = 50  # batches between two states on disk


@dataclass(frozen=True, eq=False)
class KeyStatistics:
    """Second moments of layers.

    Attributes:
        sums: by layer, (I, I) float64 sums of k k^T, for I inputs of the down projection.
        n_tokens: tokens in each sum.
        facts: JSON values: model, fingerprint, corpus, context, asked (tokens asked for); while the sums are incomplete also
            cursor (where the corpus goes on) and read (tokens read so far).
    """

    sums: Mapping[int, Tensor]
    n_tokens: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def moment(self, layer: int) -> Tensor:
        """(I, I) float64 C of a layer.

        Raises:
            InterventionError: the layer was not collected.
        """
        if layer not in self.sums:
            raise InterventionError(
                f"The key statistics have no layer {layer}; they have {', '.join(map(str, self.sums))}.",
                "Collect them for this layer too.",
            )
        return self.sums[layer] / self.n_tokens

    def solve(self, layer: int, keys_IN: Tensor) -> Tensor:
        """(I, N) float64 (C + ridge)^-1 K; see :data:`RIDGE`."""
        if layer not in self._factors:
            C = self.moment(layer)
            self._factors[layer] = torch.linalg.cholesky(C + RIDGE * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype))
        return torch.cholesky_solve(keys_IN.double(), self._factors[layer])

    def null_space(self, layer: int, share: float) -> Tensor:
        """(I, r) orthonormal eigenvectors of C with the smallest eigenvalues, which together hold at most `share` of the trace.

        Raises:
            InterventionError: there is none.
        """
        values, vectors = torch.linalg.eigh(self.moment(layer))
        held = values.clamp(min=0).cumsum(0) <= share * values.clamp(min=0).sum()
        if not bool(held.any()):
            raise InterventionError(
                f"No direction of the keys of layer {layer} holds less than {share:g} of their second moment.",
                "Give a larger share: --option null=0.1.",
            )
        return vectors[:, held]

    @cached_property
    def _factors(self) -> dict[int, Tensor]:
        return {}

    def check(self, lm: LanguageModel) -> None:
        """Refuse statistics of another model. Those of the unedited model serve while edits are on.

        Raises:
            StoreMismatch: they are of another model.
        """
        known = self.facts.get("fingerprint")
        if isinstance(known, Mapping) and (what := differs(known, lm.unedited_fingerprint())):
            raise StoreMismatch(
                f"The key statistics are of {self.facts.get('model', 'a model')}, whose {what} differs from that of {lm.name}.",
                "Give another file for the statistics of this model.",
            )

    @classmethod
    def collect(
        cls,
        lm: LanguageModel,
        corpus: Corpus,
        layers: Sequence[int],
        *,
        n_tokens: int = 100_000,
        path: str | Path | None = None,
        context: int | None = None,
        progress: bool = True,
    ) -> KeyStatistics:
        """Stream a corpus through the model and sum up k k^T of its ordinary tokens.

        Args:
            lm: the model.
            corpus: texts like those that the model is to keep treating as before.
            layers: layers whose down projections are wanted.
            n_tokens: tokens of the corpus to read at most.
            path: a file to keep the sums in. A complete file of the same corpus is read instead; layers that it lacks are
                collected and added. An incomplete file is continued.
            context: tokens in a context; None: what the model has positions for, at most 256.
            progress: show a bar.

        Raises:
            UnknownSite: a layer has no down projection whose inputs are known.
            StoreMismatch: the file is of another model.
            InterventionError: the file is of another corpus or length, or was changed.
            CorpusError: the corpus cannot be read.
        """
        wanted = sorted({int(layer) for layer in layers})
        for layer in wanted:
            down_projection(lm, layer)
        layout = TokenLayout(context).resolve(lm)
        asked = {"corpus": {"source": str(corpus.source), **corpus.fingerprint()}, "context": layout.context, "asked": n_tokens}
        place = None if path is None else Path(path)
        kept = _kept(place, lm, asked) if place is not None and place.exists() else None
        if kept is not None and place is not None and "cursor" in kept.facts:
            kept = _summed(lm, corpus, kept, layout, progress, place)
            kept.save(place)
        missing = [layer for layer in wanted if kept is None or layer not in kept.sums]
        if missing:
            facts = {"model": lm.name, "fingerprint": lm.fingerprint(), **asked, "cursor": [*BEGINNING], "read": 0}
            begun = cls({layer: _zeros(lm, layer) for layer in missing}, 0, facts)
            new = _summed(lm, corpus, begun, layout, progress, place if kept is None else None)
            kept = new if kept is None else replace(kept, sums=dict(sorted({**kept.sums, **new.sums}.items())))
            if place is not None:
                kept.save(place)
        assert kept is not None, "either read or collected"
        return kept

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            InterventionError: the name does not end in .safetensors.
            StorageFull: there is no room for the file.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise InterventionError(f"The file {path} cannot hold key statistics.", f"Give a name that ends in {SUFFIX}.")
        tensors = {f"sum:{layer}": each.contiguous() for layer, each in self.sums.items()}
        head = {"format": FORMAT, "version": VERSION, "n_tokens": self.n_tokens, "facts": dict(self.facts)}
        write_tensors(path, tensors, json.dumps({**head, "sha256": checksum(tensors, head)}, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> KeyStatistics:
        """Read what :meth:`save` wrote.

        Raises:
            InterventionError: there is no such file, it holds no key statistics, or it was changed after it was written.
        """
        head, tensors = read_tensors(Path(path), "key statistics", error=InterventionError, hint=_HINT, max_bytes=_MAX_BYTES)
        if head.get("format") != FORMAT or set(head) != {"format", "version", "n_tokens", "facts", "sha256"}:
            raise InterventionError(f"{path} does not hold key statistics.", _HINT)
        if head["version"] != VERSION:
            raise InterventionError(f"{path} has version {head['version']!r:.20}; this saekit reads {VERSION}.", "Update saekit.")
        if head.pop("sha256") != checksum(tensors, head):
            raise InterventionError(f"{path} was changed after it was written: its checksum differs.", _HINT)
        return cls({int(name.partition(":")[2]): each for name, each in tensors.items()}, head["n_tokens"], head["facts"])


def down_projection(lm: LanguageModel, layer: int) -> nn.Module:
    """The down projection of a layer's MLP, whose inputs are the site `neurons`.

    Raises:
        UnknownSite: the layer has none, as layers of experts.
    """
    return lm.projection(lm.site(Site("neurons", layer)))


def _kept(path: Path, lm: LanguageModel, asked: Mapping[str, Any]) -> KeyStatistics:
    kept = KeyStatistics.load(path)
    kept.check(lm)
    if other := [name for name, value in asked.items() if kept.facts.get(name) != json.loads(json.dumps(value))]:
        raise InterventionError(
            f"{path} holds key statistics of another {'number of tokens' if other[0] == 'asked' else other[0]}.",
            "Give another file, or delete this one.",
        )
    return kept


def _zeros(lm: LanguageModel, layer: int) -> Tensor:
    width = lm.width(Site("neurons", layer))
    return torch.zeros(width, width, dtype=torch.float64)


@torch.no_grad()
def _summed(
    lm: LanguageModel, corpus: Corpus, begun: KeyStatistics, layout: TokenLayout, progress: bool, path: Path | None
) -> KeyStatistics:
    """Statistics that are complete, from those begun. The state is saved now and then where a path is given."""
    sites = {layer: Site("neurons", layer) for layer in begun.sums}
    sums, facts, n_tokens = dict(begun.sums), dict(begun.facts), begun.n_tokens
    asked, read, start = facts["asked"], facts["read"], Cursor(*facts["cursor"])
    if read < asked:
        batches = token_batches(
            lm, corpus, context=layout.context or 0, n_tokens=asked - read, batch_size=layout.contexts or 1, start=start
        )
        with track("collecting key statistics", asked, enabled=progress) as bar:
            for number, batch in enumerate(batches, start=1):
                tokens_BT, mask_BT = batch.tokens_BT.to(lm.device), batch.mask_BT.to(lm.device)
                acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites.values(), logits=None)
                kept_BT = lm.ordinary(tokens_BT, mask_BT)
                for layer, site in sites.items():
                    keys_NI = acts[site][kept_BT].double()
                    sums[layer] = sums[layer] + (keys_NI.T @ keys_NI).cpu()
                n_tokens, read = n_tokens + int(kept_BT.sum()), read + batch.n_tokens
                bar.update(read)
                if path is not None and number % _EVERY == 0:
                    KeyStatistics(sums, n_tokens, {**facts, "cursor": [*batch.after], "read": read}).save(path)
    for name in ("cursor", "read"):
        facts.pop(name)
    if not n_tokens:
        raise InterventionError("The corpus has no ordinary token to collect keys of.", "Give more tokens.")
    return KeyStatistics(sums, n_tokens, facts)
