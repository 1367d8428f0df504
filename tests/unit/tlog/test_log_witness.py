"""Signed notes, heads, witnesses and proof files: what is accepted, and what is refused by name."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.tlog.checkpoint import Checkpoint, CheckpointRefused, open_checkpoint
from dure.tlog.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hash
from dure.tlog.note import COSIGNATURE_V1, ED25519, Note, NoteKey, NoteRefused, SignatureLine, cosign, sign
from dure.tlog.proof import TlogProof, TlogProofRefused
from dure.tlog.witness import AddCheckpoint, Seen, WitnessRefused, answer, judge

LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "titan.dure/log"
WITNESSES = {f"w{i}": Ed25519PrivateKey.from_private_bytes(bytes([i + 1]) * 32) for i in range(5)}
LOG_KEY = NoteKey(ORIGIN, ED25519, LOG.public_key().public_bytes_raw())
WITNESS_KEYS = [NoteKey(name, COSIGNATURE_V1, key.public_key().public_bytes_raw()) for name, key in WITNESSES.items()]


class Log:
    def __init__(self, entries=()):
        self.frontier, self.nodes, self.entries, self.roots = Frontier(), {}, [], [Frontier().root()]
        for entry in entries:
            self.add(entry)

    def add(self, entry):
        self.entries.append(entry)
        for level, index, value in self.frontier.append(leaf_hash(entry)):
            self.nodes[level, index] = value
        self.roots.append(self.frontier.root())

    def node(self, level, index):
        return self.nodes[level, index]

    def head(self, size=None, key=LOG):
        size = len(self.entries) if size is None else size
        checkpoint = Checkpoint(ORIGIN, size, self.roots[size])
        return Note(checkpoint.text(), (sign(checkpoint.text(), ORIGIN, key),)).to_bytes()

    def request(self, old, size=None):
        size = len(self.entries) if size is None else size
        return AddCheckpoint(old, tuple(consistency_proof(self.node, old, size)), self.head(size))


@pytest.fixture
def log():
    return Log(b"%d" % i for i in range(10))


def cosigned(log, names, time=1_700_000_000):
    note = Note.from_bytes(log.head())
    return note.with_signatures(cosign(note.text, n, WITNESSES[n], time) for n in names).to_bytes()


def test_a_head_with_a_quorum_opens_and_says_who_cosigned_when(log):
    head = open_checkpoint(cosigned(log, ["w0", "w1", "w2", "w3"]), LOG_KEY, WITNESS_KEYS, quorum=4)
    assert head.checkpoint == Checkpoint(ORIGIN, 10, log.roots[10])
    assert head.cosigned == dict.fromkeys(["w0", "w1", "w2", "w3"], 1_700_000_000)


def test_too_few_cosignatures_are_refused_naming_who_is_missing(log):
    with pytest.raises(CheckpointRefused, match="missing: w3, w4"):
        open_checkpoint(cosigned(log, ["w0", "w1", "w2"]), LOG_KEY, WITNESS_KEYS, quorum=4)


def test_one_witness_twice_counts_once(log):
    note = Note.from_bytes(cosigned(log, ["w0"]))
    twice = note.with_signatures([cosign(note.text, "w0", WITNESSES["w0"], 1_700_000_500)])
    head = open_checkpoint(twice.to_bytes(), LOG_KEY, WITNESS_KEYS, quorum=1)
    assert head.cosigned == {"w0": 1_700_000_000}


def test_strangers_lines_are_ignored_and_bad_lines_of_known_keys_refuse_the_note(log):
    note = Note.from_bytes(cosigned(log, ["w0"]))
    stranger = Ed25519PrivateKey.generate()
    assert open_checkpoint(note.with_signatures([cosign(note.text, "x", stranger, 1)]).to_bytes(), LOG_KEY, WITNESS_KEYS, quorum=1)
    good = note.signatures[1]
    bad = SignatureLine(good.name, good.key_id, good.signature[:-1] + bytes([good.signature[-1] ^ 1]))
    with pytest.raises(NoteRefused, match="w0"):
        open_checkpoint(Note(note.text, (note.signatures[0], bad)).to_bytes(), LOG_KEY, WITNESS_KEYS)
    later = SignatureLine(good.name, good.key_id, (1_700_000_001).to_bytes(8, "big") + good.signature[8:])
    with pytest.raises(NoteRefused, match="w0"):
        open_checkpoint(Note(note.text, (note.signatures[0], later)).to_bytes(), LOG_KEY, WITNESS_KEYS)


def test_a_logs_signature_is_no_cosignature_and_the_other_way_round(log):
    """The type byte is in the key's id: a key cannot be made to have said the other thing."""
    same = NoteKey("w0", ED25519, WITNESS_KEYS[0].public)
    assert same.id != WITNESS_KEYS[0].id
    note = Note.from_bytes(log.head())
    pretended = note.with_signatures([SignatureLine("w0", WITNESS_KEYS[0].id, bytes(8) + WITNESSES["w0"].sign(note.text))])
    with pytest.raises(NoteRefused):
        open_checkpoint(pretended.to_bytes(), LOG_KEY, WITNESS_KEYS)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\n",
        lambda raw: raw.replace(b"\n10\n", b"\n010\n"),
        lambda raw: raw.replace(b"\n10\n", b"\n11\n"),
        lambda raw: raw.replace(b"\n10\n", b"\n10 \n"),
        lambda raw: raw.replace(b"\n\n", b"\nextension\n\n"),
        lambda raw: raw.replace("— ".encode(), b"- "),
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: b"",
        lambda raw: b"\xff" + raw,
        lambda raw: raw.partition(b"\n\n")[0] + b"\n\n",
    ],
)
def test_heads_out_of_form_are_refused(log, change):
    with pytest.raises((NoteRefused, CheckpointRefused)):
        open_checkpoint(change(log.head()), LOG_KEY)


def test_a_head_of_another_log_or_key_is_refused(log):
    with pytest.raises(CheckpointRefused, match="not signed"):
        open_checkpoint(log.head(key=Ed25519PrivateKey.generate()), LOG_KEY)
    with pytest.raises(CheckpointRefused, match="origin"):
        open_checkpoint(log.head(), NoteKey("other/log", ED25519, LOG_KEY.public))


def test_vkeys_are_read_back_and_tampered_ones_refused():
    for key in (LOG_KEY, *WITNESS_KEYS):
        assert NoteKey.parse(key.vkey()) == key
    text = LOG_KEY.vkey()
    raw = base64.b64encode(bytes([1]) + bytes(32)).decode()
    for bad in ("", "a+b", text + "=", text.replace("+", " "), f"{ORIGIN}+00000000+{raw}"):
        with pytest.raises(NoteRefused):
            NoteKey.parse(bad)


def test_a_witness_follows_a_log_that_only_grows(log):
    seen, known = {}, {ORIGIN: [LOG_KEY]}
    for old, size in ((0, 3), (3, 3), (3, 8), (8, 10)):
        checkpoint, seen[ORIGIN] = judge(AddCheckpoint.from_bytes(log.request(old, size).to_bytes()), known, seen)
        line = SignatureLine.parse(answer(checkpoint, "w0", WITNESSES["w0"], 5).decode().rstrip("\n"))
        assert Note(checkpoint.text(), (line,)).verify([WITNESS_KEYS[0]]) == {WITNESS_KEYS[0]: 5}
    assert seen[ORIGIN] == Seen(10, log.roots[10])


@pytest.mark.parametrize(
    ("attack", "status", "evidence"),
    [
        ("rolled back", 409, False),
        ("stale old", 409, False),
        ("fork of the same size", 409, True),
        ("fork that grew", 422, True),
        ("old above new", 400, False),
        ("stranger's key", 403, False),
        ("another log", 404, False),
        ("proof missing", 422, True),
    ],
)
def test_what_a_witness_refuses(log, attack, status, evidence):
    fork = Log(b"%d" % i if i != 4 else b"rewritten" for i in range(10))
    requests = {
        "rolled back": log.request(0, 5),
        "stale old": log.request(3, 10),
        "fork of the same size": fork.request(8, 8),
        "fork that grew": fork.request(8, 10),
        "old above new": AddCheckpoint(8, (), log.head(5)),
        "stranger's key": AddCheckpoint(8, log.request(8, 10).proof, log.head(10, Ed25519PrivateKey.generate())),
        "another log": log.request(8, 10),
        "proof missing": AddCheckpoint(8, (), log.head(10)),
    }
    known = {} if attack == "another log" else {ORIGIN: [LOG_KEY]}
    with pytest.raises(WitnessRefused) as refused:
        judge(requests[attack], known, {ORIGIN: Seen(8, log.roots[8])})
    assert (refused.value.status, refused.value.evidence) == (status, evidence)
    if status == 409:
        assert refused.value.size == 8


@pytest.mark.parametrize(
    "raw", [b"", b"old 1\n", b"old 01\n\nx", b"old 1\nzz\n\nx", b"old 1\n" + b"AAAA\n" * 64 + b"\nx", b"\xff\n\nx", b"new 1\n\nx"]
)
def test_requests_out_of_form_are_400(raw):
    with pytest.raises(WitnessRefused) as refused:
        judge(AddCheckpoint.from_bytes(raw), {}, {})
    assert refused.value.status == 400


def test_a_proof_file_proves_its_entry_and_no_other(log):
    raw = TlogProof(7, tuple(inclusion_proof(log.node, 7, 10)), cosigned(log, ["w0", "w1", "w2", "w3"])).to_bytes()
    proof = TlogProof.from_bytes(raw)
    assert proof.to_bytes() == raw
    assert proof.verify(b"7", LOG_KEY, WITNESS_KEYS, quorum=4).checkpoint.size == 10
    with pytest.raises(Exception, match="does not lead"):
        proof.verify(b"8", LOG_KEY, WITNESS_KEYS, quorum=4)
    with pytest.raises(CheckpointRefused):
        proof.verify(b"7", LOG_KEY, WITNESS_KEYS, quorum=5)
    for bad in (raw.replace(b"index 7", b"index 07"), raw.replace(b"@v1", b"@v2"), raw[:20], raw.replace(b"index", b"extra !\nindex")):
        with pytest.raises(TlogProofRefused):
            TlogProof.from_bytes(bad)
