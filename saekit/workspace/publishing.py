"""A dictionary of a workspace as a folder for the hub: files in the layout of sae-lens, and a model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.builtin import is_lab
from saekit.errors import ConfigError, WorkspaceError
from saekit.files import write_whole
from saekit.json_files import read_json
from saekit.names.dictionary import folder_name
from saekit.workspace import command_lines, evaluations

if TYPE_CHECKING:
    from saekit.sae import SAE
    from saekit.sae.upload import Target
    from saekit.workspace.workspace import Workspace

_TAGS = ("saelens", "saekit", "sparse-autoencoder", "mechanistic-interpretability")


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        sae: the dictionary.
        target: where it goes.
        model: name of the language model.
        data: names of the data, with weights where it is a mixture.
        base_model, datasets: those of them that are on the hub.
        measures: name, value and explanation of each measure; empty if it was not measured.
        training: facts about the training.
        commands: that make the same dictionary again; empty if they are not known.
        license: identifier on the hub, or None.
    """

    sae: SAE
    target: Target
    model: str
    data: str
    base_model: str | None
    datasets: tuple[str, ...]
    measures: Sequence[tuple[str, str, str]]
    training: Mapping[str, str]
    commands: Sequence[str]
    license: str | None


def default_path(place: str, name: str) -> str:
    """The folder in a repository of a dictionary: the one that it has in a workspace."""
    return "/".join(filter(None, (folder_name(place), name)))


def write_folder(ws: Workspace, place: str, name: str, target: Target, folder: Path, license: str | None = None) -> bool:
    """Write what goes to the hub: the dictionary with a model card in the target's path, and the card at the root.

    Paths on this disk are left out: a local model or corpus is called by the name of its folder or file.

    Args:
        place, name: the dictionary, as `ws.dictionaries.find` gives it.
        folder: new or empty.
        license: identifier of a licence on the hub, such as apache-2.0.

    Returns:
        Whether the card has measures.

    Raises:
        WorkspaceError: the folder holds files.
        SAEFormatError: the files of the dictionary are damaged.
        StorageFull, Unwritable: the folder cannot be written.
    """
    from saekit.sae import load_sparsity

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkspaceError(f"{folder} is not empty.", "Give a new folder.")
    source = ws.dictionaries.folder(place, name)
    sae = ws.sae(place, name)
    card = _card(ws, sae, place, name, target, license)
    sae.cfg.model_name = (
        card.model if sae.cfg.model_name is None or Path(sae.cfg.model_name).is_absolute() else sae.cfg.model_name
    )
    if isinstance(recorded := sae.cfg.metadata.get("dataset_path"), str):
        sae.cfg.metadata["dataset_path"] = _public(recorded)
    elif len(card.datasets) == 1:
        sae.cfg.metadata["dataset_path"] = card.datasets[0]
    inside = folder / target.path
    inside.mkdir(parents=True, exist_ok=True)
    sae.save(inside, sparsity=load_sparsity(source, sae.cfg.n_latents))
    text = render(card)
    for path in (inside / "README.md", folder / "README.md"):
        write_whole(path, text)
    return bool(card.measures)


def render(card: Card) -> str:
    """The model card, in Markdown with the metadata block of the hub."""
    from huggingface_hub import ModelCardData

    facts = ModelCardData(
        license=card.license,
        library_name="saelens",
        tags=list(_TAGS),
        base_model=card.base_model,
        datasets=list(card.datasets) or None,
    )
    cfg, kind = card.sae.cfg, card.sae.cfg.kind.value
    site = str(cfg.site_map) if cfg.site_map is not None else "an unknown site"
    hooks = " -> ".join(dict.fromkeys(str(cfg.metadata[key]) for key in ("hook_name", "hook_name_out") if cfg.metadata.get(key)))
    rows = {
        "language model": card.model,
        "site": site + (f" (`{hooks}`)" if hooks else ""),
        "architecture": cfg.architecture,
        "features": f"{cfg.n_latents:,}",
        "width": f"{cfg.d_in:,}" + (f" to {cfg.d_out:,}" if cfg.d_out != cfg.d_in else ""),
        **({"active features per token": f"{cfg.k:g}"} if cfg.k is not None else {}),
        "normalisation of inputs": cfg.normalize_activations,
        "dtype": cfg.dtype,
    }
    parts = [
        f"---\n{facts.to_yaml()}\n---\n",
        f"# {cfg.architecture} {kind} of {card.model} at {site}\n",
        f"A sparse dictionary ({kind}) of {cfg.n_latents:,} features, in the layout of "
        "[sae-lens](https://github.com/decoderesearch/SAELens).\n",
        _table(("", ""), rows.items()),
        "## Use\n",
        _use(card),
        "## Quality\n",
        _table(("measure", "value", ""), card.measures) if card.measures else "Not measured.\n",
        "## Training\n",
        _table(("", ""), card.training.items()),
    ]
    if card.commands:
        parts.append("The same dictionary is made by\n\n```sh\n" + "\n".join(card.commands) + "\n```\n")
    return "\n".join(parts)


def _use(card: Card) -> str:
    target, crosses = card.target, card.sae.cfg.crosses
    lines = ["```python", "from saekit.sae import SAE", "", f'sae = SAE.load("{target.source}")', "```", ""]
    if crosses:
        return "\n".join([*lines, "sae-lens has no class for dictionaries of several sites.", ""])
    lines += ["```python", "from sae_lens import SAE", ""]
    if target.revision is None:
        lines.append(f'sae = SAE.from_pretrained("{target.repository}", "{target.path}")')
    else:
        lines += [
            "from huggingface_hub import snapshot_download",
            "",
            f'folder = snapshot_download("{target.repository}", revision="{target.revision}")',
            f'sae = SAE.load_from_disk(folder + "/{target.path}")',
        ]
    return "\n".join([*lines, "```", ""])


def _table(head: Sequence[str], rows: Any) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _card(ws: Workspace, sae: SAE, place: str, name: str, target: Target, license: str | None) -> Card:
    from saekit.evaluate.dictionary.measures import measures

    study = ws.study
    model = _public(study.model)
    data = study.data if isinstance(study.data, str) else ", ".join(study.data)
    sources = [study.data] if isinstance(study.data, str) else [each.rpartition(":")[0] for each in study.data]
    public = ", ".join(_public(each) for each in ([data] if isinstance(study.data, str) else study.data))
    training, commands = _training(ws, place, name, model)
    if not training:
        training, sources = _recorded(sae), [sae.origin.dataset or ""]
    return Card(
        sae=sae,
        target=target,
        model=model,
        data=public,
        base_model=study.model if _on_hub(study.model) else None,
        datasets=tuple(dict.fromkeys(each for each in sources if "/" in each and _on_hub(each))),
        measures=measures(evaluations.read(ws, sae, place, name)),
        training={**training, "data": public} if commands else training,
        commands=commands,
        license=license,
    )


def _training(ws: Workspace, place: str, name: str, model: str) -> tuple[dict[str, str], list[str]]:
    """Facts about the training, and the commands that repeat it; both empty for a dictionary that was trained elsewhere."""
    path = ws.dictionaries.folder(place, name) / "train.json"
    try:
        config = ws.train_config(place, name)
    except ConfigError as error:
        raise WorkspaceError(error.what, error.hint) from error
    if config is None:
        return {}, []
    record = read_json(path)
    facts = {
        "tokens": f"{config.tokens or 0:,}, repeats counted",
        "batch": f"{config.batch_size or 0:,} tokens",
        "learning rate": f"{config.lr or 0:.3g}",
        "context": f"{ws.store().context} tokens",
        "seed": f"{config.seed}",
    }
    study = dataclasses.replace(ws.study, model=model, data=_public_data(ws.study.data))
    folder = Path(ws.path.name)
    train = command_lines.training(folder, place, name, record)
    return facts, [] if train is None else [command_lines.caching(folder, study), train]


def _recorded(sae: SAE) -> dict[str, str]:
    """What the configuration of a dictionary says about its training elsewhere."""
    origin = sae.origin
    facts = {
        "converted from": "/".join(filter(None, (origin.repository, origin.path))) if origin.repository else "",
        "data": _public(origin.dataset or "") or "not known: it was trained elsewhere",
        "context": f"{origin.context:,} tokens" if origin.context else "",
        "contexts begin with BOS": {True: "yes", False: "no"}.get(origin.prepend_bos, ""),  # type: ignore[arg-type]
    }
    return {name: value for name, value in facts.items() if value}


def _public_data(data: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return _public(data) if isinstance(data, str) else tuple(map(_public, data))


def _public(source: str) -> str:
    """A name, or the last part of a path on this disk."""
    return Path(source).name if Path(source).is_absolute() else source


def _on_hub(source: str) -> bool:
    return not (Path(source).is_absolute() or is_lab(source) or is_lab(source.partition(":")[0]))
