"""Reading a label out of an answer, strictly: what is no short label in the language of the prompt is nonsense."""

from __future__ import annotations

import re
import unicodedata

from feature_db.chat.asking import Nonsense

MARK = "LABEL:"
"""What stands before the label in an answer."""
_LINE = re.compile(r"^[\s*_`>#-]*label\s*:[\s*_`]*(.*?)[\s*_`]*$", re.IGNORECASE | re.MULTILINE)
_CHARACTERS, _WORDS = 120, 16
_REFUSES = re.compile(r"\b(i'?m sorry|i am sorry|i can(?:no|')t|i cannot|as an ai|unable to|not able to)\b", re.IGNORECASE)
_EMPTY = {"a few words", "unknown", "none", "n/a", "na", "unclear", "various", "no label", "label", "no pattern", "nothing"}


def read_label(text: str, instruction: str) -> str:
    """The label in an answer.

    Args:
        text: the answer. Its last line, or its only one, is `LABEL: ...`.
        instruction: the prompt; the label must be in its script.

    Raises:
        Nonsense: the reply has no label or several; or the label is empty, long, a refusal or in another script.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    found = _LINE.findall("\n".join(lines))
    if len(found) != 1 or not _LINE.match(lines[-1]):
        raise Nonsense(f"it does not end with one line that begins with {MARK}")
    label = " ".join(found[0].split())
    if len(label) > 1 and label[0] == label[-1] and label[0] in "\"'" and label.count(label[0]) == 2:
        label = label[1:-1].strip()
    label = label.rstrip(".").strip("<>").strip()
    if not any(map(str.isalnum, label)) or label.casefold() in _EMPTY:
        raise Nonsense("the label says nothing")
    if len(label) > _CHARACTERS or len(label.split()) > _WORDS:
        raise Nonsense(f"the label has more than {_WORDS} words or {_CHARACTERS} characters")
    if any(unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") for char in label):
        raise Nonsense("the label holds control characters")
    if _REFUSES.search(label.replace("’", "'")):
        raise Nonsense("it is a refusal")
    if _latin(instruction) > 0.5 > _latin(label):
        raise Nonsense("the label is not in the language of the question")
    return label


def _latin(text: str) -> float:
    """Share of the letters that are Latin; 1 without any letter."""
    letters = [char for char in text if char.isalpha()]
    return sum(unicodedata.name(char, "").startswith("LATIN") for char in letters) / len(letters) if letters else 1.0
