"""Whether a dictionary works on another model, such as the instruction-tuned sibling of the one it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from saekit.errors import StoreMismatch
from saekit.evaluate.dictionary.cross_entropy import Baseline, CountedTokens, baseline_of, ce_recovered
from saekit.evaluate.dictionary.quality import MAX_TOKENS, heldout_documents, padded
from saekit.evaluate.report import Report, Section
from saekit.progress import track
from saekit.sae.metrics import Reconstruction

if TYPE_CHECKING:
    from saekit.evaluate.subject import Subject
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

_RECOVERED, _UNEXPLAINED = 0.05, 0.1


_COMPARED = (
    ("fvu", "variance unexplained (FVU)", "{:.4f}"),
    ("cosine", "cosine similarity", "{:.4f}"),
    ("l0", "features active (L0)", "{:.4g}"),
    ("dead_fraction", "features silent on these", "{:.2%}"),
    ("ce", "cross-entropy", "{:.3f}"),
    ("ce_recovered", "cross-entropy recovered", "{:.2%}"),
    ("kl", "KL when spliced in", "{:.4f}"),
)


@dataclass(frozen=True)
class Transfer(Report):
    """One dictionary on two models, on the same documents, each a context of its own.

    Attributes:
        model, other: their names.
        own, there: results of :meth:`saekit.sae.metrics.Reconstruction.scalars` and
            :func:`saekit.evaluate.dictionary.cross_entropy.ce_recovered`, on the model that the dictionary was trained on and on
            the other one; `tokens` is the number of activations.
    """

    name: ClassVar[str] = "transfer"
    model: str
    other: str
    own: dict[str, Any]
    there: dict[str, Any]

    @property
    def verdict(self) -> str:
        """ "transfers", "transfers in part" or "does not transfer".

        A dictionary transfers if cross-entropy recovered falls by at most .05 and FVU rises by at most .1. It transfers in part
        if it recovers at least half as much. It does not transfer to a model that predicts the text no better than with the
        baseline at the site, because there is nothing to recover. Kissane et al. 2024 ("SAEs (usually) transfer between base and
        chat models") compare these two measures; the thresholds are ours.
        """
        recovered, there = self.own["ce_recovered"], self.there["ce_recovered"]
        if self.there["ce"] >= baseline_of(self.there)[1]:
            return "does not transfer"
        if there >= recovered - _RECOVERED and self.there["fvu"] <= self.own["fvu"] + _UNEXPLAINED:
            return "transfers"
        return "transfers in part" if there >= recovered / 2 else "does not transfer"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"model": self.model, "other": self.other, "verdict": self.verdict, "own": self.own, "there": self.there}

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A measure a row, the models side by side, and the verdict below."""
        own, there = data["own"], data["there"]
        here, other = (Path(data[name]).name for name in ("model", "other"))
        other = other if other != here else f"{other} (the other)"
        rows = [
            {"on the same documents": name, here: form.format(own[key]), other: form.format(there[key])}
            for key, name, form in _COMPARED
            if key in own and key in there
        ]
        fvu = f"FVU {own['fvu']:.3f} → {there['fvu']:.3f}"
        recovered = f"cross-entropy recovered {own['ce_recovered']:.1%} → {there['ce_recovered']:.1%}"
        return Section(f"on {other}", rows, [f"{data['verdict']}: {fvu}, {recovered}"])


def check(subject: Subject) -> None:
    """Raise if the dictionary cannot be put into the other model, or if there is no other model."""
    check_transfer(subject.sae, subject.other, subject.one_site)


def measure(subject: Subject) -> Transfer:
    """The evaluation "transfer"."""
    options = subject.options
    found = heldout_documents(subject.lm, subject.store, subject.heldout, MAX_TOKENS)
    where = (subject.sae, subject.lm, subject.other, subject.one_site)
    return transfer(*where, found.rows, chosen=found.chosen, baseline=options.baseline, progress=options.progress)


def check_transfer(sae: SAE, other: LanguageModel, site: Site) -> None:
    """Raise where `sae` cannot be put into `other`.

    Raises:
        UnknownSite: the other model has no such site.
        StoreMismatch: the site has another width there.
    """
    for place, width in ((site, sae.cfg.d_in), (sae.writes_at(site), sae.cfg.d_out)):
        if other.width(other.site(place)) != width:
            raise StoreMismatch(
                f"{sae.name} is {width} wide, but {place} of {other.name} is {other.width(place)}.",
                "A dictionary transfers between models of equal width only: a base model and its fine-tuned siblings.",
            )


def transfer(
    sae: SAE,
    lm: LanguageModel,
    other: LanguageModel,
    site: Site,
    rows: Sequence[Sequence[int]],
    *,
    chosen: Sequence[Sequence[bool]] | None = None,
    baseline: Baseline = "zero",
    progress: bool = True,
) -> Transfer:
    """Measure `sae` on the model it was trained on and on another of equal width, on the same text.

    Args:
        rows: token ids of documents for `lm`, BOS first (:func:`.quality.heldout_documents`). A model with another
            tokenizer gets their text.
        chosen: which of these tokens count; None: all ordinary ones. A model with another tokenizer is measured on all.
        baseline: of cross-entropy recovered.

    Raises:
        UnknownSite, StoreMismatch: as :func:`check_transfer` does.
        CorpusError: there is no token to predict.
    """
    check_transfer(sae, other, site)
    found = []
    with track("measuring", total=2, unit="models", enabled=progress) as bar:
        for done, each in enumerate((lm, other), 1):
            own = each is lm or each.text.sha256 == lm.text.sha256
            batches = padded(each, rows, chosen) if own else padded(each, _rows_for(each, lm, rows))
            found.append(_measure(sae, each, site, list(batches), baseline))
            bar.update(done, note=f"FVU {found[-1]['fvu']:.4f} on {each.name}")
    return Transfer(lm.name, other.name, *found)


def _measure(sae: SAE, lm: LanguageModel, site: Site, batches: Sequence[CountedTokens], baseline: Baseline) -> dict[str, Any]:
    found = Reconstruction.of(sae, _activations(sae, lm, site, batches)).scalars()
    spliced = ce_recovered(lm, sae, site, batches, baseline=baseline)
    spliced.pop("n_tokens")
    tokens = found.pop("n_tokens")
    return {**found, **spliced, "tokens": tokens}


@torch.no_grad()
def _activations(sae: SAE, lm: LanguageModel, site: Site, batches: Sequence[CountedTokens]) -> Iterator[dict[Site, Tensor]]:
    sites = {site, sae.writes_at(site)}
    for tokens_BT, mask_BT, chosen_BT in batches:
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
        kept_BT = lm.ordinary(tokens_BT, mask_BT, chosen=chosen_BT)
        yield {each: x[kept_BT.to(x.device)] for each, x in acts.items()}


def _rows_for(lm: LanguageModel, own: LanguageModel, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """The documents of another model as token ids of `lm`, which has another tokenizer."""
    texts = [own.text.decode(row, skip_special=True) for row in rows]
    return [row[: lm.max_context] for row in lm.text.ids(texts) if len(row) > 1]
