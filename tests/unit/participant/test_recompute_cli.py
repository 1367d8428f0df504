"""`dure node recompute`: what it asks of the running node, what it says, and with which exit code."""

from __future__ import annotations

import fcntl
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from dure.statements.kinds import ExchangeAccept
from dure.statements.statement import Chain, seal
from dure_participant import recompute_cli
from dure_participant.cli import app
from dure_participant.exchange.step import begin
from dure_participant.store import NodeStore

RUN, DIGEST = b"\x07" * 32, b"\x01" * 32
KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A node that accepted exchanges 1 and 4; its keys are not looked at here."""
    monkeypatch.setattr(recompute_cli, "load_node", lambda directory: None)
    store, chain = NodeStore(tmp_path / "node.sqlite"), Chain()
    for exchange in (1, 4):
        accept, chain = seal(ExchangeAccept(RUN, exchange, "ara", (DIGEST,), (), None), KEY, chain, 1000.0 + exchange)
        store.commit(RUN, begin(RUN).to_bytes(), chain, (), statements=(accept.to_bytes(),))
    store.close()
    return tmp_path


def ask(folder, *arguments: str):
    return CliRunner().invoke(app, ["recompute", *arguments, "--dir", str(folder)])


def running(folder):
    """What a daemon does: it holds the lock."""
    file = (folder / "lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_without_a_running_node_the_request_is_kept_and_said_to_be(folder):
    done = ask(folder, "0707")
    assert done.exit_code == 5
    assert "dure node run" in done.stderr
    (waiting,) = NodeStore(folder / "node.sqlite").recomputations(waiting=True)
    assert (waiting.run, waiting.exchange) == (RUN, 4), "the last one accepted"
    assert ask(folder, "0707").exit_code == 5
    assert len(NodeStore(folder / "node.sqlite").recomputations()) == 1, "asked twice, done once"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("ab",), "no runs of this node"), (("07", "--exchange", "2"), "accepted were 1, 4")],
    ids=["another run", "another exchange"],
)
def test_what_was_never_accepted_is_named(folder, arguments, words):
    done = ask(folder, *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert NodeStore(folder / "node.sqlite").recomputations() == []


@pytest.mark.parametrize(
    ("findings", "code"),
    [(("agrees", "agrees"), 0), (("agrees", "sum"), 1), (("sum", "gone"), 1), (("agrees", "gone"), 5), (("failed",), 5), ((), 5)],
)
def test_the_exit_code_tells_agreement_from_a_lie_and_both_from_nothing_to_look_at(folder, monkeypatch, findings, code):
    monkeypatch.setattr(recompute_cli, "LOOK_S", 0.01)
    monkeypatch.setattr(NodeStore, "ask_recomputation", _done_at_once(folder, findings))
    with running(folder):
        done = ask(folder, "07", "--exchange", "1", "--json")
    assert done.exit_code == code, done.output
    said = json.loads(done.stdout)
    assert (said["exchange"], said["agrees"]) == (1, code == 0)
    assert [s["finding"] for s in said["sums"]] == list(findings)


def _done_at_once(folder, findings):
    ask_for = NodeStore.ask_recomputation

    def asked(self, run, exchange):
        number = ask_for(self, run, exchange)
        self.end_recomputation(number, [{"purpose": "update", "finding": f, "words": f"words of {f}"} for f in findings])
        return number

    return asked
