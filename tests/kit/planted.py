"""A tiny model with a subword tokenizer, and stores of activations with known statistics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saekit.activations import Block, Corpus, token_batches
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE, SAEConfig
from tests.kit.tiny import tiny_llama

SITE = Site("resid_post", 0)
F = 32
_WORDS = "the a dog cat happy happily sad Lily Tom runs running ran to park in 12 7 said Yes don't and café naïve 犬 BIG ball"
WORDS = _WORDS.split()
ENDINGS = [". ", ", ", "! ", '." ', ".\n\n", " ", " ", " ", " "]


def make_documents(n: int, *, seed: int = 0) -> list[str]:
    """`n` documents of 1 to 60 words, with capitals, digits, punctuation, line breaks and letters beyond ASCII."""
    random = np.random.default_rng(seed)
    return [
        "".join(random.choice(WORDS) + random.choice(ENDINGS) for _ in range(random.integers(1, 60))).strip() for _ in range(n)
    ]


def make_lm(*, seed: int = 0) -> LanguageModel:
    """Byte-level BPE of 290 tokens, d_model 32. " happy" has about three tokens, and "犬" is split into bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(make_documents(50), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    # More rows than the tokenizer has tokens, as in many models.
    return tiny_llama(tokenizer, vocab_size=300, hidden_size=F, num_hidden_layers=1, seed=seed)


@dataclass
class PlantedStore:
    """Activations in memory, streamed as a store streams them."""

    tokens: NDArray[np.int32]
    position: NDArray[np.int32]
    document: NDArray[np.int64]
    special: NDArray[np.bool_]
    acts: NDArray[np.float32]
    name: str = "planted"

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def provenance(self) -> dict[str, Any]:
        return {"corpus": self.name}

    def width(self, site: Any) -> int:
        return self.acts.shape[1]

    def stream(self, sites: list[Site], *, batch_tokens: int, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Block]:
        begins = [*np.flatnonzero(self.position == 0).tolist(), self.n_tokens]
        row, numbers = start, itertools.count()
        while row < self.n_tokens:
            within = [b for b in begins if row < b <= row + batch_tokens]
            stop = within[-1] if within else next(b for b in begins if b > row)
            columns = (self.tokens, self.position, self.document, self.special)
            chosen = sites if next(numbers) % part[1] == part[0] else []
            acts = {site: torch.from_numpy(self.acts[row:stop]) for site in chosen}
            yield Block(row, *(torch.from_numpy(c[row:stop]) for c in columns), acts)
            row = stop


def make_store(
    lm: LanguageModel, *, documents: int = 40, context: int = 24, packing: Any = "pack", seed: int = 0
) -> PlantedStore:
    """Codes of 32 features. 0 never fires, 1 fires nearly always, 2 fires only on tokens of "happy", the others at random."""
    random = np.random.default_rng(seed)
    batches = list(
        token_batches(
            lm, Corpus.open(make_documents(documents, seed=seed)), context=context, n_tokens=None, batch_size=4, packing=packing
        )
    )
    keep = [batch.mask_BT.bool() for batch in batches]
    tokens, position, document = (
        torch.cat([getattr(batch, name)[k] for batch, k in zip(batches, keep)]).numpy()
        for name in ("tokens_BT", "position_BT", "document_BT")
    )
    n = len(tokens)
    density = np.geomspace(0.005, 0.5, F)
    acts = np.where(random.random((n, F)) < density, random.lognormal(0, 1.5, (n, F)), 0).astype(np.float32)
    # Ties, which the row number must break.
    acts[:, 20] = np.round(acts[:, 20])
    acts[:, 0] = 0
    acts[:, 1] = np.where(random.random(n) < 0.97, random.random(n), 0)
    acts[:, 2] = np.where(inside_word(lm, tokens, "happy"), 1 + random.random(n), 0)
    return PlantedStore(
        tokens.astype(np.int32),
        position.astype(np.int32),
        document.astype(np.int64),
        np.isin(tokens, list(lm.special_ids)),
        acts,
        f"planted {seed} {documents} {context} {packing}",
    )


def inside_word(lm: LanguageModel, tokens: NDArray[Any], word: str) -> NDArray[np.bool_]:
    spelled = lm.encode([f" {word}"], bos=False)[0][0].tolist()
    mark = np.zeros(len(tokens), bool)
    for i in range(len(tokens) - len(spelled) + 1):
        after = lm.token_strings(tokens[i + len(spelled) : i + len(spelled) + 1].tolist())
        if tokens[i : i + len(spelled)].tolist() == spelled and not (after and after[0][:1].isalnum()):
            mark[i : i + len(spelled)] = True
    return mark


def make_sae(seed: int = 0) -> SAE:
    """An SAE whose code is the positive part of its input, with a random decoder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "W_enc": torch.eye(F),
        "W_dec": torch.nn.functional.normalize(torch.randn(F, F, generator=generator), dim=1),
        "b_enc": torch.zeros(F),
        "b_dec": torch.zeros(F),
    }
    return SAE(SAEConfig("standard", d_in=F, n_latents=F, site_map=SITE), tensors)
