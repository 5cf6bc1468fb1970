"""Codes and labels of the tokens of labelled documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from saekit.lm.run.batches import document_activations

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from saekit.lab import Labelled
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

_SEQUENCES = 64


def label_matrix(labelled: Labelled) -> csr_array:
    """(N, C) with 1 where a token has the label of a concept."""
    from scipy.sparse import csr_array

    ones = np.ones(len(labelled.token_M), np.int64)
    return csr_array((ones, (labelled.token_M, labelled.concept_M)), shape=(labelled.n_tokens, len(labelled.concepts)))


@torch.no_grad()
def feature_codes(
    lm: LanguageModel, sae: SAE, site: Site, labelled: Labelled, note: Callable[[int], None]
) -> tuple[csc_array, np.ndarray]:
    """Activations of the features (kept tokens, F), and the indices of the tokens that lie within the model's context."""
    from scipy.sparse import csc_array

    values, tokens, features, kept = ([np.zeros(0, kind)] for kind in (np.float32, np.int64, np.int64, np.int64))
    done = 0
    for which, acts in document_activations(lm, [site], labelled.ids, _SEQUENCES):
        row, latents, fired = sae.encode_sparse(acts[site]).fired()
        values.append(fired.float().cpu().numpy())
        features.append(latents.cpu().numpy())
        tokens.append(which[row.cpu().numpy()])
        kept.append(which)
        done += len(which)
        note(done)
    shape = labelled.n_tokens, sae.cfg.n_latents
    codes = csc_array((np.concatenate(values), (np.concatenate(tokens), np.concatenate(features))), shape=shape)
    rows_kept = np.sort(np.concatenate(kept))
    return (codes if len(rows_kept) == labelled.n_tokens else csc_array(codes.tocsr()[rows_kept])), rows_kept
