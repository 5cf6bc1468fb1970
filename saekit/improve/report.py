"""The report of a recipe: the target before and after, beside controls, side effects, and what was located and changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saekit.errors import ConfigError
from saekit.evaluate.report import Section, decimals

FORMAT, VERSION = "saekit-improve", 1


@dataclass(frozen=True)
class Report:
    """Result of a recipe. All values are JSON values.

    Attributes:
        scenario, paradigm, recipe: its name.
        target: name, unit, wanted, n; before and after, with the 95 % interval low to high of `after`, and gain, gain_low and
            gain_high of the difference in the wanted direction.
        controls: by name: after, low, high and gain of another change of equal size, or `why` it could not be measured.
        side_effects: KL and cross-entropy on neutral text, tasks that were lost, and the side-effect card where there is one.
        located: method, objects as (ref, score), number of all objects that were ranked.
        changed: kind, objects, parameters, share of the parameters, file.
        cost: seconds by part.
        verdict: one sentence whether it is worth it.
        figures: further rows of results, for people.
        about: model, seed, sizes, papers.
    """

    scenario: str
    paradigm: str
    recipe: str
    target: Mapping[str, Any]
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    side_effects: Mapping[str, Any] = field(default_factory=dict)
    located: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""
    figures: Sequence[Mapping[str, Any]] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    _FIELDS = (
        "scenario",
        "paradigm",
        "recipe",
        "target",
        "controls",
        "side_effects",
        "located",
        "changed",
        "cost",
        "verdict",
        "figures",
        "about",
    )

    @property
    def name(self) -> str:
        """SCENARIO.PARADIGM.RECIPE."""
        return f"{self.scenario}.{self.paradigm}.{self.recipe}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, from which :meth:`from_dict` makes the same report."""
        return {"format": FORMAT, "version": VERSION} | {name: getattr(self, name) for name in self._FIELDS}

    @classmethod
    def from_dict(cls, data: Any) -> Report:
        """The report that :meth:`to_dict` was called on.

        Raises:
            ConfigError: the values are not those of a report, or come from a newer version.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ConfigError("This is not a report of saekit improve.", "Measure it again with --force.")
        if missing := set(cls._FIELDS) - data.keys():
            raise ConfigError(f"The report lacks {', '.join(sorted(missing))}.", "Measure it again with --force.")
        return cls(**{name: data[name] for name in cls._FIELDS})

    @property
    def section(self) -> Section:
        """The table of the target and its controls, and the sentences below it."""
        t = self.target
        rows = [_row("before", t["before"]), _row("after", t["after"], t["low"], t["high"], t["gain"])]
        for name, each in self.controls.items():
            rows.append(_row(name.replace("_", " "), each.get("after"), each.get("low"), each.get("high"), each.get("gain")))
        return Section(f"{self.name}: {t['name']} ({t['unit']}, {_wanted(t['wanted'])})", rows, self.sentences)

    @property
    def sentences(self) -> list[str]:
        """What was located and changed, at what price, and the verdict."""
        said = []
        if self.located:
            first = ", ".join(str(ref) for ref, _ in self.located["objects"][:5])
            said.append(f"located by {self.located['method']} among {self.located['of']:,} objects: {first}")
        if self.changed:
            share = self.changed.get("share")
            parameters = f", {share:.2%} of the parameters" if share else ""
            said.append(f"changed: {self.changed['what']}{parameters}")
        effects = self.side_effects
        if "kl" in effects:
            said.append(
                f"on neutral text: KL {decimals(effects['kl'])} nats, cross-entropy {effects['cross_entropy_delta']:+.3f}"
            )
        if "tasks" in effects:
            lost = effects["tasks"]["lost"]
            found = ", ".join(f"{each['task']} {each['change']:+.1%}" for each in lost[:5])
            said.append(f"tasks that lost more than 2 points: {found or 'none'} (of {effects['tasks']['of']})")
        said += [f"{each['control']}: {each['why']}" for each in _failed(self.controls)]
        return [*said, self.verdict] if self.verdict else said

    def table(self) -> str:
        """The report as text."""
        title, rows, summary = self.section
        lines = [{name: name for name in rows[0]}, *({k: str(v) for k, v in row.items()} for row in rows)]
        widths = {name: max(len(line[name]) for line in lines) for name in rows[0]}
        body = ["  ".join(line[name].ljust(width) for name, width in widths.items()).rstrip() for line in lines]
        return "\n".join([title, *body, *summary])


def _failed(controls: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"control": name, "why": str(each["why"])} for name, each in controls.items() if each.get("why")]


def _row(what: str, value: float | None, low: Any = None, high: Any = None, gain: float | None = None) -> dict[str, Any]:
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return {
        "model": what,
        "value": decimals(value),
        "95 % interval": interval,
        "gain": "" if gain is None else f"{gain:+.3f}",
    }


def _wanted(wanted: Any) -> str:
    return f"{wanted} is better" if isinstance(wanted, str) else f"{wanted:g} is right"
