"""Quality of a dictionary, measured on documents that it was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from saekit.activations import ActivationReader
from saekit.activations.loader.source import HELDOUT, Split, in_split
from saekit.errors import ConfigError, CorpusError
from saekit.evaluate.dictionary.cross_entropy import Baseline, CountedTokens, ce_recovered, check_baseline
from saekit.evaluate.dictionary.measures import measures
from saekit.evaluate.dictionary.remarks import remarks
from saekit.evaluate.registry import QUALITY
from saekit.evaluate.report import Report, Section
from saekit.lm.padding import pad
from saekit.progress import track
from saekit.sae import SAE, CrossCoder
from saekit.sae.metrics import Firings, Reconstruction

if TYPE_CHECKING:
    from saekit.activations import StoredActivations
    from saekit.evaluate.subject import Subject
    from saekit.lm import LanguageModel
    from saekit.names.site import Site

_log = logging.getLogger(__name__)
_BATCH = 4096
_SEQUENCES = 16
MAX_TOKENS = 2**16
"""Number of held-out tokens to measure on, at most."""
DENSITY_TOKENS = 2**20
"""Number of tokens on which firing frequencies are counted, at most."""


def quality(
    sae: SAE,
    lm: LanguageModel,
    store: StoredActivations,
    site: Site | None,
    *,
    heldout: float = HELDOUT,
    baseline: Baseline = "zero",
    trained_elsewhere: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure `sae` on held-out documents of a store.

    If the corpus is so small that no document is held out, `sae` is measured on the documents that it was trained on: then
    `heldout_tokens` is 0, and a warning is logged.

    Args:
        site: where the SAE reads; None for a dictionary of several sites, whose configuration names them.
        heldout: share of the documents that training held out.
        baseline: what cross-entropy recovered compares with (:data:`saekit.evaluate.dictionary.cross_entropy.BASELINES`).
        trained_elsewhere: the dictionary was not trained on this store, so that no document of it is a training document.

    Returns:
        fvu, fvu_trimmed, cosine, shrinkage, l0: on held-out activations (:meth:`saekit.sae.metrics.Reconstruction.scalars`).
        fvu_train, l0_train: the same on activations that were trained on; missing if every document or none is
            held out, or with `trained_elsewhere`.
        fvu_by_site, relative_norms: only for a dictionary of several sites. The FVU of each site; and for each site a histogram
            of ten equal bins of the share of a latent's decoder norm that lies there, over latents that fire
            (:meth:`saekit.sae.CrossCoder.relative_norms`).
        fvu_by_norm, l0_quantiles: on held-out activations (:meth:`saekit.sae.metrics.Reconstruction.fvu_by_norm`,
            :meth:`saekit.sae.metrics.Firings.l0_quantiles`).
        dead_fraction, dense_fraction, density_histogram: on tokens of the whole store, whose number is `density_tokens`
            (:class:`saekit.sae.metrics.Firings`), because on few tokens rare latents seem dead.
        ce, ce_spliced, baseline, ce_zero (ce_mean), ce_uniform, ce_recovered, kl: with the dictionary spliced into the model on
            held-out documents (:func:`saekit.evaluate.dictionary.cross_entropy.ce_recovered`); missing for crosscoders, which
            cannot be spliced in.
        heldout_tokens: number of held-out activations, at most `MAX_TOKENS`.

    Raises:
        ConfigError: there is no such baseline.
        CorpusError: no document has two tokens.
        StoreMismatch: a transcoder does not say where it writes.
    """
    crosses = isinstance(sae, CrossCoder)
    sites = {*sae.cfg.sites, *sae.cfg.sites_out} if site is None else {site, sae.writes_at(site)}
    documents = heldout_documents(lm, store, heldout, MAX_TOKENS)
    split = documents.split

    def batches(split: Split, n_tokens: int) -> Iterator[dict[Site, Tensor]]:
        reader = ActivationReader(store, sorted(sites), batch_size=_BATCH, split=split, heldout=heldout, epochs=1)
        return islice(reader, -(-n_tokens // _BATCH))

    check_baseline(baseline)
    with track("measuring", total=3, unit="steps", enabled=progress) as bar:
        found = Reconstruction.of(sae, batches(split, MAX_TOKENS))
        scalars = found.scalars()
        compares = split == "heldout" and not trained_elsewhere
        training = _on_training(sae, lambda: batches("train", MAX_TOKENS)) if compares else {}
        bar.update(1, note=f"FVU {scalars['fvu']:.4f}")
        firings = Firings.of(sae, batches("all", DENSITY_TOKENS))
        bar.update(2, note=f"dead {firings.dead_fraction:.2%}")
        spliced = {}
        if not crosses or sae.cfg.layered:
            spliced = ce_recovered(lm, sae, site, padded(lm, documents.rows, documents.chosen), baseline=baseline)
        bar.update(3, note=f"cross-entropy recovered {spliced['ce_recovered']:.2%}" if spliced else "")
    n_tokens = scalars["n_tokens"]
    return {
        **{name: value for name, value in scalars.items() if name != "n_tokens" and not name.startswith("fvu/")},
        **training,
        **_by_site(sae, found, firings),
        "dead_fraction": firings.dead_fraction,
        "dense_fraction": firings.dense_fraction,
        **{name: value for name, value in spliced.items() if name != "n_tokens"},
        "l0_quantiles": found.firings.l0_quantiles(),
        "fvu_by_norm": found.fvu_by_norm(),
        "density_histogram": firings.histogram(),
        "density_tokens": firings.n_tokens,
        "heldout_tokens": n_tokens if split == "heldout" else 0,
    }


def _on_training(sae: SAE, batches: Callable[[], Iterator[dict[Site, Tensor]]]) -> dict[str, float]:
    """FVU and L0 on activations of training documents; empty if the store has no such document."""
    try:
        scalars = Reconstruction.of(sae, batches()).scalars()
    except ConfigError:  # every document is held out
        return {}
    return {f"{name}_train": scalars[name] for name in ("fvu", "l0")}


def _by_site(sae: SAE, found: Reconstruction, firings: Firings) -> dict[str, Any]:
    """Additional measures of a dictionary of several sites."""
    if not isinstance(sae, CrossCoder):
        return {}
    shares_SF = sae.relative_norms()[firings.tokens_F > 0].T.cpu()
    counts = {str(site): share_F.histc(10, 0, 1).long().tolist() for site, share_F in zip(sae.cfg.sites_out, shares_SF)}
    return {"fvu_by_site": {str(site): fvu for site, fvu in found.fvu_by_site().items()}, "relative_norms": counts}


class HeldoutDocuments(NamedTuple):
    """Documents to measure on."""

    rows: list[list[int]]
    """Token ids of each document, BOS first; at least two tokens each."""
    split: Split
    """"heldout" or "all"."""
    chosen: list[list[bool]] | None
    """Whether each token counts: training leaves out some tokens of chats. None: all ordinary ones count."""


def heldout_documents(lm: LanguageModel, store: StoredActivations, heldout: float, max_tokens: int) -> HeldoutDocuments:
    """Tokens of the documents that training held out. If it held none out, tokens of all documents, and a warning.

    Args:
        heldout: share of the documents that training held out.
        max_tokens: number of tokens at which to stop.

    Raises:
        CorpusError: no document has two tokens.
    """
    found = _documents(lm, store, "heldout", heldout, max_tokens)
    if found.rows:
        return found
    _log.warning("No document of %s is held out: the dictionary is measured on those that it was trained on.", store.path)
    found = _documents(lm, store, "all", heldout, max_tokens)
    if found.rows:
        return found
    raise CorpusError(f"{store.path} holds no document of two tokens.", "Cache longer documents.")


@dataclass(frozen=True)
class Quality(Report):
    """What :func:`quality` returned, as a report."""

    name: ClassVar[str] = QUALITY
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The facts, and remarks about them."""
        return self.facts | {"remarks": remarks(self.facts)}

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A measure a row."""
        return Section("quality", [each._asdict() for each in measures(data)], remarks(data))


def measure(subject: Subject) -> Quality:
    """The evaluation "quality"."""
    options = subject.options
    facts = quality(
        subject.sae,
        subject.lm,
        subject.store,
        subject.site,
        heldout=subject.heldout,
        baseline=options.baseline,
        trained_elsewhere=subject.trained_elsewhere,
        progress=options.progress,
    )
    if subject.l0_asked is not None:
        facts["l0_asked"] = subject.l0_asked
    if subject.trained_elsewhere:
        facts["trained_elsewhere"] = True
    return Quality(facts)


def check(subject: Subject) -> None:
    """Raise ConfigError if there is no such baseline."""
    check_baseline(subject.options.baseline)


def _documents(lm: LanguageModel, store: StoredActivations, split: Split, heldout: float, max_tokens: int) -> HeldoutDocuments:
    """The documents of a split that have at least two tokens."""
    rows: list[list[int]] = []
    chosen: list[list[bool]] = []
    n = 0
    for block in store.stream([]):
        begins_N = torch.ones(len(block.tokens_N), dtype=torch.bool)
        begins_N[1:] = (block.document_N[1:] != block.document_N[:-1]) | (block.position_N[1:] == 0)
        starts = begins_N.nonzero().flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], len(begins_N)]):
            if stop - start < 2 or not in_split(block.document_N[start : start + 1], split, heldout)[0]:
                continue
            row, counted = block.tokens_N[start:stop].tolist(), (~block.special_N[start:stop]).tolist()
            first = lm.bos_token_id
            if first is not None and row[0] != first:
                row, counted = [first, *row], [False, *counted]
            rows.append(row[: lm.max_context])
            chosen.append(counted[: lm.max_context])
            n += len(row)
        if n >= max_tokens:
            break
    return HeldoutDocuments(rows, split, None if store.train_on == "all" else chosen)


def padded(
    lm: LanguageModel, rows: Sequence[Sequence[int]], chosen: Sequence[Sequence[bool]] | None = None
) -> Iterator[CountedTokens]:
    """The rows a few at a time, with pads on the right.

    Args:
        chosen: for each row, which of its tokens count; None: all ordinary ones.
    """
    for start, batch in zip(range(0, len(rows), _SEQUENCES), lm.text.batches(rows, _SEQUENCES)):
        marks = None if chosen is None else pad(chosen[start : start + _SEQUENCES], "right").tokens_BT.bool()
        yield CountedTokens(*batch, marks)
