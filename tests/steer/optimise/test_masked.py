"""Masked fine-tuning against a dense reference: losses, gradients, AdamW by hand; and the bits of what is not tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saekit.errors import ConfigError, CorpusError, NonFiniteActivations, UnsupportedModel
from saekit.evaluate.steering.tuned import preservation
from saekit.lm import LanguageModel
from saekit.steer.optimise import History, MaskedWeights, Tuned, TuneSettings, WeightMask, objective, train
from saekit.steer.optimise.masked import ALL, Groups
from saekit.tasks import Contrast, Labelled, Task

REFS = ["head:0.1", "neuron:1/3", "weight:1.o_proj/5"]
Logits = Callable[[Sequence[int]], Tensor]


def logits(lm: LanguageModel, row: Sequence[int]) -> Tensor:
    """(T, V) of one row alone, from the bare module."""
    return lm.model(input_ids=torch.tensor([list(row)])).logits[0]


def log_p(lm: LanguageModel, row: Sequence[int], start: int) -> Tensor:
    """Log-probability of a row from `start` on."""
    table = logits(lm, row).log_softmax(-1)
    return torch.stack([table[t - 1, row[t]] for t in range(start, len(row))]).sum()


def answers_by_hand(lm: LanguageModel, task: Task) -> Tensor:
    return -torch.stack([log_p(lm, c + a, len(c)) for c, a in zip(task.clean, task.answers)]).mean()


def kl_by_hand(lm: LanguageModel, before: list[Tensor], neutral: list[list[int]]) -> Tensor:
    rows = []
    for table, row in zip(before, neutral):
        now = logits(lm, row)[:-1].log_softmax(-1)
        rows.append((table.exp() * (table - now)).sum(-1))
    return torch.cat(rows).mean()


def bits(lm: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.detach().view(torch.int64).clone() for name, weight in lm.model.named_parameters()}


def by_hand(
    lm: LanguageModel, task: Task, neutral: list[list[int]], mask: WeightMask, settings: TuneSettings
) -> dict[str, Tensor]:
    """The weights after AdamW with every gradient and every update multiplied by the mask."""
    own = dict(lm.model.named_parameters())
    before = [logits(lm, row)[:-1].log_softmax(-1).detach() for row in neutral]
    start = {name: weight.detach().clone() for name, weight in own.items()}
    one, two = ({name: torch.zeros_like(own[name]) for name in mask.parts} for _ in range(2))
    warm = max(1, settings.steps // 10)
    for step in range(settings.steps):
        for weight in own.values():
            weight.requires_grad_(True)
        loss = answers_by_hand(lm, task) + settings.preserve * kl_by_hand(lm, before, neutral)
        grads = dict(zip(mask.parts, torch.autograd.grad(loss, [own[name] for name in mask.parts])))
        grads = {name: grad * mask.parts[name] for name, grad in grads.items()}
        length = torch.cat([grad.flatten() for grad in grads.values()]).norm()
        rate = settings.lr * min((step + 1) / warm, (settings.steps - step) / (settings.steps - warm))
        for name, grad in grads.items():
            grad = grad * min(1.0, settings.clip / (float(length) + 1e-6))
            weight = own[name].data
            part = mask.parts[name]
            weight -= rate * settings.weight_decay * weight * part
            one[name] = 0.9 * one[name] + 0.1 * grad
            two[name] = 0.999 * two[name] + 0.001 * grad**2
            first, second = one[name] / (1 - 0.9 ** (step + 1)), two[name] / (1 - 0.999 ** (step + 1))
            weight -= rate * first / (second.sqrt() + 1e-8) * part
    after = {name: weight.detach().clone() for name, weight in own.items()}
    for name, weight in own.items():
        weight.requires_grad_(False)
        weight.data.copy_(start[name])
    return after


def test_masked_tuning_is_adamw_on_masked_gradients(lm: LanguageModel, task: Task, neutral: list[list[int]]) -> None:
    settings = TuneSettings(steps=12, batch=8, lr=0.02, weight_decay=0.1, preserve=0.7)
    mask = WeightMask.of(lm, REFS)
    wanted = by_hand(lm, task, neutral, mask, settings)
    start = bits(lm)
    adjustment = MaskedWeights(lm, mask)
    with adjustment.training():
        history = train(lm, adjustment, objective(lm, task), neutral, settings, progress=False)
        found = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], atol=1e-9, rtol=1e-9)
        part = mask.parts.get(name, torch.zeros_like(weight, dtype=torch.bool))
        assert torch.equal(weight.view(torch.int64)[~part], start[name][~part])
        assert not part.any() or bool((weight.view(torch.int64)[part] != start[name][part]).all())
    assert all(torch.equal(now, start[name]) for name, now in bits(lm).items())
    assert history.target[-1] < history.target[0] - 0.1
    assert history.kl[0] == 0 < history.kl[-1]


def test_the_delta_gives_the_trained_model(lm: LanguageModel, task: Task, neutral: list[list[int]]) -> None:
    mask = WeightMask.of(lm, REFS)
    lm.blocks[0].self_attn.q_proj.weight.data[0, :5] = -0.0  # of another head: adding 0 to it would lose its sign
    adjustment = MaskedWeights(lm, mask)
    loss = objective(lm, task)
    with adjustment.training():
        train(lm, adjustment, loss, neutral, TuneSettings(steps=5, lr=0.02), progress=False)
        with torch.no_grad():
            tuned = answers_by_hand(lm, task)
    start = bits(lm)
    delta = adjustment.delta("masked")
    with lm.edited(delta), torch.no_grad():
        torch.testing.assert_close(answers_by_hand(lm, task), tuned, atol=1e-12, rtol=0)
        for name, now in bits(lm).items():
            part = mask.parts.get(name, torch.zeros_like(now, dtype=torch.bool))
            assert torch.equal(now[~part], start[name][~part])
        assert sorted(delta.names) == sorted(mask.parts)
    assert all(torch.equal(now, start[name]) for name, now in bits(lm).items())


def test_only_masked_parameters_have_gradients_and_the_users_own_are_kept(lm: LanguageModel, task: Task) -> None:
    weight = lm.blocks[0].self_attn.q_proj.weight
    weight.grad = torch.full_like(weight, 3.0)
    adjustment = MaskedWeights(lm, WeightMask.of(lm, "head:0.1"))
    with adjustment.training():
        with_gradient = {name for name, each in lm.model.named_parameters() if each.requires_grad}
        objective(lm, task)([0, 1]).backward()
        assert all(each.grad is None for each in lm.model.parameters())
        assert all(number.grad is not None for number in adjustment.leaves())
    assert with_gradient == {f"model.layers.0.self_attn.{each}_proj.weight" for each in "qkvo"}
    assert not any(each.requires_grad for each in lm.model.parameters())
    assert bool((weight.grad == 3).all())


def test_groups_train_their_own_mask_and_no_moment_leaks(lm: LanguageModel) -> None:
    data = Labelled(("w1 w2 w3", "w4 w5 w6", "w7 w8 w9"), labels=("one", "other", "one"))
    names = {ALL: "neuron:1/0", ("one",): "neuron:1/1", ("other",): "neuron:1/2", ("one", "other"): "neuron:1/4"}
    masks = {group: WeightMask.of(lm, ref) for group, ref in names.items()}
    adjustment = MaskedWeights(lm, masks)
    seen: list[tuple[str, set[Groups]]] = []
    loss = objective(lm, data)
    numbers = {group: adjustment._numbers[group, "model.layers.1.mlp.up_proj.weight"] for group in names}

    class Watched:
        groups = loss.groups
        last: dict[Groups, Tensor] = {}  # noqa: RUF012
        group = ""

        def __call__(self, index: Sequence[int], edits: Sequence[object] = ()) -> Tensor:
            self.note()
            self.group = self.groups[index[0]]
            assert {self.groups[i] for i in index} == {self.group}
            return loss(index, edits)

        def note(self) -> None:
            now = {group: number.detach().clone() for group, number in numbers.items()}
            if self.last:
                seen.append((self.group, {group for group in names if not torch.equal(now[group], self.last[group])}))
            self.last = now

    watched = Watched()
    with adjustment.training():
        train(lm, adjustment, watched, None, TuneSettings(steps=8, batch=1, weight_decay=0.1), progress=False)
        watched.note()
    assert {group for group, _ in seen} == {"one", "other"}
    assert all(moved == {ALL, (group,), ("one", "other")} for group, moved in seen)


def test_seeds_repeat(lm: LanguageModel, task: Task, neutral: list[list[int]]) -> None:
    def tuned(seed: int) -> Tensor:
        adjustment = MaskedWeights(lm, WeightMask.of(lm, "neuron:1/3"))
        with adjustment.training():
            train(lm, adjustment, objective(lm, task), neutral, TuneSettings(steps=4, batch=1, seed=seed), progress=False)
        return adjustment.leaves()[0].detach()

    assert torch.equal(tuned(0), tuned(0))
    assert not torch.equal(tuned(0), tuned(1))


def test_an_error_leaves_the_model_as_it_was(lm: LanguageModel, task: Task) -> None:
    start = bits(lm)
    adjustment = MaskedWeights(lm, WeightMask.of(lm, REFS))
    with pytest.raises(NonFiniteActivations, match="at step"), adjustment.training():
        train(lm, adjustment, objective(lm, task), None, TuneSettings(steps=5, lr=1e300, clip=0), progress=False)
    assert all(torch.equal(now, start[name]) for name, now in bits(lm).items())
    assert not any(each.requires_grad or each._post_accumulate_grad_hooks for each in lm.model.parameters())


def test_half_precision_weights_are_trained_in_float32(task: Task) -> None:
    from tests.kit.tiny import make_lm

    lm = make_lm()
    lm.model.bfloat16()
    mask = WeightMask.of(lm, "site:resid_post.1")
    adjustment = MaskedWeights(lm, mask)
    assert {number.dtype for number in adjustment.leaves()} == {torch.float32}
    before = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
    loss = objective(lm, task)
    with adjustment.training():
        train(lm, adjustment, loss, None, TuneSettings(steps=20, lr=1e-4), progress=False)
        trained = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
        value = float(loss([0, 1, 2]).detach())
    with lm.edited(adjustment.delta("masked")), torch.no_grad():
        assert float(loss([0, 1, 2])) == value
        assert all(torch.equal(weight, trained[name]) for name, weight in lm.model.named_parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.named_parameters())


# Losses


def test_share_is_the_cross_entropy_of_the_pair(lm: LanguageModel, task: Task) -> None:
    rows = []
    for clean, answer, foil in zip(task.clean, task.answers, task.foils):
        pair = logits(lm, clean)[-1, [answer[0], foil[0]]].log_softmax(0)
        rows.append(-(0.3 * pair[0] + 0.7 * pair[1]))
    found = objective(lm, task, "share", {"share": 0.3})([0, 1, 2])
    torch.testing.assert_close(found, torch.stack(rows).mean(), atol=1e-10, rtol=1e-10)


def test_prefer_and_forget_are_the_formulas_of_the_papers(lm: LanguageModel) -> None:
    pairs = Contrast("pairs", ("w1 w2 w3", "w4 w5"), ("w6 w7", "w8 w9 w10"))
    loss, drop = objective(lm, pairs, options={"beta": 0.3}), objective(lm, list(pairs.negative), "forget", {"beta": 0.3})
    ids = [[lm.text.ids([text])[0] for text in side] for side in (pairs.positive, pairs.negative)]
    before = [[float(log_p(lm, row, 1)) for row in side] for side in ids]
    assert float(loss([0, 1])) == pytest.approx(float(-F.logsigmoid(torch.zeros(()))))
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight[:, 3] *= 2
    gains = [torch.stack([log_p(lm, row, 1) - old for row, old in zip(*side)]) for side in zip(ids, before)]
    wanted = -F.logsigmoid(0.3 * (gains[0] - gains[1])).mean()
    torch.testing.assert_close(loss([0, 1]), wanted, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(drop([0, 1]), 2 / 0.3 * torch.log1p(gains[1].mul(0.3).exp()).mean(), atol=1e-10, rtol=1e-9)


def test_texts_count_each_token_once(lm: LanguageModel) -> None:
    given = ["w1 w2 w3 w4", "w5 w6"]
    ids = [lm.text.ids([text])[0] for text in given]
    wanted = -sum(log_p(lm, row, 1) for row in ids) / sum(len(row) - 1 for row in ids)
    torch.testing.assert_close(objective(lm, given)([0, 1]), wanted, atol=1e-10, rtol=1e-10)
    assert objective(lm, Contrast("c", tuple(given), ("w1 w2", "w3 w4")), "texts")([0, 1]) == objective(lm, given)([0, 1])


def test_the_preservation_is_kl_by_hand(lm: LanguageModel, neutral: list[list[int]]) -> None:
    before = [logits(lm, row)[:-1].log_softmax(-1) for row in neutral]
    adjustment = MaskedWeights(lm, WeightMask.of(lm, "neuron:1/3"))
    with adjustment.training(), torch.no_grad():
        adjustment.leaves()[0].mul_(3)
    mask = adjustment.masks[ALL]
    tuned = Tuned(adjustment.delta("masked"), mask.count, mask.share(lm), History((), ()), mask)
    found = preservation(lm, tuned, neutral)
    with tuned.on(lm):
        wanted = float(kl_by_hand(lm, before, neutral))
    assert found == pytest.approx(wanted, rel=1e-9)
    assert wanted > 1e-6


def test_bad_input_is_refused(lm: LanguageModel, task: Task) -> None:
    with pytest.raises(ConfigError, match="takes no task"):
        objective(lm, task, "forget")
    with pytest.raises(ConfigError, match="no option 'gamma'"):
        objective(lm, task, "share", {"gamma": 1})
    with pytest.raises(ConfigError, match="There is no objective"):
        objective(lm, task, "nothing")
    with pytest.raises(CorpusError, match="none can be predicted"):
        objective(lm, ["w1 w2", ""])
    with pytest.raises(ConfigError, match="share of 2"):
        objective(lm, task, "share", {"share": 2})
    with pytest.raises(ConfigError, match="lr is -1"):
        TuneSettings(lr=-1)
    with pytest.raises(ConfigError, match="does not fit"):
        MaskedWeights(lm, WeightMask({"lm_head.weight": torch.ones(2, 2, dtype=torch.bool)}))
    with pytest.raises(ConfigError, match="in common"):
        MaskedWeights(lm, {("a",): WeightMask.of(lm, "head:0.2"), ("b",): WeightMask.of(lm, "head:0.3")})
    with pytest.raises(ConfigError, match="none of that name"):
        MaskedWeights(lm, WeightMask({"nothing": torch.ones(2, 2, dtype=torch.bool)}))
    lm.model.lm_head.weight = torch.nn.Parameter(torch.zeros(63, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match=r"stored as torch\.int8"):
        MaskedWeights(lm, WeightMask({"lm_head.weight": torch.ones(63, 16, dtype=torch.bool)}))
