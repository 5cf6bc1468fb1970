"""Runs of circuits: every reader takes in a stream of its own, in which the edges outside the circuit are ablated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.exclusive import innermost
from saekit.lm.layout.hook_points import HookPoint, find_input, find_output, replace_input
from saekit.lm.run.attention_patterns import patterns_through
from saekit.lm.run.prefix import Recording, replay
from saekit.locate.circuits.taps import Outputs, Qkv, Writes
from saekit.locate.circuits.wiring import Layer
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


class _Captured(Exception):
    """A block was called only for what came before."""


class CircuitRunner:
    """Runs many circuits on B prompts at once, K circuits on the row axis.

    A block is called with its own arguments. Inside the call, the attention function takes queries, keys and values that were
    made from the streams of their readers, and the MLP's norm takes in the stream of the MLP's reader. Readers of a layer that
    read the same edges share one stream. Until two circuits differ, they share their rows.

    Args:
        lm: the model.
        writes: what its heads write.
        recording: the calls of its blocks on the prompts.
        clean: what its objects write on the prompts.
        ablated: what ablated edges carry, with `pre`, `mid` and `end` as the streams in which all edges are ablated.
        groups_BTS: (B, T, S) float, 1 at the group of each position.
        rows: rows of a block's call, at most.
    """

    def __init__(
        self,
        lm: LanguageModel,
        writes: Writes,
        recording: Recording,
        clean: Outputs,
        ablated: Outputs,
        groups_BTS: Tensor,
        rows: int = 1024,
    ) -> None:
        if not recording.replayable:
            raise UnsupportedModel(f"The blocks of {lm.name} cannot be called one by one, so that circuits cannot be run.")
        self.lm, self.writes, self.wiring = lm, writes, writes.wiring
        self._recording, self._clean, self._ablated, self._groups_BTS = recording, clean, ablated, groups_BTS
        self._rows = rows
        self._layer_of = {lm.attention(Site("heads", layer)): layer for layer in range(lm.n_layers)}
        self._capture: Qkv | Tensor | None = None
        self._capturing = ""
        self._own: Qkv | None = None  # queries, keys and values for the block that runs
        self._mlp_input: Tensor | None = None

    @contextmanager
    def hooked(self) -> Iterator[CircuitRunner]:
        """Within the block, the model's lock is held and circuits can be run."""
        with self.lm.lock, innermost(self), patterns_through(self.lm), ExitStack() as stack, torch.no_grad():
            for layer, row in enumerate(self.wiring.layers):
                for site in (Site("heads", layer), Site("mlp_out", layer)):
                    if site.kind == "heads" or row.mlp is not None:
                        stack.callback(self._hook(layer, row, site).remove)
                if row.mlp is not None:
                    site = Site("mlp_in" if row.parallel else "resid_mid", layer)
                    stack.callback(self._hook(layer, row, site).remove)
            yield self

    def end(self, keep_KUVS: Tensor) -> Tensor:
        """(K, B, T, d_model) what the logits read. The caller is within :meth:`hooked`.

        Args:
            keep_KUVS: bool; the edges of each circuit. Entries without an edge are ignored.
        """
        self._state = _State(self, keep_KUVS & self.wiring.possible_UV[..., None])
        x = self._clean.pre[0]
        for layer, row in enumerate(self.wiring.layers):
            x = self._block(layer, row, x)
        last = len(self.wiring.readers) - 1
        K, times = len(keep_KUVS), len(x) // len(self._clean.embed)
        x = x.unflatten(0, (times, -1))
        return self._state.streams([(k, last) for k in range(K)], x, self._ablated.end, len(self.wiring.writers))

    def _block(self, layer: int, row: Layer, x: Tensor) -> Tensor:
        """The stream after a block, for the true stream `x` (1 * B or K * B, T, d_model) before it."""
        state, B = self._state, len(self._clean.embed)
        mine = x.unflatten(0, (-1, B))
        readers = [*row.attention_readers, *([] if row.mlp_reader is None else [row.mlp_reader])]
        if state.times == 1 and not state.same(readers):
            state.times = state.K
        if len(mine) < state.times:
            mine = mine.expand(state.times, *mine.shape[1:])
        self._own = self._queries_keys_values(layer, row, mine)
        self._mlp_input = None
        if row.mlp_reader is not None and row.parallel:
            reading = [(k, row.mlp_reader) for k in range(state.times)]
            streams = state.streams(reading, mine, self._ablated.pre[layer], row.before)
            (self._mlp_input,) = self._captured(layer, streams.flatten(0, 1), "mlp")
        return self._replay(layer, mine.flatten(0, 1))

    def _queries_keys_values(self, layer: int, row: Layer, mine: Tensor) -> Qkv:
        """Queries, keys and values (rows, H, T, d_head) of every query head, each from the stream of its reader."""
        state, H = self._state, row.n_heads
        chosen, which = state.distinct(row.attention_readers)
        streams = state.streams(chosen, mine, self._ablated.pre[layer], row.before)
        made = self._captured(layer, streams.flatten(0, 1), "qkv")
        own = []
        for part, x in enumerate(made):
            x = x.unflatten(0, (len(chosen), -1))
            heads = torch.arange(H) // (H // x.shape[2])
            index_KH = which[:, part * H : (part + 1) * H]
            own.append(x[index_KH, :, heads].transpose(1, 2).flatten(0, 1))
        return own[0], own[1], own[2]

    def _captured(self, layer: int, inputs: Tensor, what: str) -> list[Tensor]:
        """What a block makes of its inputs (rows, T, d_model) before its attention ("qkv") or its MLP ("mlp")."""
        B = len(self._clean.embed)
        found = []
        for some in inputs.split(max(1, self._rows // B) * B):
            self._capturing = what
            try:
                self._replay(layer, some)
            except _Captured:
                captured = self._capture
            finally:
                self._capturing, self._capture = "", None
            found.append(captured if isinstance(captured, tuple) else (captured,))
        return [torch.cat(parts) for parts in zip(*found)]

    def _replay(self, layer: int, x: Tensor) -> Tensor:
        recorded = self._recording
        one = replace(recorded, calls=recorded.calls[layer : layer + 1])
        return replay(self.lm.blocks[layer : layer + 1], one, 0, x)

    def attention_inputs(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Qkv:
        """Called by the attention function: queries, keys and values from the streams of their readers."""
        if self._capturing == "qkv":
            self._capture = query, key, value
            raise _Captured
        if self._capturing or self._own is None or module not in self._layer_of:
            return query, key, value
        return self._own

    def _hook(self, layer: int, row: Layer, site: Site) -> Any:
        point = self.lm.hook_point(site)
        assert point is not None
        if point.side == "out":

            def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                if not self._capturing:
                    self._see(layer, row, site, point, find_output(output))

            return point.module.register_forward_hook(after)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            where, raw = find_input(args, kwargs)
            if self._capturing:
                if self._capturing == "mlp" and site.kind == "mlp_in":
                    self._capture = raw
                    raise _Captured
                return None
            new = self._see(layer, row, site, point, raw)
            return None if new is None else replace_input(args, kwargs, where, new)

        return point.module.register_forward_pre_hook(before, with_kwargs=True)

    def _see(self, layer: int, row: Layer, site: Site, point: HookPoint, raw: Tensor) -> Tensor | None:
        """Take in what heads and MLPs give; the new input of the MLP or of its norm."""
        B, T = self._clean.embed.shape[:2]
        state = self._state
        if site.kind == "mlp_in":
            assert self._mlp_input is not None
            return self._mlp_input.reshape(raw.shape)
        x = point.view.get(raw, state.times * B, T).unflatten(0, (state.times, B))
        if site.kind == "heads":
            wanted = [h for h in range(row.n_heads) if row.before + h in state.used]
            if wanted:
                written = self.writes.of_heads(layer, x - self._ablated.heads[layer], wanted)
                state.moved.update({row.before + h: written[i] for i, h in enumerate(wanted)})
            return None
        if site.kind == "mlp_out":
            scale = self.lm.scale(site)
            if row.mlp is not None and row.mlp in state.used:
                carried = self._ablated.mlps[layer]
                assert carried is not None
                state.moved[row.mlp] = x * (scale.to(x) if isinstance(scale, Tensor) else scale) - carried
            return None
        assert row.mlp_reader is not None
        readers = [(k, row.mlp_reader) for k in range(state.times)]
        streams = state.streams(readers, x, self._ablated.mid[layer], row.read_by_mlp)
        return point.view.put(raw, streams.flatten(0, 1))


class _State:
    """What K circuits have computed so far.

    Attributes:
        times: K, or 1 as long as all circuits are the same.
        used: writers from which some circuit has an edge.
        moved: by writer, what it writes minus what its ablated edges carry, (1 or K, B, T, d_model).
    """

    def __init__(self, runner: CircuitRunner, keep_KUVS: Tensor) -> None:
        self.keep, self.K, self.times = keep_KUVS, len(keep_KUVS), 1
        possible = runner.wiring.possible_UV
        # Writers from which no circuit has an edge need not be computed.
        self.used = set(keep_KUVS.any(3).any(2).any(0).nonzero().flatten().tolist())
        self.moved: dict[int, Tensor] = {0: (runner._clean.embed - runner._ablated.embed)[None]}
        self._groups_BTS = runner._groups_BTS
        self._whole = (keep_KUVS | ~possible[..., None]).all(3).all(1).tolist()  # K lists of V: all edges to a reader are kept
        self._keys = [[column.numpy().tobytes() for column in each.unbind(1)] for each in keep_KUVS.cpu()]

    def same(self, readers: list[int]) -> bool:
        """Whether these readers read the same edges in all circuits."""
        return all(keys[v] == self._keys[0][v] for keys in self._keys[1:] for v in readers)

    def distinct(self, readers: range) -> tuple[list[tuple[int, int]], Tensor]:
        """(circuit, reader) for each stream that differs, and which of them each reader reads (times, readers)."""
        numbers: dict[tuple[int, bytes], int] = {}
        chosen: list[tuple[int, int]] = []
        which = torch.empty(self.times, len(readers), dtype=torch.long)
        for k in range(self.times):
            for i, v in enumerate(readers):
                key = (k if any(self._keys[k][v]) else -1, self._keys[k][v])  # without edges, all circuits read the same
                if key not in numbers:
                    numbers[key] = len(chosen)
                    chosen.append((k, v))
                which[k, i] = numbers[key]
        return chosen, which

    def streams(self, chosen: list[tuple[int, int]], true: Tensor, base: Tensor | None, before: int) -> Tensor:
        """(n, B, T, d_model) what readers read: the stream with all edges ablated, and what their edges add to it.

        Args:
            chosen: (circuit, reader).
            true: (times, B, T, d_model) the stream of each circuit, which is read where no edge is ablated.
            base: (B, T, d_model) the stream with all edges ablated.
            before: number of writers before these readers.
        """
        assert base is not None
        found = base.expand(len(chosen), *base.shape).clone()
        for k in {k for k, _ in chosen}:
            mine = [i for i, (each, v) in enumerate(chosen) if each == k and not self._whole[k][v]]
            for i in (i for i, (each, v) in enumerate(chosen) if each == k and self._whole[k][v]):
                found[i] = true[k % len(true)]
            if not mine:
                continue
            columns = self.keep[k][:before, [chosen[i][1] for i in mine]]  # (U, n, S)
            writers: list[int] = columns.any(2).any(1).nonzero().flatten().tolist()
            if not writers:
                continue
            moved = torch.stack([self.moved[u][k % len(self.moved[u])] for u in writers])
            weight = columns[writers].to(moved)
            if weight.shape[2] == 1:
                found[mine] += torch.einsum("un,ubtd->nbtd", weight[..., 0], moved)
            else:
                found[mine] += torch.einsum("nubt,ubtd->nbtd", torch.einsum("uns,bts->nubt", weight, self._groups_BTS), moved)
        return found
