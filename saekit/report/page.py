"""The page: one file without a script that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from saekit.evaluate.dictionary.measures import measures
from saekit.evaluate.dictionary.remarks import remarks
from saekit.evaluate.steering.mentions import Mentions
from saekit.files import write_whole
from saekit.report import figures
from saekit.report.charts import percent, short, times
from saekit.terminal import clean
from saekit.views.dictionary import Content, Section, Steered
from saekit.views.links import link

if TYPE_CHECKING:
    from feature_db.records import Example, FeatureRecord

_HERE = Path(__file__).parent
_EXAMPLES = 7
_SHOWN = 4
"""Steered texts of a concept."""


def write(content: Content, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render(content))
    return path


def render(content: Content) -> str:
    """The page as HTML. Everything that is text of a model or a corpus is escaped."""
    return (
        environment()
        .get_template("page.html")
        .render(
            content=content,
            figures=figures,
            quality=[each._asdict() for each in measures(content.quality)],
            remarks=remarks(content.quality),
            settings=[{"name": name, "value": value} for name, value in content.settings.items()],
        )
    )


@cache
def environment() -> Environment:
    """The templates. Values that are not Markup are escaped, and their control characters are made visible."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short, "times": times, "visible": _visible, "link": link, "cell": _cell}
    environment.globals |= {
        "style": Markup((_HERE / "style.css").read_text()),
        "examples": _examples,
        "pieces": _pieces,
        "marked": _marked,
        "side_by_side": _side_by_side,
        "outcome": _outcome,
    }
    return environment


def _cell(value: Any) -> str:
    """A cell of a table: numbers with few digits, everything else as text."""
    if isinstance(value, float):
        return short(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class Piece(NamedTuple):
    """Neighbouring tokens that look alike."""

    text: str
    value: float
    """Activation; 0 for plain text."""
    share: float
    """Of the feature's maximum."""


def _pieces(example: Example, largest: float) -> list[Piece]:
    """Tokens with their activations; runs of silent ones are one piece."""
    found: list[Piece] = []
    for token, value in zip(example.tokens, example.values, strict=True):
        if value > 0:
            found.append(Piece(_visible(token), value, min(value / largest, 1.0) if largest > 0 else 0.0))
        elif found and not found[-1].value:
            found[-1] = Piece(found[-1].text + _visible(token), 0.0, 0.0)
        else:
            found.append(Piece(_visible(token), 0.0, 0.0))
    return found


def _visible(token: str) -> str:
    """A token in running text: line breaks become ↵, other control characters as in :func:`saekit.terminal.clean`."""
    return clean(token.replace("\r\n", "\n").replace("\n", "↵"))


def _shown(value: Any) -> Any:
    """What a template prints for a value: Markup as it is, other text with visible control characters."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _examples(record: FeatureRecord) -> Sequence[Example]:
    """The strongest ones, each document once, and one from the middle of its range."""
    top: list[Example] = []
    seen: set[int] = set()
    for example in record.examples:
        if example.bucket == "top" and example.document not in seen and len(top) < _EXAMPLES - 1:
            seen.add(example.document)
            top.append(example)
    middle = [example for example in record.examples if example.bucket == "decile 5"][:1]
    return top + middle


def _marked(text: str, mentions: Mentions | None) -> list[tuple[str, bool]]:
    """The text in pieces: (text, whether it names the concept)."""
    found, end = [], 0
    for start, stop in mentions.spans(text) if mentions else ():
        found += [(text[end:start], False), (text[start:stop], True)]
        end = stop
    return [(piece, named) for piece, named in [*found, (text[end:], False)] if piece]


class Row(NamedTuple):
    """One prompt, and how each arm went on."""

    prompt: str
    arms: list[tuple[str, str]]


def _side_by_side(steered: Steered, mentions: Mentions) -> Iterable[Row]:
    """The first prompts. Every arm is shown by its sample with most mentions, so none is chosen in another way than another."""
    result = steered.result
    (point,) = result.points
    for i, prompt in list(enumerate(result.prompts))[:_SHOWN]:
        yield Row(prompt, [(name, result.sample(arm, i, mentions)) for name, arm in result.arms(point).items()])


def _outcome(section: Section) -> list[dict[str, Any]]:
    """What the measured strength did, an arm a row."""
    assert section.steered is not None
    result = section.steered.result
    (point,) = result.points
    return [
        {
            "name": name,
            "rate": arm.rate.value,
            "mentions": arm.rate.hits,
            "words": arm.rate.words,
            "lift": result.lift_text(arm),
            "cost": result.cost(arm),
        }
        for name, arm in result.arms(point).items()
    ]
