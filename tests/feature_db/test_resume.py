from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_db import FeatureDB
from feature_db.index import indexing
from tests.kit.contents import contents
from tests.kit.planted import PlantedStore, make_sae

ROOT = Path(__file__).parents[2]


def test_killed_builds_end_in_the_same_rows(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.crash_build", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=250
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] >= 8 and outcome["resumed"] >= 8
    # A second for each block, and one more for the block that is being counted.
    assert all(seconds <= 11 for costs in outcome["lost"].values() for seconds in costs), outcome["lost"]
    killed, straight, replaced = (tmp_path / name / "f.sqlite" for name in ("killed", "straight", "replaced"))
    with FeatureDB.open(killed) as db:  # also rolls back what the last kill left
        db.verify()
    rows = contents(killed)
    assert rows in (contents(straight), contents(replaced))
    assert len(rows["feature"]) == 64
    with FeatureDB.open(tmp_path / "old" / "f.sqlite") as db:
        assert [sae.name for sae in db.saes()] == ["", "second"] and db.verify() == []
    upgraded, expected = contents(tmp_path / "old" / "f.sqlite"), contents(straight)
    for table in ("partner", "class_stat"):  # there were none for the first one
        assert set(upgraded.pop(table)) < set(expected.pop(table))
    labels = [rows.pop("label") for rows in (upgraded, expected)]
    assert {row[-1] for rows in labels for row in rows} == {None}  # no model wrote them
    without_rules = ({row[:-2] for row in rows} for rows in labels)  # labels had no rules either
    assert next(without_rules) == next(without_rules)
    assert upgraded == expected


def test_an_interrupted_pass_goes_on_where_it_was(index: Callable[..., FeatureDB], store: PlantedStore, tmp_path: Path) -> None:
    class Failing(PlantedStore):
        def stream(self, sites, *, start=0, **how):  # type: ignore[no-untyped-def]
            starts.append(start)
            for block in super().stream(sites, start=start, **how):
                if len(starts) == 1 and block.start > 2000:
                    raise KeyboardInterrupt
                yield block

    starts: list[int] = []
    flaky = Failing(**vars(store))
    path = tmp_path / "flaky" / "f.sqlite"
    with pytest.raises(KeyboardInterrupt):
        index(path, store=flaky, checkpoint_seconds=0)
    assert not path.exists() and len(list(path.parent.iterdir())) == 1
    db = index(path, store=flaky, checkpoint_seconds=0)
    assert starts[0] == 0 and starts[1] > 1800
    assert contents(db.path) == contents(index().path)


@pytest.mark.parametrize("damage", ["cut", "garbage", "foreign"])
def test_a_checkpoint_that_does_not_fit_is_not_used(
    index: Callable[..., FeatureDB], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "again" / "f.sqlite"
    monkeypatch.setattr(indexing, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    sae = make_sae(4) if damage == "foreign" else make_sae()
    with pytest.raises(KeyboardInterrupt):
        index(path, sae=sae, checkpoint_seconds=0)
    monkeypatch.undo()
    (state,) = path.parent.glob("*.npz")
    if damage != "foreign":
        state.write_bytes(state.read_bytes()[:1000] if damage == "cut" else b"x" * 5000)
    assert contents(index(path).path) == contents(index().path)
    assert not list(path.parent.glob("*.npz"))
