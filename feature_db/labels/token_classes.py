"""Classes of tokens by their looks, their place in the text, and the grammar of their word."""

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
    "name": "capitalised words inside of sentences",
    "year": "numbers of four digits",
    "noun": "nouns",
    "plural": "plural nouns",
    "verb": "verbs",
    "past": "verbs in the past tense",
    "third_person": "verbs in the third person singular",
    "ing": "verbs that end in -ing",
    "adjective": "adjectives",
    "adverb": "adverbs",
    "function": "function words",
}
"""Name of each class, in the order of their bits, and the tokens in it as a label says them."""
BIT = {name: 1 << i for i, name in enumerate(CLASSES)}

CALLED = {
    "capitalised": ("capital letter", "uppercase letter", "upper case letter", "capitalised", "capitalized", "capitalization"),
    "upper": ("capitals", "uppercase", "upper case", "all caps"),
    "digits": ("digit", "number", "numeral"),
    "punctuation": ("punctuation",),
    "quote": ("quotation mark", "quote", "speech mark", "quotation"),
    "newline": ("line break", "newline", "new line", "paragraph"),
    "first_piece": ("first piece", "prefix"),
    "later_piece": ("later piece", "last piece", "suffix", "ending word"),
    "first_token": ("first token", "start text", "beginning text", "start document", "beginning document"),
    "sentence_start": ("sentence start", "sentence begin", "sentence beginning", "first word sentence", "new sentence"),
    "name": ("name", "proper noun"),
    "year": ("year", "date"),
    "noun": ("noun",),
    "plural": ("plural", "plural noun"),
    "verb": ("verb",),
    "past": ("past", "past tense", "past tense verb", "verb past"),
    "third_person": ("third person", "third person singular", "third person verb"),
    "ing": ("ing", "ing verb", "gerund", "present participle", "verb ing"),
    "adjective": ("adjective",),
    "adverb": ("adverb",),
    "function": ("function word", "stop word", "grammatical word"),
}
"""What people call each class: the words of a name in any order, nouns in the singular."""
