"""The spaces that methods can be asked for by name: `--space heads`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.objects import lookup
from saekit.objects.layout import Layout
from saekit.objects.spaces import Space
from saekit.plugins import Registry, resolve

MakeSpaces = Callable[[Layout, Collection[int] | None], list[Space]]


@dataclass(frozen=True)
class SpaceRow:
    """One row of :data:`SPACES`.

    Attributes:
        summary: what its objects are.
        make: takes a model and layers (None: all) and returns the spaces, or its name as "module:function". None for weights,
            which are no activations.
        lacking: takes a model and says why it has none.
    """

    summary: str
    make: MakeSpaces | str | None
    lacking: Callable[[Layout], str] = lambda lm: "it has no such site"


def at_sites(kinds: Sequence[str], make: Callable[[Layout, Site], Space]) -> MakeSpaces:
    """A function that makes the space of each site of some kinds."""

    def made(lm: Layout, layers: Collection[int] | None) -> list[Space]:
        return [make(lm, site) for site in lm.sites() if site.kind in kinds and _within(site, layers)]

    return made


def _row(summary: str, kinds: Sequence[str], make: Callable[[Layout, Site], Space]) -> SpaceRow:
    return SpaceRow(summary, at_sites(kinds, make), lambda lm: lm.reason(Site(kinds[0], 0)) or "its layers have no such site")


def _of_dictionaries(make: Callable[..., Space]) -> MakeSpaces:
    def made(lm: Layout, layers: Collection[int] | None) -> list[Space]:
        single = {address: sae for address, sae in lm.attached.items() if not sae.cfg.crosses}
        unnamed = [address for address in single if not address.name]
        chosen = sorted(unnamed or single)  # a named dictionary stands beside the default one of its site
        return [make(lm, address, single[address]) for address in chosen if _within(address.site, layers)]

    return made


def _within(site: Site, layers: Collection[int] | None) -> bool:
    return layers is None or site.layer is None or site.layer in layers


def _no_dictionary(lm: Layout) -> str:
    return "no SAE of one site is attached"


SPACES: Registry[SpaceRow] = Registry(
    "space",
    {
        "features": SpaceRow("features of the attached SAEs", _of_dictionaries(lookup.features_of), _no_dictionary),
        "error": SpaceRow("what each attached SAE does not reconstruct", _of_dictionaries(lookup.error_of), _no_dictionary),
        "neurons": _row("inputs of the MLP's down projection", ["neurons", "experts"], lookup.raw_space),
        "heads": _row("outputs of attention heads", ["heads"], lookup.raw_space),
        "q": _row("query vectors of heads", ["q"], lookup.head_vectors),
        "k": _row("key vectors of heads", ["k"], lookup.head_vectors),
        "v": _row("value vectors of heads", ["v"], lookup.head_vectors),
        "patterns": _row("attention patterns of heads", ["pattern"], lookup.patterns),
        "residual": _row("coordinates of the residual stream after each layer", ["resid_post"], lookup.raw_space),
        "states": _row("the residual stream after each layer, as a whole", ["resid_post"], lookup.whole),
        "blocks": _row("outputs of the attention and MLP blocks, as a whole", ["attn_out", "mlp_out"], lookup.whole),
        "positions": _row("input embeddings of tokens", ["embed"], lookup.whole),
        "weights": SpaceRow("vectors of weight matrices", None),
    },
)
"""The spaces by name; a new one is one row."""


def spaces_of(lm: Layout, name: str, layers: Collection[int] | None = None) -> list[Space]:
    """The spaces that a name means in a model, in the order of computation.

    Args:
        name: a row of :data:`SPACES`.
        layers: those to take; None for all.

    Raises:
        ConfigError: there is no such row, its objects are no activations, or the model has none of them in these layers.
    """
    row = SPACES.find(name)
    if row.make is None:
        raise ConfigError(
            f"{name} are no activations: they cannot be read or set in a run.",
            "Methods that score weights take them, such as parameter_saliency.",
        )
    made: list[Space] = resolve(row.make)(lm, layers)
    if not made:
        everywhere = layers is None or not resolve(row.make)(lm, None)
        where = row.lacking(lm) if everywhere else f"not in the layers {', '.join(map(str, sorted(layers or ())))}"
        hint = (
            "Give a workspace whose model has SAEs, attach one with lm.attach_sae, or"
            if row.lacking is _no_dictionary
            else "Choose"
        )
        others = [other for other in SPACES if other != name]
        raise ConfigError(f"{lm.name} has no {name}: {where}.", f"{hint} choose another space: {', '.join(others)}.")
    return made


def default_spaces(lm: Layout) -> list[Space]:
    """The features and errors of the attached SAEs; heads and neurons where none is attached.

    Raises:
        ConfigError: no SAE is attached, and the model has neither heads nor neurons.
    """
    names = ("features", "error") if any(not sae.cfg.crosses for sae in lm.attached.values()) else ("heads", "neurons")
    found: list[Space] = [space for name in names for space in resolve(SPACES[name].make)(lm, None)]
    return found or spaces_of(lm, names[0])
