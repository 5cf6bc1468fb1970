"""Which edges a circuit keeps, on scores that are planted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from saekit.errors import ConfigError, UnknownRef
from saekit.locate.circuits import Circuit, EdgeScores, Spans, Wiring, above, choose, greedy, top

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

PATH = ("site:embed->v:0.1", "head:0.1->k:1.2", "head:1.2->site:logits")
STRONG_BUT_LOOSE = "site:embed->q:0.3"  # nothing leaves head 0.3


@pytest.fixture
def planted(lm: LanguageModel) -> EdgeScores:
    """Three edges of a path, a stronger one that leads nowhere, one against the behaviour, and little elsewhere."""
    wiring = Wiring.of(lm)
    values = 0.01 * torch.rand(wiring.possible_UV.shape, generator=torch.Generator().manual_seed(0)) * wiring.possible_UV
    for edge, score in zip((*PATH, STRONG_BUT_LOOSE, "head:0.0->site:logits"), (2.0, 3.0, 1.0, 5.0, -1.5)):
        values[wiring.place(edge)] = score
    return EdgeScores(wiring, Spans((None,), torch.zeros(1, 1, dtype=torch.long)), values[..., None, None])


def names(circuit: Circuit) -> set[str]:
    return set(map(str, circuit.edges))


def test_the_strongest_edges_without_dangling_ones(planted: EdgeScores) -> None:
    assert names(top(planted, 4, "highest")) == set(PATH)
    assert names(top(planted, 5)) == set(PATH)  # nothing enters head 0.0
    assert names(above(planted, 0.9)) == set(PATH)
    assert not names(top(planted, 1))


def test_greedy_follows_edges_from_the_logits(planted: EdgeScores) -> None:
    assert names(greedy(planted, 3, "highest")) == set(PATH)
    # By magnitude, the edge of head 0.0 is the first; what then enters that head is weak.
    assert "head:0.0->site:logits" in names(greedy(planted, planted.wiring.n_edges - 10))
    assert STRONG_BUT_LOOSE not in names(greedy(planted, 3, "highest"))


def test_all_edges_are_the_whole_model(planted: EdgeScores) -> None:
    n = planted.wiring.n_edges
    for how in ("top", "greedy"):
        (whole,) = choose(planted, [n], how=how)
        assert len(whole) == n
        assert whole.share == 1
    with pytest.raises(ConfigError, match=f"0 to {n}"):
        top(planted, n + 1)
    with pytest.raises(ConfigError, match="Choose one of"):
        choose(planted, [1], how="random")
    with pytest.raises(ConfigError, match="magnitude or highest"):
        top(planted, 1, "lowest")  # type: ignore[arg-type]


def test_circuits_name_their_edges_and_nodes(planted: EdgeScores) -> None:
    circuit = Circuit.of(planted.wiring, PATH, planted.spans)
    assert names(circuit) == set(PATH)
    assert list(map(str, circuit.nodes)) == ["site:embed", "head:0.1", "head:1.2"]
    assert names(circuit.complement()).isdisjoint(PATH)
    assert len(circuit) + len(circuit.complement()) == planted.wiring.n_edges
    assert names(circuit.pruned()) == set(PATH)
    assert not names(Circuit.of(planted.wiring, PATH[:2], planted.spans).pruned())
    chosen = top(planted, 5)
    assert [chosen.score(edge) for edge in Circuit.of(planted.wiring, PATH[:1]).edges] == [2.0]


def test_an_edge_that_the_model_lacks_is_never_in_a_circuit(planted: EdgeScores) -> None:
    for edge in ("head:1.0->q:0.0", "head:1.0->q:1.0", "q:0.0->site:logits"):
        with pytest.raises(UnknownRef, match="no edge"):
            planted.wiring.place(edge)
    planted.values_UVSB[~planted.wiring.possible_UV] = 100.0
    for circuit in (top(planted, 20), greedy(planted, 20), above(planted, 0.0)):
        assert not circuit.keep_UVS[~planted.wiring.possible_UV].any()
