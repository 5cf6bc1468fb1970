"""BOS: added exactly where the tokenizer itself adds it, or as asked for; and never twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saekit.activations import Corpus, token_batches
from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.lm.tokenization import Text
from saekit.workspace.study import FILE, Study, study_of
from tests.lm.test_text import byte_level

TEXTS = ["the cat sat", "", "<bos>the cat"]


def adding(bos: bool, eos: bool = False) -> Any:
    """A tokenizer with a BOS that its post-processor adds, or does not add."""
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(byte_level())
    first, last = ("<bos> " if bos else ""), (" <end>" if eos else "")
    special = [("<bos>", tokenizer.bos_token_id), ("<end>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first}$A{last}", special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("adds", [True, False])
def test_auto_is_what_the_tokenizer_does(adds: bool, eos: bool) -> None:
    tokenizer = adding(adds, eos)
    text = Text(tokenizer)
    assert text.bos_token_id == (tokenizer.bos_token_id if adds else None)
    own = tokenizer("the cat sat")["input_ids"]
    assert text.ids(["the cat sat"])[0] == (own[:-1] if eos else own)


@pytest.mark.parametrize("adds", [True, False])
def test_bos_is_counted_once(adds: bool) -> None:
    """Also where a text brings its own, as those of chat templates do."""
    for bos, count in {"auto": int(adds), "yes": 1, "any": 1, "no": 0}.items():
        text = Text(adding(adds), bos=bos)
        first = text.tokenizer.bos_token_id
        assert [row.count(first) for row in text.ids(TEXTS)] == [count, count, 1]
        assert [row.count(first) for row in text.ids(TEXTS, bos=False)] == [0, 0, 1]
        assert [row.count(first) for row in text.ids(TEXTS, bos=True)] == [1, 1, 1]


def test_a_tokenizer_without_bos() -> None:
    for bos in ("auto", "any", "no"):
        assert Text(byte_level(None), bos=bos).bos_token_id is None
    with pytest.raises(ConfigError, match="BOS is asked for, and the tokenizer has none"):
        Text(byte_level(None), bos="yes")
    with pytest.raises(ConfigError, match="bos='maybe' is not a choice"):
        LanguageModel.load("./nowhere", bos="maybe")


def test_the_choice_does_not_change_the_tokenizers_mark() -> None:
    assert len({Text(adding(True), bos=bos).sha256 for bos in ("auto", "yes", "no", "any")}) == 1


@pytest.mark.parametrize("packing", ["pack", "document"])
def test_contexts_begin_as_the_choice_says(stories_path: Path, packing: Any) -> None:
    corpus = Corpus.open(["Once upon a time", "there was a dog", "<s>named Max"])
    for bos, begins in {"auto": True, "no": False}.items():
        lm = LanguageModel.load(stories_path, bos=bos, device="cpu")
        for batch in token_batches(lm, corpus, context=8, packing=packing):
            assert bool((batch.tokens_BT[:, 0] == 1).all()) == begins
            if packing == "document":
                assert int((batch.tokens_BT == 1).sum()) == (3 if begins else 1)


def test_workspaces_of_early_versions_keep_their_rule(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('format = 1\n[study]\nmodel = "m"\nsites = ["embed"]\ndata = "d"\n')
    early = Study.load(tmp_path)
    assert early.bos == "any"
    assert early.differences(study_of("m", ("embed",), "d")) == []
    assert early.differences(study_of("m", ("embed",), "d", bos="no")) == ["bos"]
    study_of("m", ("embed",), "d", bos="no").save(tmp_path)
    assert Study.load(tmp_path).bos == "no"
