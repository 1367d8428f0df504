"""The environment of the demo's auditor: kept while nothing it is made from has changed, and made of nothing that is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dure.errors import Unavailable
from dure_demo import bare

PROJECT = """\
[project]
dependencies = ["rich>=13"]
[tool.hatch.build.targets.wheel]
packages = ["core/dure"]
"""


@pytest.fixture
def made(tmp_path, monkeypatch) -> list[Path]:
    """A checkout of one package; the wheels that were installed."""
    installed: list[Path] = []
    monkeypatch.setattr(bare, "ROOT", tmp_path)
    monkeypatch.setattr(bare, "copy_dependencies", lambda into: None)
    monkeypatch.setattr(bare, "build_wheel", lambda folder: folder / "dure.whl")
    monkeypatch.setattr(bare, "install", lambda into, wheel: installed.append(wheel))
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "README.md").write_text("dure")
    (tmp_path / "core" / "dure").mkdir(parents=True)
    (tmp_path / "core" / "dure" / "cli.py").write_text("main = 1\n")
    return installed


def test_the_environment_is_made_anew_only_where_a_source_changed(tmp_path, made):
    folder = tmp_path / "auditor"
    bare.bare_environment(folder)
    bare.bare_environment(folder)
    assert len(made) == 1
    (tmp_path / "core" / "dure" / "cli.py").write_text("main = 2\n")
    bare.bare_environment(folder)
    assert len(made) == 2


def test_an_environment_whose_making_broke_off_is_not_used(tmp_path, made, monkeypatch):
    def full(into: bare.Bare) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(bare, "copy_dependencies", full)
        with pytest.raises(OSError, match="no space"):
            bare.bare_environment(tmp_path / "auditor")
    bare.bare_environment(tmp_path / "auditor")
    assert len(made) == 1


def test_a_dependency_that_is_not_installed_here_is_named(tmp_path, made):
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace("rich>=13", "no-such-package>=2"))
    with pytest.raises(Unavailable, match="no-such-package>=2, which the bare dure needs, is not installed here"):
        bare.bare_environment(tmp_path / "auditor")
