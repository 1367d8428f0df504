"""Members that join, leave, are removed or get other keys, command by command: nothing counts before k members have signed it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import dure, founded, refused, worked

from dure.charter.consortium import ConsortiumFile
from dure.identity.node import load_node

NAMES = ("ara", "bora", "chan", "dana", "eun")
"""c = 1, k = 3."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("charter")
    hub = founded(root, NAMES)
    worked("node", "init", "--consortium", hub / "consortium.json", "--member", root / "ara/keys", "--dir", root / "ara/node")
    return root


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(signers: dict[str, str], version: int = 2) -> str:
    """These members' folders sign the proposal; what publish said."""
    for folder in signers.values():
        worked("member", "sign", f"hub/{version}.root.json", "--yes", "--dir", folder)
    return worked("charter", "publish", *(f"{d}/{version}.root.{m}.sig" for m, d in signers.items()), "--dir", "hub")


def keys(*names: str) -> dict[str, str]:
    return {name: f"{name}/keys" for name in names}


def charter():
    return ConsortiumFile.load(Path("hub/consortium.json")).charter(None)


def test_a_member_leaves_by_its_own_request_once_the_others_have_signed(place):
    worked("member", "leave", "--dir", "eun/keys")
    assert "eun LEAVES, by its own request" in worked("charter", "draft", "eun/keys/eun.leave.json", "--dir", "hub")
    told = json.loads(worked("charter", "propose", "--json", "--dir", "hub"))
    assert "REMOVES eun" in told["changes"]
    shown = worked("member", "sign", "hub/2.root.json", "--yes", "--dir", "ara/keys")
    assert "REMOVES eun" in shown and "colluders" not in shown
    publish(keys("ara", "bora", "chan", "eun"))  # whoever leaves may sign that it does: its key is one of the version before
    assert [m.id for m in charter().members] == ["ara", "bora", "chan", "dana"]


def test_a_leave_request_is_not_taken_from_somebody_else(place):
    """Without the signature anybody could have a member taken off the next draft."""
    worked("member", "leave", "--dir", "eun/keys")
    body = json.loads(Path("eun/keys/eun.leave.json").read_text())
    Path("forged.json").write_text(json.dumps({**body, "leaves": "dana"}))
    refused(dure("charter", "draft", "forged.json", "--dir", "hub"), "not signed by dana's governance key")
    Path("other.json").write_text(json.dumps({**body, "charter_sha256": "00" * 32}))
    refused(dure("charter", "draft", "other.json", "--dir", "hub"), "about another consortium")


def test_a_member_is_removed_by_the_others_against_its_will_and_not_by_too_few(place):
    draft = Path("hub/charter.toml")
    draft.write_text("\n".join(line for line in draft.read_text().splitlines() if '"dana",' not in line))
    worked("charter", "propose", "--dir", "hub")
    for name in ("ara", "bora"):
        worked("member", "sign", "hub/2.root.json", "--yes", "--dir", f"{name}/keys")
    few = dure("charter", "publish", "ara/keys/2.root.ara.sig", "bora/keys/2.root.bora.sig", "--dir", "hub")
    refused(few, "fewer than 3 valid signatures")
    assert charter().version == 1
    publish(keys("ara", "bora", "chan"))
    assert charter().version == 2 and "dana" not in [m.id for m in charter().members]
    again = worked("charter", "draft", "eun/keys/eun.join.json", "--dir", "hub")
    assert "dana" not in again, "whom people took off the list stays off"


def test_replaced_keys_are_signed_by_the_old_ones_and_a_node_under_the_old_ones_says_that_it_is_over(place):
    worked("member", "replace-keys", "--dir", "ara/keys", "--out", "ara/new", "--consortium", "hub/consortium.json")
    said = worked("charter", "draft", "ara/new/ara.replace.json", "--dir", "hub")
    assert "ara's keys are REPLACED (its old governance key signed this)" in said
    worked("charter", "propose", "--dir", "hub")
    publish({**keys("bora", "chan", "dana"), "ara": "ara/new"})
    assert charter().member("ara").signing_key != load_node(Path("ara/node")).charter.member("ara").signing_key
    shutil.copy("hub/consortium.json", "ara/node/consortium.json")
    assert "replaces ara's keys" in load_node(Path("ara/node")).ended
    refused(dure("node", "run", "--dir", "ara/node"), "replaces ara's keys", "dure node init")
    worked("node", "status", "--dir", "ara/node")
    worked("node", "init", "--consortium", "hub/consortium.json", "--member", "ara/new", "--dir", "ara/node2")
    new, old = load_node(Path("ara/node2")), load_node(Path("ara/node"))
    assert (new.ended, new.delegated.generation > old.delegated.generation) == ("", True)
    stale = dure("node", "init", "--consortium", "hub/consortium.json", "--member", "ara/keys", "--dir", "ara/node3")
    refused(stale, "charter's keys for ara are not those in ara/keys")


def test_lost_keys_are_replaced_without_the_old_ones(place):
    pin = charter().digest.hex()
    shutil.rmtree("ara/keys")
    worked("member", "replace-keys", "--lost", "ara", "--out", "ara/new", "--consortium", "hub/consortium.json")
    said = worked("charter", "draft", "ara/new/ara.replace.json", "--dir", "hub")
    assert "NOT signed by its old key" in said
    worked("charter", "propose", "--dir", "hub")
    refused(dure("member", "sign", "hub/2.root.json", "--yes", "--dir", "ara/new"), "has pinned no charter", "dure member trust")
    worked("member", "trust", pin, "--dir", "ara/new")
    publish({**keys("bora", "chan", "dana"), "ara": "ara/new"})
    assert charter().version == 2


def test_a_request_to_replace_other_keys_than_the_charters_is_refused(place):
    """Without the fingerprint a request made before another replacement would bring keys back."""
    for out in ("new", "newer"):
        worked("member", "replace-keys", "--dir", "ara/keys", "--out", f"ara/{out}", "--consortium", "hub/consortium.json")
    worked("charter", "draft", "ara/new/ara.replace.json", "--dir", "hub")
    worked("charter", "propose", "--dir", "hub")
    publish(keys("bora", "chan", "dana"))
    refused(dure("charter", "draft", "ara/newer/ara.replace.json", "--dir", "hub"), "ara.replace.json")
    body = json.loads(Path("ara/newer/ara.replace.json").read_text())
    Path("unsigned.json").write_text(json.dumps({**body, "old_signature": None}))
    refused(dure("charter", "draft", "unsigned.json", "--dir", "hub"), "not in the charter in force")


def test_a_proposal_that_does_not_follow_is_not_signed(place):
    worked("charter", "propose", "--dir", "hub")
    shutil.copy("hub/2.root.json", "2.root.json")
    alone = dure("member", "sign", "2.root.json", "--yes", "--dir", "ara/keys")
    refused(alone, "give the consortium file in force with --consortium")
    publish(keys("ara", "bora", "chan"))
    again = dure("member", "sign", "2.root.json", "--yes", "--consortium", "hub/consortium.json", "--dir", "dana/keys")
    refused(again, "version 2 does not follow version 2")


def test_an_expired_charter_has_its_own_exit_code(place, monkeypatch):
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3_700 * 86_400)
    ran = dure("charter", "show", "--dir", "hub")
    assert (ran.code, "has expired" in ran.err, "dure charter propose" in ran.err) == (8, True, True)
