"""Parameter saliency against the gradients that torch leaves in the weights themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from saekit.lm import LanguageModel
from saekit.lm.layout.matrices import matrices
from saekit.locate.gradient import parameter_saliency, weight_saliency
from saekit.objects import Ref, spaces_of
from saekit.tasks import Metric, Task


def gradients(lm: LanguageModel, task: Task) -> list[dict[Ref, tuple[Tensor, Tensor]]]:
    """For each prompt: the weight (out, in) and its gradient, of each matrix."""
    model = copy.deepcopy(lm.model).requires_grad_()
    names = {id(module): name for name, module in lm.model.named_modules()}
    metric = Metric.of("logit_difference", task)
    found = []
    for number, row in enumerate(task.clean):
        model.zero_grad()
        metric.of_prompts([number])(model(input_ids=torch.tensor([row]), use_cache=False).logits).backward()
        kept = {}
        for matrix in matrices(lm):
            weight = model.get_submodule(names[id(matrix.module)]).weight
            assert weight.grad is not None
            pair = (weight.detach(), weight.grad.clone())
            kept[Ref.of_matrix(matrix.layer, matrix.name)] = (pair[0].T, pair[1].T) if matrix.transposed else pair
        found.append(kept)
    return found


@pytest.mark.parametrize("kind", ["gradient", "product"])
def test_rows_and_matrices(lm: LanguageModel, task: Task, kind: str) -> None:
    by_matrix = parameter_saliency(lm, task, kind=kind, progress=False)  # type: ignore[arg-type]
    by_row = parameter_saliency(lm, task, kind=kind, level="row", progress=False)  # type: ignore[arg-type]
    assert by_matrix.per_example is not None and by_row.per_example is not None
    rows = {ref: n for n, ref in enumerate(by_row.refs)}
    for number, expected in enumerate(gradients(lm, task)):
        assert set(expected) == set(by_matrix.refs)
        for ref, (weight, grad) in expected.items():
            whole = grad.norm() if kind == "gradient" else (weight * grad).abs().sum()
            place = by_matrix.refs.index(ref)
            assert float(by_matrix.per_example[place, number]) == pytest.approx(float(whole), rel=1e-5, abs=1e-9)
            row = grad[3].norm() if kind == "gradient" else (weight * grad)[3].abs().sum()
            place = rows[Ref.weight(ref.layer or 0, ref.matrix or "", 3)]
            assert float(by_row.per_example[place, number]) == pytest.approx(float(row), rel=1e-5, abs=1e-9)


def test_heads(llama: LanguageModel, task: Task) -> None:
    """A head has rows of W_Q, those of W_K and W_V that it shares, and columns of W_O."""
    found = parameter_saliency(llama, task, level="head", kind="product", progress=False)
    every = gradients(llama, task)
    for layer in range(2):
        for head in range(4):
            expected = 0.0
            for kept in every:
                for name, rows in (("q_proj", head), ("k_proj", head // 2), ("v_proj", head // 2), ("o_proj", None)):
                    weight, grad = kept[Ref.of_matrix(layer, name)]
                    product = (weight * grad).abs()
                    part = product[:, 8 * head : 8 * head + 8] if rows is None else product[8 * rows : 8 * rows + 8]
                    expected += float(part.sum()) / len(every)
            assert found[Ref.head(layer, head)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["gradient", "product"])
def test_single_weights(llama: LanguageModel, task: Task, kind: str) -> None:
    every = gradients(llama, task)
    found = dict(weight_saliency(llama, task, kind=kind, progress=False))  # type: ignore[arg-type]
    assert set(found) == set(every[0])
    for ref, saliency in found.items():
        sizes = [(grad if kind == "gradient" else weight * grad).abs() for weight, grad in (kept[ref] for kept in every)]
        assert torch.allclose(saliency, torch.stack(sizes).mean(0), rtol=1e-5, atol=1e-9)


def test_spaces_are_refused(llama: LanguageModel, task: Task) -> None:
    from saekit.errors import ConfigError

    with pytest.raises(ConfigError, match="no spaces"):
        parameter_saliency(llama, task, spaces=spaces_of(llama, "heads"), progress=False)


def test_names_of_matrices_are_unique_and_parse(lm: LanguageModel) -> None:
    refs = [Ref.of_matrix(matrix.layer, matrix.name) for matrix in matrices(lm)]
    assert len(set(refs)) == len(refs) and [Ref.parse(str(ref)) for ref in refs] == refs
