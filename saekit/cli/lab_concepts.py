"""The command lab concepts: which known concepts a dictionary recovers."""

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
    """Find which of the known concepts the dictionaries of a workspace recover in a single feature.

    AUC: area under the ROC curve of the best feature for the concept's tokens against all others, on documents that were not used
    to choose the feature. AP: average precision of the same feature; a feature without information has the base rate, the share
    of tokens that belong to the concept. Words: AUC of the rule "is one of the concept's tokens", which ignores context. Same
    words: AUC of the best feature against other occurrences of these tokens only. In context: AUC of the best feature between
    occurrences of one and the same token, where knowing the token gives 0.5. A concept is recovered in context if both are high.
    A dash means that the words define the concept, or that there are too few tokens to compare.

    Example: `saekit lab concepts lab-resid_post.2`
    """
    quiet_libraries()
    from saekit import lab
    from saekit.evaluate.concepts.recovery import concept_recovery
    from saekit.names.site_map import SiteMap
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    chosen = ws.dictionaries.chosen(site, name)
    labelled = list(lab.documents(split=split, seed=seed, n=documents))  # type: ignore[arg-type]
    found = [concept_recovery(ws.lm, ws.sae(place, name), SiteMap.parse(place).site, labelled) for place, name in chosen]
    if as_json:
        emit([each.to_dict() for each in found])
        return
    for each in found:
        print_section(each.section)
