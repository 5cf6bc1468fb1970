"""The evaluations of a dictionary that `saekit eval` offers.

A new evaluation is one file with a function, and one row::

    EVALUATIONS.register("mine", Evaluation("What it measures.", "my_module:measure"))

The function takes a :class:`saekit.evaluate.subject.Subject` and returns a :class:`saekit.evaluate.report.Report`. The row gives
the command line its option `--mine`, and its section in `--json` and on the page. Users add rows through `SAEKIT_PLUGINS`
(:mod:`saekit.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.plugins import Registry, resolve

if TYPE_CHECKING:
    from saekit.evaluate.report import Report, Section
    from saekit.evaluate.subject import Subject


@dataclass(frozen=True)
class Evaluation:
    """A row of the registry.

    Attributes:
        help: one line for `--help`.
        measure: takes the subject and returns the report. The function itself, or "module:name", which is imported late.
        report: class of the report, which shows stored results.
        check: called before anything is measured, to refuse bad input early; it takes the subject. None checks nothing.
        asked_by: an option of :class:`saekit.evaluate.subject.Options` that asks for this evaluation when it is given.
        flag: whether the command line has an option `--NAME` for it.
        several_sites: whether it measures crosscoders and cross-layer transcoders too.
    """

    help: str
    measure: Callable[[Subject], Report] | str
    report: type[Report] | str = "saekit.evaluate.report:Table"
    check: Callable[[Subject], Any] | str | None = None
    asked_by: str | None = None
    flag: bool = True
    several_sites: bool = False

    def __call__(self, subject: Subject) -> Report:
        """Measure."""
        report: Report = resolve(self.measure)(subject)
        return report

    def section_of(self, data: Mapping[str, Any]) -> Section:
        """What people read of a stored result."""
        section: Section = resolve(self.report).section_of(data)
        return section

    def refuse(self, subject: Subject) -> None:
        """Raise a typed error if `subject` cannot be measured."""
        if self.check is not None:
            resolve(self.check)(subject)


QUALITY = "quality"
"""The evaluation that is measured when none is named."""

EVALUATIONS: Registry[Evaluation] = Registry(
    "evaluation",
    {
        QUALITY: Evaluation(
            "Reconstruction, sparsity and cross-entropy recovered.",
            "saekit.evaluate.dictionary.quality:measure",
            "saekit.evaluate.dictionary.quality:Quality",
            check="saekit.evaluate.dictionary.quality:check",
            flag=False,
            several_sites=True,
        ),
        "probe": Evaluation(
            "Probe known concepts with 1, 2 and 5 latents, and measure what other latents absorb.",
            "saekit.evaluate.dictionary.probing:measure",
            "saekit.evaluate.dictionary.probes:Probes",
            check="saekit.evaluate.dictionary.probing:check",
            asked_by="labelled",
        ),
        "concepts": Evaluation(
            "Which of the laboratory's concepts a feature encodes (F1 >= 0.5), as `saekit lab concepts` does.",
            "saekit.evaluate.concepts.recovery:measure",
            "saekit.evaluate.concepts.results:Recoveries",
        ),
        "transfer": Evaluation(
            "The same measures on another model.",
            "saekit.evaluate.dictionary.transfer:measure",
            "saekit.evaluate.dictionary.transfer:Transfer",
            check="saekit.evaluate.dictionary.transfer:check",
            asked_by="model",
            flag=False,
        ),
    },
)


def wanted(asked: dict[str, bool], only: list[str], options: Any) -> list[str]:
    """The evaluations to run, in the order of the registry.

    Args:
        asked: which have been asked for by their own option.
        only: the names after `--only`; if there are any, quality is measured only if it is one of them.
        options: :class:`saekit.evaluate.subject.Options`; options that are given ask for what belongs to them.

    Raises:
        ConfigError: `only` names an evaluation that there is not.
    """
    for name in only:
        EVALUATIONS.find(name)
    named = {*only, *(name for name, value in asked.items() if value)}
    named |= {name for name, row in EVALUATIONS.items() if row.asked_by and getattr(options, row.asked_by) is not None}
    if not only:
        named.add(QUALITY)
    return [name for name in EVALUATIONS if name in named]
