"""Classes of tokens by their looks and their place in the text."""

from __future__ import annotations

CLASSES = {
    "capitalised": "capitalised words",
    "upper": "words in capitals",
    "digits": "digits",
    "punctuation": "punctuation",
    "quote": "quotation marks",
    "newline": "line breaks",
    "first_piece": "first pieces of longer words",
    "later_piece": "later pieces of words",
    "first_token": "the first token of a context",
    "sentence_start": "first words of sentences",
}
"""Name of each class, in the order of their bits, and the tokens in it as a label says them."""
BIT = {name: 1 << i for i, name in enumerate(CLASSES)}
