"""End-to-end fine-tuning: gradients are those of autograd through the spliced transformers model; it recovers cross-entropy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saekit.activations import Corpus, LiveActivations, LiveData, token_batches, write_store
from saekit.activations.loader.contexts import ContextBatch, LiveContexts
from saekit.activations.loader.source import Place
from saekit.errors import CheckpointError, ConfigError
from saekit.evaluate.dictionary.cross_entropy import ce_recovered
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.sae import SAE
from tests.kit import dense
from tests.kit.memory import SITE as MEMORY_SITE
from tests.kit.memory import Memory
from tests.kit.runs import files, rows, sparse_data
from tests.kit.tiny import make_documents, make_lm
from trainers import TrainConfig, train
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState
from trainers.objectives.end_to_end import EndToEnd
from trainers.step.parameters import Parameters

SITE = Site("resid_post", 0)
DOCUMENTS = make_documents(400)
F, D = 48, 16
ARCHS = ("topk", "abstopk", "batchtopk", "matryoshka", "jumprelu", "gated", "standard")


def contexts(lm: LanguageModel, cls: type[LiveContexts] = LiveContexts, **settings: Any) -> LiveContexts:
    given = {"context": 24, "contexts": 4, "heldout": 0.2, "split": "train", "batch_size": 64}
    return cls(lm, [SITE], Corpus.open(DOCUMENTS), **{**given, **settings})


@pytest.fixture(scope="module")
def double_lm() -> LanguageModel:
    lm = make_lm()
    lm.model.double()
    return lm


def spliced_loss(lm: LanguageModel, batch: ContextBatch, x_hat_ND: Tensor, loss: str) -> Tensor:
    """L_out with a hook on the transformers model, and nothing else of saekit."""
    tokens = batch.tokens

    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        new = hidden.clone()
        new[batch.chosen_BT] = x_hat_ND
        return (new, *output[1:]) if isinstance(output, tuple) else new

    clean = lm.model(tokens.tokens_BT).logits.detach().log_softmax(-1)
    handle = lm.model.model.layers[0].register_forward_hook(hook)
    try:
        spliced = lm.model(tokens.tokens_BT).logits
    finally:
        handle.remove()
    if loss == "kl":
        lost_BT = (clean.exp() * (clean - spliced.log_softmax(-1))).sum(-1)
        return lost_BT[batch.chosen_BT].mean()
    followed_BT = torch.zeros_like(batch.chosen_BT)
    followed_BT[:, :-1] = batch.chosen_BT[:, :-1] & tokens.mask_BT[:, 1:]
    target = tokens.tokens_BT.roll(-1, 1)[followed_BT]
    return cross_entropy(spliced[followed_BT], target)


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("whiten", [False, True])
def test_gradients_are_those_of_the_spliced_transformers_model(
    double_lm: LanguageModel, arch: str, loss: Any, whiten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if whiten and (arch, loss) != ("topk", "kl"):
        pytest.skip("whitening does not depend on the architecture or the loss")
    monkeypatch.setattr("trainers.objectives.end_to_end._NUMBERS", 7 * double_lm.vocab_size)  # several parts
    batch = next(iter(contexts(double_lm)))
    assert isinstance(batch, ContextBatch)
    share, penalised = 0.3, arch in ("jumprelu", "gated", "standard")
    data = DataScaling.of(batch[SITE], "mean", whiten=whiten)
    data = dataclasses.replace(data, variance=dense.VARIANCE)
    config = TrainConfig(
        *(F, arch),
        l0=5,
        dtype="float64",
        aux_k=4,
        bandwidth=0.3 if arch == "jumprelu" else TrainConfig.bandwidth,
        scaling="whitening" if whiten else "norm",
        end_to_end=loss,
        end_to_end_share=share,
        **({"sparsity": 0.2, "sparsity_warmup": 0.0} if penalised else {}),
    ).resolve(D)
    p = dense.random_parameters(F, D, 1, arch).map(Tensor.double)
    training = TrainState(config, data)
    training.p = p
    training.dead.dead = dead = torch.arange(10, 20)
    x = data.scaled(batch[SITE], torch.device("cpu"), torch.float64)
    behind = EndToEnd(batch, SITE, data, loss)
    training.objective.behind = behind
    found, gradient = training._gradient(x, x, training._now)
    assert isinstance(gradient, Parameters)

    def expected(p: Parameters, x: Tensor, y: Tensor) -> Tensor:
        f, _ = dense.coded(config, 0.2, p, dense.pre(p, x))
        x_hat = f @ p.W_dec_FE + p.b_dec_E
        w = data.whitening
        raw = x_hat / data.scale if w is None else x_hat @ w.inverse_DD + w.mean_D
        lost, fvu = spliced_loss(double_lm, batch, raw, loss), dense.reconstruction(config, p, f, y)
        mixed = share * ((fvu / lost).detach() * lost - fvu)
        return dense.loss_of(config, dead, 0.2)(p, x, y) + mixed

    value, wanted = dense.gradient(expected, p, x, x)
    assert float(found.loss) == pytest.approx(value, rel=1e-9)
    raw = data.unscaled(training_code(training, x))
    assert behind.value == pytest.approx(spliced_loss(double_lm, batch, raw, loss).item())
    for name, tensor in wanted.items():
        scale = tensor.abs().max().item()
        # The norms of transformers compute in float32.
        torch.testing.assert_close(gradient[name], tensor, atol=1e-6 * scale, rtol=1e-4, msg=name)
    assert wanted.W_enc_FD.abs().max() > 1e-6


def training_code(training: TrainState, x: Tensor) -> Tensor:
    """The reconstruction of the state, in the units of training."""
    kept: list[Tensor] = []

    def keep(x_hat: Tensor) -> Tensor:
        kept.append(x_hat.detach())
        return x_hat.sum() * 0 + 1

    training.objective.behind = keep
    training.objective.loss(training.p, x, x, training._now)
    return kept[0]


def test_batches_are_whole_contexts_of_the_split() -> None:
    lm = make_lm()
    source = contexts(lm, epochs=1)
    seen = 0
    for batch in source:
        assert isinstance(batch, ContextBatch)
        clean = lm.run(batch.tokens.tokens_BT, read=[SITE], logits=None)[SITE]
        assert torch.equal(batch[SITE], clean[batch.chosen_BT])
        assert batch.chosen_BT.shape[0] <= 4 and not batch.chosen_BT[:, 0].any()  # BOS
        row_N, position_N = batch.places
        for n in range(0, len(row_N), 17):
            tokens, at = batch.tokens.tokens_BT[row_N[n]], int(position_N[n])
            real = at + 1 < len(tokens) and bool(batch.tokens.mask_BT[row_N[n], at + 1])
            assert int(batch.next_N[n]) == (int(tokens[at + 1]) if real else -1)
        seen += len(batch[SITE])
    rows_of = LiveActivations(
        lm, [SITE], Corpus.open(DOCUMENTS), context=24, contexts=4, heldout=0.2, split="train", batch_size=64, epochs=1
    )
    assert seen == rows_of.n_tokens


class BreaksOff(LiveContexts):
    """Raises KeyboardInterrupt after `after` batches."""

    after = 0

    def _batches(self, place: Place, epochs: int | None) -> Iterator[tuple[dict[Site, Tensor], Place]]:
        for n, batch in enumerate(super()._batches(place, epochs)):
            if n == self.after:
                raise KeyboardInterrupt
            yield batch


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SAE:
    """An SAE of the tiny model."""
    lm = make_lm()
    source = LiveActivations(lm, [SITE], Corpus.open(DOCUMENTS), context=24, heldout=0.2, batch_size=64)
    config = TrainConfig(F, l0=4, tokens=20_000, batch_size=64, sample_tokens=512, dead_tokens=1_000)
    return train(source, config, tmp_path_factory.mktemp("trained"), site=SITE, lm=lm, progress=False)


def fine(**settings: Any) -> TrainConfig:
    given = {"l0": 4, "tokens": 3_000, "batch_size": 64, "sample_tokens": 512, "end_to_end": "kl", "checkpoint_tokens": 500}
    return TrainConfig(F, **{**given, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["topk", "jumprelu"])
def test_resuming_is_exact(tmp_path: Path, trained: SAE, arch: str) -> None:
    lm, start = make_lm(), trained
    config = fine(arch=arch, log_tokens=400)
    if arch == "jumprelu":
        start = SAE(
            dataclasses.replace(trained.cfg, architecture="jumprelu", k=None),
            {**trained.state_dict(), "threshold": torch.full((F,), 0.1)},
        )
    train(contexts(lm), config, tmp_path / "whole", site=SITE, start=start, lm=lm, progress=False)
    for after in (9, 15):
        source = contexts(lm, BreaksOff)
        assert isinstance(source, BreaksOff)
        source.after = after
        with pytest.raises(KeyboardInterrupt):
            train(source, config, tmp_path / "broken", site=SITE, start=start, lm=lm, progress=False)
    train(contexts(lm), config, tmp_path / "broken", site=SITE, start=start, lm=lm, progress=False)
    assert files(tmp_path / "whole") == files(tmp_path / "broken")
    logged = [row for row in rows(tmp_path / "whole") if "kl" in row]
    assert len(logged) > 5 and all(row["kl"] > -1e-6 for row in logged)
    assert logged[-1]["tokens"] >= 3_000


def test_it_needs_whole_contexts_and_a_start(tmp_path: Path, trained: SAE) -> None:
    lm, corpus = make_lm(), Corpus.open(DOCUMENTS)
    store = write_store(tmp_path / "store", lm, [SITE], corpus, n_tokens=2_000, context=24, progress=False)
    cases: list[tuple[Any, Any, str]] = [
        (store, trained, "runs the model on whole contexts, and these data are stored activations"),
        (LiveData(store, lm, corpus), None, "starts from a trained SAE, and none is given"),
    ]
    for data, start, message in cases:
        with pytest.raises(ConfigError, match=message):
            train(data, fine(), tmp_path / "out", site=SITE, start=start, lm=lm, progress=False)
    with pytest.raises(ConfigError, match="these data are rows"):
        memory = Memory({SITE: sparse_data(500)[:, :D]}, 64)
        train(memory, fine(), tmp_path / "out", site=SITE, start=trained, progress=False)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    train(LiveData(store, lm, corpus), fine(tokens=500), tmp_path / "out", site=SITE, start=trained, lm=lm, progress=False)
    assert SAE.load(tmp_path / "out").cfg.architecture == "topk"
    state = LiveActivations(lm, [SITE], corpus, batch_size=64).state()
    with pytest.raises(CheckpointError, match="form"):
        contexts(lm, heldout=0.05, context=None, contexts=None).load_state(state)
    assert MEMORY_SITE == SITE


def test_more_cross_entropy_is_recovered(tmp_path: Path, stories_lm: LanguageModel, tinystories_path: Path) -> None:
    """On held-out stories, more than by training on for as long."""
    lm, site = stories_lm, Site("resid_post", 2)
    texts = [json.loads(line)["text"] for line in tinystories_path.read_text().splitlines()[:500]]
    corpus, how = Corpus.open(texts[:450]), {"context": 128, "heldout": 0.0, "batch_size": 512}
    rows_of = LiveActivations(lm, [site], corpus, buffer_tokens=1 << 14, **how)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"n_latents": 512, "l0": 16, "batch_size": 512}
    start = train(rows_of, TrainConfig(tokens=30_000, **settings), tmp_path / "start", site=site, lm=lm, progress=False)
    tuned = TrainConfig(tokens=6_000, end_to_end="ce", **settings)
    source = LiveContexts(lm, [site], corpus, contexts=4, **how)  # type: ignore[arg-type]
    after = train(source, tuned, tmp_path / "tuned", site=site, start=start, lm=lm, progress=False)
    batches = list(token_batches(lm, Corpus.open(texts[450:]), context=128, n_tokens=4_096))
    first, last = (ce_recovered(lm, sae, site, batches)["ce_recovered"] for sae in (start, after))
    assert last > first + 0.001
