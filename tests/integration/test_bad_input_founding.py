"""What people type wrongly while they found a consortium: one line that names the thing and the remedy, and nothing is changed."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import dure, files, founded, refused, worked

from dure.charter import root as charter_root
from dure.identity.member import MemberFolder

MEMBERS = ("krafton", "rebellions", "skt")
OTHER_DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """titan, founded, with one node; another consortium beside it; and a stranger with keys."""
    place = tmp_path_factory.mktemp("founding")
    hub = founded(place, MEMBERS)
    founded(place / "other", ("aa", "bb", "cc"), label="other")
    worked("member", "init", "stranger", "--dir", place / "stranger" / "keys")
    worked("node", "init", "--consortium", hub / "consortium.json", "--member", place / "krafton/keys", "--dir", place / "krafton/node")
    worked("node", "status", "--dir", place / "krafton/node")  # makes its store
    (place / "text").write_text("hello\n")
    return place


MISUSE = {
    "a second init over the coordinator's keys": ("coordinator init --name t --advertise h:1 --dir hub", "hub/signing.key exists already"),
    "a second init over a member's keys": ("member init krafton --dir krafton/keys", "governance.key exists already"),
    "an address without port": ("coordinator init --name t --advertise hub --dir new", "--advertise 'hub': must be host:port"),
    "a name with a space": ("coordinator init --name t/t --advertise h:1 --dir new", "--name 't/t'"),
    "a member id in capitals": ("member init KRAFTON --dir new", "NAME 'KRAFTON': use 1 to 32 of a-z"),
    "a missing option": ("coordinator init --dir new", "Missing option '--name'", "--help"),
    "a command that is none": ("coordinator serv --dir hub", "No such command 'serv'", "serve"),
    "a draft without join requests": ("charter draft --dir hub", "Missing argument"),
    "a join request that is not there": ("charter draft gone.json --dir hub", "gone.json is not there", "join request"),
    "a join request that is none": ("charter draft text --dir hub", "text is not JSON", "join request"),
    "a proposal nobody drafted": ("charter propose --dir new", "coordinator.json is not there", "dure coordinator init"),
    "publish before propose": ("charter publish krafton/keys/1.root.krafton.sig --dir hub", "2.root.json is not there", "charter propose"),
    "signing what is no proposal": ("member sign text --yes --dir krafton/keys", "text: is not TUF metadata", "dure charter propose"),
    "signing another consortium's charter": ("member sign other/hub/1.root.json --yes --dir krafton/keys", "does not have krafton"),
    "a short digest": ("member trust 1234 --dir krafton/keys", "64 hex digits"),
    "a second pin": (f"member trust {OTHER_DIGEST} --dir krafton/keys", "krafton/keys/pin has", "agreed on a new start"),
    "a pin that is not the file's": (
        f"member trust {OTHER_DIGEST} --consortium hub/consortium.json --dir stranger/keys",
        "pinned is abab",
        "another consortium",
    ),
    "a node of a member that pinned nothing": (
        "node init --consortium hub/consortium.json --member stranger/keys --dir new",
        "nothing is pinned yet",
        "dure member trust",
    ),
    "a consortium file of another consortium": (
        "node init --consortium other/hub/consortium.json --member skt/keys --dir new",
        "another consortium, or a forgery",
    ),
    "a consortium file that is none": ("node init --consortium text --member skt/keys --dir new", "text is not JSON", "charter publish"),
    "a member folder that is none": ("node init --consortium hub/consortium.json --member skt --dir new", "skt/member.json is not there"),
    "a node folder used twice": (
        "node init --consortium hub/consortium.json --member skt/keys --dir krafton/node",
        "krafton/node holds a node already",
    ),
    "a node folder that is none": ("node status --dir krafton", "krafton/node.json is not there", "dure node init"),
    "running what is no node": ("node run --dir hub", "hub/node.json is not there", "dure node init"),
    "a setting without value": ("node config set device --dir krafton/node", "write key=value"),
    "a setting of the wrong type": ("node config set threads=many --dir krafton/node", "threads must be int, is 'many'"),
    "settings of a folder that is no node": ("node config set device=cpu --dir krafton", "krafton/node.json is not there"),
    "a plan nobody offered": ("node allow abcd --dir krafton/node", "no plan offered so far starts so", "--list"),
    "serving a folder that is none": ("coordinator serve --dir krafton", "krafton/coordinator.json is not there", "coordinator init"),
    "asking a coordinator that does not run": ("run list --dir hub", "no coordinator serves hub", "dure coordinator serve"),
    "settings of a folder of nobody": ("settings show --dir other", "holds no node and no coordinator"),
}


@pytest.mark.parametrize("what", MISUSE)
def test_is_one_line_and_changes_nothing(what, place, monkeypatch):
    monkeypatch.chdir(place)
    line, *words = MISUSE[what]
    before = files(place)
    refused(dure(*line.split()), *words)
    assert files(place) == before
    assert not (place / "new").exists()


def test_serve_before_publish_says_what_is_missing(tmp_path):
    worked("coordinator", "init", "--name", "t", "--advertise", "127.0.0.1:1", "--dir", tmp_path / "hub")
    refused(dure("coordinator", "serve", "--dir", tmp_path / "hub"), "consortium.json is not there", "publish a charter first")


def test_a_charter_of_two_is_refused_and_takes_nothing_in(tmp_path):
    """With two members each would learn the other's update by subtraction; a third one can still be added afterwards."""
    hub, joins = tmp_path / "hub", []
    worked("coordinator", "init", "--name", "t", "--advertise", "127.0.0.1:1", "--dir", hub)
    for member in MEMBERS:
        worked("member", "init", member, "--dir", tmp_path / member)
        joins.append(tmp_path / member / f"{member}.join.json")
    before = files(hub)
    refused(dure("charter", "draft", *joins[:2], "--dir", hub), "2 is too few", "Add a third member")
    assert files(hub) == before
    assert "3 must finish" in worked("charter", "draft", *joins, "--dir", hub)


def test_a_charter_cut_down_to_two_by_hand_is_not_proposed(place, tmp_path):
    hub = founded(tmp_path, MEMBERS)
    text = (hub / "charter.toml").read_text()
    (hub / "charter.toml").write_text("\n".join(line for line in text.splitlines() if '"skt"' not in line))
    refused(dure("charter", "propose", "--dir", hub), "2 is too few", "Add a third member")
    assert not (hub / "2.root.json").exists()


@pytest.fixture
def proposal(tmp_path):
    hub = tmp_path / "hub"
    worked("coordinator", "init", "--name", "t", "--advertise", "127.0.0.1:1", "--dir", hub)
    for member in (*MEMBERS, "stranger"):
        worked("member", "init", member, "--dir", tmp_path / member)
    worked("charter", "draft", *(tmp_path / m / f"{m}.join.json" for m in MEMBERS), "--dir", hub)
    worked("charter", "propose", "--dir", hub)
    for member in MEMBERS:
        worked("member", "sign", hub / "1.root.json", "--yes", "--dir", tmp_path / member)
    return hub, [tmp_path / m / f"1.root.{m}.sig" for m in MEMBERS]


def test_a_strangers_signature_is_named_and_nothing_is_published(proposal, tmp_path):
    hub, signatures = proposal
    refused(dure("member", "sign", hub / "1.root.json", "--yes", "--dir", tmp_path / "stranger"), "does not have stranger")
    forged = tmp_path / "forged.sig"
    key = MemberFolder.load(tmp_path / "stranger").governance_key
    forged.write_bytes(charter_root.sign((hub / "1.root.json").read_bytes(), "krafton", key))
    before = files(hub)
    refused(
        dure("charter", "publish", *signatures, forged, "--dir", hub), "forged.sig", "no member's governance key", "leave this file out"
    )
    assert files(hub) == before


def test_too_few_signatures_name_who_is_missing(proposal):
    hub, signatures = proposal
    before = files(hub)
    refused(dure("charter", "publish", signatures[0], "--dir", hub), "fewer than 2 valid signatures", "not yet signed by rebellions, skt")
    assert files(hub) == before


def test_proposing_again_keeps_the_proposal_members_are_signing(proposal):
    hub, signatures = proposal
    before = files(hub)
    worked("charter", "propose", "--dir", hub)
    assert files(hub) == before
    worked("charter", "publish", *signatures, "--dir", hub)


def test_a_later_draft_keeps_what_people_edited(proposal, tmp_path):
    hub, _ = proposal
    text = (hub / "charter.toml").read_text()
    (hub / "charter.toml").write_text(text.replace("w_max = 65536", "w_max = 1000"))
    worked("charter", "draft", tmp_path / "stranger" / "stranger.join.json", "--dir", hub)
    after = (hub / "charter.toml").read_text()
    assert "w_max = 1000" in after and '"stranger"' in after
    assert "k = 3" in after, "what nobody touched follows the number of members"


def test_not_answering_is_no_signature(proposal, tmp_path):
    hub, _ = proposal
    worked("member", "init", "late", "--dir", tmp_path / "late")
    ran = dure("member", "sign", hub / "1.root.json", "--dir", tmp_path / "skt", answers="")
    assert ran.code != 0 and "nothing was decided" in ran.err


def test_every_key_file_is_for_its_owner_only(place):
    keys = [*place.rglob("*.key"), *place.rglob("*.sqlite")]
    assert len(keys) > 20
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


@pytest.mark.parametrize(("key", "command"), [("node.key", "status"), ("tls.key", "run")])
def test_a_key_open_to_others_is_not_used(key, command, tmp_path):
    hub = founded(tmp_path, MEMBERS)
    node = tmp_path / "node"
    worked("node", "init", "--consortium", hub / "consortium.json", "--member", tmp_path / "skt/keys", "--dir", node)
    (node / key).chmod(0o644)
    refused(dure("node", command, "--dir", node), f"{key} is open to others", "chmod 600")


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
from dure.cli import main
main(sys.argv[1:], prog_name="dure")
"""


@pytest.mark.parametrize(
    "line",
    ["member init krafton --dir new", "coordinator init --name t --advertise h:1 --dir new"],
    ids=["member", "coordinator"],
)
def test_a_disk_that_fills_up_during_init_leaves_no_half_made_keys(line, tmp_path):
    """The first key files fit, the next does not; afterwards the same command works."""
    command = [sys.executable, "-c", FULL, *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1 and "free some space" in done.stderr and "new/" in done.stderr
    assert list(tmp_path.iterdir()) == []
    subprocess.run([sys.executable, "-m", "dure.cli", *line.split()], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (Path(tmp_path) / "new").is_dir()
