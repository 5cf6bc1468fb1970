"""The page of an attribution graph: texts are escaped, it loads nothing, and its policy allows one script, its own."""

from __future__ import annotations

import base64
import hashlib
import re

from saekit.locate.graphs import Effect, Link, Node, PrunedGraph
from saekit.report.graph import render_graph
from tests.kit.html import Page
from tests.kit.pages import EVIL

GRAPH = PrunedGraph(
    nodes=(
        Node("feature", "feature:mlp_in.0->mlp_out.0/7[1]", 0, 1, 7, 2.5, text=EVIL),
        Node("error", "error:mlp_out.0[1]", 0, 1, 0, 1.0),
        Node("token", "position:0", None, 0, 11, 3.0, text=EVIL),
        Node("token", "position:1", None, 1, 12, 3.0, text=" b"),
        Node("logit", "logit:5", None, 1, 5, 4.0, probability=0.7, text='"><b>'),
    ),
    influence=(0.5, 0.8, 0.3, 0.9, 0.0),
    links=(Link(2, 0, 1.5, 1.5, True), Link(0, 4, -0.25, 0.3, False)),
    tokens=(11, 12),
    pieces=(EVIL, " b"),
    facts={"model": EVIL, "layers": 1, "replacement_score": 0.4, "completeness_score": 0.6, "active_features": 9},
    effects={0: Effect(-0.25, 0.1), 1: Effect(0.5, 0.4)},
)


def test_texts_are_escaped_and_the_only_script_is_that_of_the_policy() -> None:
    source = render_graph(GRAPH)
    page = Page(source)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", source, re.DOTALL)
    assert len(scripts) == 1 and "alert" not in scripts[0]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    (policy,) = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href")]


def test_the_tables_alone_say_everything() -> None:
    page = Page(render_graph(GRAPH))
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and "data-kind" in attributes]
    assert [row["data-kind"] for row in rows] == [node.kind for node in GRAPH.nodes]
    assert [row["data-row"] for row in rows] == ["1", "1", "0", "0", "2"] and rows[0]["data-confirmed"] == "0"
    links = [attributes for tag, attributes in page.tags if tag == "tr" and "data-weight" in attributes]
    assert [(row["data-source"], row["data-target"], row["data-verified"]) for row in links] == [("2", "0", "1"), ("0", "4", "0")]
    for text in ("feature:mlp_in.0->mlp_out.0/7[1]", EVIL, "measured change: 1.", "drawn hollow", "60% of the influence"):
        assert text in page.all_text
    (drawing,) = [attributes for _, attributes in page.tags if attributes.get("id") == "drawing"]
    assert "hidden" in drawing  # the script shows it
