"""A chat model in this process: a causal language model of transformers, which answers in batches."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_db.chat.model import Answer, Messages, NoAnswer, NoUsableReply, Usage, without_thoughts
from saekit.errors import ConfigError, ContextTooLong

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_Waiting = tuple[list[int], int, "asyncio.Future[Answer]"]


class LocalModel:
    """Answers with a language model, by greedy decoding. Requests that wait at the same time are generated as one batch.

    A chat becomes text by the tokenizer's chat template. Without one, the messages stand below each other.

    Args:
        lm: the model.
        batch: most chats in a batch.

    Raises:
        ConfigError: `batch` is no positive number.
    """

    def __init__(self, lm: LanguageModel, *, batch: int = 8) -> None:
        if batch < 1:
            raise ConfigError(f"batch={batch} is not possible.", "Give at least 1.")
        self.name = local_name(lm.name)
        self.concurrency = batch
        self._lm = lm
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, folder: str | Path, *, batch: int = 8, **options: Any) -> LocalModel:
        """The model in a folder, or of a name on the hub; see :meth:`saekit.lm.LanguageModel.load`.

        Raises:
            ModelNotFound, UnsupportedModel, ConfigError: as `LanguageModel.load` does.
        """
        from saekit.lm import LanguageModel

        return cls(LanguageModel.load(folder, **options), batch=batch)

    async def answer(self, messages: Messages, max_tokens: int) -> Answer:
        """See :meth:`feature_db.chat.model.ChatModel.answer`.

        Raises:
            NoAnswer: the chat has more tokens than the model has positions for, the template refuses it, or nothing was said.
        """
        ids = self._ids(messages)
        try:
            self._lm.check_context(len(ids) + max_tokens)
        except ContextTooLong as error:
            room = self._lm.max_context - max_tokens
            reason = f"the chat has {len(ids)} tokens, and {self.name} reads {room} beside its answer"
            raise NoAnswer(reason, too_long=True) from error
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((ids, max_tokens, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        answer = await future
        if not answer.text:
            raise NoUsableReply("the answer is empty", usage=Usage(1, answer.tokens_in, answer.tokens_out))
        return answer

    async def close(self) -> None:
        """Stop waiting for answers."""
        worker, self._worker, self._waiting = self._worker, None, []
        if worker is not None:
            worker.cancel()

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # so that all that are asked at once come into one batch
            batch, self._waiting = self._waiting[: self.concurrency], self._waiting[self.concurrency :]
            try:
                answers = await asyncio.to_thread(self._generate, batch)
            except Exception as error:
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), answer in zip(batch, answers):
                if not future.done():
                    future.set_result(answer)

    def _generate(self, batch: list[_Waiting]) -> list[Answer]:
        prompts = [ids for ids, _, _ in batch]
        found = self._lm.generate(prompts, max_new_tokens=max(most for _, most, _ in batch), do_sample=False)
        return [Answer(without_thoughts(text), len(ids), len(new)) for text, ids, new in zip(found.texts, prompts, found.tokens)]

    def _ids(self, messages: Messages) -> list[int]:
        from saekit.lm.chat import ChatTemplate

        text = self._lm.text
        if not getattr(text.tokenizer, "chat_template", None):
            return text.ids(["\n\n".join(message["content"] for message in messages) + "\n\n"])[0]
        template = ChatTemplate(text)
        try:
            rendered = template.render(messages, to_answer=True)
        except ConfigError:  # some templates know no system prompt
            rendered = template.render(without_system(messages), to_answer=True)
        return text.plain_ids([rendered])[0]


def local_name(model: str) -> str:
    """What records call the model in a folder, or of a name on the hub: the name of the folder, without those above it."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def without_system(messages: Messages) -> Messages:
    """The same chat with the system prompt at the head of what the user says first."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]
