"""What `saekit score` does where scorers ask a language model: the estimate, asking whether to send it, and what was spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saekit.cli.chat import ChatOptions, say_spent, shown_estimate
from saekit.cli.options import PlaceOptions
from saekit.cli.output import emit, say
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from feature_db.chat.model import Usage
    from feature_db.chat.tokens import Estimate
    from saekit.names.address import Address
    from saekit.names.ref import Ref
    from saekit.workspace.workspace import Workspace


@dataclass
class Asking:
    """What is scored, for the estimate of what a judge will be asked."""

    ws: Workspace
    scorers: Sequence[str]
    dictionaries: Sequence[Address]
    features: Sequence[Ref] | None
    """None: all."""
    again: bool
    settings: Mapping[str, Any]
    usage: Usage | None = field(default=None, init=False)

    def judge(self, chat: ChatOptions, load: PlaceOptions) -> dict[str, Any] | None:
        """The options of scorers that ask a language model, after the user agreed to the estimate; None where there are none.

        Raises:
            ConfigError: a scorer needs a model and none is named, or the other way round; or nobody agrees.
        """
        from feature_db.chat.model import Usage
        from feature_db.scorers import SCORERS
        from feature_db.scorers.judges.judging import JUDGE, MAX_TOKENS, USAGE

        judged = [name for name in self.scorers if SCORERS.find(name).judged]
        if not judged:
            if chat.endpoint or chat.local or chat.dry_run:
                raise ConfigError("None of the scorers asks a language model.", "Give --scorer detection, or another that does.")
            return None
        chat.check()
        if chat.dry_run:
            return None
        chat.agree(self.estimate(chat))
        self.usage = Usage()
        return {JUDGE: chat.open(load), USAGE: self.usage, MAX_TOKENS: chat.max_tokens}

    def estimate(self, chat: ChatOptions) -> Estimate:
        """About how much will be asked, where answers are as short as they should be."""
        from feature_db.chat.tokens import Estimate
        from feature_db.scorers import SCORERS
        from feature_db.scorers.judges.judging import JUDGE, estimated
        from feature_db.scorers.run import judge_of

        parts = []
        with self.ws.database() as database:
            for address in self.dictionaries:
                dictionary = database.dictionary(address).dictionary
                own = [ref for ref in self.features or () if database.dictionary(ref.address).dictionary == dictionary]
                numbers = None if self.features is None else [ref.unit for ref in own]
                labels = database.labels_of(address, numbers)
                for name in self.scorers:
                    row = SCORERS[name]
                    done = (
                        set()
                        if self.again or not row.judged
                        else database.scored(address, row.metric, judge_of(name, {JUDGE: chat.name}))
                    )
                    of = [label for label in labels if row.takes(label, self.settings.get("methods"))]
                    todo = [label for label in of if row.judged and label.id not in done and not label.barred]
                    n = len({label.feature for label in todo}) if row.of_feature else len(todo)
                    parts.append(estimated(name, n, self.settings.get("texts")))
        return Estimate(*(sum(each) for each in zip(*((p.requests, p.tokens_in, p.tokens_out) for p in parts))))

    def print_estimate(self, chat: ChatOptions, as_json: bool) -> None:
        """Print about what would be sent."""
        estimate = self.estimate(chat)
        facts = chat.facts(estimate)
        if as_json:
            emit({"estimate": facts})
        else:
            say(f"Expected: {shown_estimate(estimate, facts['cost'])}.")

    def print_spent(self, chat: ChatOptions) -> None:
        """Print what the judge was sent, if one was asked."""
        if (usage := self.usage) is not None:
            say_spent(usage.requests, usage.tokens_in, usage.tokens_out, chat.costs(usage.tokens_in, usage.tokens_out))
