"""Examples for probes: activations and codes of labelled tokens, or of whole labelled texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saekit.errors import CorpusError
from saekit.lm.run.batches import document_activations
from saekit.progress import track
from saekit.tasks import Labelled, Span

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from saekit.lab import Document
    from saekit.lab import Labelled as LabelledTokens
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE


@dataclass(frozen=True)
class Examples:
    """N labelled examples, C concepts.

    Attributes:
        concepts: names of the concepts.
        acts_ND: (N, D) float32, activations that the dictionary reads. For a text, the mean over its tokens.
        codes_NF: (N, F), activations of the latents times the norms of their decoder rows, so that rescaling a dictionary changes
            nothing. For a text, the mean over its tokens.
        labels_NC: (N, C) bool, which example has which concept.
        test_N: (N,) bool, True for test examples and False for training examples. A document has examples of one kind only.
        any_N: (N,) bool, True for examples that were drawn at random. Examples that were drawn because of a label are not a fair
            sample of the tokens without another label.
        texts: True if an example is a whole text, False if it is a token.
    """

    concepts: tuple[str, ...]
    acts_ND: np.ndarray
    codes_NF: csr_array
    labels_NC: np.ndarray
    test_N: np.ndarray
    any_N: np.ndarray
    texts: bool = False


@torch.no_grad()
def token_examples(
    lm: LanguageModel,
    sae: SAE,
    site: Site,
    documents: Labelled | Sequence[Document],
    *,
    most: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> Examples:
    """Draw tokens of documents with labelled spans, such as the laboratory's.

    A random half of the documents gives training examples, the other half test examples. Each half gives up to `most` tokens of
    each concept and `2 * most` tokens of any kind, at random. Special tokens are left out, and documents are cut where the
    context ends.

    Args:
        most: number of tokens of a concept in each half, at most.
        seed: of the draws.

    Raises:
        CorpusError: there are fewer than two documents, or no span is labelled.
        ConfigError: the tokenizer gives no character offsets.
    """
    if len(documents) < 2:
        raise CorpusError("Two documents at least are needed: one to train probes on, one to test them on.")
    labelled = labelled_tokens(
        documents if isinstance(documents, Labelled) else Labelled.of_documents(documents), lm.text.tokenizer
    )
    if not labelled.concepts:
        raise CorpusError("No span of these documents is labelled.", 'Give records with "spans": [[start, end, "concept"], ...].')
    rng = np.random.default_rng(seed)
    length_d = np.array([len(row) for row in labelled.ids])
    room = lm.max_context - (lm.bos_token_id is not None)
    place_T = np.concatenate([np.arange(length) for length in length_d])
    half_T = np.repeat(rng.permutation(len(documents)) % 2, length_d)
    half_T[place_T >= room] = -1
    any_T, chosen_T = _chosen(labelled, half_T, most, rng)
    parts: list[tuple[np.ndarray, np.ndarray, csr_array]] = []
    done = 0
    with track("reading", total=labelled.n_tokens, enabled=progress) as bar:
        for which, acts in document_activations(lm, [site], labelled.ids):
            wanted = chosen_T[which]
            x_BD = acts[site][torch.from_numpy(wanted).to(acts[site].device)]
            if len(x_BD):
                parts.append((which[wanted], x_BD.float().cpu().numpy(), _codes(sae, x_BD)))
            done += len(which)
            bar.update(done)
        bar.end(done)
    token_N, acts_ND, codes_NF = _joined(parts)
    labels_NC = np.zeros((len(token_N), len(labelled.concepts)), bool)
    of_T = np.full(labelled.n_tokens, -1)
    of_T[token_N] = np.arange(len(token_N))
    known = of_T[labelled.token_M] >= 0
    labels_NC[of_T[labelled.token_M[known]], labelled.concept_M[known]] = True
    return Examples(labelled.concepts, acts_ND, codes_NF, labels_NC, half_T[token_N] == 1, any_T[token_N])


@torch.no_grad()
def text_examples(
    lm: LanguageModel,
    sae: SAE,
    site: Site,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int = 0,
    progress: bool = True,
) -> Examples:
    """Take whole texts with one label each: means over their tokens without special ones (SAEBench, arXiv 2503.09532).

    A random half of the texts of each label gives training examples. With two labels, the second in alphabetical order is the
    concept; with more, each label is a concept against all others.

    Raises:
        CorpusError: there are fewer than two labels.
    """
    from scipy.sparse import csr_array

    names = sorted(set(labels))
    if len(names) < 2:
        raise CorpusError(f"All texts have the label {names[0]!r}." if names else "There is no text.", "Give two labels or more.")
    ids = lm.text.ids(texts, bos=False)
    begin = np.cumsum([0, *map(len, ids)])
    parts: list[tuple[np.ndarray, np.ndarray, csr_array]] = []
    with track("reading", total=int(begin[-1]), enabled=progress) as bar:
        for which, acts in document_activations(lm, [site], ids):
            text_n = np.searchsorted(begin, which, side="right") - 1
            text_B, row_n, size_B = np.unique(text_n, return_inverse=True, return_counts=True)
            mean_Bn = csr_array((1 / size_B[row_n], (row_n, np.arange(len(which)))), shape=(len(text_B), len(which)))
            acts_nD = acts[site].float().cpu().numpy()
            parts.append((text_B, (mean_Bn @ acts_nD).astype(np.float32), mean_Bn @ _codes(sae, acts[site])))
            bar.update(sum(len(part[0]) for part in parts))
        bar.end(int(begin[-1]))
    text_N, acts_ND, codes_NF = _joined(parts)
    label_N = np.array(labels)[text_N]
    test_N = np.zeros(len(text_N), bool)
    rng = np.random.default_rng(seed)
    for name in names:
        test_N[rng.permutation((label_N == name).nonzero()[0])[1::2]] = True
    concepts = tuple(names[1:] if len(names) == 2 else names)
    labels_NC = label_N[:, None] == np.array(concepts)
    return Examples(concepts, acts_ND, codes_NF, labels_NC, test_N, np.ones(len(text_N), bool), texts=True)


def read_labelled(path: str | Path) -> Labelled:
    """Read labelled data: records with a "text" and either "spans" ([start, end, concept], in characters) or a "label".

    Args:
        path: a file that :func:`saekit.activations.corpus.formats.read_rows` reads: jsonl, json, csv, parquet, ...

    Returns:
        Texts with their spans or their labels.

    Raises:
        CorpusError: there is no such file, or a record lacks a field or has something else in it.
    """
    from saekit.activations import Corpus
    from saekit.activations.corpus.fields import Fields

    corpus = Corpus.open(Path(path), text_field=Fields(also=("label", "spans")))
    spans: list[tuple[Span, ...]] = []
    texts: list[str] = []
    labels: list[str] = []
    for number, (row, text) in enumerate(zip(corpus.rows(), corpus.texts())):
        facts: dict[str, Any] = {} if isinstance(row, str) else dict(row)
        if "spans" not in facts and facts.get("label") is None:
            raise CorpusError(
                f"{path}, row {number} has no label; it has {', '.join(facts) or 'text only'}.",
                'Give records with "text" and either "label" or "spans": [[start, end, "concept"], ...].',
            )
        texts.append(text)
        if "spans" in facts:
            spans.append(tuple(_spans(path, number, text, facts["spans"])))
        else:
            labels.append(str(facts["label"]))
    if spans and labels:
        raise CorpusError(f"Some rows of {path} have spans and others only labels.", "Keep them in two files.")
    return Labelled(tuple(texts), spans=tuple(spans)) if spans else Labelled(tuple(texts), labels=tuple(labels))


def _spans(path: str | Path, number: int, text: str, spans: Any) -> Iterator[Span]:
    for span in spans if isinstance(spans, list) else [spans]:
        match [span[key] for key in Span._fields if key in span] if isinstance(span, dict) else span:
            case [int(start), int(end), str(concept)] if 0 <= start < end <= len(text):
                yield Span(start, end, concept)
            case _:
                raise CorpusError(
                    f"{path}, row {number}: {span!r} is no span of its {len(text)} characters.", 'Write [start, end, "concept"].'
                )


def labelled_tokens(labelled: Labelled, tokenizer: Any) -> LabelledTokens:
    """Like :func:`saekit.lab.label`, for all concepts of the spans. Texts without spans are tokenised."""
    from saekit.lab import Labelled as LabelledTokens
    from saekit.lab.labels import align
    from saekit.lab.tokens import encode

    encoded = encode(list(labelled.texts), tokenizer)
    aligned = align(labelled.texts, labelled.spans or [()] * len(labelled), encoded.offsets, labelled.concepts)
    return LabelledTokens(encoded.ids, labelled.concepts, *aligned)


def _chosen(labelled: LabelledTokens, half_T: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw tokens. Returns (T,) bool for tokens of any kind, and for these together with the tokens of each concept.

    Args:
        half_T: 0 or 1 by half, -1 at tokens beyond the context.
    """
    any_T = np.zeros(len(half_T), bool)
    for half in (0, 1):
        any_T[rng.permutation((half_T == half).nonzero()[0])[: 2 * most]] = True
    chosen_T = any_T.copy()
    order = rng.permutation(len(labelled.token_M))
    token_M, concept_M = labelled.token_M[order], labelled.concept_M[order]
    group_M = 2 * concept_M + half_T[token_M]
    kept = half_T[token_M] >= 0
    token_M, group_M = token_M[kept], group_M[kept]
    order = np.argsort(group_M, kind="stable")
    start = np.searchsorted(group_M[order], group_M[order])
    chosen_T[token_M[order][np.arange(len(order)) - start < most]] = True
    return any_T, chosen_T


def _codes(sae: SAE, x_BD: torch.Tensor) -> csr_array:
    """(B, F) activations of the latents times the norms of their decoder rows."""
    from scipy.sparse import csr_array

    row, latents, values = sae.encode_sparse(x_BD).fired()
    values = values * sae.scale(x_BD)[row, 0] * sae.W_dec.norm(dim=1)[latents]
    entries = values.float().cpu().numpy(), (row.cpu().numpy(), latents.cpu().numpy())
    return csr_array(entries, shape=(len(x_BD), sae.cfg.n_latents))


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray, csr_array]]) -> tuple[np.ndarray, np.ndarray, csr_array]:
    from scipy.sparse import csr_array, vstack

    if not parts:
        raise CorpusError("There is no token to read.", "Give longer texts.")
    number, acts, codes = zip(*parts)
    return np.concatenate(number), np.concatenate(acts), csr_array(vstack(codes, format="csr"))
