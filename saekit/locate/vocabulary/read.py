"""Reading a text through a lens: what the residual stream says at every layer and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.vocabulary.grid import TokenGrid
from saekit.locate.vocabulary.lens import Lens, check_stream, log_probabilities
from saekit.locate.vocabulary.tokens import RankedToken, token_ids, token_names
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@torch.no_grad()
def read_lens(
    lm: LanguageModel,
    text: str | Sequence[int],
    lens: Lens | None = None,
    *,
    sites: Sequence[Site | str] | None = None,
    top: int = 10,
) -> TokenGrid:
    """Read one text through a lens.

    Args:
        lm: the model.
        text: a text, which gets BOS where the model's texts begin with it, or token ids.
        lens: None: the logit lens.
        sites: residual sites; None: the output of every layer.
        top: tokens to keep of each cell.

    Raises:
        StoreMismatch: the lens was fitted on another model.
        ContextTooLong: the text is longer than the model's context.
        ConfigError: the text has no token, or the lens was not fitted at a site.
    """
    lens = lens or Lens()
    lens.check(lm)
    chosen = lens_sites(lm, sites)
    ids = lm.text.ids([text])[0] if isinstance(text, str) else list(text)
    if not ids or top < 1:
        raise ConfigError("There is nothing to read: the text has no token, or top is below 1.", "Give a text and a count.")
    run = lm.run([ids], read=chosen, logits=None)
    best, which = [], []
    for site in chosen:
        parts = [
            log_probabilities(logits).exp().topk(min(top, lm.vocab_size)) for _, logits in lens.logits(lm, site, run[site][0])
        ]
        best.append(torch.cat([part.values.cpu() for part in parts]))
        which.append(torch.cat([part.indices.cpu() for part in parts]))
    cells = ranked_cells(lm, torch.stack(which), torch.stack(best))
    shades = [[cell[0].value for cell in row] for row in cells]
    facts = {"lens": {key: value for key, value in lens.facts.items() if key != "fingerprint"}}
    return TokenGrid(lens.kind, lm.name, token_names(lm, ids), list(map(str, chosen)), cells, shades, facts=facts)


def ranked_cells(lm: LanguageModel, ids_LTK: Tensor, values_LTK: Tensor) -> list[list[list[RankedToken]]]:
    """Ids and values as named tokens. Each token is named once."""
    known = ids_LTK.unique().tolist()
    names = dict(zip(known, token_names(lm, known)))
    return [
        [[RankedToken(i, names[i], v) for i, v in zip(ids, values)] for ids, values in zip(row_ids, row_values)]
        for row_ids, row_values in zip(ids_LTK.tolist(), values_LTK.tolist())
    ]


def lens_sites(lm: LanguageModel, sites: Sequence[Site | str] | None) -> list[Site]:
    """The residual sites to read, in the order of computation; None: the output of every layer."""
    given = [Site("resid_post", layer) for layer in range(lm.n_layers)] if sites is None else sites
    chosen = sorted({check_stream(lm, site) for site in given})
    if not chosen:
        raise ConfigError("No site is given.", "Give residual sites such as resid_post.3.")
    return chosen


@dataclass(frozen=True)
class Accessibility:
    """At which layer target tokens can be read.

    Attributes:
        sites: names of the sites, (L,).
        ranks: `ranks[b][l]`: the rank of the target of prompt b, 1 for the first token of the vocabulary.
        probabilities: `probabilities[b][l]` of the target.
    """

    sites: list[str]
    ranks: list[list[int]]
    probabilities: list[list[float]]

    def first(self, rank: int = 10) -> list[str | None]:
        """For each prompt, the first site from which on the target stays among the first `rank` tokens; None: there is none."""
        found: list[str | None] = []
        for row in self.ranks:
            last_above = max((n for n, each in enumerate(row) if each > rank), default=-1)
            found.append(self.sites[last_above + 1] if last_above + 1 < len(row) else None)
        return found

    def site(self, rank: int = 10, share: float = 0.5) -> str | None:
        """The first site from which on at least `share` of the prompts have their target among the first `rank` tokens."""
        shares = [sum(row[n] <= rank for row in self.ranks) / len(self.ranks) for n in range(len(self.sites))]
        last_below = max((n for n, each in enumerate(shares) if each < share), default=-1)
        return self.sites[last_below + 1] if last_below + 1 < len(self.sites) else None

    def rows(self) -> list[dict[str, Any]]:
        """A table with a row for each site: the median rank and the mean probability over prompts."""
        ranks, probabilities = torch.tensor(self.ranks).double(), torch.tensor(self.probabilities).double()
        return [
            {"site": site, "median rank": float(ranks[:, n].quantile(0.5)), "mean probability": float(probabilities[:, n].mean())}
            for n, site in enumerate(self.sites)
        ]


@torch.no_grad()
def accessibility(
    lm: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    targets: Sequence[str | int],
    lens: Lens | None = None,
    *,
    sites: Sequence[Site | str] | None = None,
    batch_size: int = 16,
) -> Accessibility:
    """The rank and probability of a target token at the last token of each prompt, layer by layer.

    The layer from which on a token can be read is a good choice for reading, and the layers before it for steering.

    Args:
        lm: the model.
        prompts: texts or rows of token ids.
        targets: the target of each prompt, or one for all: a word, whose first token counts, or a token id.
        lens: None: the logit lens.
        sites: residual sites; None: the output of every layer.
        batch_size: prompts in a pass.

    Raises:
        ConfigError: targets and prompts do not fit, or a prompt has no token.
        StoreMismatch: the lens was fitted on another model.
    """
    from saekit.lm.run.batches import text_rows

    lens = lens or Lens()
    lens.check(lm)
    chosen, rows = lens_sites(lm, sites), text_rows(lm, prompts)
    ids = token_ids(lm, targets)
    ids = ids * len(rows) if len(ids) == 1 else ids
    if len(ids) != len(rows) or not rows or not all(rows):
        raise ConfigError(f"{len(ids)} targets do not fit {len(rows)} prompts, or a prompt is empty.", "Give one for each.")
    ranks: list[list[int]] = []
    probabilities: list[list[float]] = []
    for start in range(0, len(rows), batch_size):
        tokens_BT, mask_BT = lm.text.pad(rows[start : start + batch_size], "left")
        run = lm.run(tokens_BT, attention_mask=mask_BT, read=chosen, logits=None)
        target_B = torch.tensor(ids[start : start + batch_size], device=lm.device)
        by_site = [_target(lm, lens, site, run[site][:, -1], target_B) for site in chosen]
        ranks += torch.stack([rank for rank, _ in by_site], 1).tolist()
        probabilities += torch.stack([probability for _, probability in by_site], 1).tolist()
    return Accessibility(list(map(str, chosen)), ranks, probabilities)


def _target(lm: LanguageModel, lens: Lens, site: Site, resid_BD: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks (B,), from 1, and probabilities (B,) of the targets."""
    ranks, probabilities = [], []
    for rows, logits in lens.logits(lm, site, resid_BD):
        log_p = log_probabilities(logits)
        own = log_p.gather(1, target_B[rows].to(log_p.device)[:, None])
        ranks.append((log_p > own).sum(1).cpu() + 1)
        probabilities.append(own[:, 0].exp().cpu())
    return torch.cat(ranks), torch.cat(probabilities)
