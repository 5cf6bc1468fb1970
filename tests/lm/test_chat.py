"""Chats as tokens: which of them are trained on, against texts that are put together by hand, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.errors import ConfigError
from saekit.lm.chat import ChatTemplate, TrainOn
from saekit.lm.tokenization import Text

Message = dict[str, Any]
Part = tuple[str, str]
"""A part of the text of a chat, and who says it: "" for the template."""

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
CHATML_GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '\n\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|eot_id|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}{% set content = message['content'] %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
)
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]


def _chatml(messages: Sequence[Message]) -> list[Part]:
    parts = [] if messages[0]["role"] == "system" else [("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "")]
    for message in messages:
        parts += [(f"<|im_start|>{message['role']}\n", ""), (message["content"], message["role"]), ("<|im_end|>\n", "")]
    return parts


def _chatml_generation(messages: Sequence[Message]) -> list[Part]:
    parts: list[Part] = []
    for message in messages:
        said = (message["content"] + "<|im_end|>", "assistant")
        others = [(message["content"], message["role"]), ("<|im_end|>", "")]
        parts += [(f"<|im_start|>{message['role']}\n", ""), *([said] if message["role"] == "assistant" else others), ("\n", "")]
    return parts


def _llama3(messages: Sequence[Message]) -> list[Part]:
    parts = [("<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n", "")]
    if messages[0]["role"] == "system":
        parts.append((messages[0]["content"].strip(), "system"))
        messages = messages[1:]
    parts.append(("<|eot_id|>", ""))
    for message in messages:
        parts.append((f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", ""))
        parts += [(message["content"].strip(), message["role"]), ("<|eot_id|>", "")]
    return parts


def _gemma(messages: Sequence[Message]) -> list[Part]:
    parts = [("<s>", "")]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    for number, message in enumerate(messages if system is None else messages[1:]):
        role = "model" if message["role"] == "assistant" else message["role"]
        parts.append((f"<start_of_turn>{role}\n", ""))
        if number == 0 and system is not None:
            parts += [(system, "system"), ("\n\n", "")]
        parts += [(message["content"].strip(), message["role"]), ("<end_of_turn>\n", "")]
    return parts


def _llama2(messages: Sequence[Message]) -> list[Part]:
    parts: list[Part] = []
    for message in messages:
        if message["role"] == "user":
            parts += [("<s>[INST] ", ""), (message["content"].strip(), "user"), (" [/INST]", "")]
        elif message["role"] == "assistant":
            parts += [(" ", ""), (message["content"].strip(), "assistant"), (" </s>", "")]
    return parts


FAMILIES: dict[str, tuple[str, Callable[[Sequence[Message]], list[Part]]]] = {
    "chatml": (CHATML, _chatml),
    "llama3": (LLAMA3, _llama3),
    "gemma": (GEMMA, _gemma),
    "llama2": (LLAMA2, _llama2),
}
CONTENT = st.text(st.sampled_from("ab e.\n user:IN [/]é🙂\t"), max_size=24)
CHATS = st.tuples(
    st.none() | CONTENT,
    st.lists(CONTENT, min_size=1, max_size=5),
).map(
    lambda drawn: [
        *([] if drawn[0] is None else [{"role": "system", "content": drawn[0]}]),
        *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(drawn[1])),
    ]
)


@cache
def _tokenizer(kind: str) -> Any:
    """A byte-level BPE trained here, with places that leave spaces out, or the SentencePiece-like tokenizer of a real model."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if kind == "stories":
        from tests.conftest import SHARED

        tokenizer = AutoTokenizer.from_pretrained(str(SHARED / "models/stories260k"))
        tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
        return tokenizer
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    texts = [
        "a user asks the assistant in the system",
        "  [INST] a bb aa e. ae be [/INST]",
        "You are a helpful assistant.\n\n",
    ] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", *MARKS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    return tokenizer


def _template(source: str, kind: str = "bytes") -> ChatTemplate:
    import copy

    tokenizer = copy.copy(_tokenizer(kind))
    tokenizer.chat_template = source
    return ChatTemplate(Text(tokenizer))


def _labels(template: ChatTemplate, parts: Sequence[Part], wanted: Sequence[str]) -> list[bool]:
    """Which tokens have a character that one of the wanted speakers says, from the text of each token alone."""
    said = "".join(("1" if who in wanted else "0") * len(text) for text, who in parts)
    whole = "".join(text for text, _ in parts)
    encoding = template._text.tokenizer.backend_tokenizer.encode(whole, add_special_tokens=False)
    labels, at = [], 0
    for start, stop in encoding.offsets:  # a token reaches from the end of those before it to its own end
        labels.append("1" in said[min(start, at) : stop])
        at = max(at, stop)
    return labels


@pytest.fixture(params=["bytes", "stories"])
def kind(request: pytest.FixtureRequest, stories_path: Path) -> str:
    return str(request.param)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(messages=CHATS)
def test_labels_equal_those_of_turns_put_together_by_hand(family: str, messages: list[Message]) -> None:
    source, by_hand = FAMILIES[family]
    template, parts = _template(source), by_hand(messages)
    whole = "".join(text for text, _ in parts)
    if family == "llama2" and not whole:
        return
    assert template.render(messages) == whole
    for train_on, wanted in {"content": ("system", "user", "assistant"), "assistant": ("assistant",)}.items():
        ids, chosen = template.tokens(messages, train_on)  # type: ignore[arg-type]
        assert ids == template._text.tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert chosen.tolist() == _labels(template, parts, wanted)
    assert template.tokens(messages).chosen.all()


@pytest.mark.parametrize("family", ["chatml", "gemma"])
def test_labels_of_turns_that_are_tokenised_one_by_one(family: str, kind: str) -> None:
    """In these families no token crosses the border of a turn, so that the labels are the lengths of the turns' own tokens."""
    messages = [
        {"role": "user", "content": "Tell a story"},
        {"role": "assistant", "content": "Once upon a time"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "The end"},
    ]
    source, by_hand = FAMILIES[family]
    template, parts = _template(source, kind), by_hand(messages)
    labels: list[bool] = []
    ids: list[int] = []
    before = ""
    for text, who in parts:
        (longer,) = template._text.plain_ids([before + text])
        assert longer[: len(ids)] == ids
        labels += [who == "assistant"] * (len(longer) - len(ids))
        ids, before = longer, before + text
    tokens = template.tokens(messages, "assistant")
    assert tokens.ids == ids and tokens.chosen.tolist() == labels and any(labels)


def test_the_templates_own_marks_are_preferred(kind: str) -> None:
    messages = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes \n"}]
    template = _template(CHATML_GENERATION, kind)
    tokens = template.tokens(messages, "assistant")
    known = template._text.tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    assert tokens.ids == known["input_ids"] and tokens.chosen.tolist() == [bool(mark) for mark in known["assistant_masks"]]
    if kind == "bytes":
        assert tokens.chosen.tolist() == _labels(template, _chatml_generation(messages), ("assistant",))
    content = template.tokens(messages, "content").chosen
    assert (content & tokens.chosen).sum() < tokens.chosen.sum()  # <|im_end|> is the template's own


def test_thoughts_that_a_template_moves_or_drops() -> None:
    thought = "<think>\nhm\n</think>\n\nab"
    messages = [
        {"role": "user", "content": "a <b>bb</b>"},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": thought},
    ]
    parts = [
        ("<|im_start|>user\n", ""),
        ("a <b>bb</b>", "user"),
        ("<|im_end|>\n<|im_start|>assistant\n", ""),
        ("ab", "assistant"),
    ]
    parts += [("<|im_end|>\n<|im_start|>user\n", ""), ("e", "user"), ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "")]
    parts += [("hm", "assistant"), ("\n</think>\n\n", ""), ("ab", "assistant"), ("<|im_end|>\n", "")]
    template = _template(THINKING)
    assert template.render(messages) == "".join(text for text, _ in parts)
    assert template.tokens(messages, "assistant").chosen.tolist() == _labels(template, parts, ("assistant",))
    assert template.tokens(messages, "content").chosen.tolist() == _labels(template, parts, ("user", "assistant"))


@pytest.mark.parametrize("content", ["\n ab", "\n\n", " \nab \n", "\n \n ab  \n\n", "ab\n \n"])
def test_white_space_that_a_template_strips_in_part(content: str) -> None:
    """As Qwen 3 does: line breaks before a text, but not spaces."""
    source = "{% for m in messages %}{{ m['role'] + '\n' + m['content'].lstrip('\n').rstrip(' ') + '<|im_end|>' }}{% endfor %}"
    messages = [{"role": "user", "content": "e"}, {"role": "assistant", "content": content}]
    parts = [("user\n", ""), ("e", "user"), ("<|im_end|>assistant\n", "")]
    parts += [(content.lstrip("\n").rstrip(" "), "assistant"), ("<|im_end|>", "")]
    template = _template(source)
    assert template.render(messages) == "".join(text for text, _ in parts)
    assert template.tokens(messages, "assistant").chosen.tolist() == _labels(template, parts, ("assistant",))


def test_parts_of_text_and_reasoning() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
        "{% endif %}<|im_end|>{% endfor %}"
    )
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": " e"}]},
        {"role": "assistant", "content": "be", "reasoning_content": "aa"},
    ]
    parts = [("<|im_start|>user\n", ""), ("ab e", "user"), ("<|im_end|><|im_start|>assistant\n[", "")]
    parts += [("aa", "assistant"), ("]", ""), ("be", "assistant"), ("<|im_end|>", "")]
    template = _template(source)
    assert template.render(messages) == "".join(text for text, _ in parts)
    assert template.tokens(messages, "assistant").chosen.tolist() == _labels(template, parts, ("assistant",))
    assert template.tokens(messages, "content").chosen.tolist() == _labels(template, parts, ("user", "assistant"))


def test_the_date_is_the_same_every_day() -> None:
    source = "{{ strftime_now('%Y-%m-%d, %d %b %Y, %B %y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert _template(source).render([{"role": "user", "content": "x"}]) == "2024-07-26, 26 Jul 2024, July 24x"


@pytest.mark.parametrize(
    ("source", "messages", "train_on", "message"),
    [
        (GEMMA, [{"role": "assistant", "content": "a"}], "all", "template refuses these messages: Roles must alternate"),
        ("{{ messages[0]['content'] | reverse }}", [{"role": "user", "content": "ab"}], "content", "changes what messages say"),
        ("{{ messages[0]['content'][:2] }}", [{"role": "user", "content": "abe"}], "content", "changes what messages say"),
        (CHATML, [{"role": "assistant", "content": "", "tool_calls": [{}]}], "assistant", "calls a tool"),
        (None, [{"role": "user", "content": "a"}], "all", "no chat template"),
    ],
)
def test_what_cannot_be_told_is_refused(source: str | None, messages: list[Message], train_on: TrainOn, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _template(source).tokens(messages, train_on)  # type: ignore[arg-type]


def test_marks_in_the_text_itself_do_not_confuse() -> None:
    messages = [{"role": "user", "content": "\U000f0000\U000f0001a"}, {"role": "assistant", "content": "\U000f0003"}]
    template = _template(CHATML)
    assert template.tokens(messages, "assistant").chosen.tolist() == _labels(template, _chatml(messages), ("assistant",))
    both = [{"role": "user", "content": "\U000f0000\U00100000"}]
    with pytest.raises(ConfigError, match="told apart"):
        template.tokens(both, "content")
    assert np.all(template.tokens(both).chosen)
