"""`saekit demo` on a small laboratory: its report agrees with the true labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from feature_db import Hit
from saekit import demo, lab
from saekit.demo import topics
from saekit.evaluate.steering.mentions import Mentions
from saekit.names.site import Site
from saekit.views.search import Found, Section
from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit
from tests.kit.detection import slow_threshold
from tests.kit.html import check


def _three_live_features(ws: Workspace, site: Site, topic: demo.Topic) -> Section:
    """What stands for a search: what a search finds in a dictionary trained in seconds depends on the machine."""
    with ws.database() as database:
        rows = database.sql("select ref from features where kind != 'dead' order by density desc", limit=3).rows
        records = [database.feature(ref) for (ref,) in rows]
    found = [
        Found(Hit(each.dictionary, each.feature, score=0.5, label=each.label, density=each.density, why="is live"), each)
        for each in records
    ]
    return Section(topic.query, found, topic.concept or "", Mentions(topic.words))


def test_hits_are_checked_against_the_labels(
    saekit: Saekit, tiny_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "_DOCUMENTS", 400)
    monkeypatch.setattr(demo, "_search", _three_live_features)
    sizes = ("--tokens", 20_000, "--train-tokens", 40_000, "--latents", 64, "--k", 4)
    outcome = saekit("demo", "--out", tmp_path / "ws", "--query", "birds", "--query", "the river", *sizes, "--json")
    assert outcome.status == 0, outcome.stderr
    known, words = outcome.json["concepts"]
    assert (known["concept"], words["concept"]) == ("birds", None)
    assert known["words"] == list(lab.CONCEPTS["birds"].words)
    assert words["words"] == ["river"]  # "the" is in every text
    assert all(hit["f1"] is hit["auc"] is None for hit in words["hits"])
    assert len(known["hits"]) == 3

    # Recompute what is said of each hit, document by document from dense activations.
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
    even_N = np.repeat(np.arange(len(acts)), list(map(len, acts))) % 2 == 0
    for hit in known["hits"]:
        act_N = acts_NF[:, hit["feature"]]
        _, threshold = slow_threshold(act_N[even_N], labels_N[even_N])
        assert hit["f1"] == pytest.approx(f1_score(labels_N[~even_N], act_N[~even_N] >= threshold), abs=1e-2)
        assert hit["auc"] == pytest.approx(roc_auc_score(labels_N, act_N), abs=1e-3)
        assert hit["average_precision"] == pytest.approx(average_precision_score(labels_N, act_N), abs=1e-3)
        assert hit["base_rate"] == pytest.approx(labels_N.mean())
    assert np.count_nonzero(labels_N) > 50

    for concept in (known, words):  # prompts do not name the concept; the choice and the result use different prompts
        steering = concept["steering"]
        prompts = [*steering["scan"]["prompts"], *steering["result"]["prompts"]]
        assert len(set(prompts)) == len(prompts)
        assert not any(word in prompt.lower().split() for prompt in prompts for word in concept["words"])
    page = check((tmp_path / "ws" / "reports" / "demo.html").read_text())
    for part in (f"F1 {known['hits'][0]['f1']:.3f}", f"AUC {known['hits'][0]['auc']:.3f}"):
        assert part in page.all_text, part
