"""Two consortia of the same names on one machine: no query, file or key crosses; what is replayed to the other is refused by name."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from attacks.ports import hands, serving
from support.signed_log import AT, SignedLog, signed_log

from dure.audit.bundle import Bundle, export
from dure.audit.level1 import WrongPin, verify
from dure.audit.places import log_of
from dure.errors import Conflict, DureError, NotAuthorised
from dure.identity.member import MemberFolder
from dure.identity.node import load_node
from dure.secagg.certificate import context, survivors_message, verify_certificate
from dure.secagg.errors import BadSignature
from dure.secagg.ids import InstanceId, Purpose
from dure.tlog.checkpoint import Checkpoint, CheckpointRefused, open_checkpoint
from dure.tlog.files import CHECKPOINT, LogFiles
from dure.tlog.merkle import inclusion_proof
from dure.tlog.note import NoteRefused, SignatureLine, cosign
from dure.tlog.proof import TlogProof
from dure.tlog.witness import AddCheckpoint, WitnessRefused, judge
from dure.wire.control import encode_evidence_query
from dure.wire.messages import EvidenceQuery
from dure_coordinator.app import Coordinator
from dure_coordinator.settings import CoordinatorSettings
from dure_pb.v1 import log_pb2
from dure_pb.v1.log_pb2_grpc import LogServiceStub


@dataclass
class Two:
    ours: SignedLog
    theirs: SignedLog
    folder: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Two:
    """Two consortia, each with the charter, delegations and eight plans in its log, both published."""
    folder = tmp_path_factory.mktemp("two")
    made = Two(signed_log(folder / "ours", 8), signed_log(folder / "theirs", 8), folder)
    for log in (made.ours, made.theirs):
        log.publish(log.founded.hub.directory / "log")
    return made


def bundle(log: SignedLog, out: Path) -> Path:
    place = log_of(log.founded.hub.directory)
    export(place.tree(), place.head(), place.roots, out)
    return out


def head_of(log: SignedLog) -> bytes:
    return (log.founded.hub.directory / "log" / CHECKPOINT).read_bytes()


# -- heads, cosignatures, proofs, entries, bundles, certificates -----------------------------------------------------------


def test_heads_cosignatures_and_proofs_of_the_other_consortium_are_refused_by_name(two):
    ours, theirs = two.ours, two.theirs
    with pytest.raises(CheckpointRefused, match="origin: is 'dure/titan/"):
        open_checkpoint(head_of(theirs), ours.log, ours.witnesses, quorum=ours.quorum)
    with pytest.raises(WitnessRefused, match="is unknown here") as refused:
        judge(AddCheckpoint(0, (), head_of(theirs)), {ours.log.name: [ours.log]}, {})
    assert refused.value.status == 404
    files = LogFiles(theirs.founded.hub.directory / "log", theirs.log)
    proof = TlogProof(3, tuple(inclusion_proof(files.tree(files.size).node, 3, files.size)), head_of(theirs))
    proof.verify(theirs.entries[3], theirs.log, theirs.witnesses, quorum=theirs.quorum)
    with pytest.raises(CheckpointRefused, match="origin"):
        proof.verify(theirs.entries[3], ours.log, ours.witnesses, quorum=ours.quorum)


def test_a_witness_of_the_same_name_in_the_other_consortium_counts_nothing_here(two):
    """Neither its line for its own log nor one it makes for ours: the key behind the name is another."""
    ours = two.ours
    files = LogFiles(ours.founded.hub.directory / "log", ours.log)
    note = ours.note(Checkpoint(ours.log.name, files.size, files.root), ["ara", "bora"])
    name = ours.witnesses[2].name
    made = note.with_signatures([cosign(note.text, name, two.theirs.witness("chan"), AT)])
    theirs = next(line for line in open_checkpoint(head_of(two.theirs), two.theirs.log).note.signatures if line.name == name)
    replayed = note.with_signatures([theirs])
    for raw in (made, replayed):
        with pytest.raises(CheckpointRefused, match=r"2 of 3 needed witnesses; missing: chan.titan/witness"):
            open_checkpoint(raw.to_bytes(), ours.log, ours.witnesses, quorum=ours.quorum)
    pretended = note.with_signatures([SignatureLine(name, ours.witnesses[2].id, theirs.signature)])
    with pytest.raises(NoteRefused, match=r"of chan.titan/witness does not verify"):
        open_checkpoint(pretended.to_bytes(), ours.log, ours.witnesses, quorum=ours.quorum)


def test_a_bundle_under_the_others_pin_charter_or_log_is_refused_by_name(two, tmp_path):
    ours, theirs = bundle(two.ours, tmp_path / "ours"), bundle(two.theirs, tmp_path / "theirs")
    assert verify(Bundle.open(ours), two.ours.pin).holds and verify(Bundle.open(theirs), two.theirs.pin).holds
    with pytest.raises(WrongPin, match="another consortium"):
        verify(Bundle.open(theirs), two.ours.pin)
    mixed = shutil.copytree(ours, tmp_path / "mixed")
    shutil.rmtree(mixed / "log")
    shutil.copytree(theirs / "log", mixed / "log")
    with pytest.raises(CheckpointRefused, match="origin"):
        verify(Bundle.open(mixed), two.ours.pin)


def test_entries_replayed_from_the_other_log_are_findings_even_if_every_witness_cosigns_them(two, tmp_path):
    ours, theirs = two.ours, two.theirs
    replayed = replace(ours, entries=[*ours.entries, theirs.entries[0], theirs.entries[1], theirs.entries[-1]])
    hub = tmp_path / "hub"
    replayed.publish(hub / "log")
    for name in ("coordinator.json", "consortium.json"):
        shutil.copy(ours.founded.hub.directory / name, hub / name)
    place = log_of(hub)
    export(place.tree(), place.head(), place.roots, tmp_path / "bundle")
    found = verify(Bundle.open(tmp_path / "bundle"), ours.pin).findings
    assert [f.where for f in found] == [f"entry {len(ours.entries) + i}" for i in range(3)]
    assert all("is not valid at this index" in f.why for f in found)


def test_a_survivor_certificate_is_for_one_consortium_even_if_all_keys_and_numbers_are_the_same(two):
    keys = {name: node.key for name, node in two.ours.founded.nodes.items()}
    cohort, publics = tuple(sorted(keys)), {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    commits = dict.fromkeys(cohort, bytes(32))
    here, there = (InstanceId(log.charter.terms.consortium_id, b"r" * 32, 1, Purpose.UPDATE, 0, 0) for log in (two.ours, two.theirs))
    opened = hashlib.sha256(b"open").digest()
    signed = survivors_message(there, context(there, opened), commits)
    signatures = {name: key.sign(signed) for name, key in keys.items()}
    arguments = (cohort, commits, signatures, publics, 1, 3)
    assert verify_certificate(there, context(there, opened), *arguments)
    with pytest.raises(BadSignature):
        verify_certificate(here, context(here, opened), *arguments)


# -- the ports -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def ports(tmp_path):
    async with serving(tmp_path / "a") as ours, serving(tmp_path / "b") as theirs:
        yield ours, theirs


async def words_of(call) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, error.value.details()


async def test_a_node_of_the_other_consortium_is_not_let_in_though_its_name_is_the_same(ports):
    ours, theirs = ports
    stranger = replace(ours, founded=replace(ours.founded, nodes=theirs.founded.nodes))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async with hands(stranger, "ara"):
            pass
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE, "its certificate is of a CA that is not in this charter"


async def test_a_node_with_the_other_consortiums_charter_is_refused_by_field_though_it_has_a_members_keys(ports):
    """As of a member that was given the same keys in both, which the commands refuse to do."""
    ours, theirs = ports
    node = replace(ours.founded.nodes["ara"], charters=theirs.founded.nodes["ara"].charters)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async with hands(replace(ours, founded=replace(ours.founded, nodes={"ara": node})), "ara"):
            pass
    assert error.value.details().startswith("charter_digest: is of no charter version here; this node is of another consortium")


async def test_no_query_on_one_port_finds_what_is_the_others(ports):
    ours, theirs = ports
    engine = await theirs.start_run()
    blob = theirs.coordinator.blobs.put_bytes(b"the other consortium's model")
    async with hands(ours, "ara") as (hand,), hands(theirs, "ara"):
        code, words = await words_of(hand.stub.Evidence(encode_evidence_query(EvidenceQuery(engine.run, 1))))
        assert (code, words) == ("PERMISSION_DENIED", "no sum was opened in an exchange of that number in a run of this member")
        with pytest.raises(NotAuthorised, match="no run of this member"):
            await ours.coordinator.fleet.open_blob("ara", blob)
        for node in theirs.founded.nodes.values():
            code, words = await words_of(LogServiceStub(hand.channel).Append(log_pb2.AppendRequest(envelopes=[node.delegation])))
            assert (code, words) == ("INVALID_ARGUMENT", "signatures: not signed by a key that may sign this")
    assert await ours.coordinator.fleet.engine(engine.run) is None
    assert (await ours.coordinator.store.runs(), (await ours.coordinator.store.log_head()).size) == ([], 0)


async def test_work_for_one_consortium_leaves_every_file_of_the_other_as_it_was(ports):
    ours, theirs = ports
    before = _files(theirs.founded.hub.directory.parent)
    async with hands(ours, "ara", "bora", "chan") as nodes:
        await ours.start_run()
        envelope = ours.founded.nodes["ara"].delegation
        await LogServiceStub(nodes[0].channel).Append(log_pb2.AppendRequest(envelopes=[envelope]))
        assert (await ours.coordinator.store.log_head()).size == 1
    assert _files(theirs.founded.hub.directory.parent) == before


def _files(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith("-shm"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in paths}


# -- keys and folders ----------------------------------------------------------------------------------------------------


def test_no_private_key_of_one_is_in_any_file_of_the_other(two):
    secrets = {p.read_bytes() for p in (two.folder / "ours").rglob("*.key")}
    assert len(secrets) > 20
    others = [p.read_bytes() for p in (two.folder / "theirs").rglob("*") if p.is_file()]
    assert not any(secret in data for secret in secrets for data in others)


def test_a_members_keys_and_a_nodes_folder_are_of_one_consortium_for_good(two, tmp_path):
    member = MemberFolder.load(shutil.copytree(two.folder / "ours" / "ara", tmp_path / "ara"))
    with pytest.raises(NotAuthorised, match="only if the members agreed on a new start"):
        member.trust(two.theirs.pin)
    shutil.copy(two.theirs.founded.hub.published_path(), tmp_path / "ara/node/consortium.json")
    with pytest.raises(NotAuthorised, match="another consortium, or a forgery"):
        load_node(tmp_path / "ara/node")


async def test_a_coordinator_does_not_open_the_others_charter_log_or_database(two, tmp_path):
    """One installation may have one PostgreSQL; two consortia in one database would answer each other's questions."""
    ours, theirs = two.ours.founded.hub, two.theirs.founded.hub
    shutil.copytree(ours.directory, tmp_path / "hub")
    hub = type(ours).load(tmp_path / "hub")
    shutil.copy(theirs.published_path(), hub.published_path())
    with pytest.raises(NotAuthorised, match="names another coordinator's key"):
        await Coordinator.open(hub, CoordinatorSettings())
    shutil.copy(ours.published_path(), hub.published_path())
    shared = CoordinatorSettings(database=f"sqlite:///{tmp_path}/shared.sqlite")
    shutil.rmtree(hub.directory / "log")
    first = await Coordinator.open(hub, shared)
    await first.start()
    await first.close()
    with pytest.raises(Conflict, match=r"the database is another coordinator's \(key [0-9a-f]{16}\); give each consortium one of its own"):
        await Coordinator.open(theirs, shared)
    again = await Coordinator.open(hub, shared)
    await again.close()
    shutil.rmtree(hub.directory / "log")
    shutil.copytree(theirs.directory / "log", hub.directory / "log")
    with pytest.raises(DureError, match="origin"):
        await Coordinator.open(hub, CoordinatorSettings())
