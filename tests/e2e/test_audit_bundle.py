"""One real run's bundle, audited offline; and what is changed in it, seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.commands import dure, refused, worked
from support.founded import Founded

from dure.audit.bundle import Bundle, PartMissing
from dure.audit.level1 import ClockOff, WrongPin, verify
from dure.audit.places import log_of
from dure.charter.log_keys import log_key, origin_of
from dure.errors import DureError, Refused
from dure.identity.keys import load_signing_key
from dure.provenance.attestation import read_statement, statement_of
from dure.statements.dsse import Envelope, key_id, seal_payload
from dure.statements.kinds import Allocation, Eval, InstanceAggregate
from dure.statements.statement import Chain, read_payload, read_verified, seal
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.note import Note, cosign, sign
from dure.tlog.tiles import TileBuilder, TiledTree
from dure_demo.consortium import StepFailed, dure_command, node_environment

APP = Path(__file__).resolve().parents[2] / "apps" / "digits"
MEMBERS = ("ara", "bora", "chan", "dan")
NPUS = "8 x npu Rebellions ATOM-Max 64 GiB driver 1.1.67"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """(consortium after one round, a member's bundle, the pin)."""
    from e2e.test_digits_consortium import wait_for

    consortium = Founded(tmp_path_factory.mktemp("audit") / "c", MEMBERS)
    consortium.found()
    try:
        consortium.serve()
        consortium.configure("ara", {"accelerators": NPUS, "peak_flops": 1e15, "watts": 2_800.0})
        for member in MEMBERS:
            consortium.start_node(member)
        _register_data(consortium, "ara")
        run, plan = consortium.run_start(APP, rounds=1, settings={}, outer_step="average")
        for member in MEMBERS[1:]:
            consortium.allow(member, plan)
        wait_for(consortium, run, lambda _s: _allowed_with_data(consortium, "ara", plan))
        wait_for(consortium, run, lambda s: s["state"] == "finished")
        hub = log_of(consortium.dir_of("coordinator"))
        wait_for(consortium, run, lambda _s: _accepts(hub) >= 6)
        mirror = log_of(consortium.dir_of("ara/node"))
        wait_for(consortium, run, lambda _s: _accepts(mirror) >= 6)  # it hears of a head once the others cosigned it
        allocate(consortium, lambda done: wait_for(consortium, run, lambda _s: done()))
    finally:
        consortium.stop()
    bundle = consortium.root / "bundle"
    told = json.loads(consortium.dure("audit", "export", "--dir", consortium.dir_of("coordinator"), "--out", bundle, "--json"))
    return consortium, bundle, told["root_sha256"]


def _register_data(consortium, member: str) -> None:
    (consortium.root / "text.txt").write_text("what it trains on")
    keys = consortium.dir_of(f"{member}/member")
    consortium.dure("data", "register", consortium.root / "text.txt", "--name", "news", "--licence", "MIT", "--dir", keys)
    consortium.dure("coordinator", "enter", keys / f"{member}.data.json", "--dir", consortium.dir_of("coordinator"))


def _allowed_with_data(consortium, member: str, plan: str) -> bool:
    """The operator names data for this run; refused until the node's mirror has the commitment, of that name or any other."""
    allow = ("node", "allow", plan, "--yes", "--dir", consortium.dir_of(f"{member}/node"))
    with pytest.raises(StepFailed, match="ara has registered no such data in the log"):
        consortium.dure(*allow, "--data", "elsewhere")
    try:
        return bool(json.loads(consortium.dure(*allow, "--data", "news", "--json"))["data"])
    except StepFailed as failed:
        assert "has registered no such data" in str(failed)
        return False


def allocate(consortium: Founded, until) -> None:
    """By sums they are in, signed by the three that are needed, each against its own mirror."""
    hub, file = consortium.dir_of("coordinator"), consortium.root / "a-1.allocation.json"
    consortium.dure("allocation", "draft", "--name", "a-1", "--by", "counted", "--out", file, "--dir", hub)
    signers, size = MEMBERS[:3], log_of(hub).head().checkpoint.size
    until(lambda: all(log_of(consortium.dir_of(f"{m}/node")).head().checkpoint.size >= size for m in signers))
    for member in signers:
        node, keys = consortium.dir_of(f"{member}/node"), consortium.dir_of(f"{member}/member")
        consortium.dure("allocation", "sign", file, "--node", node, "--yes", "--dir", keys)
    signed = [consortium.dir_of(f"{m}/member") / f"a-1.allocation.{m}.sig" for m in signers]
    consortium.dure("allocation", "publish", file, *signed, "--dir", hub)


def _accepts(place) -> int:
    try:
        return sum(b"exchange-accept" in Envelope.from_bytes(e).payload for e in place.tree().entries(0, place.head().checkpoint.size))
    except DureError:
        return 0


def audit(bundle: Path, pin: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = ["audit", "verify", str(bundle), "--root-sha256", pin, *arguments]
    return subprocess.run([*dure_command(), *words], capture_output=True, text=True, timeout=120, env=node_environment(), check=False)


@pytest.mark.timeout(300)
def test_an_auditor_verifies_a_bundle(played):
    _, bundle, pin = played
    done = audit(bundle, pin, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["holds"], told["findings"]) == (0, True, [])
    assert told["runs"][0]["exchanges_summed"] == 2
    assert set(told["runs"][0]["counted"]) == set(MEMBERS)
    assert told["entries"]["exchange-accept"] >= 6
    assert told["heads_named"] >= sum(told["entries"][kind] for kind in ("instance-aggregate", "exchange-accept", "instance-survivors"))
    assert told["entries"]["env-commitment"] == len(told["environments"]) == 4
    assert {e["member"]: (e["how"], e["usage_statements"]) for e in told["environments"]} == dict.fromkeys(MEMBERS, ("self-declared", 2))
    assert {e["accelerators"][0]["kind"] for e in told["environments"] if e["member"] != "ara"} == {"cpu"}
    words = audit(bundle, pin).stdout
    assert "ara says that it trains in (self-declared): 8 x npu Rebellions ATOM-Max, 64 GiB, driver 1.1.67; dure " in words
    assert all(label in words for label in ("proved", "signed", "self-declared", "not checked", "all of level 1 holds"))


def test_the_log_says_what_was_measured_on_which_weights_and_on_whose_data(played):
    consortium, _, _ = played
    tree = log_of(consortium.dir_of("coordinator")).tree()
    payloads = [Envelope.from_bytes(entry).payload for entry in tree.entries()]
    (said,) = [read_payload(p, Eval)[0] for p in payloads if b"urn:dure:eval:v1" in p]
    assert [m.name for m in said.metrics] == ["accuracy", "loss"]
    assert (said.exchange, said.members) == (2, MEMBERS)
    assert said.data == tuple(sha256(p).digest() for p in payloads if b"urn:dure:data-commitment:v1" in p)


def test_an_allocation_that_members_signed_is_made_again_from_the_bundle(played):
    consortium, bundle, pin = played
    told = json.loads(worked("audit", "contributions", bundle, "--root-sha256", pin, "--check", "a-1", "--json"))
    assert (told["holds"], told["signed_by"], sum(told["portions"].values())) == (True, list(MEMBERS[:3]), 1_000_000)
    assert set(told["portions"]) == set(MEMBERS)
    mirror = consortium.dir_of("ara/node")
    assert "table and portions are proved" in worked("contributions", "--check", "a-1", "--dir", mirror)


def test_a_member_signs_no_shares_that_its_own_log_does_not_give_and_one_signature_is_too_few(played, tmp_path):
    consortium, _, _ = played
    file, keys = consortium.root / "a-1.allocation.json", consortium.dir_of("bora/member")
    said = read_statement(file.read_bytes(), Allocation)
    first, second, *rest = said.portions
    changed = replace(said, portions=(replace(first, parts=first.parts + 1), replace(second, parts=second.parts - 1), *rest))
    (tmp_path / "forged.json").write_bytes(statement_of(changed))
    own = ("--node", consortium.dir_of("bora/node"), "--yes", "--dir", keys)
    refused(dure("allocation", "sign", tmp_path / "forged.json", *own), "not the whole in proportion to counted")
    alone = dure("allocation", "publish", file, keys / "a-1.allocation.bora.sig", "--dir", consortium.dir_of("coordinator"))
    refused(alone, "1 of 4 members, 3 are needed", "ara, chan, dan")


def test_a_member_proves_its_contribution_from_its_mirror_with_the_coordinator_gone(played, tmp_path):
    """No process runs and the coordinator's folder is away: the mirror gives a bundle that holds, and which sums the member is in."""
    consortium, _, pin = played
    hub, mine = consortium.dir_of("coordinator"), tmp_path / "mine"
    away = hub.rename(hub.with_name("away"))
    try:
        consortium.dure("audit", "export", "--dir", consortium.dir_of("ara/node"), "--out", mine)
        assert json.loads(audit(mine, pin, "--json").stdout)["holds"]
        asked = ("log", "contains", "--member", "ara", "--json")
        mirrored = json.loads(consortium.dure(*asked, "--dir", consortium.dir_of("ara/node")))
    finally:
        away.rename(hub)
    exported = json.loads(consortium.dure(*asked, "--bundle", mine, "--root-sha256", pin))
    served = json.loads(consortium.dure(*asked, "--dir", hub))
    assert mirrored == exported
    assert (mirrored["exchanges"], mirrored["releases"]) == (served["exchanges"], served["releases"])  # under a later head, perhaps
    assert [(e["category"], e["members"]) for e in mirrored["exchanges"]] == [("train", ["ara"]), ("evaluate", ["ara"])]
    named = json.loads(consortium.dure("log", "contains", "--data", "news", "--json", "--bundle", mine, "--root-sha256", pin))
    assert [(e["category"], e["members"]) for e in named["exchanges"]] == [("train", ["ara"]), ("evaluate", ["ara"])]
    proof = mirrored["proofs"][0]
    (tmp_path / "p").write_text(proof["tlog_proof"])
    (tmp_path / "e").write_text(proof["entry"])
    told = consortium.dure("log", "verify", tmp_path / "p", "--entry", tmp_path / "e", "--dir", consortium.dir_of("bora/node"), "--json")
    assert json.loads(told)["holds"]


def test_the_same_log_gives_the_same_bundle_to_the_byte(played, tmp_path):
    consortium, bundle, _ = played
    consortium.dure("audit", "export", "--dir", consortium.dir_of("coordinator"), "--out", tmp_path / "again")
    one, other = ({p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.is_file()} for r in (bundle, tmp_path / "again"))
    assert one == other


def test_a_wrong_pin_and_a_missing_file_have_their_own_exit_codes_and_words(played, tmp_path):
    _, bundle, pin = played
    wrong = audit(bundle, "00" * 32)
    assert (wrong.returncode, "another consortium" in wrong.stderr) == (WrongPin.exit_code, True)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "trust/1.root.json").unlink()
    gone = audit(copy, pin)
    assert (gone.returncode, "trust/1.root.json is not in the bundle" in gone.stderr) == (PartMissing.exit_code, True)


def test_a_clock_a_day_behind_the_witnesses_is_named(played):
    _, bundle, pin = played
    with pytest.raises(ClockOff, match="days from now"):
        verify(Bundle.open(bundle), bytes.fromhex(pin), now=1_000_000_000)


# -- tampered twins ------------------------------------------------------------------------------------------------------


def holds(folder: Path, pin: str) -> bool:
    try:
        return verify(Bundle.open(folder), bytes.fromhex(pin)).holds
    except DureError:
        return False


def twin(bundle: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle, folder)
    return folder


def test_one_flipped_bit_of_any_file_is_seen(played, tmp_path):
    """On a real run's bundle, once per file; tests/unit/audit/test_tampered_bundles.py has hundreds of twins."""
    _, bundle, pin = played
    copy = twin(bundle, tmp_path / "t")
    assert holds(copy, pin)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :])
        assert not holds(copy, pin), path.relative_to(copy)
        path.write_bytes(good)


class Forger:
    """Has the coordinator's and the log's keys, and as many witnesses as the charter's c: one."""

    def __init__(self, played, folder: Path) -> None:
        self.consortium, bundle, self.pin = played
        self.folder = twin(bundle, folder)
        place = log_of(self.consortium.dir_of("coordinator"))
        self.terms, self.entries = place.charter.terms, list(TiledTree(self.read, place.head().checkpoint.size).entries())
        hub = self.consortium.dir_of("coordinator")
        self.log, self.signing = load_signing_key(hub / "log.key"), load_signing_key(hub / "signing.key")

    def read(self, path: str) -> bytes:
        return (self.folder / "log" / path).read_bytes()

    def witness(self, member: str) -> Ed25519PrivateKey:
        return load_signing_key(self.consortium.dir_of(f"{member}/member") / "witness.key")

    def write(self, entries, witnesses) -> Path:
        """The bundle over these entries, its head signed by the log and these members' witnesses."""
        shutil.rmtree(self.folder / "log")
        builder = TileBuilder()
        files = [pair for entry in entries for pair in builder.append(entry)]
        for tile, data in [*files, *builder.partial()]:
            path = self.folder / "log" / tile.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        text = Checkpoint(origin_of(self.terms), builder.size, builder.frontier.root()).text()
        lines = [sign(text, log_key(self.terms).name, self.log)]
        lines += [cosign(text, f"{m}.titan/witness", self.witness(m), int(time.time())) for m in witnesses]
        (self.folder / "log" / "checkpoint").write_bytes(Note(text, tuple(lines)).to_bytes())
        return self.folder

    def index(self, kind: str, nth: int = 0) -> int:
        return [i for i, e in enumerate(self.entries) if f"urn:dure:{kind}:v1".encode() in Envelope.from_bytes(e).payload][nth]


@pytest.fixture
def forger(played, tmp_path):
    return Forger(played, tmp_path / "forged")


QUORUM = MEMBERS[:3]


def test_a_head_that_names_more_entries_than_the_bundle_can_hold_ends_at_once(forger):
    """Signed by everybody: without the bound the auditor would list files for 2^62 entries."""
    text = Checkpoint(origin_of(forger.terms), 1 << 62, bytes(32)).text()
    lines = [sign(text, log_key(forger.terms).name, forger.log)]
    lines += [cosign(text, f"{m}.titan/witness", forger.witness(m), int(time.time())) for m in MEMBERS]
    (forger.folder / "log" / "checkpoint").write_bytes(Note(text, tuple(lines)).to_bytes())
    with pytest.raises(PartMissing, match="the bundle holds at most"):
        verify(Bundle.open(forger.folder), bytes.fromhex(forger.pin))


def test_the_forgers_tools_make_a_good_bundle_of_good_entries(forger):
    """So what the tests below refuse is the forgery and not the tool."""
    assert holds(forger.write(forger.entries, QUORUM), forger.pin)


def test_a_rewritten_history_without_the_quorum_is_refused(forger):
    assert not holds(forger.write(forger.entries[:-1], MEMBERS[:2]), forger.pin)


def test_a_statement_of_an_unknown_version_is_reported_and_not_skipped(forger):
    payload = Envelope.from_bytes(forger.entries[-1]).payload.replace(b":v1", b":v2")
    newer = seal_payload(payload, forger.signing).to_bytes()
    result = verify(Bundle.open(forger.write([*forger.entries, newer], MEMBERS)), bytes.fromhex(forger.pin))
    assert (result.holds, len(result.unknown)) == (False, 1)
    assert "v2" in result.unknown[0].why


# -- contributions -------------------------------------------------------------------------------------------------------


def table(*words) -> dict:
    done = subprocess.run([*dure_command(), *map(str, words)], capture_output=True, text=True, timeout=120, env=node_environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_administrator_member_and_auditor_get_the_same_contributions(played):
    """None of the three asks another: each reads its own copy of the log, with every process stopped."""
    consortium, bundle, pin = played
    hub = table("contributions", "--json", "--dir", consortium.dir_of("coordinator"))
    mirror = table("contributions", "--json", "--dir", consortium.dir_of("bora/node"))
    audited = table("audit", "contributions", bundle, "--root-sha256", pin, "--json")
    (ara,) = (row for row in hub["rows"] if row["member"] == "ara")
    assert ara["flop_hardware"] == pytest.approx(1e15 * ara["seconds"]) and ara["kwh_sources"] == ["declared"]
    assert ara["kwh"] == pytest.approx(2_800 * ara["seconds"] / 3_600_000)
    words = worked("contributions", "--dir", consortium.dir_of("bora/node"))
    assert words.count(" FLOP by hardware; ") == words.count(" kWh by the power their sites declare*") == 1
    others = [row for row in hub["rows"] if row["member"] != "ara"]
    assert {row[name] for row in others for name in ("flop_formula", "flop_measured", "flop_hardware", "kwh")} == {None}
    assert hub["rows"] == mirror["rows"] == audited["rows"]
    assert [(r["member"], r["invited"], r["counted"], r["late"], r["left_out"]) for r in hub["rows"]] == [(m, 2, 2, 0, []) for m in MEMBERS]
    assert all(r["bytes_up"] > 0 and r["seconds"] >= 0 for r in hub["rows"])
    assert "tokens" in hub["self_declared"] and "counted" not in hub["self_declared"]
    words = subprocess.run(
        [*dure_command(), "contributions", "--format", "csv", "--run", "digits", "--dir", str(consortium.dir_of("coordinator"))],
        capture_output=True,
        text=True,
        timeout=60,
        env=node_environment(),
    ).stdout.splitlines()
    assert len(words) == 1 + len(MEMBERS)
    assert "counted,late" in words[0] and "tokens_self_declared" in words[0] and ",tokens," not in words[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [(("--run", "feed"), "no run in the log"), (("--from", "yesterday"), "must be a day"), (("--format", "xml"), "csv or json")],
)
def test_a_run_day_or_form_that_is_not_there_is_one_line(played, words, says):
    command = [*dure_command(), "contributions", *words, "--dir", str(played[0].dir_of("coordinator"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=node_environment())
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1 and says in done.stderr


def test_exchanges_outside_the_days_asked_for_are_not_counted(played):
    rows = table("contributions", "--to", "2001-01-01", "--json", "--dir", played[0].dir_of("coordinator"))["rows"]
    assert [r["invited"] for r in rows] == [0] * len(MEMBERS)


def test_a_bundle_that_does_not_hold_gives_no_table(forger):
    shutil.rmtree(forger.folder / "log" / "tile" / "0")
    command = [*dure_command(), "audit", "contributions", str(forger.folder), "--root-sha256", forger.pin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=node_environment())
    assert done.returncode != 0
    assert done.stderr.startswith("error: log/tile/0")


def test_a_member_cannot_write_itself_into_a_sum(forger):
    """Its node's key may sign usage and commits, and no aggregates or survivor sets, however well they fit its chain."""
    from dure.audit.reading import verified
    from dure.charter.root import walk

    consortium = forger.consortium
    place = log_of(consortium.dir_of("coordinator"))
    key = load_signing_key(consortium.dir_of("ara/node") / "node.key")
    party = key_id(key.public_key().public_bytes_raw())
    own = [Envelope.from_bytes(e) for e in forger.entries if Envelope.from_bytes(e).signatures[0][0] == party]
    fact = read_verified(forger.entries[forger.index("instance-aggregate")], InstanceAggregate)
    forged, _ = seal(fact, key, Chain(len(own), own[-1].sha256), 1_800_000_000.0)
    versions = [walk(place.roots[:1], place.pin)]
    assert len(list(verified(forger.entries, versions))) == len(forger.entries)
    with pytest.raises(Refused, match="instance-aggregate must be signed by a coordinator, is by ara/node1"):
        list(verified([*forger.entries, forged.to_bytes()], versions))
