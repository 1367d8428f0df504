"""Data commitments: what opens, what does not, and that a member's word about its data cannot be bent afterwards."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic_log import SyntheticLog
from typer.testing import CliRunner

from dure.audit.bundle import Bundle
from dure.audit.data_cli import app
from dure.audit.level1 import verify
from dure.audit.log_cli import app as log_app
from dure.errors import Refused
from dure.identity import keys
from dure.identity.files import write_json
from dure.identity.member import MemberFolder
from dure.provenance.data_set import DataFile, OpenedFile, Opening, check_opening, drawn, in_order, opened, root_of
from dure.statements import schema
from dure.statements.dsse import Envelope
from dure.statements.kinds import DataCommitment

SALT = b"s" * 32


def files_of(count: int) -> list[DataFile]:
    return in_order(DataFile(f"part {i}/é.txt", i, sha256(b"%d" % i).digest()) for i in range(count))


def commitment(files: list[DataFile]) -> DataCommitment:
    return DataCommitment("ara", "d", root_of(SALT, files), len(files), sum(f.size for f in files), None, None, "x", None, None)


def opening(files: list[DataFile], indices: tuple[int, ...]) -> Opening:
    return Opening(1, b"c" * 32, None, opened(SALT, files, indices))


def bent(one: OpenedFile, how: str) -> OpenedFile:
    file = one.file
    changed = {
        "content": {"file": replace(file, sha256=bytes(32))},
        "size": {"file": replace(file, size=file.size + 1)},
        "name": {"file": replace(file, path=file.path + "x")},
        "salt": {"salt": bytes(32)},
        "index": {"index": one.index + 1},
        "far index": {"index": 2**31},
        "short proof": {"proof": one.proof[:-1]},
        "long proof": {"proof": (*one.proof, bytes(32))},
    }
    return replace(one, **changed[how])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_file_of_a_data_set_opens_and_nothing_else_does(data):
    files = files_of(data.draw(st.integers(1, 70)))
    fact, index = commitment(files), data.draw(st.integers(0, len(files) - 1))
    good = Opening.from_bytes(opening(files, (index,)).to_bytes())
    check_opening(good, fact, None)
    how = data.draw(st.sampled_from(["content", "size", "name", "salt", "index", "far index", "short proof", "long proof"]))
    if how == "short proof" and not good.files[0].proof:
        return
    with pytest.raises(Refused):
        check_opening(replace(good, files=(bent(good.files[0], how),)), fact, None)


def test_a_file_opened_twice_counts_once_only():
    files = files_of(5)
    with pytest.raises(Refused, match="one is there twice"):
        check_opening(opening(files, (2, 2)), commitment(files), None)


def test_a_head_draws_files_by_the_formula_each_once_and_another_head_draws_others():
    head, root = b"h" * 32, b"r" * 32
    first = sha256(b"dure data challenge 1\0" + head + root + bytes(8)).digest()
    picked = drawn(head, root, 1000, 40)
    assert picked[0] == int.from_bytes(first, "big") % 1000
    assert len(set(picked)) == 40 and drawn(head, root, 1000, 10) == picked[:10]
    assert sorted(drawn(head, root, 7, 100)) == list(range(7))
    assert drawn(b"i" * 32, root, 1000, 40) != picked != drawn(head, b"q" * 32, 1000, 40)


@pytest.mark.parametrize("swap", ["another file", "another order", "fewer than drawn, but the first"])
def test_a_challenge_is_answered_with_the_files_that_were_drawn(swap):
    files = files_of(50)
    fact, head = commitment(files), b"h" * 32
    indices = drawn(head, fact.root, 50, 6)
    check_opening(opening(files, indices), fact, head)
    other = next(i for i in range(50) if i not in indices)
    wrong = {"another file": (*indices[:5], other), "another order": indices[::-1], "fewer than drawn, but the first": indices[1:]}[swap]
    with pytest.raises(Refused, match="not those that the head draws"):
        check_opening(opening(files, wrong), fact, head)


def call(*words: object, code: int = 0) -> dict:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, (done.output, done.stderr, done.exception)
    return json.loads(done.stdout) if code == 0 else {"error": done.stderr}


class World:
    """A member of a made-up consortium with its folder, some data, and the bundle of a log that has its commitment."""

    def __init__(self, folder):
        self.folder, self.keys, self.data = folder, folder / "keys", folder / "text"
        self.log = SyntheticLog(members=4, exchanges_per_run=2, seed=3)
        self.before = list(self.log.entries(40))
        ara = self.log.member("ara")
        write_json(self.keys / "member.json", schema.encode(ara.charter_member()))
        keys.write_private(self.keys / "signing.key", keys.private_pem(ara.signing.key))
        write_json(self.keys / "chain.json", {"generation": 1, "seq": ara.signing.chain.seq, "prev": ara.signing.chain.prev.hex()})
        MemberFolder.load(self.keys).trust(self.log.pin)
        for i in range(30):
            path = self.data / f"{i % 3}" / f"{i:02d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"document {i}")
        self.told = self.register()
        self.bundle = self.write(folder / "bundle", [*self.before, *MemberFolder.load(self.keys).statements()])
        self.pin = self.log.pin.hex()

    def write(self, folder, entries, **how):
        """A bundle whose head is of today, as the member's statement is."""
        return self.log.write(folder, entries, at=int(time.time()), **how)

    def register(self, *more: object, name: str = "news", code: int = 0) -> dict:
        return call(
            "register", self.data, "--name", name, "--licence", "CC-BY-4.0", "--documents", 30, "--dir", self.keys, *more, code=code
        )

    def challenge(self, out, samples: int = 5, head=None) -> dict:
        return call("open", "news", "--challenge", head or self.bundle, "--samples", samples, "--out", out, "--dir", self.keys)

    def verify(self, out, *more: object, code: int = 0, bundle=None, pin: str = "") -> dict:
        return call("verify", out, "--root-sha256", pin or self.pin, "--bundle", bundle or self.bundle, *more, code=code)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("data"))


def test_a_registered_data_set_is_audited_by_challenge_with_a_bundle_alone(world, tmp_path):
    assert verify(Bundle.open(world.bundle), world.log.pin).holds
    out = tmp_path / "o.json"
    paths = world.challenge(out)["files"]
    found = world.verify(out, "--files", world.data)
    assert found["files"] == paths and len(set(paths)) == 5 and found["content_compared"] and found["head_is_the_bundles"]
    assert found["entry"] == 40 and found["declared"]["documents"] == 30 and found["declared"]["files"] == 30
    assert out.read_text().count(".txt") == 5


def test_chosen_files_open_too_and_an_unknown_one_is_named(world, tmp_path):
    out = tmp_path / "o.json"
    assert call("open", "news", "1/01.txt", "--out", out, "--dir", world.keys)["files"] == ["1/01.txt"]
    assert world.verify(out)["head_size"] is None
    assert "1/99.txt: news has no such file" in call("open", "news", "1/99.txt", "--dir", world.keys, code=2)["error"]


def test_content_that_changed_since_is_found(world, tmp_path):
    out, copy = tmp_path / "o.json", tmp_path / "copy"
    call("open", "news", "1/01.txt", "--out", out, "--dir", world.keys)
    (copy / "1").mkdir(parents=True)
    (copy / "1" / "01.txt").write_text("document 2")
    assert "1/01.txt: is not the file that was registered" in world.verify(out, "--files", copy, code=1)["error"]


def test_no_path_of_an_opening_leads_out_of_the_folder(world, tmp_path):
    from dure.provenance.data_files import compare

    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    (tmp_path / "in" / "loop").symlink_to("loop")
    for path in ("../secret", f"{tmp_path}/secret", "link/secret", "a/../../secret", "loop/secret"):
        with pytest.raises(Refused, match="leads out of the folder"):
            compare(tmp_path / "in", OpenedFile(0, DataFile(path, 1, sha256(b"x").digest()), SALT, ()))


def test_an_opening_of_another_consortium_is_of_no_commitment_here(world, tmp_path):
    other = SyntheticLog(members=4, exchanges_per_run=2, seed=4)
    bundle, out = other.write(tmp_path / "bundle", list(other.entries(40))), tmp_path / "o.json"
    world.challenge(out)
    assert "is not among the log's 40 entries" in world.verify(out, bundle=bundle, pin=other.pin.hex(), code=1)["error"]
    assert world.verify(out, bundle=bundle, code=6)


def test_a_head_from_before_the_commitment_or_after_the_bundle_draws_nothing(world, tmp_path):
    out = tmp_path / "o.json"
    early = world.write(tmp_path / "early", world.before)
    world.challenge(out, head=early)
    assert "before the commitment (entry 40)" in world.verify(out, code=1)["error"]
    later = world.write(tmp_path / "later", [*world.before, *MemberFolder.load(world.keys).statements(), world.before[0]])
    world.challenge(out, head=later)
    assert "export a newer bundle" in world.verify(out, code=1)["error"]
    forked = world.write(tmp_path / "forked", [*world.before[:-1], world.before[0], *MemberFolder.load(world.keys).statements()])
    world.challenge(out, head=forked)
    assert "of another history" in world.verify(out, code=1)["error"]


def test_a_head_that_no_quorum_cosigned_draws_nothing(world, tmp_path):
    entries = [*world.before, *MemberFolder.load(world.keys).statements()]
    alone = world.write(tmp_path / "alone", entries, witnesses=["ara"])
    call("open", "news", "--challenge", alone, "--dir", world.keys, code=1)


def test_registering_again_gives_the_same_statement_and_never_a_second_one_for_other_data(world):
    before = MemberFolder.load(world.keys).statements()
    assert world.register() == world.told and MemberFolder.load(world.keys).statements() == before
    assert "registered already with other tokens" in world.register("--tokens", 5, code=4)["error"]
    extra = world.data / "new.txt"
    extra.write_text("one more")
    try:
        assert "registered already with other root, files, total_bytes" in world.register(code=4)["error"]
    finally:
        extra.unlink()
    assert MemberFolder.load(world.keys).statements() == before
    assert world.register() == world.told


def test_after_a_crash_between_statement_and_chain_the_next_one_follows_it(tmp_path):
    world = World(tmp_path)
    chain = json.loads((world.keys / "chain.json").read_text())
    first = Envelope.from_bytes(MemberFolder.load(world.keys).statements()[0])
    write_json(world.keys / "chain.json", {**chain, "seq": chain["seq"] - 1, "prev": None})
    assert world.register() == world.told
    assert json.loads((world.keys / "chain.json").read_text()) == {**chain, "prev": first.sha256.hex()}


def test_what_hides_the_files_is_for_the_owner_only_and_in_no_opening(world, tmp_path):
    kept = world.keys / "data" / "news.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    out = tmp_path / "o.json"
    world.challenge(out)
    assert json.loads(kept.read_text())["salt"] not in out.read_text()


@pytest.mark.parametrize("what", ["link", "pipe", "control character", "nothing", "licence", "day", "order"])
def test_what_cannot_be_registered_is_one_line_that_names_it(tmp_path, world, what):
    folder = tmp_path / "text"
    folder.mkdir()
    more: list[str] = []
    if what != "nothing":
        (folder / "a.txt").write_text("a")
    if what == "link":
        (folder / "linked").symlink_to("a.txt")
    elif what == "pipe":
        os.mkfifo(folder / "piped")
    elif what == "control character":
        (folder / "a\nb").write_text("a")
    elif what == "licence":
        more = ["--licence", ""]
    elif what == "day":
        more = ["--from", "2026-13-01"]
    elif what == "order":
        more = ["--from", "2026-02-01", "--to", "2026-01-01"]
    error = call("register", folder, "--name", "odd", "--licence", "MIT", "--dir", world.keys, *more, code=2)["error"]
    named = {"link": "linked", "pipe": "piped", "control character": "a\\nb", "nothing": "no file in it", "licence": "--licence"}
    assert error.count("\n") == 1 and {**named, "day": "--from '2026-13-01'", "order": "is after --to"}[what] in error


def test_only_the_members_own_key_may_commit_to_its_data(world, tmp_path):
    fact = DataCommitment("bora", "news", bytes(32), 1, 1, None, None, "x", None, None)
    for signer, why in ((world.log.member("bora").node, "must be signed by a member"), (world.log.member("chan").signing, "cannot speak")):
        entries = [*world.before, signer.say(fact, world.log.now).to_bytes()]
        result = verify(Bundle.open(world.write(tmp_path / why[:4], entries)), world.log.pin)
        assert not result.holds and why in result.findings[0].why


def test_log_contains_knows_the_commitment_by_its_name(world):
    done = CliRunner().invoke(log_app, ["contains", "--data", "news", "--bundle", str(world.bundle), "--root-sha256", world.pin, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["data_commitments"] == [40]
