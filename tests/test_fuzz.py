"""Every file that saekit reads may be damaged: each reader answers with a typed error, or reads something whole."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from saekit.errors import SaekitError
from tests.kit.fuzz import mutations

ARCHIVE = Path(__file__).parent / "kit" / "golden" / "v0.1.0.zip"
N = 60
SITE, TRANSCODER = "resid_post.2", "mlp_in.2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished workspace `ws` and three interventions, to damage and mend."""
    folder = tmp_path_factory.mktemp("fuzz")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def _open(folder: Path) -> None:
    from saekit import Workspace

    Workspace.open(folder / "ws")


def _store(folder: Path) -> None:
    from saekit import Workspace
    from saekit.activations import ActivationReader
    from saekit.names.site import Site

    store = Workspace.open(folder / "ws").store()
    reader = ActivationReader(store, [Site.parse(SITE)], split="all", batch_size=64, buffer_tokens=256)
    reader.sample(64)


def _verify_store(folder: Path) -> None:
    from saekit import Workspace

    Workspace.open(folder / "ws").store().verify(progress=False)


def _sae(folder: Path) -> None:
    from saekit import Workspace

    Workspace.open(folder / "ws").sae(SITE)


def _config(folder: Path) -> None:
    from trainers import TrainConfig

    TrainConfig.load(folder / "ws" / "sae" / SITE / "train.json")


def _log(folder: Path) -> None:
    from trainers.loop.log import read_log

    read_log(folder / "ws" / "sae" / SITE / "metrics.jsonl")


def _sparsity(folder: Path) -> None:
    from saekit.sae import load_sparsity

    load_sparsity(folder / "ws" / "sae" / SITE)


def _checkpoint(folder: Path) -> None:
    from trainers.loop.checkpoints import load

    load(folder / "ws" / "sae" / SITE / "cut" / "checkpoints")


def _evaluation(folder: Path) -> None:
    from saekit import Workspace

    Workspace.open(folder / "ws").evaluation(SITE)


def _search(folder: Path) -> None:
    from saekit import Workspace

    with Workspace.open(folder / "ws").database() as database:
        database.search("the")
        database.feature(f"feature:{SITE}/3")
        database.lists()


def _verify_database(folder: Path) -> None:
    from saekit import Workspace

    with Workspace.open(folder / "ws").database() as database:
        database.verify()


def _vectors(folder: Path) -> None:
    from saekit import Workspace

    with Workspace.open(folder / "ws").database() as database:
        database.vectors(SITE).sum()


def _intervention(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from saekit.steer import Intervention

        Intervention.load(folder / name)

    return read


@pytest.mark.parametrize(
    "file, read, n",
    [
        ("ws/saekit.toml", _open, N),
        ("ws/activations/manifest.json", _store, N),
        ("ws/activations/shard-00000.h5", _verify_store, 12),
        (f"ws/sae/{SITE}/cfg.json", _sae, N),
        (f"ws/sae/{SITE}/sae_weights.safetensors", _sae, N),
        (f"ws/sae/{SITE}/train.json", _config, N),
        (f"ws/sae/{SITE}/metrics.jsonl", _log, N),
        (f"ws/sae/{SITE}/sparsity.safetensors", _sparsity, N),
        (f"ws/sae/{SITE}/cut/checkpoints/step-000000157/state.json", _checkpoint, N),
        (f"ws/sae/{SITE}/cut/checkpoints/step-000000157/state.safetensors", _checkpoint, N),
        (f"ws/reports/eval-{SITE}.json", _evaluation, N),
        ("ws/features.sqlite", _search, N),
        ("ws/features.sqlite", _verify_database, N),
        ("ws/vectors/*.npy", _vectors, N),
        ("intervention.json", _intervention("intervention.json"), N),
        ("mixed.safetensors", _intervention("mixed.safetensors"), N),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_typed_error(folder: Path, file: str, read: Callable[[Path], None], n: int) -> None:
    read(folder)  # the undamaged file is read
    path = max(folder.glob(file))
    good = path.read_bytes()
    refused = 0
    try:
        for number, (kind, bad) in enumerate(mutations(good, n, seed=1)):
            path.write_bytes(bad)
            try:
                read(folder)
            except SaekitError as error:
                refused += 1
                assert "\x00" not in str(error)
            except BaseException as error:
                raise AssertionError(f"damage {number} ({kind}) of {file} gave {type(error).__name__}: {error}") from error
            for extra in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
                extra.unlink(missing_ok=True)
    finally:
        path.write_bytes(good)
    assert refused  # some of the damage shows
    read(folder)


def test_a_copy_of_the_archive_is_not_changed_by_reading(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "ws", tmp_path / "ws")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for read in (_open, _store, _verify_store, _sae, _config, _log, _search, _vectors):
        read(tmp_path)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.suffix not in (".sqlite-shm",)}
    assert set(after) == set(before)
    assert {path.name for path in before if after[path] != before[path]} == set()
