"""Checks of one model family: what saekit offers on a tiny random model, against what transformers computes by itself."""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from saekit.errors import SaekitError, UnsupportedModel
from saekit.lm import Edit, LanguageModel, Run, Site
from saekit.names.site import KINDS
from scripts.family_page import empty_row, kind_of
from scripts.tiny_families import VARIANTS, tiny_model, wrapper_names

T, NEW = 9, 5
_CLOSE = 1e-4
"""Largest error relative to the largest value, for results that are computed in another order."""
OK = "ok"


class Differs(Exception):
    """A check found a difference; the message says which."""


def check_family(name: str) -> dict[str, Any]:
    """One row of the table: the outcome of every check, as plain data.

    `status` is "ok", "refused" (by saekit, with its message in `error`), "not causal", or "transformers" where transformers
    cannot build or run the model on a CPU. A check is "ok", begins with "architecture" where bare transformers does not fulfil
    it either, or begins with "fails".
    """
    started = time.perf_counter()
    group = "variant" if name in VARIANTS else "wrapper" if name in wrapper_names() else "family"
    row = empty_row(name) | {"group": group}
    _fill(row)
    return row | {"seconds": round(time.perf_counter() - started, 2)}


def _fill(row: dict[str, Any]) -> None:
    try:
        model = tiny_model(row["family"])
        row["model"], row["kind"] = type(model).__name__, kind_of(model)
        tokens = _tokens(1)
        plain = _logits(model, tokens)
        if not bool(plain.isfinite().all()):
            raise ValueError("its logits are not finite")
        changed = tokens.clone()
        changed[:, -1] = 3 + (changed[:, -1] - 2) % 80
        causal = _error(_logits(model, changed)[:, :-1], plain[:, :-1]) <= _CLOSE
    except Exception as error:
        row |= {"status": "transformers", "error": _line(error)}
        return
    try:
        lm = LanguageModel.attach(model, None, name=row["family"])
    except SaekitError as error:
        row |= {"status": "refused" if causal else "not causal", "error": _line(error)}
        return
    except Exception as error:
        row |= {"status": "refused", "error": f"not a typed error: {type(error).__name__}: {_line(error)}"}
        return
    row["status"] = OK if causal else "not causal"
    row["sites"] = _sites(lm)
    for check, function in CHECKS.items():
        try:
            row["checks"][check] = function(lm, tokens, plain) or OK
        except Differs as difference:
            row["checks"][check] = str(difference)
        except Exception as error:
            row["checks"][check] = f"fails: {type(error).__name__}: {_line(error)}"


def _sites(lm: LanguageModel) -> dict[str, Any]:
    """By kind of site: the number of layers that offer it, of how many, and the reasons of the others."""
    table: dict[str, Any] = {}
    offered = set(lm.sites())
    for kind, row in KINDS.items():
        places = [Site(kind, layer) for layer in range(lm.n_layers)] if row.per_layer else [Site(kind)]
        reasons: dict[str, list[int]] = defaultdict(list)
        for site in places:
            if site not in offered:
                reasons[lm.reason(site) or "no reason"].append(site.layer or 0)
        table[kind] = {"offered": sum(site in offered for site in places), "of": len(places), "reasons": dict(reasons)}
    return table


def _bare(lm: LanguageModel, tokens: Tensor, plain: Tensor) -> None:
    """The logits of the bare model are the same bits after attaching, with hooks that read, and after the hooks."""
    _equal("bare forward after attaching", _logits(lm.model, tokens), plain)
    _equal("run", _all(lm, tokens).logits, plain)
    _equal("run that reads every site", _all(lm, tokens, read=_plain_sites(lm)).logits, plain)
    _equal("bare forward after a run", _logits(lm.model, tokens), plain)


def _own_value(lm: LanguageModel, tokens: Tensor, plain: Tensor) -> None:
    """A site patched with its own value changes no bit."""
    groups = [(_plain_sites(lm), plain)]
    if patterns := [site for site in lm.sites() if site.kind == "pattern"]:
        groups.append((patterns, None))
    for sites, base in groups:
        run = _all(lm, tokens, read=sites)
        for site in sites:
            _equal(str(site), _all(lm, tokens, edits=[_patch(site, run)]).logits, run.logits if base is None else base)


def _other_run(lm: LanguageModel, tokens: Tensor, plain: Tensor) -> str | None:
    """The whole residual stream of another run gives that run's logits."""
    sites = [site for site in lm.sites() if site.kind in ("resid_pre", "resid_mid", "resid_post")]
    other = _all(lm, _tokens(2), read=sites)
    if _error(other.logits, plain) < 1e-3:
        raise Differs("fails: two runs have equal logits")
    wrong = [site for site in sites if _error(_all(lm, tokens, edits=[_patch(site, other)]).logits, other.logits) > 1e-5]
    if not wrong:
        return None
    for site in wrong:
        with _raw_patch(lm, site, other) as patched:
            if patched and _error(_logits(lm.model, tokens), other.logits) <= 1e-5:
                raise Differs(f"fails: {site} patched by a bare hook gives the other run, and by saekit not")
    if Site("resid_post", lm.n_layers - 1) in wrong:
        raise Differs("fails: the last residual vectors do not decide the logits")
    return f"architecture: later blocks read more than the residual stream at {_few(wrong)}"


def _hidden_states(lm: LanguageModel, tokens: Tensor, plain: Tensor) -> str | None:
    """The residual sites equal the hidden states that transformers returns."""
    try:
        states = lm.model(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    except Exception as error:
        return f"architecture: transformers returns none ({_line(error)})"
    if not states or len(states) < lm.n_layers:
        return "architecture: transformers returns none"
    run = lm.run(tokens, read=[site for site in lm.sites() if site.kind in ("resid_pre", "resid_post")])
    # State-space models list what blocks return, others what blocks take in.
    for kind in ("resid_pre", "resid_post"):
        if all(_is_state(run[Site(kind, layer)], states[layer]) for layer in range(lm.n_layers)):
            return None
    raise Differs("fails: the residual stream is not the hidden states of transformers")


def _is_state(ours: Tensor, theirs: Tensor) -> bool:
    """Whether a hidden state is ours; several streams are side by side here, and a dimension of their own in transformers."""
    forms = [theirs] if theirs.ndim == 3 else [theirs.flatten(2), theirs.permute(1, 2, 0, 3).flatten(2)]
    return any(ours.shape == form.shape and _error(ours, form) <= 1e-6 for form in forms)


def _attentions(lm: LanguageModel, tokens: Tensor, plain: Tensor) -> str | None:
    """The patterns equal the attentions that transformers returns from its eager attention."""
    patterns = [site for site in lm.sites() if site.kind == "pattern"]
    if not patterns:
        return "no patterns offered"
    run = lm.run(tokens, read=patterns)
    before = lm.model.config._attn_implementation
    try:
        lm.model.set_attn_implementation("eager")
        given = lm.model(input_ids=tokens, use_cache=False, output_attentions=True).attentions
    except Exception as error:
        return f"architecture: transformers returns none ({_line(error)})"
    finally:
        lm.model.set_attn_implementation(before)
    theirs = [each for each in given or () if isinstance(each, Tensor)]
    if len(theirs) not in (len(patterns), lm.n_layers):
        return "architecture: transformers returns none"
    if len(theirs) == lm.n_layers:
        theirs = [theirs[site.layer or 0] for site in patterns]
    for site, each in zip(patterns, theirs):
        # Some eager attentions return the pattern before an attention sink takes its share of a row.
        ours, share = run[site], run[site].sum(-1, keepdim=True)
        if ours.shape != each.shape or min(_error(ours, each), _error(ours / share, each)) > _CLOSE:
            raise Differs(f"fails: {site} is not what transformers returns")
    return None


def _padding(lm: LanguageModel, tokens: Tensor, plain: Tensor) -> str | None:
    """Rows of a left-padded batch give what they give alone."""
    lengths = [T, T - 4]
    padded, mask = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for b, n in enumerate(lengths):
        padded[b, T - n :], mask[b, T - n :] = tokens[b, :n], 1
    alone = [plain[:1], _logits(lm.model, tokens[1:, : lengths[1]])]

    def worst(logits: Tensor) -> float:
        return max(_error(logits[b : b + 1, T - n :], alone[b]) for b, n in enumerate(lengths))

    ours = worst(lm.run(padded, attention_mask=mask, logits="all").logits)
    if ours <= _CLOSE:
        return None
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for extra in ({"attention_mask": mask}, {"attention_mask": mask, "position_ids": positions}):
        if set(extra) <= set(inspect.signature(lm.model.forward).parameters):
            with torch.no_grad():
                theirs = worst(lm.model(input_ids=padded, use_cache=False, **extra).logits)
            if theirs <= _CLOSE:
                raise Differs(
                    f"fails: padded rows are off by {ours:.0e}, in transformers with {', '.join(extra)} by {theirs:.0e}"
                )
    return f"architecture: padded rows differ in transformers too ({ours:.0e})"


def _generation(lm: LanguageModel, tokens: Tensor, plain: Tensor) -> str | None:
    """Greedy continuations with a cache equal recomputation without one, plain and with an edit."""
    rows = [tokens[0].tolist(), tokens[1, :5].tolist()]
    shift = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3))
    edit = Edit(Site("resid_post", 0), lambda x, at: x + 2 * x.norm(dim=-1, keepdim=True) * shift.to(x) / shift.norm())
    edits = [edit] if edit.site in lm.sites() else []
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    for given in ([], edits):
        for row in rows:
            again = _recomputed(lm, row, given)
            try:
                cached = lm.generate([row], interventions=given, max_new_tokens=NEW, do_sample=False, eos_token_id=-1).tokens[0]
            except UnsupportedModel as error:
                if _continued(lm, row, options) == _recomputed(lm, row, []):
                    raise Differs(f"fails: {_line(error)}") from error
                return "architecture: generate of transformers differs from its forward pass, and saekit says so"
            if cached == again:
                continue
            use = [lm.model.generate(torch.tensor([row]), use_cache=each, **options).tolist() for each in (True, False)]
            if use[0] != use[1]:
                return "architecture: the cache of transformers changes its continuations"
            raise Differs(f"fails: {'edited ' if given else ''}continuation {cached} is not {again}")
    return None


def _continued(lm: LanguageModel, row: list[int], options: dict[str, Any]) -> list[int] | None:
    """The continuation by bare transformers without a cache; None where it raises an error."""
    try:
        found: list[int] = lm.model.generate(torch.tensor([row]), use_cache=False, **options)[0, len(row) :].tolist()
    except Exception:
        return None
    return found


def _recomputed(lm: LanguageModel, row: list[int], edits: list[Edit]) -> list[int]:
    found: list[int] = []
    for _ in range(NEW):
        run = lm.run(
            [row + found], edits=edits, positions="last+generated" if edits else None, prompt_lengths=[len(row)], logits="all"
        )
        assert run.logits is not None
        found.append(int(run.logits[0, -1].argmax()))
    return found


CHECKS: dict[str, Callable[[LanguageModel, Tensor, Tensor], str | None]] = {
    "bare forward": _bare,
    "own value": _own_value,
    "other run": _other_run,
    "hidden states": _hidden_states,
    "attentions": _attentions,
    "left pads": _padding,
    "cache": _generation,
}


def _tokens(seed: int) -> Tensor:
    return torch.randint(3, 90, (2, T), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _all(lm: LanguageModel, tokens: Tensor, **settings: Any) -> Any:
    return lm.run(tokens, logits="all", **settings)


def _plain_sites(lm: LanguageModel) -> list[Site]:
    """All sites but patterns, which need eager attention with a rounding of its own."""
    return [site for site in lm.sites() if site.kind != "pattern"]


def _patch(site: Site, source: Run) -> Edit:
    values = source[site]
    if site.kind == "pattern":
        return Edit(site, lambda rows, at: values)
    return Edit(site, lambda rows, at: values[at.batch_N, at.position_N])


@contextmanager
def _raw_patch(lm: LanguageModel, site: Site, source: Run) -> Iterator[bool]:
    """Replace a residual site by a plain hook of torch, without saekit. False where its tensor is another."""
    point = lm.hook_point(site)
    assert point is not None
    values = source[site]
    if values.shape[-1] != lm.model.config.get_text_config().hidden_size:
        yield False
        return

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (values, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": values}

    def after(module: Any, args: Any, output: Any) -> Any:
        return values if isinstance(output, Tensor) else (values, *output[1:])

    if point.side == "in":
        handle = point.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = point.module.register_forward_hook(after)
    try:
        yield True
    finally:
        handle.remove()


def _equal(what: str, left: Tensor | None, right: Tensor) -> None:
    assert left is not None
    if not torch.equal(left, right):
        raise Differs(f"fails: {what} changes the logits by {_error(left, right):.0e}")


def _error(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max()) / (float(right.abs().max()) + 1e-9)


def _few(sites: list[Site]) -> str:
    names = [str(site) for site in sites]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
