from __future__ import annotations

import pytest

from tests.kit.merging import Family, changed, rounded, save


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Base and models in several files each; the first model is divided otherwise than the base."""
    root = tmp_path_factory.mktemp("family")
    base = save(rounded(), root / "base", "12KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    models = tuple(save(changed(rounded(), seed), root / f"model{seed}", shards) for seed, shards in ((1, "5GB"), (2, "12KB")))
    return Family(base, models)  # type: ignore[arg-type]
