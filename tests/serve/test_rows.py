"""Rows that continue together: each as `lm.generate` continues it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from saekit.lm import Edit, LanguageModel
from saekit.names.site import Site
from saekit.serve.rows import continue_rows, score
from saekit.serve.sampling import Row, Sampling
from saekit.serve.stream import End, Event, Token
from saekit.steer import RandomControl, add, clamp, scale
from tests.kit.tiny import make_lm


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return make_lm()


def ids(lm: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(lm.text.ids([text])[0])


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []

    def __call__(self, row: int, event: Event) -> None:
        self.events.append((row, event))

    def tokens(self, row: int) -> list[int]:
        return [event.id for number, event in self.events if number == row and isinstance(event, Token)]

    def text(self, row: int) -> str:
        return "".join(event.text for number, event in self.events if number == row and isinstance(event, Token | End))

    def reason(self, row: int) -> str:
        (end,) = [event for number, event in self.events if number == row and isinstance(event, End)]
        return end.reason


def push(lm: LanguageModel, seed: int, length: float = 6.0) -> Any:
    return add([f"neuron:1/{seed}"], length).bind(lm)


def rows(lm: LanguageModel) -> list[Row]:
    """Other lengths, samplings and interventions."""
    prompted = clamp(["neuron:1/9"], 90.0).where("neuron:0/4 > 0 in prompt", "position >= 1")
    sampled = Sampling(temperature=0.9, top_p=0.8, seed=5)
    return [
        Row(ids(lm, "w1 w2 w3"), 8, Sampling(temperature=0)),
        Row(ids(lm, "w4"), 12, Sampling(temperature=0), intervention=push(lm, 3, 40.0)),
        Row(ids(lm, "w1 w2 w3"), 10, sampled),
        Row(ids(lm, "w1 w2 w3"), 10, sampled, intervention=push(lm, 7, -30.0)),
        Row(
            ids(lm, "w9 w8 w7 w6 w5"),
            5,
            Sampling(seed=1, sample=1),
            intervention=clamp(["head:1.2"], 9.0, along=torch.ones(4)).bind(lm),
        ),
        Row(ids(lm, "w4 w5"), 6, Sampling(temperature=0), intervention=scale(["pattern:0.1/1<-0"], 0.0).bind(lm)),
        Row(ids(lm, "w7"), 8, Sampling(temperature=0), intervention=clamp(["neuron:1/5"], 50.0).where('token == "w7"').bind(lm)),
        Row(ids(lm, "w7 w8"), 8, Sampling(temperature=0), intervention=prompted.bind(lm)),
        Row(ids(lm, "w8 w8"), 8, Sampling(temperature=0), intervention=prompted.decaying("half:2").bind(lm)),
    ]


def alone(lm: LanguageModel, row: Row) -> list[int]:
    """What `lm.generate` gives, without the end-of-text token."""
    sampling: Any = {"do_sample": False}
    if row.sampling.temperature:
        sampling = {"temperature": row.sampling.temperature, "top_p": row.sampling.top_p, "top_k": 0, "n_samples": 2}
    edits = [] if row.intervention is None else [row.intervention]
    made = lm.generate([list(row.prompt)], interventions=edits, seed=row.sampling.seed, max_new_tokens=row.max_tokens, **sampling)
    return [token for token in made.tokens[row.sampling.sample] if token != 1]


def test_rows_together_are_what_each_is_alone(lm: LanguageModel) -> None:
    asked, heard = rows(lm), Heard()
    assert not continue_rows(lm, asked, heard)
    for number, row in enumerate(asked):
        assert heard.tokens(number) == alone(lm, row)
        assert heard.text(number).split() == [f"w{token - 3}" for token in heard.tokens(number)]
    assert heard.tokens(2) != heard.tokens(3)  # the push changes something


def test_a_push_of_one_row_reaches_no_other(lm: LanguageModel) -> None:
    """Also where the other has one at the same site, and where prompts are padded."""
    asked = rows(lm)
    heavy = [
        Row(ids(lm, "w1 w2 w3 w4 w5 w6"), 12, Sampling(temperature=0), intervention=push(lm, unit, 1e4)) for unit in range(3)
    ]
    heard = Heard()
    continue_rows(lm, [*heavy, *asked], heard)
    for number, row in enumerate(asked):
        assert heard.tokens(len(heavy) + number) == alone(lm, row)


SHARED: list[Any] = [
    lambda: add("residual:resid_post.1/5", 40.0, positions="all").where("token ~ 'w[0-9]+'"),
    lambda: add("residual:resid_post.1/5", 40.0, positions="all").where("neuron:0/4 > 0"),
    lambda: clamp("feature:mlp_in.0/3", 60.0, positions="all"),
    lambda: clamp("feature:mlp_in.0/3", 60.0, positions="all").where("text ~ 'w2'"),
]


@pytest.mark.parametrize("made", SHARED)
@pytest.mark.parametrize("texts", [("w1 w2 w3", "w4 w5 w6"), ("w1 w2 w3", "w4 w2")])
def test_rows_share_a_bound_intervention(make_sae: Any, made: Any, texts: tuple[str, str]) -> None:
    """As the answers to one request do. What is read for one row is not taken for another."""
    lm = make_lm()
    lm.attach_sae("mlp_in.0", make_sae("transcoder", 16, 40, d_out=16, site_out="mlp_out.0"))
    shared, greedy, heard = made().bind(lm), Sampling(temperature=0), Heard()
    asked = [Row(ids(lm, text), 6, greedy, intervention=shared) for text in texts]
    assert not continue_rows(lm, asked, heard)
    own = [alone(lm, replace(row, intervention=made().bind(lm))) for row in asked]
    assert [heard.tokens(number) for number in range(2)] == own
    assert own != [alone(lm, replace(row, intervention=None)) for row in asked]


def test_a_control_of_one_row(lm: LanguageModel) -> None:
    control = RandomControl(push(lm, 3, 40.0), seed=4)
    row = Row(ids(lm, "w1 w2"), 9, Sampling(temperature=0), intervention=control)
    heard = Heard()
    continue_rows(lm, [*rows(lm), row], heard)
    assert heard.tokens(9) == alone(lm, row)


def test_a_stop_sequence_ends_a_row_and_is_not_given_out(lm: LanguageModel) -> None:
    row = Row(ids(lm, "w1 w2 w3"), 8, Sampling(temperature=0))
    whole = " ".join(f"w{token - 3}" for token in alone(lm, row))
    stop = whole[5:9]
    for extra in ([], rows(lm)):
        heard = Heard()
        continue_rows(lm, [Row(row.prompt, 8, row.sampling, stop=("never", stop)), *extra], heard)
        assert heard.text(0).lstrip() == whole.lstrip()[: whole.lstrip().find(stop)]
        assert heard.reason(0) == "stop"
        sent = ""
        for number, event in heard.events:
            if number == 0 and isinstance(event, Token | End):
                sent += event.text
                assert stop not in sent


def test_log_probabilities_are_of_the_steered_model(lm: LanguageModel) -> None:
    intervention = push(lm, 3, 40.0)
    row = Row(ids(lm, "w1 w2 w3"), 6, Sampling(temperature=2.0, seed=3), top=4, intervention=intervention)
    heard = Heard()
    continue_rows(lm, [Row(ids(lm, "w4"), 6), row], heard)
    made = [event for number, event in heard.events if number == 1 and isinstance(event, Token)]
    whole = torch.tensor([[*row.prompt, *(event.id for event in made)]])
    logits = lm.run(
        whole, edits=[intervention], positions="last+generated", prompt_lengths=[len(row.prompt)], logits="all"
    ).logits
    assert logits is not None
    logp = logits[0].double().log_softmax(-1)
    for t, event in enumerate(made, len(row.prompt) - 1):
        assert event.chosen is not None
        assert event.chosen.logprob == pytest.approx(float(logp[t, event.id]), abs=1e-5)
        assert [each.id for each in event.top] == logp[t].topk(4).indices.tolist()
    scored = score(lm, Row(tuple(whole[0].tolist()), 1, top=2))
    bare = lm.run(whole, logits="all").logits
    assert bare is not None
    wanted = bare[0].double().log_softmax(-1)[:-1].gather(1, whole[0, 1:, None])[:, 0]
    assert [each.chosen.logprob for each in scored[1:] if each.chosen] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_penalties(lm: LanguageModel) -> None:
    heard = Heard()
    sampling = Sampling(temperature=0, presence_penalty=1e4)
    continue_rows(lm, [Row(ids(lm, "w1 w2 w3"), 20, sampling), Row(ids(lm, "w1 w2 w3"), 20, Sampling(temperature=0))], heard)
    assert len(set(heard.tokens(0))) == len(heard.tokens(0)) > 1


def test_a_client_that_goes_away_ends_its_row_only(lm: LanguageModel) -> None:
    asked, heard = rows(lm)[:4], Heard()
    continue_rows(lm, asked, heard, lambda row: row == 1 and len(heard.tokens(1)) >= 2)
    assert len(heard.tokens(1)) == 2
    assert heard.tokens(3) == alone(lm, asked[3])


class Broken:
    """Fails at the third token."""

    def edits(self, lm: LanguageModel) -> list[Edit]:
        calls = iter(range(100))

        def fn(x: torch.Tensor, at: Any) -> torch.Tensor:
            if next(calls) == 2:
                raise ValueError("two changes conflict here")
            return x

        return [Edit(Site.parse("resid_post.0"), fn)]


def test_an_edit_that_fails_ends_its_row_only(lm: LanguageModel) -> None:
    asked, heard = rows(lm)[:4], Heard()
    failed = continue_rows(lm, [*asked, Row(ids(lm, "w1 w2 w3"), 9, intervention=Broken())], heard)
    assert [str(error) for error in failed.values()] == ["two changes conflict here"]
    assert list(failed) == [4]
    assert all(heard.tokens(number) == alone(lm, row) for number, row in enumerate(asked))


def test_no_token_is_asked_for(lm: LanguageModel) -> None:
    heard = Heard()
    continue_rows(lm, [Row(ids(lm, "w1"), 0), Row(ids(lm, "w1"), 2)], heard)
    assert (heard.tokens(0), heard.reason(0)) == ([], "length")
    assert heard.tokens(1)
