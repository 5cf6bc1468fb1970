"""Labels of many features by a language model: each is stored as soon as it is there, so that a restart goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feature_db.autolabel.reading import MARK, read_label
from feature_db.autolabel.shown import chosen_examples, shown
from feature_db.chat.asking import ask
from feature_db.chat.model import ChatModel, Messages, NoAnswer, Usage
from feature_db.chat.prompt import Prompt
from feature_db.chat.running import complete, for_each
from feature_db.chat.tokens import Estimate, estimate
from feature_db.labels.evidence import Label
from feature_db.labels.rules import UNSCORED_RANK
from saekit.errors import ConfigError
from saekit.names.ref import Ref
from saekit.progress import track

if TYPE_CHECKING:
    from feature_db.db import FeatureDB
    from feature_db.records import FeatureRecord

METHOD = "llm"
NEEDED = ("{examples}", MARK)
"""What a prompt must have."""
_FEWEST = 2  # examples that are shown at least, where the model's context is short
_PROMOTED = 10
_ANSWER = 24  # tokens of a usual answer


@dataclass(frozen=True)
class LabelSettings:
    """How labels are asked for.

    Raises:
        ConfigError: a number is too small.
    """

    prompt: Prompt = field(default_factory=lambda: Prompt.packaged("label"))
    examples: int = 40
    """Examples shown at most. Fewer are shown where the model's context is short."""
    max_tokens: int = 400
    """Most tokens of an answer, thoughts included."""
    tries: int = 3
    """Questions about one feature, where answers cannot be read."""

    def __post_init__(self) -> None:
        if min(self.examples, self.max_tokens, self.tries) < 1:
            raise ConfigError("examples, max_tokens and tries are at least 1.", "Give more.")


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    todo: list[Ref]
    """Features to ask about."""
    labelled: list[Ref]
    """Features that have a label of the same model and prompt."""
    failed: list[Ref]
    """Features about which the same model was asked in vain, with the same prompt."""


@dataclass
class Outcome:
    """What came of it."""

    labelled: dict[str, str] = field(default_factory=dict)
    """New labels by ref."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons by ref."""
    usage: Usage = field(default_factory=Usage)
    """Tokens of replies that came, usable or not; those of requests without a reply are unknown."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "labelled": [{"ref": ref, "label": label} for ref, label in sorted(self.labelled.items())],
            "failed": [{"ref": ref, "reason": reason} for ref, reason in sorted(self.failed.items())],
            **vars(self.usage),
        }


def plan(db: FeatureDB, refs: Iterable[Ref | str], model: str, prompt: Prompt, *, retry_failed: bool = False) -> Plan:
    """Which of the features the model of this name has to be asked about.

    Args:
        db: the database.
        refs: features, each of them once or several times.
        model: name of the model.
        prompt: what it is asked.
        retry_failed: ask again about those that failed.

    Raises:
        UnknownRef: there is no such feature.
        WorkspaceError: another dictionary is at its site now.
    """
    asked = db.asked(METHOD, model, prompt.sha256)
    found = Plan([], [], [])
    wanted = list(dict.fromkeys(map(Ref.parse, refs)))
    for ref, identity in zip(wanted, db.identities(wanted)):
        if identity in asked.labelled:
            found.labelled.append(ref)
        elif identity in asked.failed and not retry_failed:
            found.failed.append(ref)
        else:
            found.todo.append(ref)
    return found


def estimated(db: FeatureDB, todo: Sequence[Ref], settings: LabelSettings) -> Estimate:
    """About how many tokens the questions about these features have."""

    def questions(ref: Ref) -> list[Messages]:
        record = db.feature(ref)
        return [question(record, settings, settings.examples)] if record.examples else []

    return estimate(todo, questions, min(_ANSWER, settings.max_tokens))


def autolabel(
    db: FeatureDB, todo: Sequence[Ref], model: ChatModel, settings: LabelSettings | None = None, *, progress: bool = True
) -> Outcome:
    """Ask a language model for a label of each feature, several at a time.

    A label is stored as soon as it is there, with the model, the hash of the prompt and the date. A feature without a usable
    answer is stored as failed, with the reason. :func:`plan` leaves both out, so that a restart goes on. A feature whose last
    request met a transient fault is in `Outcome.failed` and not stored: the next run asks about it.

    Args:
        db: the database.
        todo: features, as :func:`plan` gives them.
        model: answers; nothing is sent anywhere unless it is an endpoint.
        settings: how labels are asked for.
        progress: show a progress bar.

    Raises:
        EndpointError: no request can succeed. What was labelled before is stored.
        DatabaseError, StorageFull: a label cannot be stored.
    """
    settings, outcome = settings or LabelSettings(), Outcome()

    async def label(ref: Ref) -> None:
        record = db.feature(ref)
        try:
            if not record.examples:
                raise NoAnswer("it never fires, so there is no example")
            text = await _label(record, model, settings, outcome.usage)
        except NoAnswer as error:
            if not error.again:
                db.add_failure(ref, METHOD, model.name, settings.prompt.sha256, error.reason)
            outcome.failed[str(ref)] = error.reason
        else:
            db.add_labels(ref, [Label(METHOD, text, UNSCORED_RANK, text, model=model.name, prompt=settings.prompt.sha256)])
            outcome.labelled[str(ref)] = text
        done = len(outcome.labelled) + len(outcome.failed)
        bar.update(done, f"{len(outcome.failed):,} failed" if outcome.failed else "")

    async def run() -> None:
        try:
            await for_each(todo, label, model.concurrency)
        finally:
            await model.close()

    with track("labelling", total=len(todo), unit="features", enabled=progress) as bar:
        complete(run())
    return outcome


async def _label(record: FeatureRecord, model: ChatModel, settings: LabelSettings, usage: Usage) -> str:
    """A label; with fewer examples where the model cannot read as many."""
    n = min(settings.examples, len(record.examples))
    while True:
        messages = question(record, settings, n)
        try:
            return await ask(
                model,
                messages,
                lambda text: read_label(text, settings.prompt.text),
                max_tokens=settings.max_tokens,
                tries=settings.tries,
                usage=usage,
            )
        except NoAnswer as error:
            if not error.too_long or n <= _FEWEST:
                raise
            n = max(_FEWEST, n // 2)


def question(record: FeatureRecord, settings: LabelSettings, n: int) -> Messages:
    """The question about a feature, with `n` examples."""
    examples = [shown(each, record.max, i) for i, each in enumerate(chosen_examples(record, n), start=1)]
    promoted = ", ".join(repr(each.token) for each in record.promoted[:_PROMOTED]) or "(none)"
    return settings.prompt.messages(examples="\n\n".join(examples), promoted=promoted)
