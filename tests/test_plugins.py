"""Registries and the hook through which users extend them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from saekit import plugins
from saekit.errors import ConfigError, UnknownRef
from saekit.plugins import Registry


def test_a_registry_is_a_mapping_of_its_rows() -> None:
    registry = Registry("shape", {"round": 1})
    registry.register("square", 4)
    assert dict(registry) == {"round": 1, "square": 4}
    assert "square" in registry and "oval" not in registry and registry.get("oval") is None
    assert registry.find("square") == 4


def test_an_unknown_name_is_a_typed_error_with_the_nearest_name() -> None:
    registry = Registry("shape", {"round": 1, "square": 4}, error=UnknownRef)
    with pytest.raises(UnknownRef, match=r"no shape 'squer'.*Did you mean 'square'"):
        registry.find("squer")
    with pytest.raises(UnknownRef, match="Known: round, square"):
        registry.find(["square"])


def test_a_name_is_registered_once() -> None:
    registry = Registry("shape", {"round": 1})
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("round", 2)
    assert registry["round"] == 1


def test_plugin_files_are_imported_once_before_the_first_lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: Registry[int] = Registry("shape")
    monkeypatch.setattr(plugins, "shapes", shapes, raising=False)
    file = tmp_path / "plugin_of_shapes.py"
    file.write_text("from saekit import plugins\nplugins.shapes.register('oval', len(plugins.shapes) + 7)\n")
    monkeypatch.setenv(plugins.VARIABLE, f" {file} ,")
    try:
        assert shapes.find("oval") == 7
        assert list(shapes) == ["oval"]
        assert plugins.resolve("plugin_of_shapes:plugins") is plugins
    finally:
        sys.modules.pop("plugin_of_shapes", None)


@pytest.mark.parametrize("content", ["1 / 0", "import a_module_that_is_not_there", "this is no python"])
def test_a_plugin_that_fails_is_named_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    file = tmp_path / "plugin_that_fails.py"
    file.write_text(content)
    monkeypatch.setenv(plugins.VARIABLE, str(file))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"plugin_that_fails\.py"):
            len(Registry("shape", {}))


def test_a_plugin_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "absent.py"))
    with pytest.raises(ConfigError, match=r"absent\.py"):
        plugins.load()
    monkeypatch.setenv(plugins.VARIABLE, "no_such_module_anywhere")
    with pytest.raises(ConfigError, match="no_such_module_anywhere"):
        plugins.load()
