"""A Hugging Face causal language model, seen as named sites that are read and written with hooks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, ContextTooLong, UnknownSite
from saekit.lm.edits import Positions, Window, check_positions, expand_edits, positions_from_mask
from saekit.lm.families import Family, family_of, require, submodule
from saekit.lm.hooks import Pass
from saekit.lm.replay import Recorder, Recording, replay
from saekit.lm.sites import KINDS, Site
from saekit.lm.taps import Tap, View
from saekit.lm.text import Text

if TYPE_CHECKING:
    from saekit.lm.generate import Generation
    from saekit.sae import SAE


@dataclass
class Run:
    """What a forward pass gave.

    Attributes:
        acts: activations by site: (B, T, width); heads, q, k, v (B, T, heads, d_head); pattern (B, heads, T, T).
        logits: (B, T, V), or (B, V) at each row's last real token, or None where not wanted or not reached.
    """

    acts: dict[Site, Tensor]
    logits: Tensor | None

    def __getitem__(self, site: Site | str) -> Tensor:
        return self.acts[Site.parse(site)]


class LanguageModel:
    """A causal language model with its tokenizer. Make one with :meth:`load` or :meth:`attach`.

    The model itself is only hooked, never changed; it is put in eval mode and stays there.

    Attributes:
        model, tokenizer: Hugging Face's own objects.
        family: the path table in use.
        name, revision: as given to `load`.
        n_layers, d_model, n_heads, n_kv_heads, d_head, d_ffn, vocab_size, max_context: sizes; max_context in tokens.
        dictionaries: SAEs attached with :meth:`attach_sae`, by site.
    """

    def __init__(self, model: Any, tokenizer: Any, family: Family, name: str, revision: str = "") -> None:
        self.model, self.tokenizer, self.family, self.name, self.revision = model, tokenizer, family, name, revision
        self.config = model.config.get_text_config()
        self.text = Text(tokenizer, [self.config, getattr(model, "generation_config", None)])
        blocks = require(model, family.layers, family, "layers")
        self.blocks: list[nn.Module] = list(blocks.children())[: self.config.num_hidden_layers]
        self.head: nn.Module = model.get_output_embeddings()
        self.embedding: nn.Module = model.get_input_embeddings()
        self._final = [module for path in family.final if (module := submodule(model, path)) is not None]
        self.n_layers = len(self.blocks)
        self.d_model: int = self.config.hidden_size
        self.vocab_size: int = self.head.weight.shape[0]
        self.n_heads: int = self.config.num_attention_heads
        self.d_head: int = _in_features(self.block_module(0, family.o, "o")) // self.n_heads
        self.n_kv_heads: int = getattr(self.config, "num_key_value_heads", None) or self.n_heads
        self.d_ffn: int = (
            _in_features(self.block_module(0, family.down, "down")) if family.down else self.config.intermediate_size
        )
        self.max_context: int = getattr(self.config, "max_position_embeddings", None) or sys.maxsize
        self.dictionaries: dict[Site, SAE] = {}
        self._taps: dict[Site, Tap | None] = {}
        self._special = torch.tensor(sorted(self.special_ids), dtype=torch.long)
        model.eval()

    # Making one

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        device_map: Any = None,
        paths: Family | Mapping[str, Any] | None = None,
    ) -> LanguageModel:
        """A model from a local folder or the Hugging Face hub.

        Args:
            name_or_path: a folder in Hugging Face's layout, or a hub name.
            dtype: of the weights; None as the checkpoint says.
            device: where to put it; None is a GPU where there is one.
            revision: of the hub repository.
            device_map: for models larger than a device, as in transformers (needs accelerate).
            paths: a path table, or entries of one, where the model's family is unknown.

        Raises:
            ModelNotFound: no such folder or hub name, or the hub cannot be reached.
            UnsupportedModel: an identity between its sites failed.
        """
        from saekit.lm.loading import load_pretrained

        model, tokenizer, commit = load_pretrained(str(name_or_path), dtype, device, revision, device_map)
        return cls.attach(model, tokenizer, name=str(name_or_path), paths=paths, revision=commit)

    @classmethod
    def attach(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        paths: Family | Mapping[str, Any] | None = None,
        revision: str = "",
    ) -> LanguageModel:
        """A transformers model already in memory; `tokenizer` may be None where only token ids are used.

        Raises:
            UnsupportedModel: an identity between its sites failed; the message says which, and how to pass a path table.
        """
        from saekit.lm.identities import check_identities

        model.eval()
        family = family_of(model, paths)
        lm = cls(model, tokenizer, family, name or getattr(model, "name_or_path", "") or type(model).__name__, revision)
        check_identities(lm)
        return lm

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {self.family.name}, {self.n_layers} layers, d_model {self.d_model})"

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        return self.embedding.weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    # Sites

    def site(self, site: str | Site) -> Site:
        """The site, if this model has it.

        Raises:
            UnknownSite: no such kind, layer or place in this architecture.
        """
        site = Site.parse(site)
        if site.layer is not None and site.layer >= self.n_layers:
            raise UnknownSite(f"{self.name} has no layer {site.layer}.", f"Its layers are 0 to {self.n_layers - 1}.")
        if reason := self._absent(site.kind):
            raise UnknownSite(f"{self.name} has no {site}: {reason}.", f"It has {', '.join(self._kinds())}.")
        return site

    def sites(self) -> list[Site]:
        """Every site of this model, in the order of computation."""
        kinds = self._kinds()
        layers = [Site(kind, layer) for layer in range(self.n_layers) for kind in kinds if kind != "embed"]
        return [Site("embed"), *layers]

    def _kinds(self) -> list[str]:
        return [kind for kind in KINDS if not self._absent(kind)]

    def _absent(self, kind: str) -> str:
        if kind == "resid_mid" and not self.family.mid:
            return "its attention and MLP work in parallel"
        if kind == "neurons" and not self.family.down:
            return "its neurons are spread over experts"
        return ""

    def width(self, site: str | Site) -> int:
        """Numbers per token at a site: d_model, d_ffn, or heads * d_head.

        Raises:
            UnknownSite: the site does not exist, or is a pattern, which has no fixed width.
        """
        site = self.site(site)
        if site.kind == "pattern":
            raise UnknownSite("A pattern has no fixed width.", "It is (batch, heads, queries, keys).")
        if site.kind == "embed":
            return self.embedding.weight.shape[1]  # type: ignore[union-attr,return-value]
        if site.kind in ("k", "v"):
            return self.n_kv_heads * self.d_head
        if site.kind in ("q", "heads"):
            return self.n_heads * self.d_head
        return self.d_ffn if site.kind == "neurons" else self.d_model

    def block_module(self, layer: int, path: str, entry: str = "") -> nn.Module:
        """The module at `path` in block `layer`."""
        return require(self.blocks[layer], path, self.family, entry or path)

    def tap(self, site: Site) -> Tap | None:
        """Where to hook `site`; None for patterns that go through AttentionInterface."""
        if site not in self._taps:
            self._taps[site] = self._make_tap(site)
        return self._taps[site]

    def _make_tap(self, site: Site) -> Tap | None:
        if site.layer is None:
            return Tap(self.embedding, "out")
        family, block = self.family, self.blocks[site.layer]

        def at(entry: str) -> nn.Module:
            return require(block, getattr(family, entry), family, entry)

        H, Hkv, d = self.n_heads, self.n_kv_heads, self.d_head
        match site.kind:
            case "resid_pre":
                return Tap(block, "in")
            case "resid_post":
                return Tap(block, "out")
            case "resid_mid":
                return Tap(at("mid"), "in", in_place=True)
            case "attn_out" | "mlp_out":
                return Tap(at(site.kind), "out")
            case "mlp_in":
                return Tap(at("mlp_in"), "in")
            case "neurons":
                return Tap(at("down"), "in")
            case "heads":
                return Tap(at("o"), "in", View(H, d))
            case "pattern":
                return Tap(at("pattern"), "out") if family.pattern else None
            case _:
                n = "qkv".index(site.kind)
                heads = H if n == 0 else Hkv
                if family.fused == "interleaved":
                    view = View(heads, d, part=n)
                elif family.fused == "concat":
                    view = View(heads, d, start=[0, H * d, (H + Hkv) * d][n])
                else:
                    view = View(heads, d, heads_first=family.heads_first and n < 2)
                return Tap(at(site.kind), "out", view)

    # Running

    def run(
        self,
        tokens_BT: Tensor | Sequence[Sequence[int]],
        *,
        attention_mask: Tensor | None = None,
        read: Iterable[str | Site] = (),
        edits: Any = (),
        positions: Positions | None = None,
        prompt_lengths: Tensor | Sequence[int] | None = None,
        stop_after: str | Site | None = None,
        start_at: tuple[Recording, int, Tensor | None] | None = None,
        grad: bool = False,
        logits: Literal["all", "last"] | None = "all",
    ) -> Run:
        """One forward pass with hooks, which are gone afterwards whatever happens.

        Padded batches, left or right, give the answers of single sequences.

        Args:
            tokens_BT: token ids.
            attention_mask: (B, T), 1 at real tokens; None where there are no pads.
            read: sites to return, as they are after their edits.
            edits: Edits, or anything with `.edits(lm)`.
            positions: tokens touched by edits that name none; None is every real token, BOS and other special ones too.
            prompt_lengths: (B,) how many real tokens are prompt, for positions that tell prompt from generated; None is all.
            stop_after: end here; no later layer and no unembedding is computed.
            start_at: (recording, layer, resid_pre) runs only blocks layer.. on resid_pre (K * B, T, d_model), recorded by
                :meth:`record`; bit-exact. `tokens_BT` are then those of the recording. None for resid_pre is the recorded one.
            grad: keep the graph: gradients reach what was read (`.grad` is kept) and what edits brought in.
            logits: "all" (B, T, V), "last" (B, V) at the last real token, None for none: then the pass ends with the last read.

        Raises:
            UnknownSite: a site does not exist here.
            ContextTooLong: more tokens than the model has positions for.
            UnsupportedModel: the model never came by a site.
        """
        tokens_BT = _as_tokens(tokens_BT, self.device)
        check_positions(positions)
        if start_at is not None and tokens_BT.shape[0] == start_at[0].tokens_BT.shape[0] and start_at[2] is not None:
            times = max(1, start_at[2].shape[0] // tokens_BT.shape[0])
            tokens_BT = tokens_BT.repeat(times, 1)
            attention_mask = start_at[0].mask_BT if attention_mask is None else attention_mask
            attention_mask = None if attention_mask is None else attention_mask.repeat(times, 1)
        mask_BT = self._mask(tokens_BT, attention_mask)
        wanted = {self.site(site) for site in read}
        stop = wanted
        if stop_after is not None:
            last = self.site(stop_after)
            if late := sorted(
                site for site in wanted if site.layer is not None and (last.layer is None or site.layer > last.layer)
            ):
                raise ConfigError(f"{late[-1]} comes after {last}, where the pass ends.", "Stop later.")
            stop, logits = wanted | {last}, None
        elif logits is not None:
            stop = set()
        end = Site("resid_post", self.n_layers - 1)
        if logits == "last":
            stop = wanted | {end}
        by_site = expand_edits(self, edits)
        if logits is None and not stop:
            return Run({}, None)

        act = Pass(self, wanted | ({end} if logits == "last" else set()), by_site, stop, grad)
        B, T = tokens_BT.shape
        window = None
        if by_site:
            lengths = None if prompt_lengths is None else torch.as_tensor(prompt_lengths)
            window = Window.of(tokens_BT, mask_BT, self._special.to(tokens_BT.device), lengths, positions)
        if self.model.training:
            self.model.eval()
        with act.hooked(), torch.set_grad_enabled(grad):
            act.begin((B, T), window)
            output = act.finish(lambda: self._forward(tokens_BT, mask_BT, start_at, logits))
            if logits == "last":
                resid = act.acts[end] if end in wanted else act.acts.pop(end)
                t = torch.full((B,), T - 1) if mask_BT is None else T - 1 - mask_BT.flip(1).long().argmax(1)
                output = self.unembed(resid[torch.arange(B), t.to(resid.device)])
        return Run(act.acts, output if logits else None)

    def _forward(
        self,
        tokens_BT: Tensor,
        mask_BT: Tensor | None,
        start_at: tuple[Recording, int, Tensor | None] | None,
        logits: Literal["all", "last"] | None,
    ) -> Tensor | None:
        if start_at is not None:
            recording, layer, resid_pre = start_at
            resid_pre = recording.resid_pre(layer) if resid_pre is None else resid_pre
            return self.unembed(replay(self, recording, layer, resid_pre))
        arguments: dict[str, Any] = {"use_cache": False}
        if mask_BT is not None:
            arguments["attention_mask"] = mask_BT.long()
            if self._takes_positions:
                arguments["position_ids"] = positions_from_mask(mask_BT)
        return self.model(input_ids=tokens_BT, **arguments).logits

    @property
    def _takes_positions(self) -> bool:
        import inspect

        return "position_ids" in inspect.signature(self.model.forward).parameters

    def _mask(self, tokens_BT: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        T = tokens_BT.shape[1]
        if T > self.max_context:
            raise ContextTooLong(f"{T} tokens are more than the {self.max_context} positions of {self.name}.", "Cut the text.")
        if attention_mask is None:
            return None
        mask_BT = torch.as_tensor(attention_mask, device=tokens_BT.device).bool()
        if mask_BT.shape != tokens_BT.shape:
            raise ConfigError(f"The mask is {tuple(mask_BT.shape)}, the tokens {tuple(tokens_BT.shape)}.")
        # Without a mask attention may take its fast causal path.
        return None if bool(mask_BT.all()) else mask_BT

    def record(self, tokens_BT: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None = None) -> Recording:
        """Run once and keep what every block was called with, for `run(start_at=...)`."""
        tokens_BT = _as_tokens(tokens_BT, self.device)
        mask_BT = self._mask(tokens_BT, attention_mask)
        recorder = Recorder()
        act = Pass(self, stop=[Site("resid_pre", self.n_layers - 1)])
        with ExitStack() as stack, torch.no_grad():
            for block in self.blocks:
                stack.callback(block.register_forward_pre_hook(recorder, with_kwargs=True).remove)
            stack.enter_context(act.hooked())
            act.begin(tuple(tokens_BT.shape), None)  # type: ignore[arg-type]
            act.finish(lambda: self._forward(tokens_BT, mask_BT, None, None))
        return Recording(tokens_BT, mask_BT, recorder.calls)

    def generate(self, prompts: Any, **kwargs: Any) -> Generation:
        """Continue prompts, with interventions: see :func:`saekit.lm.generate.generate`."""
        from saekit.lm.generate import generate

        return generate(self, prompts, **kwargs)

    # Vocabulary

    def unembed(self, resid_ND: Tensor) -> Tensor:
        """Logits (N, V) of residual vectors (N, d_model), as the last block would put them out: final norm, head, soft-cap."""
        x = resid_ND
        for module in self._final:
            x = module(_like(x, module))
        logits = self.head(_like(x, self.head))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def W_U(self) -> Tensor:
        """(d_model, V) what each vocabulary entry reads from the normed residual stream; a view, never to be changed."""
        return self.head.weight.T  # type: ignore[union-attr,operator]

    def encode(
        self, texts: str | Sequence[str], *, bos: bool = True, pad_side: Literal["left", "right"] = "left"
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) and mask (B, T) of texts; BOS is prepended exactly once where the tokenizer has one."""
        rows = self.text.ids([texts] if isinstance(texts, str) else texts, bos=bos)
        tokens_BT, mask_BT = self.text.pad(rows, pad_side)
        return tokens_BT.to(self.device), mask_BT.to(self.device)

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of token ids, special tokens included."""
        return self.text.decode(ids)

    def token_strings(self, ids: Iterable[int] | Tensor) -> list[str]:
        """How to show each token by itself."""
        return self.text.token_strings(ids)

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text, where the tokenizer has one."""
        return self.text.bos_token_id

    @property
    def special_ids(self) -> frozenset[int]:
        """BOS, EOS, PAD and the like: never trained on or steered at."""
        return self.text.special_ids

    # Identity, dictionaries, spaces

    def fingerprint(self) -> dict[str, str]:
        """What tells this model from another: {"model", "tokenizer"} as sha256, {"name", "revision"} as given.

        The first two depend neither on where the model lies nor on its dtype or device.
        """
        from saekit.lm.fingerprint import model_sha256

        if not hasattr(self, "_sha256"):
            self._sha256 = model_sha256(self)
        return {"model": self._sha256, "tokenizer": self.text.sha256, "name": self.name, "revision": self.revision}

    def attach_sae(self, site: str | Site, sae: SAE) -> None:
        """Let `space(site)` give the SAE's features."""
        self.dictionaries[self.site(site)] = sae

    def space(self, site: str | Site) -> Any:
        """The interpretable coordinates at a site: features where an SAE is attached, raw objects where not."""
        from saekit.objects import space_at

        return space_at(self, self.site(site))


def _as_tokens(tokens: Tensor | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    tokens_BT = torch.as_tensor(tokens, dtype=torch.long, device=device)
    if tokens_BT.ndim == 1:
        tokens_BT = tokens_BT[None]
    if tokens_BT.ndim != 2 or not tokens_BT.numel():
        raise ConfigError(f"Tokens have shape {tuple(tokens_BT.shape)}.", "Give (batch, tokens), at least one of each.")
    return tokens_BT


def _like(x: Tensor, module: nn.Module) -> Tensor:
    weight = next(module.parameters(), None)
    if weight is None or weight.device.type == "meta":
        return x
    return x.to(device=weight.device, dtype=weight.dtype)


def _in_features(projection: nn.Module) -> int:
    if hasattr(projection, "in_features"):
        return int(projection.in_features)
    return projection.weight.shape[0]  # type: ignore[union-attr,return-value]  # Conv1D keeps [in, out]
