"""The charter changes while real processes work under it: who is in, the coordinator's keys, a member's; and an auditor follows."""

from __future__ import annotations

import shutil

import pytest
from e2e.stage import Stage
from support.commands import dure, worked

from dure.audit.bundle import Bundle
from dure.audit.level1 import verify
from dure.charter.consortium import ConsortiumFile
from dure_coordinator.admin_client import call
from dure_participant.app import open_store

MEMBERS = ("ara", "bora", "chan", "dan")
STAY = MEMBERS[:3]
"""c = 1: three must finish."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("charter"), MEMBERS)
    made.everybody_up()
    try:
        yield made
    finally:
        made.consortium.stop()


def new_version(stage: Stage, number: int, folders: dict[str, str]) -> None:
    """What is drafted, proposed, signed from these folders and published."""
    hub = stage.consortium.dir_of("coordinator")
    worked("charter", "propose", "--dir", hub)
    for folder in folders.values():
        worked("member", "sign", hub / f"{number}.root.json", "--yes", "--dir", stage.consortium.dir_of(folder))
    signatures = [stage.consortium.dir_of(folder) / f"{number}.root.{m}.sig" for m, folder in folders.items()]
    worked("charter", "publish", *signatures, "--dir", hub)
    stage.until(lambda: call(hub, "status", {})["charter_version"] == number)


def version_at(stage: Stage, node: str) -> int:
    return ConsortiumFile.load(stage.consortium.dir_of(node) / "consortium.json").charter(None).version


def reason_at(stage: Stage, node: str) -> str:
    store = open_store(stage.consortium.dir_of(node))
    try:
        return str((store.fact("connection") or {}).get("reason", ""))
    finally:
        store.close()


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_a_member_leaves_and_the_coordinators_keys_are_replaced_in_mid_run_and_the_audit_follows(stage):
    hub = stage.consortium.dir_of("coordinator")
    run = stage.begin(rounds=8, settings={"train-s": "0.5"})
    stage.wait(run, lambda s: s["exchanges_closed"] >= 1)
    worked("member", "leave", "--dir", stage.consortium.dir_of("dan/member"))
    worked("charter", "draft", stage.consortium.dir_of("dan/member") / "dan.leave.json", "--dir", hub)
    new_version(stage, 2, {m: f"{m}/member" for m in STAY})
    # The run goes on as it was approved, without the member; nobody waits for it. And under the coordinator's new keys, without the old.
    closed = stage.wait(run, lambda s: s["exchanges_closed"] >= 3)["exchanges_closed"]
    worked("coordinator", "replace-keys", "--dir", hub)
    new_version(stage, 3, {m: f"{m}/member" for m in STAY})
    for name in ("signing.key", "log.key"):
        (hub / name).unlink()
    shown = stage.wait(run)
    assert closed < shown["exchanges_closed"] == 8
    counted = {m: facts["exchanges_counted"] for m, facts in shown["members"].items()}
    assert all(counted[m] == 8 for m in STAY), counted
    assert 1 <= counted["dan"] < 8
    reasons = {d["reason"] for d in shown["dropouts"] if d["member"] == "dan"}
    assert reasons <= {"dan is no member of charter version 2", "lost its connection"}, shown["dropouts"]
    stage.until(lambda: all(version_at(stage, f"{m}/node") == 3 for m in STAY))
    stage.until(lambda: "dan.titan is no member of charter version" in reason_at(stage, "dan/node"))
    assert version_at(stage, "dan/node") == 1

    # New keys: the old node is out, a new one under them speaks for its member.
    member, new = stage.consortium.dir_of("chan/member"), stage.consortium.dir_of("chan/new")
    worked("member", "replace-keys", "--dir", member, "--out", new, "--consortium", hub / "consortium.json")
    worked("charter", "draft", new / "chan.replace.json", "--dir", hub)
    new_version(stage, 4, {"ara": "ara/member", "bora": "bora/member", "chan": "chan/new"})
    stage.until(lambda: "not issued by that member's CA" in reason_at(stage, "chan/node"))
    stage.consortium.kill("chan")
    stage.consortium.kill("dan")
    worked("node", "init", "--consortium", hub / "consortium.json", "--member", new, "--dir", stage.consortium.dir_of("chan2/node"))
    stage.start("chan2")
    stage.until(lambda: set(call(hub, "status", {})["connected"]) == set(STAY))

    # Which keys were valid at which index: every entry by a key of its time, four versions in order, from a member's own mirror.
    node = stage.consortium.dir_of("ara/node")
    bundle = stage.consortium.root / "bundle"

    def exported() -> bool:
        shutil.rmtree(bundle, ignore_errors=True)
        return dure("audit", "export", "--dir", node, "--out", bundle).code == 0 and (bundle / "trust/4.root.json").exists()

    stage.until(exported)
    result = verify(Bundle.open(bundle), ConsortiumFile.load(hub / "consortium.json").first_digest)
    assert (result.findings, result.unknown, result.versions) == ([], [], 4)
    assert set(result.cosigned) <= {f"{m}.titan/witness" for m in STAY}
