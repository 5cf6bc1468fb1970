"""Attribution graphs of transcoders and cross-layer transcoders on one prompt.

Source: Ameisen et al., transformer-circuits.pub/2025/attribution-graphs/methods. Attention patterns, scales of norms and MLP
outputs are frozen, so that every pre-activation is a sum of what its sources write, and the Jacobian gives each source's part:
A[t, s] = a_s W_dec,s . J . W_enc,t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saekit.errors import ConfigError, UnsupportedModel
from saekit.locate.graphs.cut import Cut, cut_run
from saekit.locate.graphs.freezing import Frozen
from saekit.locate.graphs.frozen_run import FrozenModel
from saekit.locate.graphs.graph import AttributionGraph, Node
from saekit.locate.graphs.replacement import Replacement
from saekit.locate.graphs.rows import Rows, Sources, feature_targets
from saekit.names.site import Site
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

_RERANK = 4
"""Batches of rows between two estimates of influence."""
_LARGEST_GAP = 0.02


@dataclass(frozen=True)
class GraphSettings:
    """What a graph contains.

    Attributes:
        logit_probability: the likeliest next tokens become logit nodes until their probabilities reach this sum.
        most_logits: at most this many.
        max_feature_nodes: at most this many features, those of the largest estimated influence, become nodes.
        row_share, row_entries: a row keeps its largest entries until they make up this share of its magnitude, at most this many.
        memory: bytes that the gradients of one backward pass may take.
        keep_first: let features of the first token of the context be nodes. It is an attention sink, on which dictionaries are
            usually not trained; the MLP outputs there are error nodes as a whole, as those at special tokens.
    """

    logit_probability: float = 0.95
    most_logits: int = 10
    max_feature_nodes: int = 7500
    row_share: float = 0.99
    row_entries: int = 8192
    memory: int = 1 << 28
    keep_first: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.logit_probability <= 1 or not 0 < self.row_share <= 1:
            raise ConfigError("logit_probability and row_share are shares.", "Give numbers above 0, at most 1.")
        if min(self.most_logits, self.row_entries, self.memory) < 1 or self.max_feature_nodes < 0:
            raise ConfigError("most_logits, row_entries and memory must be at least 1, max_feature_nodes at least 0.")


@dataclass
class Prepared:
    """A prompt, passed once through the frozen model.

    Attributes:
        frozen: the frozen model.
        cut: the pass, cut where sources enter.
        sources: what rows are sums of.
        logits_K: the logit nodes' mean-centred logits, in the graph of the pass.
        ids_K, probability_K: their tokens.
    """

    frozen: FrozenModel
    cut: Cut
    sources: Sources
    logits_K: Tensor
    ids_K: Tensor
    probability_K: Tensor


def attribution_graph(
    lm: LanguageModel,
    prompt: str | Sequence[int] | Tensor,
    *,
    dictionaries: Sequence[SAE] | None = None,
    settings: GraphSettings | None = None,
    progress: bool = True,
) -> AttributionGraph:
    """The attribution graph of the next token after a prompt.

    Memory: the rows are sparse and are made a few at a time; no (tokens x latents) matrix exists. See :class:`GraphSettings`.

    Args:
        lm: the model.
        prompt: a text, or token ids.
        dictionaries: transcoders and cross-layer transcoders; None for the transcoders attached to the model.
        settings: what the graph contains.
        progress: show a progress bar.

    Raises:
        ConfigError: there is no dictionary, or one that does not replace an MLP; the prompt is empty.
        UnknownSite: the model lacks a site that the graph needs; the message says why.
        UnsupportedModel: with patterns, scales and MLP outputs frozen, the model is still not linear.
    """
    settings = settings or GraphSettings()
    prepared = prepare(lm, prompt, Replacement.of(lm, dictionaries), settings)
    sources = prepared.sources
    n, T = len(sources.active), sources.T
    rows = Rows(settings.row_share, settings.row_entries)
    rows.add(sources.rows(prepared.cut.gradients(prepared.logits_K, sources.sites)))
    size = T * sum(leaf[0].numel() for leaf in prepared.cut.leaves.values()) * 4
    batch = max(1, min(512, settings.memory // (2 * size)))
    expanded: list[int] = []
    most = min(settings.max_feature_nodes, n)
    with track("attributing", total=most, unit="features", enabled=progress) as bar:
        while len(expanded) < most:
            ranked = _by_influence(rows, expanded, prepared.probability_K, len(sources), n)
            some = ranked[: min(_RERANK * batch, most - len(expanded))]
            if not len(some):
                break
            for chosen in torch.from_numpy(some).split(batch):
                targets_K = feature_targets(prepared.cut, sources.replacement, sources.active, chosen)
                rows.add(sources.rows(prepared.cut.gradients(targets_K, sources.sites)))
                expanded += chosen.tolist()
            bar.update(len(expanded), note=f"{len(expanded)} of {n} active features")
    return _graph(prepared, rows, expanded, settings)


def prepare(lm: LanguageModel, prompt: Any, replacement: Replacement, settings: GraphSettings) -> Prepared:
    """Run the prompt once, with everything frozen that is not linear."""
    tokens_1T = _tokens(lm, prompt)
    end = Site("resid_post", lm.n_layers - 1)
    enters = (Site("resid_pre", 0), *replacement.written)
    read = {*replacement.reads, *enters, end}
    with Frozen() as frozen:
        cut = cut_run(lm, tokens_1T, cut=enters, read=read, skips=replacement.skips)
        with torch.enable_grad():
            logits_V = lm.readout.uncapped(cut.arrived[end][-1:])[0].float()
    capped = lm.readout.softcap
    seen_V = logits_V.detach()
    p_V = (capped * torch.tanh(seen_V / capped) if capped else seen_V).softmax(-1)
    best = p_V.sort(descending=True, stable=True)
    k = min(settings.most_logits, int((best.values.cumsum(0) < settings.logit_probability).sum()) + 1)
    ids_K = best.indices[:k]
    with torch.enable_grad():
        logits_K = logits_V[ids_K] - logits_V.mean()
    acts = {site: cut.arrived[site].detach().flatten(1) for site in read}
    counts_T = lm.ordinary(tokens_1T, keep_first=settings.keep_first)[0]
    active = replacement.active(acts, counts_T)
    embedded = acts[enters[0]].float()
    sources = Sources(replacement, active, replacement.errors(acts, active), embedded)
    static = {enters[0]: embedded, **{site: acts[site].float() for site in replacement.written}}
    for site, (before, skip) in replacement.skips.items():
        static[site] = static[site] - skip(acts[before]).float()
    model = FrozenModel(lm, replacement, tokens_1T, frozen.tape, static)
    return Prepared(model, cut, sources, logits_K, ids_K.cpu(), best.values[:k].cpu())


def _tokens(lm: LanguageModel, prompt: Any) -> Tensor:
    tokens = lm.encode(prompt).tokens_BT if isinstance(prompt, str) else torch.as_tensor(prompt).reshape(1, -1).long()
    if not tokens.numel():
        raise ConfigError("The prompt is empty.", "Give a text of at least one token.")
    return tokens


def _by_influence(rows: Rows, expanded: list[int], probability_K: Tensor, width: int, n: int) -> Any:
    """Latents without a row yet, those of the largest estimated influence first; none without influence."""
    from saekit.locate.graphs.influence import normalized

    K = len(probability_K)
    totals = np.array([total for _, total in rows.totals])
    shares = normalized(rows.matrix(width), totals)
    into = shares[K:]
    total = current = probability_K.double().numpy() @ shares[:K]
    while expanded and current.any():
        current = current[expanded] @ into
        total = total + current
    found = np.array(total[:n])
    found[expanded] = 0
    order = np.argsort(-found, kind="stable")
    return order[: int((found > 0).sum())]


def _graph(prepared: Prepared, rows: Rows, expanded: list[int], settings: GraphSettings) -> AttributionGraph:
    from scipy.sparse import csr_matrix, vstack

    sources, lm = prepared.sources, prepared.frozen.lm
    K, n = len(prepared.ids_K), len(sources.active)
    order = np.sort(np.array(expanded, dtype=np.int64))
    matrix = rows.matrix(len(sources))
    within = matrix[:, np.concatenate([order, np.arange(n, len(sources))])]
    place = {feature: number for number, feature in enumerate(expanded)}
    by_feature = within[[K + place[int(feature)] for feature in order]] if len(order) else within[:0]
    leaves = csr_matrix((len(sources) - n, within.shape[1]), dtype=np.float32)
    stacked = vstack([by_feature, leaves, within[:K]]).tocsr()
    square = csr_matrix((stacked.data, stacked.indices, stacked.indptr), shape=(stacked.shape[0],) * 2)
    values, constants = _values(prepared, torch.from_numpy(order))
    sums = np.array([rows.totals[K + place[int(feature)]][0] for feature in order] + [total for total, _ in rows.totals[:K]])
    sizes = np.array([rows.totals[K + place[int(feature)]][1] for feature in order] + [size for _, size in rows.totals[:K]])
    gap = float((np.abs(values - constants - sums) / np.maximum(sizes, 1e-6)).max()) if len(sums) else 0.0
    if gap > _LARGEST_GAP:
        raise UnsupportedModel(
            f"With patterns, scales and MLP outputs frozen, {lm.name} is not linear: a value differs from the sum of its "
            f"sources by {gap:.1%} of their magnitude.",
            "Attribution graphs need a model whose blocks are attention, norms and MLPs; use `--method eap_ig_inputs` instead.",
        )
    kept = [float(np.abs(row).sum()) / total for row, (_, total) in zip(rows.entries, rows.totals) if total]
    stored = float(np.abs(matrix.data).sum())
    facts = {
        "method": "attribution_graph",
        "model": lm.name,
        "fingerprint": lm.fingerprint()["model"],
        "layers": lm.n_layers,
        "dictionaries": sorted({reader.place for reader in sources.replacement.readers}),
        "active_features": n,
        "feature_nodes": len(order),
        "share_kept": min(kept, default=1.0),
        "unexpanded": 1 - float(np.abs(within.data).sum()) / stored if stored else 0.0,
        "gap": gap,
        "row_bytes": rows.nbytes,
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    tokens = prepared.frozen.tokens_1T[0].tolist()
    pieces = _pieces(lm, tokens)
    nodes = _nodes(prepared, order, values, constants, pieces)
    return AttributionGraph(nodes, square, tuple(tokens), pieces, facts)


@torch.no_grad()
def _values(prepared: Prepared, order: Tensor) -> tuple[Any, Any]:
    """Of each target, its value without the encoder's bias, and the part of it that biases of the model make."""
    cut, sources = prepared.cut, prepared.sources
    now = feature_targets(cut, sources.replacement, sources.active, order) if len(order) else torch.empty(0)
    acts, logits_1V = prepared.frozen.constants()
    still = Cut({}, {site: each[0] for site, each in acts.items()}, torch.empty(0), torch.empty(0))
    then = feature_targets(still, sources.replacement, sources.active, order) if len(order) else torch.empty(0)
    logits_K = logits_1V[0, prepared.ids_K.to(logits_1V.device)] - logits_1V[0].mean()
    values = torch.cat([now.float().cpu(), prepared.logits_K.detach().cpu()])
    return values.double().numpy(), torch.cat([then.float().cpu(), logits_K.cpu()]).double().numpy()


def _pieces(lm: LanguageModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """Tokens as text; their ids for a model without a tokenizer."""
    return tuple(map(str, tokens) if lm.tokenizer is None else lm.token_strings(tokens))


def _nodes(prepared: Prepared, order: Any, values: Any, constants: Any, pieces: tuple[str, ...]) -> tuple[Node, ...]:
    sources, lm = prepared.sources, prepared.frozen.lm
    active, T = sources.active, sources.T
    found = []
    for number, feature in enumerate(order.tolist()):
        reader = sources.replacement.readers[int(active.reader_n[feature])]
        position, latent = int(active.position_n[feature]), int(active.latent_n[feature])
        value = float(active.value_n[feature])
        ref = reader.ref(latent, position)
        found.append(Node("feature", ref, reader.layer, position, latent, value, float(constants[number])))
    for site, error_TD in sources.errors.items():
        norms = error_TD.norm(dim=1).tolist()
        found += [Node("error", f"error:{site}[{t}]", site.layer, t, 0, norms[t]) for t in range(T)]
    norms = sources.embedded_TD.norm(dim=1).tolist()
    tokens = prepared.frozen.tokens_1T[0].tolist()
    found += [Node("token", f"position:{t}", None, t, tokens[t], norms[t], text=pieces[t]) for t in range(T)]
    for number, (token, probability) in enumerate(zip(prepared.ids_K.tolist(), prepared.probability_K.tolist())):
        place = len(order) + number
        (text,) = _pieces(lm, [token])
        found.append(
            Node("logit", f"logit:{token}", None, T - 1, token, float(values[place]), float(constants[place]), probability, text)
        )
    return tuple(found)
