"""The command lab concepts: which known concepts a dictionary encodes."""

from __future__ import annotations

from saekit.cli import options
from saekit.cli.output import emit, print_section, quiet_libraries


def concepts(
    workspace: options.WORKSPACE,
    site: options.TRAINED_SITES = None,
    name: options.NAME = "",
    documents: options.DOCUMENTS = 4000,
    split: options.SPLIT = "heldout",
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """Find which of the known concepts the dictionaries of a workspace encode in a single feature.

    A feature encodes a concept if it detects the concept's tokens with an F1 of at least 0.5. The feature and its threshold are
    chosen on every other document, and all figures are measured on the remaining ones. AP: average precision of this feature; a
    feature without information has the base rate, the share of tokens that belong to the concept. AUC: area under its ROC curve.
    Serves: number of other concepts for which the same feature is the best.

    Best AUC: the feature with the best AUC, the share of the tokens it fires on that are the concept's, and for how many more
    concepts it is the best. A high AUC alone proves little, because it does not fall with the base rate.

    F1 of words: of the rule "is one of the concept's tokens", which ignores context. Same words: AUC of the best feature against
    other occurrences of these tokens only. In context: AUC of the best feature between occurrences of one and the same token,
    where knowing the token gives 0.5. A concept is encoded in context if both are at least 0.9. A dash means that the words
    define the concept, or that there are too few tokens to compare.

    With several dictionaries, a last table compares them and names the concepts that none of them encodes.

    Example: `saekit lab concepts lab-resid_post.2`
    """
    quiet_libraries()
    from saekit import lab
    from saekit.evaluate.concepts.compared import Measured, compared
    from saekit.evaluate.concepts.recovery import concept_recovery
    from saekit.evaluate.report import Section
    from saekit.names.address import Address
    from saekit.names.site_map import SiteMap
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    every = ws.dictionaries.searchable() if not site and not name else []
    labelled = list(lab.documents(split=split, seed=seed, n=documents))  # type: ignore[arg-type]
    found = []
    for place, called in every or ws.dictionaries.chosen(site, name):
        sae = ws.sae(place, called)
        result = concept_recovery(ws.lm, sae, SiteMap.parse(place).site, labelled)
        found.append(Measured(str(Address(SiteMap.parse(place), called)), sae.cfg.n_latents, result))
    if as_json:
        emit([{"dictionary": each.dictionary, "latents": each.latents, **each.result.to_dict()} for each in found])
        return
    for each in found:
        title, rows, summary = each.result.section
        print_section(Section(title if len(found) == 1 else f"concepts of {each.dictionary}", rows, summary))
    if len(found) > 1:
        print_section(compared(found))
