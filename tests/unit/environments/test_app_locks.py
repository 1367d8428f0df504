"""Locks: two forms, one meaning; whatever does not name a package by version and hash is refused, with its line."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from support.tiny_wheels import make_wheel

from dure.apps import AppRefused, pack_app, read_app
from dure.environments.imports import imported_by
from dure.environments.lock import LockRefused, Pinned, lock_text, read_lock
from dure.environments.prepare import _why
from dure.environments.wheels import check_complete, lock_of, read_wheels
from dure.errors import BadInput

DIGITS = Path(__file__).parents[3] / "apps" / "digits"
A, B = "a" * 64, "b" * 64

REQUIREMENTS = f"""
# by pip-compile
--index-url https://pypi.example/simple
Some.Package==1.0 ; python_version >= "3.11" \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via something
other[extra]==2.1+cpu --hash=sha256:{B}
"""
PYLOCK = f"""
lock-version = "1.0"
[[packages]]
name = "some-package"
version = "1.0"
marker = 'python_version >= "3.11"'
wheels = [{{name = "x.whl", hashes = {{sha256 = "{A}"}}}}, {{name = "y.whl", hashes = {{sha256 = "{B}"}}}}]
[[packages]]
name = "other"
version = "2.1+cpu"
wheels = [{{name = "z.whl", hashes = {{sha256 = "{B}"}}}}]
"""
PINS = (Pinned("some-package", "1.0", (A, B), 'python_version >= "3.11"'), Pinned("other", "2.1+cpu", (B,)))


@pytest.mark.parametrize(("file", "text"), [("requirements.lock", REQUIREMENTS), ("pylock.toml", PYLOCK)])
def test_both_forms_are_read_and_pip_is_given_only_what_was_read(file, text):
    lock = read_lock(file, text.encode())
    assert lock.pins == PINS
    assert lock.sha256 == hashlib.sha256(text.encode()).digest()
    assert "pypi.example" not in lock.requirements() and "extra" not in lock.requirements()
    assert read_lock("requirements.lock", lock.requirements().encode()).pins == PINS


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("helper==1.0", "line 1.*sha256"),
        ("\nhelper>=1.0 --hash=sha256:" + A, "line 2"),
        ("helper==1.* --hash=sha256:" + A, "line 1"),
        ("helper==1.0 --hash=sha512:" + A, "sha256"),
        ("helper==1.0 --hash=sha256:abcd", "64 hex digits"),
        ("-r other.txt", "line 1"),
        ("-e .", "line 1"),
        ("helper @ file:///srv/helper.whl --hash=sha256:" + A, "line 1"),
        (f"helper==1.0 --hash=sha256:{A}\nHelper==2.0 --hash=sha256:{B}", "twice"),
        (f"helper==1.0 --config-settings=x=y --hash=sha256:{A}", "line 1"),
        (f"helper==1.0 ; 'x' in extras --hash=sha256:{A}", "depends on a choice"),
    ],
)
def test_a_line_that_does_not_name_one_wheel_is_refused_with_its_number(text, named):
    with pytest.raises(LockRefused, match=named):
        read_lock("requirements.lock", text.encode())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("not toml [", "not valid TOML"),
        ('lock-version = "2.0"', "lock-version"),
        ('lock-version = "1.0"', "packages"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\nversion = "1"\nsdist = {}', "'a' has no wheels"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\nversion = "1"\nwheels = [{name = "x"}]', "sha256"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\nwheels = [{hashes = {sha256 = "' + A + '"}}]', "one version"),
    ],
)
def test_a_pylock_package_that_does_not_name_its_wheels_is_refused_by_name(text, named):
    with pytest.raises(LockRefused, match=named):
        read_lock("pylock.toml", text.encode())


def test_the_same_wheels_give_the_same_lock_and_two_versions_of_one_package_none(tmp_path):
    for folder in ("one", "two"):
        for name in ("zeta", "alpha") if folder == "one" else ("alpha", "zeta"):
            make_wheel(tmp_path / folder, name, "1.0", "x = 1")
    first, second = (lock_of(read_wheels(tmp_path / folder)) for folder in ("one", "two"))
    assert first == second == lock_text(reversed(read_lock("requirements.lock", first.encode()).pins))
    make_wheel(tmp_path / "one", "alpha", "1.1", "x = 2")
    with pytest.raises(LockRefused, match=r"alpha in versions 1\.0 and 1\.1"):
        lock_of(read_wheels(tmp_path / "one"))


def test_a_missing_wheel_and_an_exchanged_one_are_named_with_what_to_do(tmp_path):
    make_wheel(tmp_path, "alpha", "1.0", "x = 1")
    gone = make_wheel(tmp_path, "zeta", "1.0", "x = 1")
    lock = read_lock("requirements.lock", lock_of(read_wheels(tmp_path)).encode())
    assert len(check_complete(lock, read_wheels(tmp_path), tmp_path)) == 2
    gone.unlink()
    with pytest.raises(BadInput, match=r"no wheel of zeta 1\.0, which requirements\.lock names .* put it there"):
        check_complete(lock, read_wheels(tmp_path), tmp_path)
    make_wheel(tmp_path, "zeta", "1.0", "x = 'exchanged'")
    with pytest.raises(BadInput, match=r"zeta-1\.0-py3-none-any\.whl is not the wheel requirements\.lock was made with"):
        check_complete(lock, read_wheels(tmp_path), tmp_path)
    with pytest.raises(BadInput, match="has no wheels"):
        read_wheels(tmp_path.parent)


def test_an_apps_lock_is_part_of_its_digest_and_names_its_environment(tmp_path):
    app = tmp_path / "app"
    shutil.copytree(DIGITS, app, ignore=shutil.ignore_patterns("__pycache__"))
    assert read_app(app).env_sha256 is None
    before = pack_app(app).digest
    (app / "requirements.lock").write_text(REQUIREMENTS)
    packed = pack_app(app)
    assert packed.digest != before and packed.app.env_sha256 == hashlib.sha256(REQUIREMENTS.encode()).digest()
    (app / "pylock.toml").write_text(PYLOCK)
    with pytest.raises(AppRefused, match=r"requirements\.lock and pylock\.toml"):
        read_app(app)


def test_what_an_app_imports_is_read_from_its_source_without_running_it(tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "client.py").write_text("import os, helper.deep\nfrom mine import task\nfrom .model import net\nraise SystemExit\n")
    (package / "task.py").write_text("import numpy as np\ntry:\n    import perhaps\nexcept ImportError: pass\ndef f():\n    import later\n")
    (package / "model.py").write_text("from . import layers\nimport torch.nn\n")
    (package / "layers.py").write_text("import einops\n")
    (tmp_path / "download.py").write_text("import never_reached\n")
    assert imported_by(tmp_path, "mine.client:app") == ("einops", "helper.deep", "numpy", "torch.nn")


@pytest.mark.parametrize(
    "said",
    [
        "ERROR: Could not find a version that satisfies the requirement other>=2 (from helper) (from versions: none)\n",
        "ERROR: In --require-hashes mode, all requirements must have their versions pinned with ==. These do not:\n"
        "    other from file:///wheels/other-2.0-py3-none-any.whl (from helper==1.0->-r /site/envs/tmp/requirements.txt (line 1))\n",
    ],
)
def test_a_package_the_lock_forgot_is_named_with_who_needs_it_and_no_path(said):
    """The second is what pip says where the wheel is in the folder, and not in the lock."""
    words = _why(said, read_lock("requirements.lock", b"helper==1.0 --hash=sha256:" + b"0" * 64))
    assert words.startswith("requirements.lock lacks other") and "which helper" in words and "/" not in words
