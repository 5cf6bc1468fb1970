"""Facts written by fitting the left factors of MEMIT's edits together, at the last token of the prompts.

MEMIT (Meng et al. 2023, arXiv 2210.07229) fits the value of each fact by itself, before anything is written, and hopes that the
values add up once all are written. Here W' = W + R K^T (lambda C + K K^T)^-1 keeps MEMIT's right factor, computed once, which
is what spares other texts; R is fitted by gradient descent through the edited model, over all facts and layers at once, on

    mean of -log P(target) + kl * KL(unedited || edited) on texts that are to be treated as before + decay * mean of (R / unit)^2.

The keys are those of the token from which the target is predicted, one for each phrasing, since at the subject's last token a
model may have only a layer or two that later tokens still read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, NonFiniteActivations
from saekit.lm.padding import Padded
from saekit.names.site import Site
from saekit.progress import track
from saekit.steer.weights.keys import down_projection
from saekit.steer.weights.values import ENOUGH, Contexts, EditOptions, Value, said

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_POSITIONS = 512
"""Tokens of the texts to keep on which the KL of a step is taken, at most."""
_AT_ONCE = 64

Asked = tuple[list[int], int, list[int]]
"""A prompt with the beginning of its target, the token from which the target is predicted, and the target, as token ids."""


def middle_layers(n_layers: int) -> list[int]:
    """The three layers in the middle: what is known of the subject has come to the last token there, and later layers read it."""
    middle = n_layers // 2
    return [layer for layer in (middle - 1, middle, middle + 1) if 0 <= layer < n_layers]


def phrasing_keys(lm: LanguageModel, contexts: Sequence[Contexts], layer: int) -> Tensor:
    """(I, N) float64 keys at the last token of the prompts: for each phrasing of each fact, the mean over the texts before it."""
    site, found = Site("neurons", layer), []
    for each in contexts:
        keys_PI = each.read(lm, site, each.starts).double().cpu()
        found.append(keys_PI.unflatten(0, (-1, each.before)).mean(1))
    return torch.cat(found).T


def fit_together(
    lm: LanguageModel,
    contexts: Sequence[Contexts],
    rights: Mapping[int, Tensor],
    keep: Sequence[Sequence[int]],
    options: EditOptions,
    progress: bool = False,
) -> tuple[dict[int, Tensor], list[Value]]:
    """The left factors of the edits of some layers.

    Args:
        contexts: of each fact.
        rights: by layer, (N, I) the right factor.
        keep: texts as token ids that are to be treated as before.
        options: steps, rate, kl, decay, facts_a_step and texts_a_step.

    Returns:
        by layer, (O, N) float64; and for each fact the mean probability of its target before and after.

    Raises:
        ConfigError: there is no text to keep, though KL is weighed.
        NonFiniteActivations: the loss is not finite.
    """
    keep = [row for row in keep if len(row) > 1]
    if options.kl and not keep:
        raise ConfigError(
            "There are no texts that the edit is to treat as before.", "Give some: keep=rows, or --data; or kl=0 to do without."
        )
    rng, everything = Random(0), [_asked(each) for each in contexts]
    before = _probabilities(lm, everything)
    units = {layer: _unit(lm, contexts, layer) for layer in rights}
    scaled = {
        layer: torch.zeros(down_width(lm, layer), len(right), device=lm.device, requires_grad=True)
        for layer, right in rights.items()
    }
    factors = {layer: right.float().to(lm.device) for layer, right in rights.items()}

    def lefts() -> dict[int, Tensor]:
        return {layer: each * units[layer] for layer, each in scaled.items()}

    optimiser = torch.optim.Adam(list(scaled.values()), lr=options.rate)
    half = options.steps // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1.0, (options.steps - s) / max(options.steps - half, 1))
    )
    with track("fitting all facts", options.steps, unit="steps", enabled=progress) as bar:
        for step in range(1, options.steps + 1):
            some = [rng.choice(phrasing) for fact in _some(rng, everything, options.facts_a_step) for phrasing in fact]
            texts = _some(rng, keep, options.texts_a_step) if options.kl else []
            loss = _loss(lm, some, texts, lambda: _edited(lm, lefts(), factors), options.kl, rng)
            loss = loss + options.decay * torch.stack([each.pow(2).mean() for each in scaled.values()]).sum()
            if not bool(torch.isfinite(loss)):
                raise NonFiniteActivations("The loss of the edit is not finite.", "Give a smaller rate: --option rate=0.02.")
            for each, gradient in zip(scaled.values(), torch.autograd.grad(loss, list(scaled.values()))):
                each.grad = gradient
            optimiser.step()
            schedule.step()
            bar.update(step)
    found = {layer: each.detach() for layer, each in lefts().items()}
    with _edited(lm, found, factors):
        after = _probabilities(lm, everything)
    values = [Value(torch.zeros(0), a, b) for a, b in zip(before, after)]
    return {layer: each.double().cpu() for layer, each in found.items()}, values


def down_width(lm: LanguageModel, layer: int) -> int:
    """Outputs of a layer's down projection."""
    module: Any = down_projection(lm, layer)
    return int(module.weight.shape[1 if type(module).__name__ == "Conv1D" else 0])


def _loss(
    lm: LanguageModel,
    asked: Sequence[Asked],
    texts: Sequence[Sequence[int]],
    edited: Callable[[], Any],
    kl: float,
    rng: Random,
) -> Tensor:
    rows, starts, targets = zip(*asked)
    tokens_BT, mask_BT = _padded(lm, rows)
    with torch.enable_grad(), edited():
        loss = (-said(lm, tokens_BT, mask_BT, starts, targets, grad=True)[0]).clamp_min(-log(ENOUGH)).mean()
    if not texts:
        return loss
    tokens_BT, mask_BT = _padded(lm, texts)
    places = lm.ordinary(tokens_BT, mask_BT).nonzero().tolist()
    where = torch.tensor(rng.sample(places, min(_POSITIONS, len(places))), device=tokens_BT.device).T

    def predicted(grad: bool) -> Tensor:
        last = Site("resid_post", lm.n_layers - 1)
        stream_BTD = lm.run(tokens_BT, attention_mask=mask_BT, read=[last], logits=None, grad=grad)[last]
        return lm.unembed(stream_BTD[where[0], where[1]]).float().log_softmax(-1)

    with torch.no_grad():
        own_MV = predicted(False)
    with torch.enable_grad(), edited():
        new_MV = predicted(True)
    return loss + kl * (own_MV.exp() * (own_MV - new_MV)).sum(-1).mean()


@contextmanager
def _edited(lm: LanguageModel, lefts: Mapping[int, Tensor], rights: Mapping[int, Tensor]) -> Iterator[None]:
    """Down projections with left @ right added to their weights, through which gradients go to the left factors."""

    def hook(layer: int) -> Callable[..., Tensor]:
        def changed(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            keys = args[0].float() @ rights[layer].T.to(args[0].device)
            return out + (keys @ lefts[layer].T.to(keys.device)).to(out.dtype)

        return changed

    handles = [down_projection(lm, layer).register_forward_hook(hook(layer)) for layer in lefts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _asked(contexts: Contexts) -> list[list[Asked]]:
    """What a fact is asked, by phrasing."""
    each = list(zip(contexts.rows, contexts.starts, contexts.target))
    return [each[n : n + contexts.before] for n in range(0, len(each), contexts.before)]


@torch.no_grad()
def _probabilities(lm: LanguageModel, everything: Sequence[Sequence[Sequence[Asked]]]) -> list[float]:
    """The mean probability of each fact's target."""
    flat = [(n, asked) for n, fact in enumerate(everything) for phrasing in fact for asked in phrasing]
    sums, counts = [0.0] * len(everything), [0] * len(everything)
    for start in range(0, len(flat), _AT_ONCE):
        some = flat[start : start + _AT_ONCE]
        rows, starts, targets = zip(*(asked for _, asked in some))
        tokens_BT, mask_BT = _padded(lm, rows)
        for (n, _), value in zip(some, said(lm, tokens_BT, mask_BT, starts, targets)[0].exp().tolist()):
            sums[n] += value
            counts[n] += 1
    return [total / count for total, count in zip(sums, counts)]


def _unit(lm: LanguageModel, contexts: Sequence[Contexts], layer: int) -> float:
    """Root mean square of the down projection's output at the last token of the prompts."""
    outputs: list[Tensor] = []
    handle = down_projection(lm, layer).register_forward_hook(lambda module, args, out: outputs.append(out.detach()))
    try:
        tokens_BT, mask_BT = contexts[0].padded(lm)
        lm.run(tokens_BT, attention_mask=mask_BT, read=[Site("resid_post", layer)], logits=None)
    finally:
        handle.remove()
    out_BTO = outputs[0].view(*tokens_BT.shape, -1).float()
    return float(out_BTO[torch.arange(len(out_BTO)), contexts[0].starts].pow(2).mean().sqrt())


def _padded(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Padded:
    tokens_BT, mask_BT = lm.text.pad([list(row) for row in rows], "right")
    return Padded(tokens_BT.to(lm.device), mask_BT.to(lm.device))


def _some(rng: Random, items: Sequence[Any], n: int) -> list[Any]:
    return list(items) if len(items) <= n else rng.sample(list(items), n)
