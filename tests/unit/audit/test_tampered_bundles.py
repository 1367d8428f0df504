"""From one good bundle, hundreds of bad ones: none of them holds, and each says what is wrong with it.

The log is made up (support/synthetic_log.py), so the forger has every key there is: what is refused even then nobody could have done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.remembered import remembered_signatures
from support.synthetic_log import Signer, SyntheticLog

from dure.audit.bundle import Bundle
from dure.audit.level1 import CLOCK, verify
from dure.errors import DureError
from dure.statements.dsse import Envelope, canonical_json, seal_payload
from dure.tlog.tiles import Tile, decode_entries

ENTRIES = 334
"""One full entry bundle and a part of one, under two charter versions."""


@pytest.fixture(scope="module", autouse=True)
def remembered():
    with remembered_signatures():
        yield


@pytest.fixture(scope="module")
def log():
    return SyntheticLog(members=4, exchanges_per_run=4, versions_at=(120,), seed=7)


@pytest.fixture(scope="module")
def entries(log):
    return list(log.entries(ENTRIES))


@pytest.fixture(scope="module")
def good(log, entries, tmp_path_factory):
    return log.write(tmp_path_factory.mktemp("good") / "bundle", entries)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another consortium's log and bundle, of the same shape."""
    log = SyntheticLog(members=4, exchanges_per_run=4, versions_at=(120,), seed=8)
    return log, log.write(tmp_path_factory.mktemp("other") / "bundle", log.entries(ENTRIES))


def said(bundle: Path, log: SyntheticLog) -> list[str]:
    """What is wrong, each as `where: why`; nothing for a bundle that holds."""
    try:
        result = verify(Bundle.open(bundle), log.pin, now=log.now, cores=1)
    except DureError as error:
        return [str(error)]
    found = [f"{f.where}: {f.why}" for f in [*result.findings, *result.unknown]] + [f"{name}: is missing" for name in result.missing]
    assert bool(found) == (not result.holds)
    return found


def test_the_bundle_they_are_all_made_from_holds(good, log):
    assert said(good, log) == []
    assert len(list(good.rglob("*.root.json"))) == 2


# -- files ---------------------------------------------------------------------------------------------------------------


def changed(data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file flipped in some places, cut, grown, emptied."""
    for at in {0, len(data) - 1, *range(7, len(data), max(1, len(data) // 9))}:
        yield f"bit {at}", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    yield "last byte", data[:-1]
    yield "half", data[: len(data) // 2]
    yield "more", data + b"\n"
    yield "nothing", b""


def names_it(name: str, words: list[str], entries_of: range) -> bool:
    """The file itself, what the file is, or an entry in it."""
    what = ("charter", "trust", "x-dure", "entry 0")
    if not name.startswith("trust/"):
        what = ("checkpoint", "signature", "cosignatures", "origin", "root", "note") if name == "log/checkpoint" else ()
    there = [name, *what, *(f"entry {n}:" for n in entries_of)]
    return any(stem in word for word in words for stem in there)


def test_no_byte_of_any_file_can_change_unseen_and_what_is_said_names_the_file(good, log, tmp_path):
    copy, tried = tmp_path / "t", 0
    shutil.copytree(good, copy)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        name, data = path.relative_to(copy).as_posix(), path.read_bytes()
        held = range(ENTRIES) if "entries" not in name else range(256 * ("001" in name), 256 + (ENTRIES - 256) * ("001" in name))
        for how, bad in changed(data):
            path.write_bytes(bad)
            words = said(copy, log)
            assert words and names_it(name, words, held), (name, how, words[:3])
            tried += 1
        path.write_bytes(data)
    assert tried > 80


def test_every_file_that_is_dropped_is_named(good, log, tmp_path):
    copy = tmp_path / "t"
    shutil.copytree(good, copy)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        data, name = path.read_bytes(), path.relative_to(copy).as_posix()
        path.unlink()
        assert any(name in word for word in said(copy, log)), name
        path.write_bytes(data)


def test_files_that_change_places_or_come_from_another_consortium_are_named(good, log, other, tmp_path):
    files = sorted(p.relative_to(good) for p in good.rglob("*") if p.is_file())
    for number, name in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(good, copy, copy_function=os.link)
        (copy / name).unlink()
        shutil.copy(other[1] / name, copy / name)
        words = said(copy, log)
        assert (words and names_it(name.as_posix(), words, range(ENTRIES))) or "another consortium" in words[0], (name, words[:3])
        for neighbour in (n for n in files if n.parent.parts[:2] == name.parent.parts[:2] and n != name):
            (copy / name).unlink()
            shutil.copy(good / neighbour, copy / name)
            assert said(copy, log), f"{neighbour} in the place of {name}"
        shutil.rmtree(copy)


def test_a_file_that_nothing_covers_is_named(good, log, tmp_path):
    for extra in ("readme", "log/tile/2/000.p/1", "log/tile/entries/000.p/12", "trust/3.root.jsonx", "log/checkpoint.old"):
        copy = tmp_path / "t"
        shutil.copytree(good, copy)
        (copy / extra).parent.mkdir(parents=True, exist_ok=True)
        (copy / extra).write_bytes(b"")
        assert said(copy, log) == [f"{extra}: is no part of this bundle: nothing covers it"]
        shutil.rmtree(copy)


# -- histories: every head below is signed by the log and cosigned by every member -------------------------------------------


@pytest.fixture
def rewritten(log, good, tmp_path):
    """entries -> what is wrong with the bundle over them."""

    def write(changed_entries: list[bytes], **how) -> list[str]:
        folder = tmp_path / "forged"
        shutil.rmtree(folder, ignore_errors=True)
        return said(log.write(folder, changed_entries, **how), log)

    return write


def payload_of(entry: bytes) -> dict:
    return json.loads(Envelope.from_bytes(entry).payload)


def kind_of(entry: bytes) -> str:
    return payload_of(entry)["predicateType"][len("urn:dure:") : -len(":v1")]


def one_of_each(entries: list[bytes]) -> dict[str, int]:
    """kind -> index of one of its entries in the middle of the log."""
    found: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        found.setdefault(kind_of(entry), []).append(index)
    return {kind: where[len(where) // 2] for kind, where in found.items()}


def keys_of(log: SyntheticLog) -> dict[str, Signer]:
    from dure.statements.dsse import key_id

    signers = [log.coordinator, *(s for m in log.members for s in (m.signing, m.node))]
    return {key_id(s.public): s for s in signers}


def test_no_entry_can_be_left_out_doubled_moved_or_signed_by_another_key(log, entries, rewritten):
    assert len(one_of_each(entries)) >= 10
    stranger = Ed25519PrivateKey.generate()
    for kind, at in one_of_each(entries).items():
        mine = entries[at]
        envelope = Envelope.from_bytes(mine)
        before, after = entries[:at], entries[at + 1 :]
        keyid = envelope.signatures[0][0]
        twins = {
            "left out": [*before, *after],
            "twice": [*before, mine, *entries[at:]],
            "moved to the end": [*before, *after, mine],
            "by a stranger": [*before, seal_payload(envelope.payload, stranger).to_bytes(), *after],
            "by a stranger in the signer's name": [*before, Envelope(envelope.payload, ((keyid, bytes(64)),)).to_bytes(), *after],
            "by another member's node": [*before, seal_payload(envelope.payload, log.members[1].node.key).to_bytes(), *after],
            "by the coordinator": [*before, seal_payload(envelope.payload, log.coordinator.key, log.log).to_bytes(), *after],
            "by a governance key": [*before, seal_payload(envelope.payload, log.members[1].governance).to_bytes(), *after],
        }
        for how, twin in twins.items():
            if twin == entries:
                continue  # it is that key's own
            words = rewritten(twin)
            assert words and any(f"entry {n}:" in words[0] for n in range(max(0, at - 1), ENTRIES + 1)), (kind, how, words[:2])


def resigned(log: SyntheticLog, entries: list[bytes], at: int, change: Callable[[dict], None]) -> list[bytes]:
    """Entry `at` says something else, and its signer signs it and every later statement of its own anew, so that its chain has no gap."""
    keyid = Envelope.from_bytes(entries[at]).signatures[0][0]
    signer, twin, last = keys_of(log)[keyid], list(entries), None
    for index in range(at, len(entries)):
        envelope = Envelope.from_bytes(entries[index])
        if envelope.signatures[0][0] != keyid:
            continue
        body = json.loads(envelope.payload)
        if index == at:
            change(body["predicate"])
            fact = {k: v for k, v in body["predicate"].items() if k not in ("seq", "prev", "time", "checkpoint")}
            from hashlib import sha256

            body["subject"][0]["digest"]["sha256"] = sha256(canonical_json(fact)).hexdigest()
        elif last is not None:
            body["predicate"]["prev"] = last.hex()
        made = seal_payload(canonical_json(body), signer.key)
        twin[index], last = made.to_bytes(), made.sha256
    return twin


def last_words(log: SyntheticLog, entries: list[bytes]) -> int:
    """A statement of a node after which it says nothing more, so that nothing refers to it."""
    signer = [Envelope.from_bytes(e).signatures[0][0] for e in entries]
    last = [
        i
        for i, e in enumerate(entries)
        if kind_of(e) in ("exchange-accept", "usage", "instance-commit") and signer[i] not in signer[i + 1 :]
    ]
    return max(i for i in last if signer[i] in keys_of(log))


LIES = {
    ("instance-commit", "another root"): lambda p: p.update(root="00" * 32),
    ("instance-commit", "for another member"): lambda p: p.update(member="bora" if p["member"] != "bora" else "chan"),
    ("instance-commit", "with usage that nobody signed"): lambda p: p.update(usage_sha256="00" * 32),
    ("instance-commit", "of another context"): lambda p: p.update(ctx="00" * 32),
    ("instance-survivors", "without a member"): lambda p: p["survivors"].pop(),
    ("instance-survivors", "with a member's other commit"): lambda p: p["survivors"][0].update(commit_sha256="00" * 32),
    ("instance-survivors", "with fewer signatures"): lambda p: p["certificate"].pop(),
    ("instance-survivors", "with a signature of nobody"): lambda p: p["certificate"][0].update(signature="00" * 64),
    ("instance-aggregate", "of other survivors"): lambda p: p.update(survivors_sha256="00" * 32),
    ("instance-aggregate", "of another length"): lambda p: p.update(length=p["length"] + 1),
    ("instance-open", "with a lower threshold"): lambda p: p.update(threshold=p["threshold"] - 1),
    ("instance-open", "with a lower minimum"): lambda p: p.update(u_min=3 if p["u_min"] != 3 else 4),
    ("instance-open", "without a member in it"): lambda p: p["cohort"].pop(),
    ("instance-open", "of other weights"): lambda p: p.update(weights_id="00" * 32),
    ("exchange-accept", "of a sum that is not there"): lambda p: p.update(aggregates=["00" * 32]),
    ("exchange-accept", "of another exchange's sums"): lambda p: p.update(exchange=p["exchange"] - 1),
    ("run-plan", "with fewer colluders"): lambda p: p.update(colluders=p["colluders"] + 1),
    ("run-plan", "of another charter"): lambda p: p.update(charter_sha256="00" * 32),
    ("run-plan", "of another nonce"): lambda p: p.update(nonce="00" * 16),
    ("run-approval", "of another run"): lambda p: p.update(run="00" * 32),
    ("usage", "of another run"): lambda p: p.update(run="00" * 32),
    ("usage", "in an environment nobody named"): lambda p: p.update(environment_sha256="00" * 32),
    ("env-commitment", "of other accelerators"): lambda p: p["accelerators"][0].update(count=80),
    ("env-commitment", "of another member"): lambda p: p.update(member="bora" if p["member"] != "bora" else "chan"),
    ("charter", "of other bytes"): lambda p: p.update(file_sha256="00" * 32),
    ("charter", "of another version"): lambda p: p.update(version=p["version"] + 1),
    ("node-delegation", "of an old generation"): lambda p: p.update(generation=1, node_key="11" * 32),
    ("usage", "backdated by two days"): lambda p: p.update(time=p["time"] - 172_800),
    ("instance-open", "backdated by two days"): lambda p: p.update(time=p["time"] - 172_800),
    ("instance-commit", "dated two days after the head"): lambda p: p.update(time=p["time"] + 400_000),
}


@pytest.mark.parametrize(("kind", "lie"), list(LIES), ids=lambda x: x)
def test_a_signer_that_lies_and_signs_its_whole_chain_anew_is_named(log, entries, rewritten, kind, lie):
    """All keys but the others': what others signed about it does not fit any more, or the rules do not allow it."""
    where = [i for i, e in enumerate(entries) if kind_of(e) == kind]
    at = where[-1] if kind in ("charter", "node-delegation", "run-plan") else where[len(where) // 2]
    words = rewritten(resigned(log, entries, at, LIES[kind, lie]))
    assert words and words[0].startswith("entry "), words[:2]
    assert int(words[0].split()[1].rstrip(":")) >= at - 1


def test_the_forgers_tools_make_a_good_bundle_of_a_chain_signed_anew(log, entries, rewritten):
    """So what is refused above is the lie and not the tool: a second sooner or later is nobody's affair."""
    assert rewritten(resigned(log, entries, last_words(log, entries), lambda p: p.update(time=p["time"] + 1))) == []


def test_a_clock_off_by_a_day_has_its_own_exit_code(log, entries, tmp_path):
    at = last_words(log, entries)
    folder = log.write(tmp_path / "b", resigned(log, entries, at, lambda p: p.update(time=p["time"] - 172_800)))
    result = verify(Bundle.open(folder), log.pin, now=log.now)
    assert (result.exit_code, [f.where for f in result.findings]) == (CLOCK, [f"entry {at}"])
    assert "2.0 days before the statement" in result.findings[0].why


def test_keys_that_are_removed_or_not_yet_valid_sign_nothing(log, entries, rewritten):
    """The first member's keys were replaced by version 2: the old ones end there, the new ones begin there."""
    versions = [i for i, e in enumerate(entries) if kind_of(e) == "charter"]
    delegations = [i for i, e in enumerate(entries) if kind_of(e) == "node-delegation"]
    assert delegations[-1] == versions[1] + 1
    old_node = next(e for e in entries[: versions[1]] if payload_of(e)["predicate"].get("member") == "ara" and kind_of(e) == "usage")
    removed = rewritten([*entries, old_node])
    assert removed == [f"entry {ENTRIES}: signatures: key {Envelope.from_bytes(old_node).signatures[0][0][:16]} is not valid at this index"]
    new_node = next(e for e in entries[versions[1] :] if payload_of(e)["predicate"].get("member") == "ara" and kind_of(e) == "run-approval")
    early = rewritten([*entries[: versions[1]], new_node, *entries[versions[1] :]])
    assert early[0].startswith(f"entry {versions[1]}: signatures: key ") and "not valid at this index" in early[0]


def test_entries_of_another_consortium_are_refused_where_they_stand(log, entries, other, rewritten):
    theirs = decode_entries(Tile(-1, 0, 256), (other[1] / "log/tile/entries/000").read_bytes())
    for kind, at in one_of_each(theirs).items():
        words = rewritten([*entries[:200], theirs[at], *entries[200:]])
        assert words[0].startswith("entry 200: signatures: key "), (kind, words[:1])


def test_a_fork_without_the_quorum_names_who_is_missing(log, entries, rewritten):
    """Two histories of one length: the other one can be signed by the log and by as many witnesses as may lie, and by no more."""
    words = rewritten(entries[:-1], witnesses=("ara",))
    assert words == ["cosignatures: 1 of 3 needed witnesses; missing: bora.titan/witness, chan.titan/witness, dana.titan/witness"]


def test_entries_in_another_order_are_refused(log, entries, rewritten):
    assert rewritten(entries[::-1])
    for at in range(20, ENTRIES, 40):
        swapped = [*entries[:at], entries[at + 1], entries[at], *entries[at + 2 :]]
        same_signer = Envelope.from_bytes(entries[at]).signatures[0][0] == Envelope.from_bytes(entries[at + 1]).signatures[0][0]
        first, second = kind_of(entries[at]), kind_of(entries[at + 1])
        related = first in ("run-plan", "instance-open") or second in ("instance-survivors", "instance-aggregate")
        if same_signer or related:
            assert rewritten(swapped), at


def test_a_statement_of_a_newer_version_is_reported_with_its_signer_and_breaks_no_chain(log, entries, rewritten):
    def newer(body: dict) -> bytes:
        return canonical_json(body).replace(b"urn:dure:usage:v1", b"urn:dure:usage:v9")

    at = [i for i, e in enumerate(entries) if kind_of(e) == "usage"][-1]
    keyid = Envelope.from_bytes(entries[at]).signatures[0][0]
    twin = [e for i, e in enumerate(entries) if i <= at or Envelope.from_bytes(e).signatures[0][0] != keyid]
    twin[at] = seal_payload(newer(payload_of(entries[at])), keys_of(log)[keyid].key).to_bytes()
    unknown = [word for word in rewritten(twin) if word.startswith(f"entry {at}:")]
    assert len(unknown) == 1 and "usage:v9" in unknown[0] and "/node1, what it says was not judged" in unknown[0]
