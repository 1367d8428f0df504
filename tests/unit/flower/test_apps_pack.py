"""App folders: packing is deterministic, unpacking is safe, refusals are one line."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest

from dure.apps import AppRefused, pack_app, read_app, run_config, unpack_app

DIGITS = Path(__file__).parents[3] / "apps" / "digits"


@pytest.fixture
def app(tmp_path):
    shutil.copytree(DIGITS, tmp_path / "digits", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "digits"


def test_the_same_files_give_the_same_digest_wherever_and_whenever_they_lie(app, tmp_path):
    first = pack_app(app)
    shutil.copytree(app, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "__pycache__").mkdir()
    (tmp_path / "elsewhere" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / "elsewhere" / "digits" / "task.py").touch()
    second = pack_app(tmp_path / "elsewhere")
    assert first.archive == second.archive
    assert first.digest == hashlib.sha256(first.archive).digest()


def test_unpacked_app_packs_to_the_same_digest(app, tmp_path):
    packed = pack_app(app)
    read = unpack_app(packed.archive, tmp_path / "out", digest=packed.digest)
    assert read == packed.app
    assert pack_app(tmp_path / "out").digest == packed.digest


def test_archive_with_another_digest_than_approved_is_not_opened(app, tmp_path):
    with pytest.raises(AppRefused, match="approved is"):
        unpack_app(pack_app(app).archive, tmp_path / "out", digest=b"\0" * 32)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", "a\\b", "./x", "a\nb"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(AppRefused):
        unpack_app(_tar([tarfile.TarInfo(name)]), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_devices_and_folders_are_refused(tmp_path, kind):
    entry = tarfile.TarInfo("x")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with pytest.raises(AppRefused, match="plain file"):
        unpack_app(_tar([entry]), tmp_path / "out")


def test_duplicates_and_garbage_are_refused(tmp_path):
    with pytest.raises(AppRefused, match="twice"):
        unpack_app(_tar([tarfile.TarInfo("x"), tarfile.TarInfo("X")]), tmp_path / "a")
    with pytest.raises(AppRefused):
        unpack_app(b"garbage" * 200, tmp_path / "b")


def test_symbolic_links_are_not_packed(app):
    (app / "data").symlink_to("/etc")
    with pytest.raises(AppRefused, match="symbolic link"):
        pack_app(app)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[tool.flwr.app]\n", "[tool.other]\n", None),
        ('serverapp = "digits.server_app:app"', "", "serverapp"),
        ("digits.client_app:app", "digits.nowhere:app", "no module digits.nowhere"),
        ("digits.client_app:app", "digits.client_app:other", "'other'"),
        ("digits.client_app:app", "digits.client_app", "module:attribute"),
        ("w-max = 1797", "w-max = 0", "w-max"),
        ("w-max = 1797", 'outer-step = "magic"', "outer-step"),
        ("w-max = 1797", "per-node-config = { a = 1 }", "per-node-config.a"),
        ("hidden = 32", "hidden = [1]", "hidden"),
        ("hidden = 32", "hidden =", "TOML"),
    ],
)
def test_what_an_app_lacks_is_named_in_one_line(app, old, new, named):
    path = app / "pyproject.toml"
    text = path.read_text()
    assert old in text
    if named is None:
        text = text.replace("[tool.flwr", "[tool.other")
    path.write_text(text.replace(old, new))
    with pytest.raises(AppRefused, match=named or r"\[tool\.flwr\.app\]") as refused:
        read_app(app)
    assert "\n" not in str(refused.value).split("TOML:")[0]


def test_folder_without_pyproject_is_refused(tmp_path):
    with pytest.raises(AppRefused, match=r"pyproject\.toml"):
        read_app(tmp_path)


def test_overrides_take_the_type_of_the_key(app):
    config = run_config(read_app(app), ["num-server-rounds=5", "learning-rate=1"])
    assert config["num-server-rounds"] == 5 and config["learning-rate"] == 1.0
    assert isinstance(config["learning-rate"], float)


@pytest.mark.parametrize(
    ("override", "named"),
    [("num-server-round=5", "did you mean 'num-server-rounds'"), ("hidden=x", "whole number"), ("hidden", "key=value")],
)
def test_wrong_override_is_refused_with_a_hint(app, override, named):
    with pytest.raises(AppRefused, match=named):
        run_config(read_app(app), [override])


def test_dure_table_is_read(app):
    path = app / "pyproject.toml"
    table = (
        'w-max = 9\nouter-step = { kind = "nesterov", lr = 0.7 }\nmetrics = ["loss"]\nmax-exchanges = 4\n'
        'linear-strategy = ["Mine"]\naveraged = ["*stat"]\nmax-messages = 5\n[tool.dure.per-node-config]\nshard = [0, 1]\n'
    )
    path.write_text(path.read_text().replace("w-max = 1797", table))
    dure = read_app(app).dure
    assert dure.outer_step == {"kind": "nesterov", "lr": 0.7}
    assert (dure.w_max, dure.metrics, dure.max_exchanges, dure.linear_strategy) == (9, ("loss",), 4, ("Mine",))
    assert dure.per_node_config == {"shard": (0, 1)} and (dure.averaged, dure.max_messages) == (("*stat",), 5)
    assert read_app(app).rounds_key == "num-server-rounds"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("w_max = 9", "did you mean 'w-max'"),
        ("outer-steps = 'average'", "did you mean 'outer-step'"),
        ("zzz = 1", "has no key 'zzz'; it has averaged, "),
        ("subgroups = [['a', 'b']]", "subgroups are not there yet"),
        ("query-replies = 'total'", "mean or sum"),
        ("max-messages = 0", "max-messages is not a whole number above 0"),
    ],
)
def test_a_wrong_key_in_the_dure_table_is_refused_with_a_hint(app, line, named):
    path = app / "pyproject.toml"
    path.write_text(path.read_text().replace("w-max = 1797", line))
    with pytest.raises(AppRefused, match=named):
        read_app(app)


def _tar(entries: list[tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO())
    return buffer.getvalue()
