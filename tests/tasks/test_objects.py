"""What tasks, contrasts, labelled texts, metrics and rankings do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saekit import lab
from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.names.edge import Edge
from saekit.names.ref import Ref
from saekit.tasks import METRICS, Contrast, Labelled, Metric, Ranking, Span, Task, measured, values_of

REFS = (Ref.head(1, 2), Ref.neuron(0, 4), Ref.feature("resid_post.2", 7), Ref.head(0, 0))


def ranking() -> Ranking:
    return Ranking(REFS, (1.0, -3.0, math.nan, 2.0), tuple((s - 1, s + 2) for s in (1.0, -3.0, math.nan, 2.0)), {"method": "m"})


def test_a_ranking_is_a_mapping_in_its_own_order() -> None:
    found = Ranking(REFS, (1.0, -3.0, 0.0, 2.0))
    assert list(found) == list(REFS)
    assert found[REFS[1]] == found["neuron:0/4"] == -3.0
    assert found == dict(zip(REFS, (1.0, -3.0, 0.0, 2.0)))
    assert found != Ranking(REFS, (1.0, -3.0, 0.0, 2.0), obtained={"method": "m"})
    assert Ref.head(9, 9) not in found and found.get(Ref.head(9, 9)) is None


def test_the_top_of_a_ranking_keeps_its_intervals() -> None:
    found = ranking()
    assert found.top(2).refs == (REFS[1], REFS[3])
    assert found.top(2).intervals == ((-4.0, -1.0), (1.0, 4.0))
    assert found.top(9, by="highest").refs == (REFS[3], REFS[0], REFS[1], REFS[2])
    assert found.top(1, by="lowest").scores == (-3.0,)
    assert found.top(0).refs == ()
    assert found.top(1).obtained == {"method": "m"}
    for wrong in ((-1, "magnitude"), (1, "name")):
        with pytest.raises(ConfigError):
            found.top(wrong[0], by=wrong[1])


def test_a_ranking_as_a_table_and_as_a_picture() -> None:
    found = Ranking(REFS[:3], (1.0, -3.0, 2.0), ((0.0, 2.0), (-4.0, -1.0), (1.0, 5.0)), {"method": "m"})
    frame = found.frame()
    assert list(frame.columns) == ["ref", "score", "low", "high"]
    assert frame.loc[1].tolist() == ["neuron:0/4", -3.0, -4.0, -1.0]
    assert list(Ranking(REFS[:1], (1.0,)).frame().columns) == ["ref", "score"]
    (bars,) = found.plot(2).data
    assert list(bars.y) == ["neuron:0/4", "feature:resid_post.2/7"]
    assert list(bars.x) == [-3.0, 2.0]
    assert list(bars.error_x.array) == [2.0, 3.0] and list(bars.error_x.arrayminus) == [1.0, 1.0]
    assert len(Ranking((), ()).plot().data[0].x) == 0


def test_a_ranking_of_edges(tmp_path: Path) -> None:
    found = Ranking(("head:0.1->q:1.2", "head:0.1->v:1.2", "head:0.1"), (1.0, 2.0, 3.0))  # type: ignore[arg-type]
    assert found["head:0.1->v:1.2"] == 2.0 and found[Edge.parse("head:0.1->q:1.2")] == 1.0
    found.save(tmp_path / "edges.json")
    assert Ranking.load(tmp_path / "edges.json") == found


def test_a_ranking_keeps_what_was_confirmed_and_the_scores_on_examples() -> None:
    scores = torch.tensor([[1.0, 3.0], [-3.0, -3.0], [0.5, 0.0]])
    found = Ranking(REFS[:3], (2.0, -3.0, 0.25), per_example=scores, confirmed=(1.5, None, 0.0))
    top = found.top(2)
    assert top.per_example is not None and torch.equal(top.per_example, scores[[1, 0]]) and top.confirmed == (None, 1.5)
    assert top != found.top(2, by="lowest") and replace(found, per_example=None) != found
    assert found.frame()["confirmed"].isna().tolist() == [False, True, False]
    with pytest.raises(ConfigError, match="confirmed"):
        Ranking(REFS[:2], (1.0, 2.0), confirmed=(1.0,))
    with pytest.raises(ConfigError, match="shape"):
        Ranking(REFS[:2], (1.0, 2.0), per_example=scores)


def test_a_contrast_is_a_sequence_of_pairs() -> None:
    made = Contrast("c", ("a", "b", "c"), ("x", "y", "z"))
    assert list(made) == [("a", "x"), ("b", "y"), ("c", "z")]
    assert made[-1] == ("c", "z")
    assert made[:2] == Contrast("c", ("a", "b"), ("x", "y"))
    assert Contrast.of("c", list(made)) == made
    for positive, negative in lab.contrast("language_french", 3):
        assert positive != negative


def test_labelled_texts_know_their_concepts() -> None:
    assert Labelled(("a", "b"), labels=("y", "x")).concepts == ("x", "y")
    documents = list(lab.documents("stories", n=3))
    made = Labelled.of_documents(documents)
    assert made.texts == tuple(each.text for each in documents)
    assert made.spans == tuple(each.spans for each in documents)
    assert made.concepts == tuple(sorted({span.concept for each in documents for span in each.spans}))
    assert Labelled(("abc",), spans=(([0, 2, "x"],),)).spans == ((Span(0, 2, "x"),),)  # type: ignore[arg-type]


def test_a_task_from_texts_is_what_the_model_reads(stories_lm: LanguageModel) -> None:
    lm = stories_lm
    clean = "Lily went to the"
    made = Task.of("t", [(clean, clean, " park", " big")], lambda text: lm.text.ids([text])[0])
    assert made.clean == (tuple(lm.text.ids([clean])[0]),)
    assert lm.decode([*made.clean[0], *made.answers[0]]).endswith(clean + " park")
    assert made.last_B.tolist() == [len(made.clean[0]) - 1]
    with pytest.raises(ConfigError, match="do not begin"):
        Task.of("t", [("Li", "Li", "ly", "on")], lambda text: [1, 2] if text == "Li" else [1, 3])


def test_metrics_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 3, 5, 7, generator=generator)
    task = Task("t", ((1, 2), (1, 2, 3), (1, 2, 3, 4)), ((1, 5), (1, 5, 3), (1, 5, 3, 4)), ((0,), (1,), (2,)), ((3,), (4,), (5,)))
    at = [1, 2, 3]
    log_p = logits.log_softmax(-1)
    expected = {
        "logit_difference": [logits[b, t, b] - logits[b, t, b + 3] for b, t in enumerate(at)],
        "log_probability": [log_p[b, t, b] for b, t in enumerate(at)],
        "kl": [
            torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x[b, t]) for x in (other, logits)))
            for b, t in enumerate(at)
        ],
    }
    for kind, each in expected.items():
        metric = replace(Metric.of(kind, task), reference=other)
        torch.testing.assert_close(metric.per_prompt(logits), torch.stack(each))
        torch.testing.assert_close(metric(logits), torch.stack(each).mean())
    rows = ((1, 2, 3), (4, 5), (6, 0, 1, 2, 3))
    found = Metric("cross_entropy", rows=rows).per_prompt(logits)
    for b, row in enumerate(rows):
        assert float(found[b]) == pytest.approx(sum(float(log_p[b, t, row[t + 1]]) for t in range(len(row) - 1)) / (len(row) - 1))
    assert torch.equal(
        Metric("log_probability", answers=(1, 2, 3)).per_prompt(logits), log_p[torch.arange(3), -1, torch.arange(1, 4)]
    )
    ruled_out = logits.clone()
    ruled_out[:, :, 0] = -torch.inf
    assert replace(Metric("kl"), reference=ruled_out).per_prompt(ruled_out).tolist() == [0.0, 0.0, 0.0]


def test_answers_of_several_tokens_are_judged_as_a_whole() -> None:
    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = Task("t", ((1, 2), (1, 2, 3)), ((1, 5), (1, 5, 3)), ((4, 6, 7), (8,)), ((3,), (4,)), spans={"who": ((0, 1), (1, 3))})
    forced, metric = measured(task, "log_probability")
    assert isinstance(metric, Metric)
    assert forced.clean == ((1, 2, 4, 6), (1, 2, 3)) and forced.corrupted == ((1, 5, 4, 6), (1, 5, 3))
    assert forced.positions("last") == ((1,), (2,)) and forced.spans["who"] == task.spans["who"]
    log_p = logits.log_softmax(-1)
    expected = torch.stack([log_p[0, 1, 4] + log_p[0, 2, 6] + log_p[0, 3, 7], log_p[1, 2, 8]])
    torch.testing.assert_close(metric.per_prompt(logits), expected)
    _, probability = measured(task, "probability")
    torch.testing.assert_close(values_of(probability, logits), expected.exp())
    # The same from the last tokens of each row alone.
    assert metric.reach == 3
    last = torch.stack([logits[0, 1:4], logits[1, 0:3]])
    torch.testing.assert_close(metric.at_the_end(3).per_prompt(last), expected)
    torch.testing.assert_close(metric.of_prompts([1, 1, 0]).per_prompt(logits[[1, 1, 0]]), expected[[1, 1, 0]])
    with pytest.raises(ConfigError, match="last 3 tokens"):
        metric.at_the_end(1)
    with pytest.raises(ConfigError, match=r"prompt 0 .* has 3 tokens; the metric logit_difference judges one.*first_tokens"):
        measured(task)
    with pytest.raises(ConfigError, match="do not cover"):
        metric.per_prompt(logits[:, :3])
    one, first = measured(task.first_tokens(), "probability")
    assert one.clean == task.clean and isinstance(first, Metric) and first.reach == 1
    torch.testing.assert_close(first.per_prompt(logits), torch.stack([log_p[0, 1, 4], log_p[1, 2, 8]]).exp())
    open_ended = replace(task, answers=((), ()), foils=((), ()))
    with pytest.raises(ConfigError, match="open-ended"):
        measured(open_ended, "probability")
    assert measured(open_ended, "cross_entropy")[1] == Metric("cross_entropy", rows=task.clean)


def test_the_metric_of_kl_that_ranks_is_higher_near_the_reference() -> None:
    logits, other = torch.randn(2, 2, 4, 7, generator=torch.Generator().manual_seed(0))
    task = Task("t", ((1, 2), (1, 2, 3)), ((1, 5), (1, 5, 3)), ((4,), (6,)), ((3,), (4,)))
    found = measured(task, "kl")[1]
    assert isinstance(found, Metric) and found.kind == "negative_kl"
    near = replace(found, reference=logits)
    assert near(logits) == 0 > near(other) == -replace(near, kind="kl")(other)
    # From the logits of the last tokens alone.
    last = torch.stack([other[0, 1:2], other[1, 2:3]])
    torch.testing.assert_close(near.at_the_end().per_prompt(last), near.per_prompt(other))


def test_a_callable_without_gradient_is_refused_where_one_is_needed() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    assert values_of(lambda logits: logits[:, -1, 0], logits, gradient=True).requires_grad
    for wrong in (
        lambda logits: logits[:, -1].argmax(-1),
        lambda logits: float(logits.detach().sum()),
        lambda logits: logits[:, 0, 0].detach(),
    ):
        assert values_of(wrong, logits).shape in ((2,), (1,))
        with pytest.raises(ConfigError, match=r"<lambda> has no gradient.*method without gradients"):
            values_of(wrong, logits, gradient=True)
    with pytest.raises(ConfigError, match="one for each prompt"):
        values_of(lambda logits: logits[0, :, 0], logits)


def test_metrics_refuse_logits_of_other_prompts() -> None:
    metric = Metric("log_probability", positions=(1, 2), answers=(3, 4))
    for shape in ((3, 4, 9), (2, 2, 9), (2, 4, 4), (2, 9)):
        with pytest.raises(ConfigError):
            metric.per_prompt(torch.zeros(shape))
    for kind in ("kl", "cross_entropy", "logit_difference"):
        with pytest.raises(ConfigError, match="needs"):
            Metric(kind, positions=(1, 2), answers=(3, 4)).per_prompt(torch.zeros(2, 4, 9))


def test_a_registered_metric_is_known_by_its_name() -> None:
    METRICS.register("largest", lambda metric, logits_BTV: metric.at_positions(logits_BTV).amax(-1))
    try:
        assert Metric("largest")(torch.eye(4)[None]) == 1.0
    finally:
        METRICS.unregister("largest")
