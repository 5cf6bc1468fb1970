from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError, UnknownRef
from saekit.names.address import Address
from saekit.names.ref import FORMS
from saekit.names.site import KINDS, Site
from saekit.names.site_map import SiteMap
from saekit.objects import Edge, Ref, parse_object

NUMBERS = st.integers(0, 10**9)
SITES = st.builds(
    lambda kind, layer: Site(kind, None if kind == "embed" else layer), st.sampled_from(tuple(KINDS)), st.integers(0, 200)
)
NAMES = st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,12}", fullmatch=True))
ADDRESSES = st.one_of(
    st.builds(lambda site, name: Address(SiteMap((site,), (site,)), name), SITES, NAMES),
    st.builds(lambda layer, name: Address(SiteMap.parse(f"mlp_in.{layer}->mlp_out.{layer}"), name), st.integers(0, 200), NAMES),
)
NAMES_OF_VECTORS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,12}", fullmatch=True)
MATRICES = st.sampled_from(["down_proj", "q_proj", "mlp.c_fc"])
ACTIVATIONS = st.one_of(
    st.builds(Ref.error, ADDRESSES),
    st.builds(Ref.whole, SITES),
    st.builds(Ref.head, st.integers(0, 200), NUMBERS, st.sampled_from(["head", "q", "k", "v", "pattern"])),
    st.builds(Ref.feature, SITES, NUMBERS),
    st.builds(Ref.feature, ADDRESSES, NUMBERS),
    st.builds(Ref.residual, SITES, NUMBERS),
    st.builds(Ref.neuron, st.integers(0, 200), NUMBERS),
)
POSITIONS = st.one_of(st.integers(0, 10**6), st.sampled_from(["last", "subject", "indirect object"]))
REFS = st.one_of(
    ACTIVATIONS,
    st.builds(Ref.at, ACTIVATIONS, POSITIONS),
    st.builds(Ref.entry, st.integers(0, 200), NUMBERS, NUMBERS.map(lambda n: n % 1000), NUMBERS.map(lambda n: n % 1000)),
    st.builds(Ref.token, POSITIONS),
    st.builds(Ref.vector, SITES, NAMES_OF_VECTORS),
    st.builds(Ref.weight, st.integers(0, 200), MATRICES, NUMBERS),
    st.builds(Ref.of_matrix, st.integers(0, 200), MATRICES),
    st.just(Ref.whole("logits")),
)
EDGES = st.builds(Edge, REFS, REFS)


@given(REFS)
def test_text_and_back(ref: Ref) -> None:
    again = Ref.parse(str(ref))
    assert again == ref
    assert hash(again) == hash(ref)
    assert Ref.parse(again) is again


@given(st.lists(REFS, unique=True))
def test_sorting_is_total_and_does_not_depend_on_the_start(refs: list[Ref]) -> None:
    ordered = sorted(refs)
    assert ordered == sorted(set(refs))
    assert all(a < b and not b < a for a, b in pairwise(ordered))


@given(REFS, REFS)
def test_text_tells_refs_apart(a: Ref, b: Ref) -> None:
    assert (str(a) == str(b)) == (a == b)


@pytest.mark.parametrize(
    "text",
    [
        "feature:resid_post.3/1042",
        "neuron:2/17",
        "head:3.5",
        "residual:resid_post.3/12",
        "weight:2.down_proj/17",
        "feature:embed/0",
        "feature:resid_post.3@gemma/1042",
        "feature:resid_post.3@arch=topk,l0=16/1042",
        "feature:mlp_in.3->mlp_out.3@wide/7",
        *FORMS.values(),
        "error:resid_post.3@wide",
        "pattern:3.5",
        "pattern:3.5[last]",
        "site:logits",
        "head:3.5[7]",
        "site:resid_post.3[4]",
        "feature:resid_post.3/1042[subject]",
        "position:last",
    ],
)
def test_documented_forms(text: str) -> None:
    assert str(Ref.parse(text)) == text


def test_parts() -> None:
    ref = Ref.parse("feature:blocks.3.hook_resid_post/1042")
    assert (ref.kind, ref.site, ref.layer, ref.unit) == ("feature", Site("resid_post", 3), 3, 1042)
    assert Ref.parse("neuron:2/17").site == Site("neurons", 2)
    assert Ref.parse("head:2.17").site == Site("heads", 2)
    weight = Ref.parse("weight:2.mlp.c_fc/17")
    assert (weight.site, weight.layer, weight.matrix, weight.unit) == (None, 2, "mlp.c_fc", 17)


@given(ADDRESSES)
def test_addresses_and_their_text(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert Ref.feature(str(address), 7).address == address


def test_a_name_after_the_site_is_that_of_a_dictionary() -> None:
    ref = Ref.parse("feature:blocks.3.hook_resid_post@gemma/1042")
    assert (ref.site, ref.name, str(ref.address)) == (Site("resid_post", 3), "gemma", "resid_post.3@gemma")
    assert Ref.parse("residual:resid_post.3@gemma/1").site == Site("resid_post", 3, "gemma")  # of another model
    assert Ref.parse("feature:mlp_in.3--mlp_out.3/7") == Ref.feature("mlp_in.3->mlp_out.3", 7)
    with pytest.raises(ConfigError, match="another model"):
        Ref.feature(Site("resid_post", 3, "gemma"), 1)


def test_sorts_in_the_order_of_computation_with_numbers_as_numbers() -> None:
    texts = [
        "feature:embed/3",
        "head:1.2",
        "head:1.10",
        "neuron:1/2",
        "feature:resid_post.1/9",
        "feature:resid_post.1/10",
        "neuron:10/0",
    ]
    assert [str(ref) for ref in sorted(map(Ref.parse, reversed(texts)))] == texts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1042", "feature:resid_post.3/1042"),
        ("", "head:3.5"),
        ("feature", "feature:resid_post.3/1042"),
        ("featur:resid_post.3/1", "'feature:resid_post.3/1042'"),
        ("feature:resid_post.3", "feature:resid_post.3/1042"),
        ("feature:resid_post.3/-1", "feature:resid_post.3/1042"),
        ("feature:resid_post.3/1.5", "feature:resid_post.3/1042"),
        ("feature:resid_pots.3/1", "resid_post"),
        ("feature:resid_post/1", "resid_post.3"),
        ("head:3/5", "head:3.5"),
        ("head:3", "head:3.5"),
        ("neuron:2.17", "neuron:2/17"),
        ("neuron:two/17", "neuron:2/17"),
        ("neuron:²/17", "neuron:2/17"),
        ("weight:down_proj/17", "weight:2.down_proj/17"),
        ("feature:resid_post.3@/1", "resid_post.3@gemma"),
        ("feature:resid_post.1+resid_post.2/1", "several sites"),
        ("error:resid_post.3/4", "error:resid_post.3"),
        ("pattern:3.5/7", "pattern:3.5/7<-2"),
        ("site:resid_pots.3", "resid_post"),
        ("head:3.5[]", "name of a span"),
        ("head:3.5[-1]", "name of a span"),
        ("head:3.5[1][2]", "head:3.5"),
        ("weight:2.down_proj/17[3]", "no position"),
        ("matrix:2.down_proj/17", "matrix:2.down_proj"),
    ],
)
def test_what_is_no_ref_says_what_to_write(text: str, says: str) -> None:
    with pytest.raises(UnknownRef) as error:
        Ref.parse(text)
    assert says in str(error.value)


def test_negative_units_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(UnknownRef, match="count from 0"):
        Ref.neuron(2, -1)
    with pytest.raises(UnknownRef, match="kind"):
        Ref("layer", 2)


@given(EDGES)
def test_edges_as_text_and_back(edge: Edge) -> None:
    assert Edge.parse(str(edge)) == edge
    assert parse_object(str(edge)) == edge
    assert parse_object(str(edge.source)) == edge.source


@given(st.lists(EDGES, unique=True))
def test_edges_sort_by_source_and_target(edges: list[Edge]) -> None:
    ordered = sorted(edges)
    assert [(edge.source, edge.target) for edge in ordered] == sorted((edge.source, edge.target) for edge in edges)


def test_an_edge_of_transcoders() -> None:
    text = "feature:mlp_in.1->mlp_out.1/7[3]->feature:mlp_in.2->mlp_out.2/9[last]"
    edge = Edge.parse(text)
    assert (str(edge.source), str(edge.target.position), str(edge)) == ("feature:mlp_in.1->mlp_out.1/7[3]", "last", text)


@pytest.mark.parametrize("text", ["head:0.1", "head:0.1->", "head:0.1->q:1.2->v:1.2", "head:0.1->nothing:1.2", ""])
def test_what_is_no_edge(text: str) -> None:
    with pytest.raises(UnknownRef):
        Edge.parse(text)


def test_positions() -> None:
    ref = Ref.parse("head:3.5[7]")
    assert (ref.position, ref.at(None), ref.at("last")) == ("7", Ref.head(3, 5), Ref.parse("head:3.5[last]"))
    assert Ref.parse("head:3.5[007]") == ref
    assert Ref.parse("position:4") == Ref.token(4)
    entry = Ref.parse("pattern:3.5/7<-2")
    assert (entry, entry.unit, entry.position, entry.key) == (Ref.entry(3, 5, 7, 2), 5, "7", 2)
    ordered = ["head:3.5", "head:3.5[last]", "head:3.5[2]", "head:3.5[10]", "head:3.6"]
    assert [str(each) for each in sorted(map(Ref.parse, reversed(ordered)))] == ordered
    assert max(Ref.whole("logits"), Ref.whole("resid_post.99")) == Ref.whole("logits")
