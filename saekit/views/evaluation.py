"""What the page of an evaluation and `saekit eval` show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekit.evaluate.dictionary.measures import measures
from saekit.evaluate.dictionary.remarks import remarks
from saekit.evaluate.registry import EVALUATIONS, QUALITY


def evaluation_view(site: str, model: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary.

    Args:
        facts: as :func:`saekit.workspace.evaluations.evaluate` returns them, or a part of them.

    Returns:
        site, model: as given.
        figures: rows of `measure`, `value` and `note`, all texts.
        remarks: sentences on figures that mislead.
        density_histogram, fvu_by_norm, l0_quantiles: as in the facts; None where quality was not measured.
        probe_means: means over the concepts that were probed; None without probed concepts.
        sections: `name`, `title`, `rows` and `summary` of each further evaluation (:class:`saekit.evaluate.report.Section`).
    """
    sections = [
        {"name": name, **row.section_of(facts[name])._asdict()}
        for name, row in EVALUATIONS.items()
        if name != QUALITY and name in facts
    ]
    distributions = {name: facts.get(name) for name in ("density_histogram", "fvu_by_norm", "l0_quantiles")}
    return {
        "site": site,
        "model": model,
        "figures": [each._asdict() for each in measures(facts)],
        "remarks": remarks(facts),
        **distributions,
        "probe_means": facts["probe"]["means"] if "probe" in facts else None,
        "sections": sections,
    }
