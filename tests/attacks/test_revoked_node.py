"""A member takes its word for a node back: from that entry on the node is cut off, its certificate refused, its key nobody's."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import grpc
import pytest
from attacks.ports import found, hands, sends, serving
from support.tiny_charter import charter, key_of, public

from dure.audit.entry import read_entry
from dure.audit.keys import KeyRefused, Keys
from dure.errors import BadInput, Refused
from dure.identity.node import create_node
from dure.statements.kinds import CharterVersion, NodeDelegation, NodeRevocation, RunApproval
from dure.statements.statement import Chain, seal
from dure.wire.messages import ReportKind
from dure_coordinator.log.intake import Intake
from dure_coordinator.rpc.admin import Admin
from dure_participant.log.following import Followed, Follower

NAMES = ("ara", "bora", "chan", "dana")


def revoked(port, member: str) -> dict[str, object]:
    """What `dure coordinator enter` sends of a member that revoked its node."""
    folder = port.founded.members[member]
    folder.revoke("n1", "stolen", time.time() + 1)
    return {"member": member, "statements": [base64.b64encode(raw).decode() for raw in folder.statements()]}


async def test_a_revoked_node_is_cut_off_at_once_and_a_new_one_speaks_for_its_member(tmp_path):
    async with serving(tmp_path, names=NAMES) as port, hands(port, *NAMES) as nodes:
        await port.coordinator.start()
        engine = await port.start_run()
        dana = nodes[-1]
        approval = (await dana.go(sends(ReportKind.APPROVAL))).report
        assert (await dana.report(approval)).accepted
        began = time.monotonic()
        assert (await Admin(port.coordinator)._enter(revoked(port, "dana"), b""))["statements"] == 2
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await asyncio.wait_for(dana.following, 10)
        assert time.monotonic() - began < 5
        assert cut.value.code() is grpc.StatusCode.UNAUTHENTICATED and "n1 was revoked by dana: stolen" in cut.value.details()
        with pytest.raises(grpc.aio.AioRpcError, match="was revoked"):
            await dana.report(approval)
        assert not engine.state.present["dana"].connected and engine.state.present["dana"].lost
        assert not nodes[0].following.done(), "the others go on"
        await asyncio.sleep(1.1)  # a certificate made in the very second of the revocation is none of the new ones
        again = create_node(
            port.founded.members["dana"].directory, tmp_path / "dana2", "n1", port.founded.hub.published_path(), now=time.time()
        )
        port.founded.nodes["dana"] = again
        async with hands(port, "dana") as (new,):
            assert new.identity.delegated.generation == 2
    # A coordinator that starts again knows it from the log.
    from dure_coordinator.app import Coordinator
    from dure_coordinator.settings import CoordinatorSettings

    restarted = await Coordinator.open(port.founded.hub, CoordinatorSettings())
    assert restarted.roster.revoked_generation("dana") == 1
    await restarted.close()


async def test_one_revocation_brought_again_and_again_is_one(tmp_path):
    """Each time it was one more in the denylist, which every new certificate is compared with, and made all certificates be read anew."""
    async with serving(tmp_path, names=NAMES) as port:
        await port.coordinator.start()
        said = revoked(port, "dana")
        await Admin(port.coordinator)._enter(said, b"")
        roster = port.coordinator.roster
        for _ in range(3):
            await Admin(port.coordinator)._enter(said, b"")
        assert port.coordinator.roster is roster and len(roster.revoked) == 1


async def test_nobody_but_the_member_revokes_its_node(tmp_path):
    """Without the signature the administrator, or another member, could cut anybody off."""
    async with serving(tmp_path, names=NAMES) as port:
        await port.coordinator.start()
        intake = Intake(port.coordinator.fleet)
        fact = NodeRevocation("dana", "n1", 1, int(time.time()) + 9, "")
        for key in (port.founded.members["ara"].signing_key, port.founded.hub.signing_key, port.founded.nodes["dana"].key):
            envelope, _ = seal(fact, key, Chain(), time.time())
            with pytest.raises(Refused):
                await intake.enter("dana", envelope.to_bytes())
        assert port.coordinator.roster.revoked == ()


def test_a_member_revokes_only_what_it_delegated(tmp_path):
    founded = found(tmp_path, NAMES)
    with pytest.raises(BadInput, match="delegated to no node n9"):
        founded.members["ara"].revoke("n9", "", time.time())
    assert founded.members["ara"].revoke("n1", "", time.time()).generation == 1
    assert founded.members["ara"].next_delegation()[0] == 2, "generations go on"


class Log:
    def __init__(self) -> None:
        self.chains, self.entries = {}, []

    def add(self, key: str, fact) -> None:
        envelope, self.chains[key] = seal(fact, key_of(key), self.chains.get(key, Chain()), 1_700_000_000)
        self.entries.append(envelope.to_bytes())


def test_auditors_and_the_other_members_mirrors_end_the_key_at_the_revocation():
    """Without it in Keys a statement that a thief signs later would pass the audit."""
    log, node = Log(), public(key_of("node"))
    log.add("hub signing", CharterVersion(1, charter().digest, bytes(32)))
    log.add("bora signing", NodeDelegation("bora", "n1", node, 3, 0, 2**40))
    log.add("node", RunApproval(bytes(32), "bora", "n1"))
    log.add("bora signing", NodeRevocation("bora", "n1", 3, 1, "lost"))
    keys = Keys((charter(),))
    for raw in log.entries:
        entry = read_entry(raw)
        keys.follow(entry, keys.signer(entry.key_id)[1])
    assert keys.node_keys() == {}
    log.add("node", RunApproval(b"x" * 32, "bora", "n1"))
    with pytest.raises(KeyRefused, match="not valid at this index"):
        keys.signer(read_entry(log.entries[-1]).key_id)
    log.add("bora signing", NodeDelegation("bora", "n1", node, 3, 0, 2**40))
    entry = read_entry(log.entries[-1])
    with pytest.raises(KeyRefused, match="was revoked"):
        keys.follow(entry, keys.signer(entry.key_id)[1])
    followed, follower = Followed(), Follower("ara", public(key_of("me")), lambda _n: None, lambda: (charter(),))
    for raw in log.entries[:4]:
        followed = follower.take(followed, raw)
    assert followed.ended == {node} and Followed.from_json(json.loads(json.dumps(followed.to_json()))) == followed
