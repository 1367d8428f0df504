"""Who may speak on the members' port: real mutual TLS against a real coordinator, with certificates an attacker could make."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from attacks.ports import serving
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from dure.errors import NotAuthorised, Unavailable
from dure.identity import keys, tls
from dure.identity.member import MemberFolder
from dure.wire.control import encode_evidence_query, encode_hello, encode_report
from dure.wire.messages import PROTOCOL_VERSION, EvidenceQuery, Hello, Report, ReportKind, why_not_spoken
from dure_participant import transport
from dure_pb.v1 import members_pb2_grpc


@pytest.fixture
async def port(tmp_path):
    """(address, coordinator CA, node identities, member folders) of a serving coordinator with three members."""
    async with serving(tmp_path) as made:
        yield made.address, made.ca, made.founded.nodes, made.founded.members


async def say_hello(address, ca, key, certificate, hello):
    """The gRPC status of a Hello, with its words."""
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        try:
            await members_pb2_grpc.MembersServiceStub(channel).Hello(encode_hello(hello), timeout=10)
            return "OK", ""
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()


def hello_of(node, version=PROTOCOL_VERSION):
    return Hello(version, node.charter.digest, node.delegation, "test")


def forged(member: MemberFolder, names: list[x509.GeneralName], *, now=None, ca=None, ca_key=None):
    """(key, certificate) for any names, by this member's CA or another one."""
    key = generate_private_key(SECP256R1())
    ca = ca or member.ca
    ca_key = ca_key or keys.load_tls_key(member.directory / "ca.key")
    at = now or datetime.now(UTC)
    builder = tls._leaf(ca, ca_key, key.public_key(), "forged", at, 30, x509.ExtendedKeyUsageOID.CLIENT_AUTH)
    certificate = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(ca_key, tls.SHA256())
    return keys.private_pem(key), tls.pem(certificate)


def spiffe(host: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(f"spiffe://{host}/node/n1")]


async def test_a_members_own_node_is_greeted(port):
    address, ca, nodes, _ = port
    node = nodes["ara"]
    assert await say_hello(address, ca, node.tls_key_pem, node.tls_certificate_pem, hello_of(node)) == ("OK", "")


async def test_a_caller_without_a_certificate_gets_no_answer(port):
    address, ca, nodes, _ = port
    code, _ = await say_hello(address, ca, None, None, hello_of(nodes["ara"]))
    assert code == "UNAVAILABLE"


async def test_a_certificate_of_a_strangers_ca_gets_no_answer(port, tmp_path):
    address, ca, nodes, _ = port
    stranger = MemberFolder.create(tmp_path / "x", "ara", label="titan", display_name="", registration="", now=time.time())
    key, certificate = forged(stranger, spiffe("ara.titan"))
    code, _ = await say_hello(address, ca, key, certificate, hello_of(nodes["ara"]))
    assert code == "UNAVAILABLE"


async def test_an_expired_certificate_gets_no_answer(port):
    address, ca, nodes, members = port
    key, certificate = forged(members["ara"], spiffe("ara.titan"), now=datetime.now(UTC) - timedelta(days=60))
    code, _ = await say_hello(address, ca, key, certificate, hello_of(nodes["ara"]))
    assert code in ("UNAVAILABLE", "UNAUTHENTICATED")


async def test_a_members_ca_cannot_speak_for_another_member(port):
    address, ca, nodes, members = port
    key, certificate = forged(members["bora"], spiffe("ara.titan"))
    code, _ = await say_hello(address, ca, key, certificate, hello_of(nodes["ara"]))
    assert code in ("UNAVAILABLE", "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "names",
    [
        [*spiffe("ara.titan"), x509.DNSName("hub.example")],
        [x509.DNSName("ara.titan")],
        [x509.UniformResourceIdentifier("spiffe://ara.titan/coordinator")],
    ],
    ids=["two names", "a DNS name", "not a node"],
)
async def test_a_certificate_whose_name_is_not_one_node_is_refused(port, names):
    address, ca, nodes, members = port
    key, certificate = forged(members["ara"], names)
    code, words = await say_hello(address, ca, key, certificate, hello_of(nodes["ara"]))
    assert code == "UNAUTHENTICATED", words
    assert words.startswith("certificate:")


async def test_a_node_cannot_bring_another_members_delegation(port):
    address, ca, nodes, _ = port
    mine = nodes["ara"]
    code, words = await say_hello(address, ca, mine.tls_key_pem, mine.tls_certificate_pem, hello_of(nodes["bora"]))
    assert code not in ("OK", "UNAVAILABLE"), words


@pytest.mark.parametrize(
    ("version", "said"),
    [(99, "is 99, this coordinator speaks 1; upgrade this coordinator"), (0, "is 0, this coordinator speaks 1; upgrade the node of ara")],
)
async def test_a_node_of_an_unknown_protocol_version_is_refused_and_hears_who_must_upgrade(port, monkeypatch, version, said):
    """The participant's own line, as a node of another release would greet."""
    monkeypatch.setattr(transport, "PROTOCOL_VERSION", version)
    address, _, nodes, _ = port
    line = transport.Line(replace(nodes["ara"], address=address))
    with pytest.raises(NotAuthorised, match=f"the coordinator refuses this node: protocol_version: {said}"):
        await line.hello()
    await line.close()


@pytest.mark.parametrize("call", ["hello", "append", "log_file", "evidence", "witness", "follow", "entries"])
async def test_a_call_whose_line_is_closed_under_it_is_taken_up_again_and_does_not_end_its_task_in_silence(port, call):
    """Closing a channel cancels its calls, and grpc.aio cancels with them whoever waits."""
    _, _, nodes, _ = port
    server = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing
    line = transport.Line(replace(nodes["ara"], address=f"127.0.0.1:{server.getsockname()[1]}"))
    calls = {
        "hello": line.hello,
        "append": lambda: line.append([b"{}"]),
        "log_file": lambda: line.log_file("checkpoint"),
        "evidence": lambda: line.evidence(EvidenceQuery(bytes(32), 1)),
        "witness": lambda: line.witness(lambda _r, _e: None, lambda _h: None),
        "follow": lambda: anext(line.follow()),
        "entries": lambda: anext(line.entries(0, 1)),
    }
    asking = asyncio.ensure_future(calls[call]())
    await asyncio.sleep(0.05)
    await line.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(asking, 5)
    server.close()


def test_a_coordinator_speaks_its_own_protocol_version_and_the_one_before_it():
    assert [why_not_spoken(v, "the node", current=3) == "" for v in range(6)] == [False, False, True, True, False, False]
    assert why_not_spoken(1, "the node of ara", current=3) == "is 1, this coordinator speaks 2 and 3; upgrade the node of ara"
    assert why_not_spoken(4, "the node of ara", current=3) == "is 4, this coordinator speaks 2 and 3; upgrade this coordinator"


async def test_a_report_before_the_greeting_changes_nothing(port):
    address, ca, nodes, _ = port
    node = nodes["ara"]
    credentials = grpc.ssl_channel_credentials(ca, node.tls_key_pem, node.tls_certificate_pem)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="Hello"):
            report = encode_report(Report(bytes(32), ReportKind.LOST))
            await members_pb2_grpc.MembersServiceStub(channel).Report(report, timeout=10)


async def test_evidence_of_a_run_that_is_not_the_callers_is_not_shown(port):
    """The same answer for a run that is not there, so that nobody learns which runs there are."""
    address, ca, nodes, _ = port
    node = nodes["ara"]
    credentials = grpc.ssl_channel_credentials(ca, node.tls_key_pem, node.tls_certificate_pem)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="in a run of this member") as refused:
            query = encode_evidence_query(EvidenceQuery(b"\x05" * 32, 1))
            await members_pb2_grpc.MembersServiceStub(channel).Evidence(query, timeout=10)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
