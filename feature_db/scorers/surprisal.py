"""Surprisal score: does a label, put before a text, help the studied model itself to predict texts on which its feature fires?

No judge is needed. The decrease of the loss per token that the label causes, compared with a prompt that says nothing, is
measured on held-out texts on which the feature fires and on others. The score is the area under the ROC curve of this decrease:
the surprisal score of Paulo et al. (2024, "Automatically interpreting millions of features in large language models", arXiv
2410.13928). It means most for models that make use of a description in their context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from feature_db.scorers.given import Given
from feature_db.scorers.proportions import auroc
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject

TEXTS = 10
"""Texts of each kind."""
PROMPT = "This text is about {}.\n\n"
NEUTRAL = "something"
"""What a prompt that says nothing has in place of a label."""
_BATCH = 32


def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """Score labels; see :data:`feature_db.scorers.registry.SCORERS`. The option `texts` sets the texts of each kind."""
    n = int(subject.options.get("texts", TEXTS))
    for feature, group in groupby(labels, key=lambda label: label.feature):
        if reason := subject.too_few(feature):
            yield from (Result(label, failed=reason) for label in group)
            continue
        found = subject.examples(feature, n)
        texts = [example.token_ids.tolist() for kind in (found.active, found.random, found.hard) for example in kind]
        without = losses(subject, NEUTRAL, texts)
        for label in group:
            decrease = without - losses(subject, subject.said(label), texts)
            score = auroc(decrease[: len(found.active)], decrease[len(found.active) :])
            if score is None:
                yield Result(label, failed="the feature fires in every held-out text")
            else:
                yield Result(label, {"surprisal_auroc": score})


def losses(subject: Subject, said: str, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Mean cross-entropy of the tokens of each text, in nats, after a prompt that says what the text is about."""
    return np.array([each.mean() if len(each) else 0.0 for each in token_losses(subject, said, texts)], np.float64)


def token_losses(subject: Subject, said: str, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
    """Cross-entropy of each token of each text, in nats, after a prompt that says what the text is about.

    Texts are cut where they and the prompt are longer than the model's context.
    """
    lm = subject.lm
    first = [] if lm.bos_token_id is None else [lm.bos_token_id]
    prompt = [*first, *lm.text.plain_ids([PROMPT.format(said)])[0]][: lm.max_context // 2]  # leaves room for the text
    rows = [[*prompt, *text][: lm.max_context] for text in texts]
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        tokens_BT, mask_BT = lm.text.pad(part, "right")
        tokens_BT, mask_BT = tokens_BT.to(lm.device), mask_BT.to(lm.device)
        logits_BTV = lm.run(tokens_BT, attention_mask=mask_BT, logits="all").logits
        assert logits_BTV is not None
        loss_BT = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].float().transpose(1, 2), tokens_BT[:, 1:].to(logits_BTV.device).long(), reduction="none"
        )
        losses_BT = loss_BT.double().cpu().numpy()
        found += [losses_BT[i, max(len(prompt) - 1, 0) : len(row) - 1] for i, row in enumerate(part)]
    return found
