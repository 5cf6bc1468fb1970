"""A pass: the hooks of one forward pass or one generation, and what they read and change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.exclusive import innermost, innermost_pass, is_innermost
from saekit.lm.layout.hook_points import HookPoint, find_input, find_output, replace_input, replace_output
from saekit.lm.layout.layout import ModelLayout
from saekit.lm.run.attention_patterns import own_attention, patterns_through
from saekit.lm.run.edits import Edit
from saekit.names.site import Site


class Window(Protocol):
    """Applies edits to the tokens of a pass; :class:`saekit.lm.run.edits.TokenWindow` is one."""

    def apply(self, edit: Edit, x: Tensor) -> Tensor:
        """The activation at the site of the edit after the edit; `x` itself where nothing is changed."""


class _Stop(Exception):
    """All wanted sites have been seen, so the rest of the model need not run."""


class ForwardPass:
    """What to read and change at each site, in one forward pass or in all those of a generation.

    Args:
        lm: the model.
        read: sites whose activations to keep.
        edits: changes by site, in the order in which they run.
        stop: end a forward pass once all of these sites have been seen. Empty: run to the end.
        grad: keep the activations in the graph, with their gradients.
        anywhere: act also when another thread calls the bare model.

    Attributes:
        acts: the activations of the last forward pass, by site.
        patterns: for attention modules whose pattern is wanted, what to do with it.
        replaced: by site, the (B, T, ...) values that take the place of the model's before any edit.
    """

    def __init__(
        self,
        lm: ModelLayout,
        read: Iterable[Site] = (),
        edits: Mapping[Site, list[Edit]] | None = None,
        stop: Iterable[Site] = (),
        grad: bool = False,
        anywhere: bool = False,
    ) -> None:
        self._anywhere = anywhere
        self.lm, self.read, self.edits, self.grad = lm, frozenset(read), dict(edits or {}), grad
        self.acts: dict[Site, Tensor] = {}
        self.patterns: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        self._stop = frozenset(stop)
        self._attention = ""  # the model's own attention, while this pass replaces it
        self._window: Window | None = None
        self._shape = (0, 0)
        self._order: Tensor | None = None
        self.replaced: dict[Site, Tensor] = {}
        self._pending: set[Site] = set()
        self._missed: set[Site] = set()

    @contextmanager
    def hooked(self) -> Iterator[ForwardPass]:
        """Within the block, the hooks are on and the model's lock is held. Both end with the block, also after an error.

        The hooks act for this pass alone: not in a pass inside an edit, nor when another thread calls the bare model.
        """
        sites = sorted(self.read | self.edits.keys() | self._stop | self.replaced.keys())
        patterns = [site for site in sites if site.kind == "pattern" and self.lm.hook_point(site) is None]
        with ExitStack() as stack:
            stack.enter_context(self.lm.lock)
            outer = innermost_pass()
            stack.enter_context(innermost(self))
            if self.lm.model.training:
                self.lm.model.eval()
            if patterns:
                self.patterns = {self.lm.attention(site): self._visit_pattern(site) for site in patterns}
                self._attention = stack.enter_context(patterns_through(self.lm))
            elif isinstance(outer, ForwardPass) and outer._attention and outer.lm.model is self.lm.model:
                stack.enter_context(own_attention(self.lm, outer._attention))
            for site in sites:
                point = self.lm.hook_point(site)
                if point is not None:
                    stack.callback(self._hook(site, point).remove)
            yield self

    def acts_now(self) -> bool:
        """Whether the hooks act in a pass of this thread that runs now."""
        return is_innermost(self) or (self._anywhere and innermost_pass() is None)

    def begin(self, B: int, T: int, window: Window | None = None, order_BT: Tensor | None = None) -> None:
        """Prepare for a forward pass over B rows of T tokens. Edits need its `window`.

        With `order_BT`, the model runs with column order_BT[b, t] of row b at place t, and sites are shown in the usual order.
        """
        self._shape, self._window, self._order = (B, T), window, order_BT
        self._pending = set(self._stop)
        self._missed = set(self.read | self.edits.keys())

    def resize(self, B: int, T: int) -> None:
        """Within a forward pass: the modules that run next are given B rows of T tokens."""
        self._shape = (B, T)

    def finish(self, forward: Callable[[], Any]) -> Any:
        """Run `forward` and return its result, or None if the pass was stopped.

        Raises:
            UnsupportedModel: a wanted site was not reached.
        """
        try:
            output = forward()
        except _Stop:
            return None
        self.check()
        return output

    def check(self) -> None:
        """Raise UnsupportedModel if a wanted site was not reached in the last forward pass."""
        if self._missed:
            raise UnsupportedModel(
                f"{', '.join(map(str, sorted(self._missed)))} was never reached in a forward pass of {self.lm.name}.",
                "The path table names a module that this model does not call there.",
            )

    def _hook(self, site: Site, point: HookPoint) -> Any:
        if point.attach is not None:
            return point.attach(lambda raw: self._visit(site, point, raw) if self.acts_now() else raw)
        if point.side == "in":

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if not self.acts_now():
                    return None
                where, raw = find_input(args, kwargs)
                new = self._visit(site, point, raw)
                return None if new is raw else replace_input(args, kwargs, where, new)

            return point.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not self.acts_now():
                return None
            raw = find_output(output)
            new = self._visit(site, point, raw)
            return None if new is raw else replace_output(output, new)

        return point.module.register_forward_hook(after)

    def _visit(self, site: Site, point: HookPoint, raw: Tensor) -> Tensor:
        # With gradients, a write into the tensor itself would change a value that the graph before it has saved.
        source = raw.clone() if point.in_place and self.grad else raw
        x = point.view.get(source, *self._shape)
        shown = x if self._order is None else taken(x, self._order.argsort(1))
        new = self._touch(site, shown, point.copied)
        if new is not shown or self.grad:
            new = new if self._order is None else taken(new, self._order)
            if point.in_place:
                raw.copy_(point.view.put(raw, new))
            else:
                raw = point.view.put(raw, new)
        self._seen(site)
        return raw

    def _visit_pattern(self, site: Site) -> Callable[[Tensor], Tensor]:
        def visit(pattern: Tensor) -> Tensor:
            new = self._moved_pattern(self._touch(site, self._moved_pattern(pattern, back=True)))
            self._seen(site)
            return new

        return visit

    def _moved_pattern(self, pattern: Tensor, back: bool = False) -> Tensor:
        """The queries and keys of a pattern (B, H, Q, K) in the order of the model, or `back` in the usual one."""
        if self._order is None:
            return pattern
        order_BT = self._order.argsort(1) if back else self._order
        return taken(taken(pattern.transpose(1, 2), order_BT).transpose(1, 3), order_BT).transpose(1, 3).transpose(1, 2)

    def _touch(self, site: Site, x: Tensor, copied: bool = False) -> Tensor:
        if site in self.replaced:
            x = self.replaced[site].to(x)
        for edit in self.edits.get(site, ()):
            assert self._window is not None
            x = self._window.apply(edit, x)
        if site in self.read:
            if self.grad:
                # A node of its own: the module's input may be used elsewhere too, and that use has no part in this gradient.
                x = x.view_as(x)
                if x.requires_grad:
                    x.retain_grad()
                else:
                    x.requires_grad_()
            self.acts[site] = x
            if copied:
                x = x.clone()
        return x

    def _seen(self, site: Site) -> None:
        self._missed.discard(site)
        if site in self._pending:
            self._pending.discard(site)
            if not self._pending:
                raise _Stop


def taken(x: Tensor, order_BT: Tensor) -> Tensor:
    """x (B, T, ...) with column order_BT[b, t] of row b at place t."""
    order_BT = order_BT.to(x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], order_BT]
