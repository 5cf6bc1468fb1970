"""The script of all model families, on some of them. `python scripts/families.py` checks every one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.families import check_all
from scripts.family_checks import check_family
from scripts.family_page import markdown, summary
from scripts.tiny_families import VARIANTS, family_names

ROOT = Path(__file__).parents[2]
SOME = [
    *("llama", "gemma2", "cohere2", "codegen", "modernbert-decoder", "granite", "gemma3n_text", "xlnet"),
    *("gpt_oss", "qwen3_moe", "deepseek_v3", "qwen3_next", "falcon_h1", "mamba2", "llava"),
]


@pytest.mark.parametrize("name", SOME)
def test_a_family(name: str) -> None:
    row = check_family(name)
    assert row["status"] == "ok", row["error"]
    assert row["checks"] and not [outcome for outcome in row["checks"].values() if outcome.startswith("fails")]
    assert all(row["sites"][kind]["offered"] == row["sites"][kind]["of"] for kind in ("resid_pre", "resid_post"))
    reasons = [reason for site in row["sites"].values() for reason in site["reasons"]]
    assert all(reason != "no reason" for reason in reasons)


def test_a_crash_and_a_model_that_cannot_be_built_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts import families

    monkeypatch.setattr(families, "_SECONDS", 0.0)  # the worker is killed at once
    (killed,) = check_all(["llama"], 1, quiet=True)
    assert (killed["status"], killed["sites"]) == ("crashed", {})
    built = check_family("musicgen")
    assert built["status"] == "transformers" and built["error"]
    assert summary([killed, built])["run"] == 1
    page = markdown([killed, built])
    assert killed["error"] in page and built["error"] in page


def test_the_page_has_every_family_and_its_figures() -> None:
    import transformers

    page = (ROOT / "FAMILIES.md").read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in page:
        pytest.skip("FAMILIES.md was written with another version of transformers: run python scripts/families.py")
    names = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    names += re.findall(r"^- \*\*(.+?)\*\*", page, re.M) + re.findall(r"^- (\S+)$", page, re.M)
    assert set(family_names()) <= set(names)
    assert "No check fails." in page
    share = re.search(r"\((\d+\.\d) %\) offer the residual stream in every layer", page)
    assert share is not None and float(share[1]) >= 96.5


def test_names_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert family_names() == list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert {family for family, _ in VARIANTS.values()} <= set(family_names())
