"""Example texts as tokens, and the features that fire on them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from feature_db.arguments import unicode
from saekit.errors import ConfigError
from saekit.lm.chat import ChatTemplate, Messages, with_places
from saekit.progress import Bar

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

Span = tuple[int, int]
Example = str | Messages
"""A text, or the messages of a chat."""
Examples = Example | Sequence[Example]
"""One or several of them."""
_MARKED = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Text:
    """An example text of n tokens."""

    ids: list[int]
    """Without BOS, unless a chat template writes it."""
    chosen: NDArray[np.bool_]
    """(n,) True at the tokens that matter."""
    words: str
    """The parts of the text that matter."""


class Fired(NamedTuple):
    """The features that fire on the tokens of a text that matter."""

    n_tokens: int
    """Tokens that matter and count (:meth:`saekit.lm.LanguageModel.ordinary`)."""
    features: NDArray[np.int64]
    """Ascending."""
    largest: NDArray[np.float32]
    """Largest activation of each feature; of AbsTopK, the largest magnitude."""
    places: NDArray[np.int64]
    """The token of the text with this activation; the first of several."""


def marked(text: str) -> tuple[str, list[Span]]:
    """A text without its marks `[[` and `]]`, and the parts (start, stop) between them; without any mark, the whole text."""
    parts, spans, end, length = [], [], 0, 0
    for found in _MARKED.finditer(text):
        before, inside = text[end : found.start()], found[1]
        spans.append((length + len(before), length + len(before) + len(inside)))
        parts += [before, inside]
        length, end = spans[-1][1], found.end()
    plain = "".join(parts) + text[end:]
    return plain, spans or [(0, len(plain))]


def read(lm: LanguageModel, examples: Examples, spans: Sequence[Sequence[Span]] | None = None) -> list[Text]:
    """Example texts as tokens.

    Args:
        examples: one or several texts or chats. In a chat, what the messages say matters.
        spans: for each text the parts that matter, as (start, stop) of its characters. None: the parts between `[[` and `]]`.

    Raises:
        ConfigError: something is neither text nor chat, or empty; or `spans` does not fit.
    """
    several: Any = [examples] if isinstance(examples, str) else examples
    if isinstance(several, Sequence) and several and all(isinstance(each, Mapping) for each in several):
        several = [several]
    if not isinstance(several, Sequence) or not several:
        raise ConfigError(f"{examples!r:.60} are no example texts.", "Give one or several texts, or chats as lists of messages.")
    parts = [None] * len(several) if spans is None else spans
    if (
        not isinstance(parts, Sequence)
        or isinstance(parts, str)
        or not all(each is None or (isinstance(each, Sequence) and not isinstance(each, str)) for each in parts)
    ):
        raise ConfigError(f"The spans are {spans!r:.60}.", "Give a list of spans (start, stop) for each text.")
    if len(parts) != len(several):
        raise ConfigError(f"There are {len(several)} texts and spans of {len(parts)}.", "Give a list of spans for each text.")
    return [_read(lm, example, part) for example, part in zip(several, parts)]


def _read(lm: LanguageModel, example: Any, spans: Sequence[Span] | None) -> Text:
    if isinstance(example, str):
        plain, found = marked(unicode(example, "text")) if spans is None else (unicode(example, "text"), _inside(example, spans))
        if found == [(0, len(plain))]:
            ids = lm.text.plain_ids([plain])[0]
            chosen = np.ones(len(ids), bool)
        else:
            encoded = with_places(lm.text).encode(plain, add_special_tokens=False)
            ids = encoded.ids
            chosen = np.array([any(a < stop and b > start for start, stop in found) for a, b in encoded.offsets], bool)
        words = " ".join(plain[start:stop] for start, stop in found)
    elif isinstance(example, Sequence) and example and all(isinstance(message, Mapping) for message in example):
        if spans is not None:
            raise ConfigError("Spans are given for a chat.", "Give the chat as a text, or leave the spans out.")
        ids, chosen = ChatTemplate(lm.text).tokens(example, "content")
        words = " ".join(_said(message.get("content")) for message in example)
    else:
        raise ConfigError(f"{example!r:.60} is no example text.", "Give a text, or a chat as a list of messages.")
    if not chosen.any():
        raise ConfigError(f"The example {example!r:.60} has no token that matters.", "Give a text with words.")
    return Text(list(ids), chosen, words)


def _said(content: Any) -> str:
    """The words of a message; none where its content is null, as beside a tool call."""
    if isinstance(content, Sequence) and not isinstance(content, str):  # parts of text, and pictures
        return " ".join(str(part.get("text") or "") if isinstance(part, Mapping) else str(part) for part in content)
    return "" if content is None else str(content)


def _inside(text: str, spans: Sequence[Span]) -> list[Span]:
    for span in spans:
        if not (isinstance(span, Sequence) and len(span) == 2 and all(isinstance(place, int) for place in span)):
            raise ConfigError(f"The span {span!r:.60} is no pair of places.", "Give (start, stop) of characters.")
        if not 0 <= span[0] < span[1] <= len(text):
            raise ConfigError(
                f"The span {tuple(span)} is not inside of the text {text!r:.60}.", f"It has {len(text)} characters."
            )
    return [(start, stop) for start, stop in spans] or [(0, len(text))]


@torch.no_grad()
def fired(lm: LanguageModel, sae: SAE, site: Site, texts: Sequence[Text], bar: Bar | None = None) -> list[Fired]:
    """Run texts through the model and its dictionary. Texts longer than the model's context are cut into several contexts.

    Args:
        bar: shows how many tokens were run.
    """
    found: list[list[Fired]] = [[] for _ in texts]
    done = 0
    for batch in _batches(lm, texts):
        rows = [row for _, _, row, _ in batch]
        tokens_BT, mask_BT = lm.text.pad(rows, "right")
        wanted_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
        for i, (*_, wanted) in enumerate(batch):
            wanted_BT[i, : len(wanted)] = torch.from_numpy(wanted)
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site]
        for i, (text, first, _, _) in enumerate(batch):
            counts = lm.ordinary(tokens_BT[i], mask_BT[i], chosen=wanted_BT[i])
            if not counts.any():  # the only token that matters begins the context of a model without BOS
                counts = lm.ordinary(tokens_BT[i], mask_BT[i], chosen=wanted_BT[i], keep_first=True)
            row, feature, value = sae.encode_sparse(acts[i][counts.to(acts.device)].flatten(1)).fired()
            if sae.cfg.activation_function.signed:
                value = value.abs()
            place = first + counts.nonzero()[:, 0].numpy()[row.cpu().numpy()]
            found[text].append(_largest(int(counts.sum()), feature.cpu().numpy(), value.float().cpu().numpy(), place))
        done += sum(map(len, rows))
        if bar is not None:
            bar.update(done)
    return [_joined(each) for each in found]


_Context = tuple[int, int, list[int], NDArray[np.bool_]]
"""Number of the text; place in the text of the context's first token, BOS counted; its tokens; those that matter."""


def _batches(lm: LanguageModel, texts: Sequence[Text]) -> Iterator[list[_Context]]:
    begin = [] if lm.bos_token_id is None else [lm.bos_token_id]
    contexts: list[_Context] = []
    for number, text in enumerate(texts):
        own = begin if not text.ids or text.ids[0] != lm.bos_token_id else []
        size = lm.max_context - len(begin)
        for start in range(0, len(text.ids), size):
            chosen = text.chosen[start : start + size]
            if chosen.any():
                before = own if start == 0 else begin
                wanted = np.concatenate([np.zeros(len(before), bool), chosen])
                contexts.append((number, start - len(before), [*before, *text.ids[start : start + size]], wanted))
    contexts.sort(key=lambda context: len(context[2]))
    batch: list[_Context] = []
    for context in contexts:
        if batch and (len(batch) + 1) * len(context[2]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(context)
    if batch:
        yield batch


def _largest(n_tokens: int, feature: NDArray, value: NDArray, place: NDArray) -> Fired:
    """The largest value of each feature."""
    positive = value > 0
    feature, value, place = feature[positive], value[positive], place[positive]
    order = np.lexsort((-place, value, feature))
    last = np.flatnonzero(np.diff(feature[order], append=-1))
    chosen = order[last]
    return Fired(n_tokens, feature[chosen].astype(np.int64), value[chosen], place[chosen].astype(np.int64))


def _joined(parts: Sequence[Fired]) -> Fired:
    if not parts:
        return _largest(0, *(np.zeros(0, kind) for kind in (np.int64, np.float32, np.int64)))
    columns = (np.concatenate([part[column] for part in parts]) for column in (1, 2, 3))
    return _largest(sum(part.n_tokens for part in parts), *columns)
