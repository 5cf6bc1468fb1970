"""What an evaluation is given: a dictionary, the model and the activations that it belongs to, and the options."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.model_options import ModelOptions
from saekit.tasks import Labelled

if TYPE_CHECKING:
    from saekit.activations import StoredActivations
    from saekit.evaluate.dictionary.cross_entropy import Baseline
    from saekit.lab import Document
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

DOCUMENTS = 4000


@dataclass(frozen=True)
class Options:
    """Options that evaluations share.

    Attributes:
        baseline: what cross-entropy recovered compares with.
        labelled: file of labelled texts, in place of the laboratory's documents.
        documents: number of labelled documents of the laboratory.
        model: name or folder of another model.
        revision: of the other model.
        loading: how the other model is loaded, besides its revision and its dtype.
        seed: of everything random.
        progress: whether progress is shown.
    """

    baseline: Baseline = "zero"
    labelled: Path | None = None
    documents: int = DOCUMENTS
    model: str | None = None
    revision: str | None = None
    loading: ModelOptions = field(default_factory=ModelOptions)
    seed: int = 0
    progress: bool = True


@dataclass
class Subject:
    """A dictionary to evaluate.

    Attributes:
        lm: the model it was trained on.
        sae: the dictionary.
        site: where it reads; None for a dictionary of several sites, whose configuration names them.
        store: activations of that model.
        heldout: share of the documents of the store that training held out.
        trained_elsewhere: whether it is unknown which documents training held out.
        l0_asked: the L0 that training was asked for; None where it is unknown.
        dtype: computing dtype of the model, for other models.
        options: see there.
    """

    lm: LanguageModel
    sae: SAE
    site: Site | None
    store: StoredActivations
    heldout: float
    trained_elsewhere: bool = False
    l0_asked: int | None = None
    dtype: str | None = None
    options: Options = field(default_factory=Options)

    @property
    def one_site(self) -> Site:
        """Where the dictionary reads, if it reads one site.

        Raises:
            ConfigError: it is a dictionary of several sites.
        """
        from saekit.errors import ConfigError

        if self.site is None:
            raise ConfigError(f"{self.sae.name} is a dictionary of several sites.", "Evaluate one of a single site.")
        return self.site

    @cached_property
    def labelled(self) -> Labelled:
        """Texts with spans or labels: of the file that the options name, or of the laboratory.

        Raises:
            CorpusError: there is no such file, or a record lacks a field.
        """
        from saekit.evaluate.dictionary.examples import read_labelled

        if self.options.labelled is not None:
            return read_labelled(self.options.labelled)
        return Labelled.of_documents(self.laboratory)

    @cached_property
    def laboratory(self) -> list[Document]:
        """Documents of the laboratory with known concepts, which its model was not trained on."""
        from saekit.lab import documents

        return list(documents(split="heldout", seed=self.options.seed, n=self.options.documents))

    @cached_property
    def other(self) -> LanguageModel:
        """The other model.

        Raises:
            ConfigError: the options name none.
            ModelNotFound: there is no such model.
        """
        from saekit.errors import ConfigError
        from saekit.lm import LanguageModel

        if self.options.model is None:
            raise ConfigError("No other model is named.", "Name one: --other-model NAME.")
        return LanguageModel.load(self.options.model, self.options.loading, dtype=self.dtype, revision=self.options.revision)
