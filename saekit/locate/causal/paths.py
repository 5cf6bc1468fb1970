"""Path patching: the effect of one object on another along the direct path through the residual stream alone.

Wang et al. 2023, "Interpretability in the Wild", appendix B; Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path
Patching". The sender is changed while the outputs of all later attention and MLP blocks stay as they were, and the input of each
receiver is recorded. A second run changes that receiver alone, and what follows responds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError, UnsupportedModel
from saekit.lm import Edit
from saekit.lm.run.planner import Replace, Variant
from saekit.locate.causal.effects import AnyMetric, chosen
from saekit.locate.causal.patch import DIRECTIONS
from saekit.locate.causal.places import Place, WherePositions, places_of, recorded
from saekit.locate.causal.sources import Other, Prompts
from saekit.locate.scored import prepared, ranked
from saekit.names.site import Site
from saekit.objects import Edge, Ref, Space, space_of, spaces_of
from saekit.progress import track
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import At, LanguageModel
    from saekit.lm.run.prefix import Recording

Receivers = str | Ref | Sequence[str | Ref]
_KINDS = {"q": "q", "k": "k", "v": "v", "mlp": "mlp_in"}
_WRITERS = ("embed", "heads", "neurons", "attn_out", "resid_mid", "mlp_out", "resid_post")
_NUMBERS = 1 << 26
"""Numbers of residual streams that a run of several senders keeps at once."""


class _Sender(NamedTuple):
    space: Space
    unit: int
    place: Place

    @property
    def ref(self) -> Ref:
        return self.space.ref_at(self.unit, self.place.name)


class _Receiver(NamedTuple):
    ref: Ref
    space: Space
    """Where the second run changes it; for the logits, the residual stream after the last layer."""

    def follows(self, sender: Site, parallel: bool) -> bool:
        """Whether a direct path leads here from what is written at `sender`."""
        layer, start = self.space.site.layer, sender.layer
        if self.space.site.kind == "resid_post" or start is None:
            return True
        assert layer is not None
        same = self.space.site.kind == "mlp_in" and sender.kind in ("heads", "attn_out", "resid_mid") and not parallel
        return layer > start or (same and layer == start)


@torch.no_grad()
def path_patching(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric | str | None = None,
    positions: WherePositions = None,
    receivers: Receivers = "site:logits",
    direction: Literal["denoise", "noise"] = "noise",
    progress: bool = True,
) -> Ranking:
    """Rank direct paths from senders to receivers.

    Noising gives the sender its value of the corrupted prompt in the run of the clean one, denoising the reverse. Scores are
    metric(clean) - metric(patched) for noising and metric(patched) - metric(corrupted) for denoising: positive where the path
    supports the behaviour.

    Args:
        lm: the model.
        data: the task.
        spaces: the senders: objects at embed, heads, neurons, attn_out, resid_mid, mlp_out or resid_post. None: all heads and the
            outputs of all MLPs.
        metric: as for :func:`saekit.locate.scored.prepared`.
        positions: of the senders, as for :func:`saekit.locate.causal.ablation`. Receivers change at all positions.
        receivers: `site:logits`, `q:1.2`, `k:1.2`, `v:1.2`, `site:mlp_in.1`, or all of a kind: "q", "k", "v", "mlp", "logits".
            Several are a list, or a text with commas.
        direction: "noise" or "denoise".
        progress: show a bar.

    Returns:
        A ranking of edges, one for each sender and each receiver that follows it.

    Raises:
        ConfigError: no receiver follows a sender, or a space does not write to the residual stream.
        UnknownRef, UnknownSite: the model lacks a receiver, or attn_out or mlp_out.
        UnsupportedModel: blocks add something else than the outputs of attention and MLP.
    """
    if direction not in DIRECTIONS[:2]:
        raise ConfigError(f"There is no direction {direction!r:.40}.", "Choose noise or denoise.")
    task, found = prepared(lm, data, metric)
    senders = _default_senders(lm) if spaces is None else list(spaces)
    pair = Prompts.clean(lm, task), Prompts.corrupted(lm, task)
    base, other = pair if direction == "noise" else pair[::-1]
    paths = _Paths(base, Other(other, [range(len(task))]), _receivers(lm, receivers))
    scores: dict[Edge, Tensor] = {}
    base_B = base.planner.metric(found).double().cpu()
    sign = -1 if direction == "noise" else 1
    with track("patching", total=None, unit="runs", enabled=progress) as bar:
        done = 0
        for edges, variants in paths.variants(senders, places_of(task, positions)):
            values = base.planner.effects(variants, found, progress=False).double().cpu()
            for edge, variant, value in zip(edges, variants, values):
                row_B = scores.setdefault(edge, torch.zeros(len(task), dtype=torch.float64))
                row_B[variant.row] = sign * (value - base_B[variant.row])
            bar.update(done := done + len(variants))
        bar.end(done)
    if not scores:
        raise ConfigError("No receiver follows a sender.", "Name receivers in later layers, such as site:logits.")
    facts: dict[str, Any] = {"direction": direction, "positions": recorded(positions)}
    about: dict[str, Any] = {"lm": lm, "data": data, "metric": found, "spaces": senders}
    edges = sorted(scores)
    return ranked(edges, torch.stack([scores[edge] for edge in edges]), method="path_patching", **about, **facts)


def _default_senders(lm: LanguageModel) -> list[Space]:
    mlps = [space for space in spaces_of(lm, "blocks") if space.site.kind == "mlp_out"]
    return sorted([*spaces_of(lm, "heads"), *mlps], key=lambda space: space.site)


def _receivers(lm: LanguageModel, wanted: Receivers) -> list[_Receiver]:
    """The receivers, each once, in the order given."""
    listed = [wanted] if isinstance(wanted, Ref) else wanted.split(",") if isinstance(wanted, str) else list(wanted)
    refs: list[Ref] = []
    for each in listed:
        name = each.strip() if isinstance(each, str) else each
        if name == "logits":
            refs.append(Ref.whole("logits"))
        elif name in _KINDS:
            sites = [site for site in lm.sites() if site.kind == _KINDS[str(name)]]
            refs += [space.ref(u) for site in sites for space in [space_of(lm, _first(site))] for u in range(space.n_units)]
        else:
            refs.append(Ref.parse(name))
    return [_Receiver(ref, _receiving(lm, ref)) for ref in dict.fromkeys(refs)]


def _first(site: Site) -> str:
    return f"{site.kind}:{site.layer}.0" if site.kind in ("q", "k", "v") else f"site:{site}"


def _receiving(lm: LanguageModel, ref: Ref) -> Space:
    if ref == Ref.whole("logits"):
        return space_of(lm, Ref.whole(Site("resid_post", lm.n_layers - 1)))
    if ref.position is not None or not (ref.kind in "qkv" or (ref.kind == "site" and ref.site and ref.site.kind == "mlp_in")):
        raise ConfigError(
            f"{ref} is not a receiver of paths.", "Receivers are q:1.2, k:1.2, v:1.2, site:mlp_in.1 and site:logits."
        )
    return space_of(lm, ref)


@dataclass
class _Paths:
    """The two runs of path patching: receivers' inputs with each sender changed, then each receiver changed alone."""

    base: Prompts
    source: Other
    receivers: Sequence[_Receiver]

    def variants(self, spaces: Sequence[Space], places: Sequence[Place]) -> Iterator[tuple[list[Edge], list[Variant]]]:
        lm, B = self.base.lm, len(self.base.rows)
        if any(layout.others for layout in lm.layouts):
            raise UnsupportedModel(
                f"Blocks of {lm.name} have branches besides attention and MLP.", "Their paths cannot be told apart."
            )
        tokens_BT = self.base.tokens_BT
        recording = lm.record(tokens_BT, self.base.mask_BT)
        step = max(1, _NUMBERS // (tokens_BT.numel() * lm.d_model * lm.n_layers))
        for space in spaces:
            if space.site_out.kind not in _WRITERS:
                raise ConfigError(
                    f"{space.site_out} does not write to the residual stream directly.", f"Senders are at {', '.join(_WRITERS)}."
                )
            following = [each for each in self.receivers if each.follows(space.site_out, self._parallel(space.site_out.layer))]
            units = sorted({unit for row in range(B) for unit in self._units(space, row)})
            senders = [_Sender(space, unit, place) for unit in units for place in places]
            for start in range(0, len(senders) if following else 0, step):
                some = senders[start : start + step]
                inputs = self._inputs(recording, some, following)
                yield self._changed(some, following, inputs)

    def _units(self, space: Space, row: int) -> list[int]:
        return torch.cat([self.base.read(space, row).units, self.source.new(space, row, 0).units]).unique().tolist()

    def _parallel(self, layer: int | None) -> bool:
        return layer is None or self.base.lm.reason(Site("resid_mid", layer)) is not None

    def _changed(
        self, senders: Sequence[_Sender], receivers: Sequence[_Receiver], inputs: dict[Site, Tensor]
    ) -> tuple[list[Edge], list[Variant]]:
        edges, variants, B = [], [], len(self.base.rows)
        for k, sender in enumerate(senders):
            for receiver in receivers:
                edge = Edge(sender.ref, receiver.ref)
                for row in range(B):
                    h = inputs[receiver.space.site][k * B + row, : len(self.base.rows[row])]
                    values = receiver.space.read(h, [receiver.ref.unit])
                    edges.append(edge)
                    variants.append(Variant(row, (Replace(receiver.space, [receiver.ref.unit], values),)))
        return edges, variants

    def _inputs(self, recording: Recording, senders: Sequence[_Sender], receivers: Sequence[_Receiver]) -> dict[Site, Tensor]:
        """(K * B, T, ...) what receivers read when each sender alone is changed and no later block responds."""
        lm, site, K = self.base.lm, senders[0].space.site_out, len(senders)
        written = torch.cat([self._written(sender) for sender in senders])
        edits = [Edit(site, _given(written))]
        layers = range(0 if site.layer is None else site.layer, lm.n_layers)
        frozen = [Site(kind, layer) for layer in layers for kind in ("attn_out", "mlp_out")]
        responding = {"heads": ("attn_out",), "neurons": ("attn_out", "mlp_out"), "mlp_out": ("attn_out", "mlp_out")}
        for each in frozen:
            own = each.layer == site.layer
            if own and (site.kind == "resid_post" or each.kind in responding.get(site.kind, ("attn_out",))):
                continue
            edits.append(Edit(each, _given(self.base.planner.act(lm.site(each)).repeat(K, 1, 1))))
        read = {receiver.space.site for receiver in receivers}
        if site.layer is None:
            mask_BT = recording.mask_BT
            mask = None if mask_BT is None else mask_BT.repeat(K, 1)
            return lm.run(recording.tokens_BT.repeat(K, 1), attention_mask=mask, read=read, edits=edits, logits=None).acts
        start = recording.resid_pre(site.layer).repeat(K, 1, 1)
        return lm.run(start_at=(recording, site.layer, start), read=read, edits=edits, logits=None).acts

    def _written(self, sender: _Sender) -> Tensor:
        """(B, T, *token_shape) the activation at the sender's site with the sender changed."""
        space, site = sender.space, sender.space.site_out
        acts = self.base.planner.act(site).clone()
        units = torch.tensor([sender.unit])
        for row, tokens in enumerate(self.base.rows):
            columns = sender.place.columns[row]
            if columns == ():
                continue
            at = list(range(len(tokens)) if columns is None else columns)
            current, new = (chosen(of.of(units), columns) for of in (self.base.read(space, row), self.source.new(space, row, 0)))
            acts[row, at] = space.write(acts[row, at], [sender.unit], new.to(current), current=current)
        return acts


def _given(values: Tensor) -> Callable[[Tensor, At], Tensor]:
    """An edit's function that gives each token its row of `values` (B, T, ...), whose pads are on the right."""
    return lambda rows, at: values[at.batch_N.to(values.device), at.position_N.to(values.device)].to(rows)
