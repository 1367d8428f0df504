"""The node's store: one step is there whole or not at all, and what is erased is gone from the disk."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.errors import BadInput
from dure.statements.kinds import RunApproval
from dure.statements.statement import Chain, SeenHead, seal
from dure_participant.exchange.site import Sent
from dure_participant.store import NodeStore

RUN = b"\x01" * 32


def sent(number: int, outcome: str = "open") -> Sent:
    return Sent(b"\x02" * 32, "train", "update", RUN, number, b"instance %d" % number, b"\x03" * 32, outcome)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "node.sqlite"


def test_a_step_is_found_whole_after_the_process_is_gone(path):
    before = Chain(6, b"\x09" * 32, SeenHead(40, b"\x08" * 32))
    envelope, chain = seal(RunApproval(RUN, "ara", "node1"), Ed25519PrivateKey.generate(), before, 7.0)
    store = NodeStore(path)
    store.commit(RUN, b"state", chain, (sent(1), sent(2)), "said", (envelope.to_bytes(),))
    store.close()
    again = NodeStore(path)
    assert again.states() == {RUN: b"state"}
    assert again.chain() == chain  # with the head that was named last: it never goes back to an older one
    assert again.history().sent == (sent(1), sent(2))
    assert again.statements(RUN) == [envelope.to_bytes()]
    assert again.notes()[-1][2] == "said"


def test_a_later_record_of_an_instance_replaces_the_earlier_and_keeps_its_place(path):
    store = NodeStore(path)
    store.commit(RUN, b"1", Chain(1, None), (sent(1), sent(2)))
    store.commit(RUN, b"2", Chain(2, None), (sent(1, "void"),))
    assert store.history().sent == (sent(1, "void"), sent(2))


def test_a_step_that_fails_in_the_middle_changes_nothing(path):
    store = NodeStore(path)
    store.commit(RUN, b"before", Chain(1, None), ())
    with pytest.raises((AttributeError, TypeError)):
        store.commit(RUN, b"after", Chain(2, None), (sent(1), None))  # type: ignore[arg-type]
    assert (store.states(), store.chain(), store.history().sent) == ({RUN: b"before"}, Chain(1, None), ())


def test_erased_secrets_are_not_in_any_file_of_the_store(path):
    secret = os.urandom(48).hex().encode()
    store = NodeStore(path)
    store.commit(RUN, b"x" * 20_000 + secret + b"y" * 20_000, Chain(1, None), ())
    assert secret in path.read_bytes()
    store.commit(RUN, b"erased", Chain(2, None), ())
    left = b"".join(p.read_bytes() for p in path.parent.iterdir())
    assert secret not in left and secret[:32] not in left


def test_only_the_owner_may_read_the_store(path):
    NodeStore(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_operators_word_from_another_process_is_seen_while_the_daemon_runs(path):
    daemon, command = NodeStore(path), NodeStore(path)
    assert daemon.decision(RUN) is None
    command.decide(RUN, allowed=False, reason="not this quarter", how="operator")
    found = daemon.decision(RUN)
    assert found is not None and not found.allowed and found.reason == "not this quarter"


def test_state_and_chain_agree_after_sigkill_at_any_moment(path):
    """A process that commits as fast as it can is killed; the number in the state is the number of the chain."""
    code = f"""
import time
from pathlib import Path
from dure.statements.statement import Chain
from dure_participant.store import NodeStore
store = NodeStore(Path({str(path)!r}))
n = store.chain().seq
while True:
    n += 1
    store.commit({RUN!r}, str(n).encode(), Chain(n, None), ())
    time.sleep(0.002)
"""
    reached = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 20
        while not (path.exists() and path.stat().st_size and _seq(path) > reached) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = NodeStore(path)
        assert int(store.states()[RUN]) == store.chain().seq > reached
        reached = store.chain().seq
        store.close()


def _seq(path) -> int:
    store = NodeStore(path)
    try:
        return store.chain().seq
    finally:
        store.close()


def test_a_file_that_is_no_store_or_of_a_newer_version_is_named(path):
    path.write_bytes(b"not a database, " * 100)
    with pytest.raises(BadInput, match=r"node\.sqlite is no node store"):
        NodeStore(path)
    path.unlink()
    store = NodeStore(path)
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(BadInput, match="upgrade"):
        NodeStore(path)


def test_consent_is_kept_with_the_word_on_a_plan(path):
    store = NodeStore(path)
    store.decide(RUN, allowed=True, reason="", how="operator", consented=[b"two", b"one"])
    assert NodeStore(path).decision(RUN).consented == (b"one", b"two")
    store.decide(RUN, allowed=True, reason="", how="operator")
    assert NodeStore(path).decision(RUN).consented == (), "a later word replaces it whole"
