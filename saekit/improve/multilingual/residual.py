"""Languages in the residual stream: switched, diagnosed with the logit lens, and kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saekit.evaluate.changed import Changed
from saekit.improve.directions import Addition, best_addition
from saekit.improve.multilingual.texts import by_label, contrast, judge_of
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, Target, batches, judged
from saekit.improve.trial import Trial

_TOKENS = 24


def switch(trial: Trial) -> Report:
    """Add the difference of means between texts of a language and of the first one, so that openings go on in that language."""
    fit, openings = by_label(trial.fit("texts")), trial.fit("openings")[:16]
    judge = judge_of(fit)
    _, *others = fit
    found = {
        language: best_addition(trial, contrast(fit, language, trial.seed), _spoken(openings, judge, language))
        for language in (others[:1] if trial.quick else others)
    }
    held_out = trial.held_out("openings")
    rows: list[dict[str, Any]] = []
    for language, each in found.items():
        arms = {"before": None, "after": each.change, "random direction": each.random(trial.seed).change}
        target = _spoken(held_out, judge, language)
        shares = {name: float(trial.measure(target, change).mean()) for name, change in arms.items()}
        rows.append({"language": language, **shares, "at": each.site, "strength": each.strength})
    worst = str(min(rows, key=lambda row: float(row["after"]))["language"])  # the figures have the others
    return _report(trial, found[worst], _spoken(held_out, judge, worst), rows)


def confusion(trial: Trial) -> Report:
    """Continue a text of one language after sentences of another: the vector of the wanted language is added."""
    fit, held_out = by_label(trial.fit("texts")), by_label(trial.held_out("texts"))
    judge = judge_of(fit)
    first, *others = fit
    language = others[0]
    found = best_addition(trial, contrast(fit, language, trial.seed), _spoken(_mixed(fit, language, first)[:16], judge, language))
    target = _spoken(_mixed(held_out, language, first), judge, language)
    return _report(trial, found, target, found.tried)


def pivot(trial: Trial) -> Report:
    """Read the language of the likeliest tokens at each layer: the share of tokens that texts of each language alone have.

    The score of a held-out text is the share of its positions at which the lens at the middle layer gives a token of the first
    language; the baseline is the last layer, the control a random direction in place of the stream.
    """
    fit, held_out = by_label(trial.fit("texts")), by_label(trial.held_out("texts"))
    first, *others = fit
    own = _own_tokens(trial, fit)
    texts = [text for language in others for text in held_out.get(language, [])][: 8 if trial.quick else 60]
    shares = {layer: _lens(trial, texts, layer, own[first]) for layer in range(trial.lm.n_layers)}
    rows = [{"layer": layer, f"tokens of {first} alone": float(share.mean())} for layer, share in shares.items()]
    middle = max(list(shares)[:-1], key=lambda layer: float(shares[layer].mean()))
    return trial.readout(
        f"positions at which the lens at layer {middle} predicts {first}, in texts of other languages",
        shares[trial.lm.n_layers - 1],
        shares[middle],
        {"random vectors": _lens(trial, texts, None, own[first])},
        what="the logit lens (nothing is changed); before: the last layer",
        figures=rows,
    )


def _report(trial: Trial, found: Addition, target: Target, rows: list[dict[str, Any]]) -> Report:
    return trial.report(
        target,
        found.change,
        controls={"random_direction": found.random(trial.seed).change},
        changed={"what": found.what},
        aimed=["language_of_continuation"],
        figures=rows,
    )


def _spoken(prompts: list[str], judge: Callable[[str], str], language: str) -> Target:
    name = f"continuations in {language}"
    return judged(prompts, lambda text: judge(text) == language, name, HIGHER, max_new_tokens=_TOKENS)


def _mixed(texts: dict[str, list[str]], language: str, first: str) -> list[str]:
    """The beginning of a text of a language, and of one of the first language after it."""
    n = min(len(texts[language]), len(texts[first]))
    return [f"{_some(texts[language][i])} {_some(texts[first][i])}" for i in range(n)]


def _some(text: str, words: int = 12) -> str:
    return " ".join(text.split()[:words])


def _own_tokens(trial: Trial, texts: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """(V,) bool by language: tokens that occur in texts of the language and of no other."""
    seen = {}
    for language, each in texts.items():
        seen[language] = torch.zeros(trial.lm.vocab_size, dtype=torch.bool)
        seen[language][torch.tensor(sorted({token for row in trial.lm.text.ids(each) for token in row}))] = True
    return {
        language: mask & ~torch.stack([other for name, other in seen.items() if name != language]).any(0)
        for language, mask in seen.items()
    }


@torch.no_grad()
def _lens(trial: Trial, texts: list[str], layer: int | None, own_V: torch.Tensor) -> torch.Tensor:
    """(B,) share of the positions of each text at which the likeliest token is one of `own_V`; None: of random vectors."""
    lm = trial.lm
    rows = lm.text.ids(texts)
    found_B = torch.zeros(len(rows), dtype=torch.float64)
    site = f"resid_post.{lm.n_layers - 1 if layer is None else layer}"
    generator = torch.Generator().manual_seed(trial.seed)
    for some, tokens_BT, mask_BT in batches(lm, rows, 16):
        resid_BTD = Changed(lm).run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site]
        if layer is None:
            random = torch.randn(resid_BTD.shape, generator=generator).to(resid_BTD)
            resid_BTD = random / random.norm(dim=-1, keepdim=True) * resid_BTD.norm(dim=-1, keepdim=True)
        kept_BT = lm.ordinary(tokens_BT, mask_BT).cpu()
        hit_BT = own_V[lm.unembed(resid_BTD).argmax(-1).cpu()] & kept_BT
        found_B[some] = hit_BT.sum(1).double() / kept_BT.sum(1).clamp_min(1)
    return found_B
