"""Forward passes of a model: read, edit, stop early, start late."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError, StoreMismatch
from saekit.lm.edited import edits_on
from saekit.lm.exclusive import innermost
from saekit.lm.layout.layout import ModelLayout
from saekit.lm.layout.resolve import Resolved
from saekit.lm.ordinary_tokens import ordinary, positions_from_mask
from saekit.lm.padding import Padded, Side
from saekit.lm.run.edits import TokenWindow, expand_edits
from saekit.lm.run.exactness import Exactness
from saekit.lm.run.hooks import ForwardPass, taken
from saekit.lm.run.logits import changed, last_real, logits_edits, sites_of
from saekit.lm.run.prefix import Recorder, Recording, divisible, replay
from saekit.lm.tokenization import Text
from saekit.names.positions import DefaultPositions, Positions, check_positions
from saekit.names.site import Site


@dataclass
class Run:
    """The result of a forward pass; `run["resid_post.3"]` is short for `run.acts[Site.parse("resid_post.3")]`.

    Attributes:
        acts: activations by site. Most are (B, T, width); heads, q, k and v are (B, T, heads, d_head); patterns are
            (B, heads, T, T).
        logits: (B, T, V), or (B, V) at the last real token of each row, or None if they were not asked for.
    """

    acts: dict[Site, Tensor]
    logits: Tensor | None

    def __getitem__(self, site: Site | str) -> Tensor:
        return self.acts[Site.parse(site)]


class RunnableModel(ModelLayout):
    """A model layout with a tokenizer: all that forward passes need.

    Attributes, besides those of :class:`saekit.lm.layout.layout.ModelLayout`:
        tokenizer: the Hugging Face tokenizer; None if the model was attached without one.
        text: turns text into tokens and back.
        exact: which ways of computing are exact for this model.
    """

    def __init__(self, model: Any, tokenizer: Any, resolved: Resolved, name: str, bos: str = "auto") -> None:
        super().__init__(model, resolved, name)
        self.tokenizer = tokenizer
        self.text = Text(tokenizer, [self.config, getattr(model, "generation_config", None)], bos)
        self.exact = Exactness(self)
        self._special: Tensor | None = None
        model.eval()

    def run(
        self,
        tokens_BT: Tensor | Sequence[Sequence[int]] | None = None,
        *,
        attention_mask: Tensor | None = None,
        read: Iterable[str | Site] | str | Site = (),
        edits: Any = (),
        positions: Positions | DefaultPositions | None = None,
        prompt_lengths: Tensor | Sequence[int] | None = None,
        prompt_of_row: Tensor | Sequence[int] | None = None,
        stop_after: str | Site | None = None,
        start_at: tuple[Recording, int, Tensor | None] | None = None,
        grad: bool = False,
        logits: Literal["all", "last", "auto"] | None = "auto",
    ) -> Run:
        """Run one forward pass. Its hooks are removed afterwards, also after an error.

        Rows of a padded batch, with pads on the left or right, give the results that they give alone. Passes of several threads
        run one after the other. An edit may run the model; that inner pass is not edited.

        Args:
            tokens_BT: token ids.
            attention_mask: (B, T), 1 at real tokens; None if there are no pads.
            read: sites to return, as they are after their edits.
            edits: Edits, or anything with `.edits(lm)` or `.logits_edits(lm)`.
            positions: tokens touched by edits that name none. None is every real token, including BOS and other special tokens;
                :data:`saekit.names.positions.GENERATION` is the default of `generate`.
            prompt_lengths: (B,) number of real tokens in each row's prompt, for positions that tell prompt from generated tokens.
                None: everything is prompt.
            prompt_of_row: (B,) the number of each row's prompt, given to edits as `At.batch_N`. None: row b is prompt b.
            stop_after: end the pass once this site and those in `read` have been seen. No later layer is computed.
            start_at: (recording, layer, resid_pre): run only the blocks from `layer` on, with resid_pre (K * B, T, d_model) as
                input. Row r takes the place of row r % B of the recording that :meth:`record` made. None for resid_pre takes the
                recorded input. The result equals that of a whole pass bit for bit.
            grad: keep the graph. Gradients reach the activations in `read`, which keep them in `.grad`, and the tensors that
                edits use.
            logits: "all" (B, T, V); "last" (B, V), at the last real token of each row; None: no logits, and the pass ends after
                the last site in `read`; "auto": None if `read` names a site, else "all".

        Raises:
            UnknownSite: the model lacks a site.
            ContextTooLong: there are more tokens than the model has positions for.
            UnsupportedModel: the model did not call the module of a site.
            ConfigError: tokens, mask, positions or edits do not fit.
            StoreMismatch: the recording was made with other edits of the weights than those that are on.
        """
        check_positions(positions)
        tokens_BT, mask_BT = self._tokens(tokens_BT, attention_mask, start_at)
        sites = {self.site(site) for site in ([read] if isinstance(read, str | Site) else read)}
        logits, stop = self._ends(sites, logits, stop_after)
        # Edits are made under the lock too, so that the attached SAEs stay the same until the edits have run.
        with self.lock:
            edits = [*edits] if isinstance(edits, Iterable) else [edits]
            by_site, rules = expand_edits(self, edits), logits_edits(self, edits) if logits is not None else []
            reached = {*sites, *by_site, *sites_of(rules)}
            if start_at is not None and any(site.layer is None or site.layer < start_at[1] for site in reached):
                raise ConfigError(f"The pass starts at layer {start_at[1]} and reaches no site before it.", "Start earlier.")
            if start_at is not None and start_at[0].edits != edits_on(self):
                raise StoreMismatch("The recording was made with other weights.", "Record again inside the same lm.edited.")
            if logits is None and not stop:
                return Run({}, None)
            window = None
            if by_site:
                lengths_B = _per_row("prompt_lengths", prompt_lengths, tokens_BT)
                row_B = _per_row("prompt_of_row", prompt_of_row, tokens_BT)
                window = TokenWindow.of(tokens_BT, mask_BT, self.special_tensor, lengths_B, positions, row_B)
            wanted = sites | sites_of(rules) | ({self._end} if logits == "last" else set())
            forward_pass = ForwardPass(self, wanted, by_site, stop, grad)
            if start_at is not None and not start_at[0].replayable:
                forward_pass.replaced[Site("resid_pre", start_at[1])] = start_at[0].start(*start_at[1:])
                start_at = None
            order_BT = self._order(mask_BT, start_at)
            with forward_pass.hooked(), torch.set_grad_enabled(grad):
                forward_pass.begin(tokens_BT.shape[0], tokens_BT.shape[1], window, order_BT)
                out = forward_pass.finish(lambda: self._forward(tokens_BT, mask_BT, start_at, order_BT))
                acts = forward_pass.acts
                if logits == "last":
                    out = self.unembed(last_real(acts[self._end], mask_BT))
                    acts = {site: last_real(acts[site], mask_BT) for site in sites_of(rules)} if rules else acts
                out = changed(rules, out, acts)
        return Run({site: forward_pass.acts[site] for site in sites}, out)

    def _order(self, mask_BT: Tensor | None, start_at: Any) -> Tensor | None:
        """The order of columns in which a batch with pads must run: None for its own, else with all pads on the right.

        No token sees a later one, so pads on the right change nothing, whatever the architecture.
        """
        if mask_BT is None or start_at is not None or self.exact.pads:
            return None
        return mask_BT.logical_not().long().argsort(dim=1, stable=True)

    @property
    def _end(self) -> Site:
        return Site("resid_post", self.n_layers - 1)

    def _ends(
        self, sites: set[Site], logits: str | None, stop_after: str | Site | None
    ) -> tuple[Literal["all", "last"] | None, set[Site]]:
        """Which logits to compute, and the sites after which the pass ends. Without a site it runs to the end, or not at all."""
        if logits not in ("all", "last", "auto", None):
            raise ConfigError(f"logits={logits!r} is not one of 'all', 'last', 'auto' and None.")
        if stop_after is not None:
            return None, sites | {self.site(stop_after)}
        if logits == "last":
            return "last", sites | {self._end}
        if logits == "all" or (logits == "auto" and not sites):
            return "all", set()
        return None, sites

    def record(self, tokens_BT: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None = None) -> Recording:
        """Run once and keep the arguments of every block, for `run(start_at=...)`.

        Where blocks cannot be called again alone, it keeps their inputs, and `run(start_at=...)` runs the whole model.
        """
        tokens_BT, mask_BT = self._tokens(tokens_BT, attention_mask, None)
        with self.lock:
            replays = self.exact.replays and self._order(mask_BT, None) is None
            if replays and (recording := divisible(self.record_calls, tokens_BT, mask_BT)) is not None:
                return recording
            sites = [Site("resid_pre", layer) for layer in range(self.n_layers)]
            run = self.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None)
            return Recording(tokens_BT, mask_BT, [((run[site],), {}) for site in sites], False, edits_on(self))

    def record_calls(self, tokens_BT: Tensor, mask_BT: Tensor | None) -> Recording:
        """As :meth:`record`, of calls that are taken to be repeatable."""
        forward_pass = ForwardPass(self, stop=[Site("resid_pre", self.n_layers - 1)])
        recorder = Recorder(forward_pass)
        with self.lock, ExitStack() as stack, torch.no_grad():
            # These hooks come before those of the pass, which end it at the input of the last block.
            for block in self.blocks:
                stack.callback(block.register_forward_pre_hook(recorder, with_kwargs=True).remove)
            stack.enter_context(forward_pass.hooked())
            forward_pass.begin(tokens_BT.shape[0], tokens_BT.shape[1])
            forward_pass.finish(lambda: self._forward(tokens_BT, mask_BT, None))
            return Recording(tokens_BT, mask_BT, recorder.calls, edits=edits_on(self))

    def bare_logits(self, tokens_BT: Tensor, mask_BT: Tensor | None, owner: object = None) -> Tensor:
        """(B, T, V) of the model as it is, without any hook but those of the pass `owner`."""
        with innermost(owner or object()):
            return self._forward(tokens_BT, mask_BT, None)

    def _tokens(
        self, tokens: Any, attention_mask: Tensor | None, start_at: tuple[Recording, int, Tensor | None] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T) on the device, and the mask as booleans, or None if there are no pads."""
        if start_at is not None:
            return self._start(start_at)
        if isinstance(tokens, str) or (isinstance(tokens, Sequence) and any(isinstance(row, str) for row in tokens)):
            raise ConfigError("Tokens cannot be read: they are text.", "lm.encode(texts) gives their token ids and mask.")
        tokens_BT = _integers("Tokens", [] if tokens is None else tokens)
        if tokens_BT.ndim != 2 or not tokens_BT.numel():
            raise ConfigError(f"Tokens of shape {tuple(tokens_BT.shape)} cannot be run.", "Give (batch, tokens), at least one.")
        self.check_context(tokens_BT.shape[1])
        known = int(self.embedding.num_embeddings)  # type: ignore[arg-type]
        # On a GPU, this check would wait for the device.
        if tokens_BT.device.type == "cpu" and not 0 <= int(tokens_BT.min()) <= int(tokens_BT.max()) < known:
            raise ConfigError(f"Token ids must be from 0 to {known - 1}.", "Were they made by another tokenizer?")
        tokens_BT = tokens_BT.to(self.device)
        if attention_mask is None:
            return tokens_BT, None
        mask_BT = _integers("The mask", attention_mask, floats=True).to(self.device).bool()
        if mask_BT.shape != tokens_BT.shape:
            raise ConfigError(
                f"The mask is {tuple(mask_BT.shape)} for tokens {tuple(tokens_BT.shape)}.", "Give one for each token."
            )
        every, some = torch.stack([mask_BT.all(), mask_BT.any(1).all()]).tolist()
        if not some:
            raise ConfigError("The mask has a row without a real token.", "Leave such rows out.")
        # Without a mask, attention can take its fast causal path.
        return tokens_BT, None if every else mask_BT

    def _start(self, start_at: tuple[Recording, int, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """Tokens and mask of a pass that starts at a layer."""
        try:
            recording, layer, resid_pre = start_at
            found = 0 <= operator.index(layer) < len(recording.calls)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError("start_at must be (recording, layer, resid_pre).", "lm.record makes recordings.") from error
        if not found:
            raise ConfigError(f"A pass cannot start at layer {layer}.", f"Layers are 0 to {len(recording.calls) - 1}.")
        if resid_pre is not None and resid_pre.shape[-1:] != (self.d_model,):
            raise ConfigError(f"resid_pre has {tuple(resid_pre.shape)} numbers.", f"Its last size must be {self.d_model}.")
        return recording.expanded(resid_pre)

    def _forward(
        self,
        tokens_BT: Tensor,
        mask_BT: Tensor | None,
        start_at: tuple[Recording, int, Tensor | None] | None,
        order_BT: Tensor | None = None,
    ) -> Tensor:
        if start_at is not None:
            return self.unembed(replay(self.blocks, *start_at))
        if order_BT is not None:
            logits: Tensor = self.model(input_ids=taken(tokens_BT, order_BT), use_cache=False).logits
            return taken(logits, order_BT.argsort(1))
        arguments: dict[str, Any] = {}
        if mask_BT is not None:
            arguments["attention_mask"] = mask_BT.long()
            if self._takes_positions:
                arguments["position_ids"] = positions_from_mask(mask_BT)
        return self.model(input_ids=tokens_BT, use_cache=False, **arguments).logits

    @cached_property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def encode(self, texts: str | Sequence[str], *, bos: bool | None = None, pad_side: Side = "left") -> Padded:
        """Tokens (B, T) and mask (B, T) of texts.

        Args:
            texts: one text, or several.
            bos: None: begin with BOS where :attr:`bos_token_id` says so. True: wherever the tokenizer has one. False: never. BOS
                is counted once: a text that begins with it gets no second one.
            pad_side: of the shorter rows.
        """
        rows = self.text.ids([texts] if isinstance(texts, str) else texts, bos=bos)
        tokens_BT, mask_BT = self.text.pad(rows, pad_side)
        return Padded(tokens_BT.to(self.device), mask_BT.to(self.device))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of token ids, special tokens included."""
        return self.text.decode(ids)

    def token_strings(self, ids: Iterable[int] | Tensor) -> list[str]:
        """Each token as text to show: spaces as spaces, incomplete characters as bytes like `\\xe2`."""
        return self.text.token_strings(ids)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token with which every context begins; None where contexts begin with text."""
        return self.text.bos_token_id

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of BOS, EOS, PAD and other special tokens. They are not trained on, and policies do not steer at them."""
        return self.text.special_ids

    @property
    def special_tensor(self) -> Tensor:
        """`special_ids` in ascending order, on the device of the model."""
        device = self.device
        if self._special is None or self._special.device != device:
            self._special = torch.tensor(sorted(self.special_ids), dtype=torch.long, device=device)
        return self._special

    def ordinary(
        self, tokens: Tensor, mask: Tensor | None = None, *, chosen: Tensor | None = None, keep_first: bool = False
    ) -> Tensor:
        """True at the tokens that count: real, not special, and not the first of their context (an attention sink).

        Args:
            tokens: ids, (B, T) or (T,), a context per row.
            mask: 1 at real tokens, in the shape of `tokens`; None if there are no pads.
            chosen: True at the tokens that were trained on, in the shape of `tokens`; None: all.
            keep_first: count the first token of a context too, unless it is special.
        """
        return ordinary(tokens, self.special_tensor, mask=mask, chosen=chosen, keep_first=keep_first)


def _per_row(name: str, values: Tensor | Sequence[int] | None, tokens_BT: Tensor) -> Tensor | None:
    if values is None:
        return None
    values_B = _integers(name, values)
    if values_B.shape != tokens_BT.shape[:1]:
        raise ConfigError(
            f"{name} of shape {tuple(values_B.shape)} does not fit {len(tokens_BT)} rows.", "Give one integer for each row."
        )
    if values_B.device.type == "cpu" and len(values_B) and int(values_B.min()) < 0:
        raise ConfigError(f"{name} has a negative number.", "Give counts from 0.")
    return values_B.to(tokens_BT.device)


def _integers(name: str, values: Any, *, floats: bool = False) -> Tensor:
    """`values` as an int64 tensor.

    Raises:
        ConfigError: they are not numbers in rows of equal length, or (without `floats`) not integers.
    """
    try:
        read = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"{name} cannot be read: {error}.", "Give integers, in rows of equal length.") from error
    if read.is_complex() or (read.is_floating_point() and read.numel() and not floats):
        raise ConfigError(f"{name} of {read.dtype} are not integers.", "Give integers.")
    return read if floats else read.long()
