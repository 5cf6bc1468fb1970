"""Options of commands that ask a language model, and the questions that they ask people before they do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import number, say
from saekit.cli.values import count
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from feature_db.chat.model import ChatModel
    from feature_db.chat.tokens import Estimate

_WHO = "The language model that is asked"
_HOW = "How it is asked"


@dataclass(frozen=True)
class ChatOptions:
    """Which language model is asked, and how."""

    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Address of an API with OpenAI's chat completions: http://localhost:11434/v1. Prompts are sent there, and "
            "nowhere else.",
            metavar="URL",
            show_default=False,
            rich_help_panel=_WHO,
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option("--model", help="Name of the model at the endpoint.", show_default=False, rich_help_panel=_WHO)
    ] = None
    local: Annotated[
        str | None,
        typer.Option(
            "--local",
            help="Instead of an endpoint: folder or hub name of a causal language model, which runs here.",
            metavar="MODEL",
            show_default=False,
            rich_help_panel=_WHO,
        ),
    ] = None
    key_env: Annotated[
        str,
        typer.Option(
            "--key-env",
            help="Environment variable that holds the key of the endpoint. The key is not stored.",
            metavar="VARIABLE",
            rich_help_panel=_WHO,
        ),
    ] = "SAEKIT_API_KEY"
    concurrency: Annotated[
        int,
        typer.Option(
            "--concurrency",
            help="Requests at once; of a local model, chats in a batch.",
            parser=count(1),
            metavar="COUNT",
            rich_help_panel=_HOW,
        ),
    ] = 8
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens",
            help="Tokens of an answer at most. Models that think before they answer need more.",
            parser=count(8),
            metavar="COUNT",
            rich_help_panel=_HOW,
        ),
    ] = 400
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            "--requests-per-minute",
            help="Requests a minute at most. [default: any number]",
            parser=count(1),
            metavar="COUNT",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-minute",
            help="Tokens a minute at most, of questions and answers. [default: any number]",
            parser=count(1),
            metavar="COUNT",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds that one answer may take.", metavar="SECONDS", rich_help_panel=_HOW)
    ] = 120.0
    retries: Annotated[
        int,
        typer.Option(
            "--retries",
            help="Tries after a fault of the endpoint (5xx, timeout, broken connection), with growing pauses or those of "
            "Retry-After.",
            parser=count(0),
            metavar="COUNT",
            rich_help_panel=_HOW,
        ),
    ] = 5
    price_in: Annotated[
        float | None,
        typer.Option(
            "--price-in",
            help="Price of a million tokens of questions, for the estimate.",
            metavar="NUMBER",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None
    price_out: Annotated[
        float | None,
        typer.Option(
            "--price-out",
            help="Price of a million tokens of answers. [default: that of questions]",
            metavar="NUMBER",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None
    ask_above: Annotated[
        float,
        typer.Option(
            "--ask-above",
            help="Estimated cost above which the command asks, or needs --yes: in the unit of the prices, or in millions of "
            "tokens without prices.",
            metavar="NUMBER",
            rich_help_panel=_HOW,
        ),
    ] = 1.0
    yes: Annotated[bool, typer.Option("--yes", help="Go ahead without asking.", rich_help_panel=_HOW)] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.", rich_help_panel=_HOW)] = False

    def check(self) -> None:
        """Check the options that do not go together.

        Raises:
            ConfigError: no model is named, or two; or a number is impossible.
        """
        if (self.endpoint is None) == (self.local is None):
            raise ConfigError("Name one language model.", "Give --endpoint URL --model NAME, or --local MODEL.")
        if self.endpoint is not None and self.model is None:
            raise ConfigError("--endpoint needs --model.", "Give the name that the endpoint has for the model.")
        if self.local is not None and self.model is not None:
            raise ConfigError("--model is the name of a model at an endpoint.", "With --local, leave it out.")
        for name in ("price_in", "price_out", "ask_above"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} is {value:g}.", "Give a number from 0.")

    @property
    def name(self) -> str:
        """What records call the model."""
        from feature_db.chat.local import local_name

        return self.model or "" if self.local is None else local_name(self.local)

    def open(self, load: options.PlaceOptions) -> ChatModel:
        """The model. Nothing is sent yet.

        Args:
            load: where a local model is put, and whether it may run its code.

        Raises:
            ConfigError: the address or the key is impossible.
            MissingPackage: httpx is not installed.
            ModelNotFound, UnsupportedModel: the local model cannot be loaded.
        """
        from feature_db.chat.endpoint import Endpoint, key_from
        from feature_db.chat.limits import Patience, Patient, RateLimit
        from feature_db.chat.local import LocalModel

        self.check()
        if self.endpoint is None:
            return LocalModel.load(str(self.local), batch=self.concurrency, **load.changes())
        key, at_once = key_from(self.key_env), self.concurrency
        endpoint = Endpoint(self.endpoint, str(self.model), key=key, timeout=self.timeout, concurrency=at_once)
        limit = RateLimit(self.requests_per_minute, self.tokens_per_minute)
        return Patient(endpoint, limit, Patience(self.retries))

    def costs(self, tokens_in: int, tokens_out: int) -> float | None:
        """What tokens cost, in the unit of the prices; None without prices."""
        if self.price_in is None and self.price_out is None:
            return None
        price_in, price_out = self.price_in or 0.0, self.price_in if self.price_out is None else self.price_out
        return (tokens_in * price_in + tokens_out * (price_out or 0.0)) / 1e6

    def facts(self, estimate: Estimate) -> dict[str, Any]:
        """The estimate as JSON has it."""
        return {**vars(estimate), "cost": self.costs(estimate.tokens_in, estimate.tokens_out)}

    def agree(self, estimate: Estimate) -> None:
        """Ask on a terminal whether to send so much; return if the answer is yes, or the estimate is below the limit.

        Raises:
            ConfigError: there is no terminal to ask on and no --yes, or the answer is no.
        """
        cost = self.costs(estimate.tokens_in, estimate.tokens_out)
        amount = (estimate.tokens_in + estimate.tokens_out) / 1e6 if cost is None else cost
        if self.yes or self.local is not None or amount <= self.ask_above:
            return
        if not sys.stdin.isatty():
            above = f"more than {self.ask_above:g}{' million tokens' if cost is None else ''}"
            raise ConfigError(f"This would send {shown_estimate(estimate, cost)}, which is {above}.", "Give --yes to send it.")
        try:
            from feature_db.chat.secrets import without_query

            agreed = typer.confirm(f"Send {shown_estimate(estimate, cost)} to {without_query(str(self.endpoint))}?", err=True)
        except typer.Abort:  # Ctrl-C
            raise KeyboardInterrupt from None
        if not agreed:
            raise ConfigError("Nothing was sent.", "Choose fewer features, or answer with yes.")


def shown_estimate(estimate: Estimate, cost: float | None) -> str:
    """An estimate in words."""
    tokens = (
        f"about {estimate.tokens_in:,} tokens in {estimate.requests:,} questions, for {estimate.tokens_out:,} tokens of answers"
    )
    return tokens if cost is None else f"{tokens}, at a cost of {number(cost)}"


def say_spent(requests: int, tokens_in: int, tokens_out: int, cost: float | None) -> None:
    """Print what was sent and received."""
    text = f"{number(requests)} answers, {number(tokens_in)} tokens in, {number(tokens_out)} out"
    say((text + ("" if cost is None else f", cost {number(cost)}"), "dim"))
