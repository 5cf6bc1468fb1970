"""The table of model families: the row of one family, the figures over all rows, and the page FAMILIES.md."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any


def empty_row(name: str) -> dict[str, Any]:
    """The row of a family that nothing is known about.

    `group` is "family", "variant" (a layout of a family besides the default one) or "wrapper" (a model of images and text).
    """
    row = {"family": name, "group": "family", "model": "", "kind": "", "status": "", "error": "", "sites": {}, "checks": {}}
    return row | {"seconds": 0.0}


_PARTS = {
    "state space": r"Mamba|Mixer|SSM|Rwkv|LSTM|Recurrent",
    "linear attention": r"DeltaNet|Lightning|ShortConv|KimiDelta|LinearAttn|LinearAttention",
    "latent attention": r"MLA|Latent",
    "experts": r"Experts|Router|MoE|Moe|TopK",
}


_OTHERS = {
    **dict.fromkeys(["git", "openai-gpt", "xlm", "xlnet"], "norms in the residual stream"),
    "gemma3n_text": "several residual streams",
    "diffllama": "differential attention",
    "hrm_text": "blocks that run several times",
    "blt": "bytes and patches",
}
"""Families that are no plain attention and MLP, although the names of their classes do not show it."""


def kind_of(model: Any) -> str:
    """What the blocks are made of, from the names of their classes."""
    if model.config.model_type in _OTHERS:
        return _OTHERS[model.config.model_type]
    config = model.config.get_text_config()
    prefix = type(model).__name__.partition("For")[0]  # model names such as GptOss must not count
    names = " ".join({type(module).__name__.removeprefix(prefix) for module in model.modules()} | {prefix})
    found = [part for part, pattern in _PARTS.items() if re.search(pattern, names)]
    if getattr(config, "kv_lora_rank", None) and "latent attention" not in found:
        found.append("latent attention")
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        found.append("decoder of an encoder family")
    return ", ".join(found) or "attention + MLP"


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures: families that run on a CPU, those with residual sites, plain ones with all sites, checks that fail."""
    families = [row for row in rows if row["group"] == "family"]
    runs = [row for row in families if row["status"] in _RUN]
    residual = [row for row in runs if _has(row, _STREAM)]
    plain = [row for row in runs if row["kind"] == "attention + MLP"]
    whole = [row for row in plain if _has(row, _PLAIN_KINDS)]
    checks = [(row["family"], *each) for row in rows for each in row["checks"].items()]
    failing = [f"{family}: {name}" for family, name, outcome in checks if outcome.startswith("fails")]
    return {
        "families": len(families),
        "run": len(runs),
        "residual": len(residual),
        "residual_percent": round(100 * len(residual) / max(1, len(runs)), 1),
        "plain": len(plain),
        "plain_whole": len(whole),
        "plain_percent": round(100 * len(whole) / max(1, len(plain)), 1),
        "plain_partly": [row["family"] for row in plain if row not in whole],
        "refused": [row["family"] for row in runs if row["status"] != "ok"],
        "wrappers": sum(row["group"] == "wrapper" and row["status"] in _RUN for row in rows),
        "wrappers_residual": sum(row["group"] == "wrapper" and _has(row, _STREAM) for row in rows),
        "failing": failing,
        "seconds": round(sum(row["seconds"] for row in rows)),
    }


_RUN = ("ok", "refused", "crashed")
"""The states of models that transformers builds and runs."""
_STREAM = ("resid_pre", "resid_post")
_PLAIN_KINDS = ("embed", "resid_pre", "q", "k", "v", "pattern", "heads", "attn_out", "mlp_in", "neurons", "mlp_out", "resid_post")
"""The sites of attention and an MLP. `resid_mid` exists only where the one follows the other."""


def _has(row: dict[str, Any], kinds: Sequence[str]) -> bool:
    return row["status"] == "ok" and all(row["sites"][kind]["offered"] == row["sites"][kind]["of"] for kind in kinds)


def summary_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The figures as sentences."""
    total = summary(rows)
    yield (
        f"{total['residual']} of the {total['run']} families that transformers builds and runs on a CPU "
        f"({total['residual_percent']} %) offer the residual stream in every layer."
    )
    yield (
        f"{total['plain_whole']} of the {total['plain']} families of plain attention and MLP ({total['plain_percent']} %) "
        "offer every site in every layer."
    )
    if total["wrappers"]:
        yield (
            f"{total['wrappers_residual']} of the {total['wrappers']} models of images and text that transformers builds and "
            "runs on text alone offer the residual stream of their language model in every layer."
        )
    if total["failing"]:
        yield f"Checks that fail: {'; '.join(total['failing'])}."
    else:
        yield "No check fails."


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The page FAMILIES.md."""
    import transformers

    kinds = list(dict.fromkeys(kind for row in rows for kind in row["sites"]))
    checks = list(dict.fromkeys(name for row in rows for name in row["checks"]))
    lines = [
        "# Model families",
        "",
        "Written by `python scripts/families.py`: do not edit. Every family in the mapping of causal language models of "
        f"transformers {transformers.__version__}, as a tiny random model with every kind of layer that the family mixes.",
        "",
        *(f"- {line}" for line in summary_lines(rows)),
        "",
        "## Sites",
        "",
        "`all`: offered in every layer. `1/3`: in one layer of three. `-`: in no layer. The reasons are listed below.",
        "",
        *_sites("family", rows, kinds),
        "Variants of families with a layout of their own:",
        "",
        *_sites("variant", rows, kinds),
        "Models of images and text, run on text alone:",
        "",
        *_sites("wrapper", rows, kinds),
        "## Checks",
        "",
        "`ok`: holds. `arch`: bare transformers does not fulfil it either, so it belongs to the architecture. "
        "`scripts/families.py` describes what each check compares.",
        "",
        *_table(
            ["family", *checks],
            [[row["family"], *(_outcome(row["checks"].get(name, "")) for name in checks)] for row in rows if row["checks"]],
        ),
        "",
        "## Why sites are absent",
        "",
        *(line for row in rows if row["sites"] for line in _reasons(row)),
        "",
        *_listed("Notes on checks", [line for row in rows for line in _notes(row)]),
        *_listed("Refused by saekit", _errors(rows, ("refused", "crashed"))),
        *_listed("Not causal: tokens see later tokens", [f"- {row['family']}" for row in rows if row["status"] == "not causal"]),
        *_listed("Transformers cannot build or run it on a CPU", _errors(rows, ("transformers",))),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _sites(group: str, rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    here = [row for row in rows if row["group"] == group and row["sites"]]
    return [*_table([group, "blocks", *kinds], [[row["family"], row["kind"], *_cells(row, kinds)] for row in here]), ""]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body]]


def _cells(row: dict[str, Any], kinds: Sequence[str]) -> Iterator[str]:
    for kind in kinds:
        site = row["sites"].get(kind, {"offered": 0, "of": 0})
        yield "all" if site["offered"] == site["of"] else f"{site['offered']}/{site['of']}" if site["offered"] else "-"


def _outcome(text: str) -> str:
    for beginning, cell in (("architecture", "arch"), ("fails", "FAILS"), ("no ", "-")):
        if text.startswith(beginning):
            return cell
    return text


def _reasons(row: dict[str, Any]) -> list[str]:
    by_reason: dict[tuple[str, str], list[str]] = defaultdict(list)
    for kind, site in row["sites"].items():
        for reason, layers in site["reasons"].items():
            where = "" if len(layers) == site["of"] else f" in layer {', '.join(map(str, layers))}"
            by_reason[reason, where].append(kind)
    if not by_reason:
        return []
    parts = [f"{', '.join(kinds)}{where}: {reason}" for (reason, where), kinds in by_reason.items()]
    return [f"- **{row['family']}**: {'; '.join(parts)}."]


def _notes(row: dict[str, Any]) -> list[str]:
    notes = [f"{name}: {outcome}" for name, outcome in row["checks"].items() if outcome.startswith(("architecture", "fails"))]
    return [f"- **{row['family']}**: {'; '.join(notes)}."] if notes else []


def _errors(rows: Sequence[dict[str, Any]], statuses: Sequence[str]) -> list[str]:
    return [f"- **{row['family']}**: {row['error']}" for row in rows if row["status"] in statuses]


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def details(row: dict[str, Any]) -> Iterator[str]:
    """One row as text."""
    yield f"\n{row['family']} ({row['model'] or 'no model'}, {row['kind'] or '?'}): {row['status']} {row['error']}".rstrip()
    for kind, site in row["sites"].items():
        why = "; ".join(f"{reason} (layer {', '.join(map(str, layers))})" for reason, layers in site["reasons"].items())
        yield f"  {kind:10} {site['offered']}/{site['of']}  {why}".rstrip()
    for name, outcome in row["checks"].items():
        yield f"  {name:14} {outcome}"
