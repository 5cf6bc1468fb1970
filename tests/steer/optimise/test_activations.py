"""Trained changes of activations against hand-written float64 references: values, gradients, training, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import log
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saekit.errors import ConfigError, InterventionError, StoreMismatch
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.steer.optimise import ActivationEdit, Problem, TuneSettings, objective, tune
from saekit.steer.optimise.activations import TrainedActivations
from saekit.steer.optimise.methods import jola, reft
from saekit.tasks import Contrast, Task
from tests.kit.tiny import make_lm

ROW = [0, 5, 9, 11, 40]
SITE = Site("resid_post", 0)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(lm: LanguageModel, module: torch.nn.Module, change: Callable[[Tensor], Tensor], *, before: bool = False) -> Tensor:
    """(T, V) logits with a plain torch hook that changes the rows 1 to T - 1, which are the ordinary tokens."""

    def changed(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], change(x[:, 1:])], 1)

    if before:
        handle = module.register_forward_pre_hook(lambda module, args: (changed(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda module, args, output: changed(output))
    try:
        return lm.model(input_ids=torch.tensor([ROW])).logits[0]
    finally:
        handle.remove()


def loss_of(logits_TV: Tensor) -> Tensor:
    return -logits_TV.log_softmax(-1)[len(ROW) - 2, ROW[-1]]


@pytest.fixture
def one(task: Task) -> Task:
    return task[:1]


def trained_reft(lm: LanguageModel, rank: int = 3) -> tuple[TrainedActivations, dict[str, Tensor]]:
    start = {"basis": drawn(0, 16, rank), "W": drawn(1, rank, 16), "b": drawn(2, rank)}
    return TrainedActivations(lm, "loreft", {SITE: start}, "all", reft._parameters), start


def reft_by_hand(lm: LanguageModel, own: Mapping[str, Tensor]) -> Tensor:
    """The formula of the paper, with the orthonormal basis by Gram and Schmidt in place of QR."""
    rows: list[Tensor] = []
    for column in own["basis"].T:
        rest = column
        for row in rows:
            rest = rest - (row @ rest) * row
        rows.append(rest / rest.norm())
    R = torch.stack(rows)

    def change(h: Tensor) -> Tensor:
        projected = torch.einsum("rd,btd->btr", R, h)
        learned = torch.einsum("rd,btd->btr", own["W"], h) + own["b"]
        return h + torch.einsum("btr,rd->btd", learned - projected, R)

    return by_hand(lm, lm.blocks[0], change)


def test_loreft_and_its_gradients_are_those_of_the_paper(lm: LanguageModel, one: Task) -> None:
    adjustment, start = trained_reft(lm)
    # QR may flip the sign of rows of R; W and b of these rows flip with it, and the change is the same.
    signs = torch.diag(torch.linalg.qr(start["basis"]).R).sign()
    hand = {"basis": start["basis"], "W": signs[:, None] * start["W"], "b": signs * start["b"]}
    hand = {name: each.clone().requires_grad_() for name, each in hand.items()}
    found = objective(lm, one)([0], adjustment.edits())
    wanted = loss_of(reft_by_hand(lm, hand))
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    found.backward()
    grads = dict(zip(hand, torch.autograd.grad(wanted, list(hand.values()))))
    own = adjustment.numbers[SITE]
    torch.testing.assert_close(own["basis"].grad, grads["basis"], atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(own["W"].grad, signs[:, None] * grads["W"], atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(own["b"].grad, signs * grads["b"], atol=1e-9, rtol=1e-7)
    assert float(grads["basis"].abs().max()) > 1e-4
    # And by finite differences, which know nothing of autograd.
    step = 1e-3  # the norms of the model round to float32
    for name, place in {"basis": (4, 1), "W": (2, 7), "b": (0,)}.items():
        values = []
        for sign in (1, -1):
            moved = {key: each.detach().clone() for key, each in hand.items()}
            moved[name][place] += sign * step
            values.append(float(loss_of(reft_by_hand(lm, moved))))
        assert float(grads[name][place]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.02, abs=1e-5)


def test_loreft_starts_without_effect_and_stays_orthonormal(lm: LanguageModel, task: Task, neutral: list[list[int]]) -> None:
    bare = loss_of(lm.model(input_ids=torch.tensor([ROW])).logits[0])
    settings = TuneSettings(steps=25, lr=0.03)
    found = tune(Problem(lm, objective(lm, task), neutral, settings, sites=[SITE], progress=False), "reft", {"rank": 3})
    assert isinstance(found.change, ActivationEdit)
    own = found.change.tensors[SITE]
    torch.testing.assert_close(own["R"] @ own["R"].T, torch.eye(3, dtype=torch.float64), atol=1e-10, rtol=0)
    assert found.history.kl[0] == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        unchanged = float(objective(lm, task[:1])([0]))
    assert unchanged == pytest.approx(float(bare.detach()))
    assert found.history.target[-1] < found.history.target[0] - 0.5
    assert found.count == 3 * 16 + 3 * 16 + 3


def test_jola_and_its_gradients_are_those_of_the_paper(lm: LanguageModel, one: Task) -> None:
    site = Site("heads", 1)
    own = {"A": drawn(0, 4, 4), "v": drawn(1, 4, 4), "log_alpha_1": drawn(2, 4), "log_alpha_2": drawn(3, 4)}
    adjustment = TrainedActivations(lm, "jola", {site: own}, "all", jola._parameters(5))
    hand = {name: each.clone().requires_grad_() for name, each in own.items()}
    generator = torch.Generator().manual_seed(5)
    gates = []
    for n in (1, 2):
        u = torch.rand(4, generator=generator).double()
        s = 1 / (1 + torch.exp(-(torch.log(u / (1 - u)) + hand[f"log_alpha_{n}"]) / 0.33))
        gates.append(torch.minimum(torch.ones(4), torch.maximum(torch.zeros(4), s * 1.2 - 0.1)))

    def change(z: Tensor) -> Tensor:
        heads = z.unflatten(-1, (4, 4))
        return torch.stack(
            [(1 + gates[1][h] * hand["A"][h]) * heads[:, :, h] + gates[0][h] * hand["v"][h] for h in range(4)], 2
        ).flatten(2)

    wanted = loss_of(by_hand(lm, lm.blocks[1].self_attn.o_proj, change, before=True))
    found = objective(lm, one)([0], adjustment.edits())
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-7)
    found.backward()
    for name, grad in zip(hand, torch.autograd.grad(wanted, list(hand.values()))):
        torch.testing.assert_close(adjustment.numbers[site][name].grad, grad, atol=1e-6, rtol=1e-5)


def test_the_expected_number_of_open_gates_is_their_frequency() -> None:
    alpha = torch.tensor([-2.0, -0.5, 0.0, 1.5], dtype=torch.float64)
    u = torch.rand(40000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequency = jola.gate(alpha, u).gt(0).double().mean(0)
    one = {"log_alpha_1": alpha, "log_alpha_2": torch.full((4,), -50.0, dtype=torch.float64)}
    assert float(jola.open_gates([one])) == pytest.approx(float(frequency.sum()), abs=0.03)
    wanted = torch.sigmoid(alpha - 0.33 * log(0.1 / 1.1)).sum()
    torch.testing.assert_close(jola.open_gates([one]), wanted, atol=1e-9, rtol=0)


def test_the_penalty_closes_gates_that_the_task_does_not_need(lm: LanguageModel, task: Task) -> None:
    problem = Problem(lm, objective(lm, task), None, TuneSettings(steps=30, lr=0.4), progress=False)
    closed = tune(problem, "jola", {"l0": 50.0}).change
    opened = tune(problem, "jola", {"l0": 0.0}).change
    assert isinstance(closed, ActivationEdit)
    assert isinstance(opened, ActivationEdit)
    assert all(float(own[gate].max()) == 0 for own in closed.tensors.values() for gate in ("g1", "g2"))
    assert any(float(own[gate].max()) > 0.5 for own in opened.tensors.values() for gate in ("g1", "g2"))


@pytest.mark.parametrize(
    ("method", "sites", "count"), [("vector", [SITE], 16), ("bias", [], 32), ("jola", [], 2 * (2 * 16 + 2 * 4))]
)
def test_trained_vectors_and_gates_lower_the_loss(
    lm: LanguageModel, task: Task, neutral: list[list[int]], method: str, sites: list[Site], count: int
) -> None:
    loss = objective(lm, task)
    every = [0, 1, 2]
    with torch.no_grad():
        before = float(loss(every))
    found = tune(Problem(lm, loss, neutral, TuneSettings(steps=25, lr=0.08), sites=sites, progress=False), method)
    with found.on(lm) as edits, torch.no_grad():
        assert float(loss(every, edits)) < before - 0.3
    assert found.count == count
    with torch.no_grad():
        assert float(loss(every)) == before


def test_a_trained_vector_reaches_the_least_loss_there_is(lm: LanguageModel, one: Task) -> None:
    """The least cross-entropy of a share of one half is log 2, and a vector before the head can reach it."""
    site = Site("resid_post", lm.n_layers - 1)
    loss = objective(lm, one, "share", {"share": 0.5})
    found = tune(Problem(lm, loss, None, TuneSettings(steps=100, lr=0.1), sites=[site], progress=False), "vector")
    with found.on(lm) as edits, torch.no_grad():
        assert float(loss([0], edits)) == pytest.approx(log(2), abs=1e-4)


def test_generation_uses_the_change(lm: LanguageModel, one: Task) -> None:
    found = tune(Problem(lm, objective(lm, one), None, TuneSettings(steps=60, lr=0.1), sites=[SITE], progress=False), "vector")
    text = "w2 w6 w8"  # the ids 5, 9, 11
    assert lm.encode([text]).tokens_BT.tolist() == [list(one.clean[0])]
    steered = lm.generate([text], max_new_tokens=1, interventions=[found.change], do_sample=False)
    assert lm.text.ids([steered.texts[0]], bos=False)[0][-1] == one.answers[0][0]


# Files


def test_files_keep_every_number(lm: LanguageModel, one: Task, tmp_path: Path) -> None:
    for method, options in (("reft", {"rank": 2}), ("jola", {}), ("bias", {})):
        made = tune(Problem(lm, objective(lm, one), None, TuneSettings(steps=3), progress=False), method, options).change
        assert isinstance(made, ActivationEdit)
        made.save(tmp_path / "edit.safetensors")
        found = ActivationEdit.load(tmp_path / "edit.safetensors", lm)
        assert found.form == made.form
        assert found.positions == made.positions
        assert found.facts == dict(made.facts)
        for site, own in made.tensors.items():
            assert all(torch.equal(each, found.tensors[site][name]) for name, each in own.items())
        tokens = torch.tensor([ROW])
        wanted, got = (lm.run(tokens, edits=[each], logits="all").logits for each in (made, found))
        assert torch.equal(wanted, got)  # type: ignore[arg-type]


def test_foreign_and_damaged_files_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    tensors = {SITE: {"R": torch.eye(16)[:2], "W": torch.zeros(2, 16), "b": torch.zeros(2)}}
    made = ActivationEdit("loreft", tensors, "all", {"fingerprint": lm.fingerprint(), "model": "tiny"})
    made.save(path)
    with pytest.raises(StoreMismatch, match="trained on tiny"):
        ActivationEdit.load(path, make_lm(seed=3))
    with pytest.raises(InterventionError, match="is for tokens of shape"):
        ActivationEdit("loreft", tensors).check(make_lm(d_model=32))
    stored = load_file(path)
    stored["resid_post.0/b"] += 1
    with path.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    save_file(stored, path, head)
    with pytest.raises(InterventionError, match="was changed after it was written"):
        ActivationEdit.load(path)
    with pytest.raises(InterventionError, match=r"ends in \.safetensors"):
        made.save(tmp_path / "edit.json")


def test_bad_input_is_refused(lm: LanguageModel, one: Task) -> None:
    problem = Problem(lm, objective(lm, one), progress=False)
    with pytest.raises(ConfigError, match="at one site"):
        tune(problem, "vector")
    with pytest.raises(ConfigError, match="rank 99"):
        tune(problem, "reft", {"rank": 99})
    with pytest.raises(ConfigError, match=r"no option 'ranks'.*Did you mean 'rank'"):
        tune(problem, "reft", {"ranks": 2})
    with pytest.raises(ConfigError, match="There is no method of tuning"):
        tune(problem, "qlora")
    with pytest.raises(InterventionError, match="needs R, W, b"):
        ActivationEdit("loreft", {SITE: {"R": torch.eye(2)}})
    with pytest.raises(InterventionError, match="has the shape"):
        ActivationEdit("loreft", {SITE: {"R": torch.eye(16)[:2], "W": torch.zeros(3, 16), "b": torch.zeros(2)}})
    with pytest.raises(InterventionError, match="not of finite numbers"):
        ActivationEdit("vector", {SITE: {"v": torch.full((16,), torch.nan)}})
    with pytest.raises(InterventionError, match="no site"):
        ActivationEdit("vector", {})


def test_contrasts_train_vectors(lm: LanguageModel) -> None:
    pairs = Contrast("pairs", ("w1 w2 w3", "w4 w5"), ("w6 w7", "w8 w9 w10"))
    loss = objective(lm, pairs)
    found = tune(Problem(lm, loss, None, TuneSettings(steps=20, lr=0.05), sites=[SITE], progress=False), "vector")
    with found.on(lm) as edits, torch.no_grad():
        assert float(loss([0, 1], edits)) < log(2) - 0.05
