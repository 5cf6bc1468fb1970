"""The quality of a dictionary as printed text."""

from __future__ import annotations

from typing import Any

from saekit.cli.output import bar, number, say, table


def print_quality(site: str, metrics: dict[str, Any]) -> None:
    """Print the quality of a dictionary: metrics, and remarks about them."""
    from saekit.evaluate.dictionary.measures import measures
    from saekit.evaluate.dictionary.remarks import remarks

    say("dictionary at ", (site, "bold"))
    for measure, value, note in measures(metrics):
        say(f"  {measure:<27} {value:>8}  ", (note, "dim"))
    if "epochs" in metrics:
        say(f"  {'epochs':<27} {number(metrics['epochs']):>8}  ", ("passes of training over the same tokens", "dim"))
    if "fvu_by_site" in metrics:
        table([_site_row(site, fvu, metrics["relative_norms"][site]) for site, fvu in metrics["fvu_by_site"].items()])
    for remark in remarks(metrics):
        say(("note: ", "bold yellow"), remark)


def _site_row(site: str, fvu: float, counts: list[int]) -> dict[str, str]:
    """The row of one site, for a dictionary of several sites: its FVU, and a histogram of the share of decoder norm."""
    return {
        "site": site,
        "FVU": f"{fvu:.4f}",
        "share of decoder norm, 0 to 1": "".join(bar(count, max(counts)) for count in counts),
        "below 0.1": number(counts[0]),
        "above 0.9": number(counts[-1]),
    }
