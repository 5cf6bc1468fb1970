"""`saekit demo` on a small laboratory: its report agrees with the true labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from saekit import demo, lab
from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit
from tests.kit.html import check


def test_hits_are_checked_against_the_labels(
    saekit: Saekit, tiny_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_DOCUMENTS", 400)
    sizes = ("--tokens", 20_000, "--train-tokens", 40_000, "--latents", 64, "--k", 4)
    outcome = saekit("demo", "--out", tmp_path / "ws", "--query", "birds", "--query", "the river", *sizes, "--json")
    assert outcome.status == 0, outcome.stderr
    known, words = outcome.json["concepts"]
    assert (known["concept"], words["concept"]) == ("birds", None)
    assert known["words"] == list(lab.CONCEPTS["birds"].words)
    assert words["words"] == ["river"]  # "the" is in every text
    assert all(hit["auc"] is None for hit in words["hits"])
    assert known["hits"]

    # Recompute the AUC of each hit, document by document from dense activations.
    ws = Workspace.open(tmp_path / "ws")
    (site,) = ws.dictionaries.sites()
    sae = ws.sae(site)
    documents = demo.labelled(["birds"])
    assert all(document.split == "heldout" for document in documents)
    labels_N = lab.label(documents, ws.lm.tokenizer, ["birds"]).matrix()[:, 0]
    acts: list[torch.Tensor] = []
    for document in documents:
        tokens, mask = ws.lm.encode([document.text])
        tokens, mask = tokens[:, : ws.lm.max_context], mask[:, : ws.lm.max_context]
        rows = ws.lm.run(tokens, attention_mask=mask, read=[site], logits=None)[site][0, 1:]
        acts.append(sae.encode_dense(rows).detach())
    acts_NF = torch.cat(acts).numpy()
    assert len(acts_NF) == len(labels_N)
    for hit in known["hits"]:
        assert hit["auc"] == pytest.approx(roc_auc_score(labels_N, acts_NF[:, hit["feature"]]), abs=1e-3)
    assert np.count_nonzero(labels_N) > 50

    for concept in (known, words):  # prompts do not name the concept; the choice and the result use different prompts
        steering = concept["steering"]
        prompts = [*steering["scan"]["prompts"], *steering["result"]["prompts"]]
        assert len(set(prompts)) == len(prompts)
        assert not any(word in prompt.lower().split() for prompt in prompts for word in concept["words"])
    page = check((tmp_path / "ws" / "reports" / "demo.html").read_text())
    assert f"AUC {known['hits'][0]['auc']:.3f}" in page.all_text
