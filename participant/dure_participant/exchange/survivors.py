"""Survivors and reveal: this node signs one survivor set per instance (rule 3), and reveals against a quorum certificate only (rule 4)."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from dure.secagg import instance as sums
from dure.secagg.certificate import verify_certificate
from dure.statements.kinds import InstanceCommit, InstanceSurvivors
from dure.statements.statement import Signed, open_statement
from dure.tlog.checkpoint import CheckpointRefused
from dure.tlog.proof import TlogProof
from dure.wire.messages import Directive
from dure_participant.exchange.again import judge_set
from dure_participant.exchange.rules import mark
from dure_participant.exchange.state import InstanceWork
from dure_participant.exchange.turn import Turn, document, find_instance, instance_id, own_word, same, secret_of, unpack
from dure_participant.exchange.upload import shape_of, trailer_length


class _TwoHistories(Exception):
    """One node key signed two statements of one number, or went back: that member is refused for the epoch (rule 7)."""

    def __init__(self, member: str, why: str) -> None:
        super().__init__(f"{member} is refused for this epoch: {why} (rule 7)")
        self.member = member


def follow_survivors(turn: Turn, directive: Directive) -> None:
    """Checks every commit, then signs the set they make. One that shows two histories of its node's key stops the signing, for good."""
    work = find_instance(turn.state.exchange, directive.instance)
    same("instance", work.instance, turn.exchange.instances[-1].instance, "is over; this node deals in a later one")
    try:
        hashes = {m: _judge_commit(turn, work, m, raw) for m, raw in directive.parts.items()}
    except _TwoHistories as e:
        turn.change(doubted={**turn.state.doubted, e.member: turn.exchange.epoch}, kind="survivors")
        turn.note(str(e))
        return
    same("parts", [m for m in hashes if m not in work.cohort], [], "name somebody who is not in the cohort")
    judge_set(turn, turn.exchange, work, tuple(sorted(hashes)))
    secret, signature = sums.sign_survivors(secret_of(work), ctx=work.ctx, commits=hashes, u_min=turn.u_min, node_key=turn.site.node_key)
    turn.put_instance(replace(work, secret=secret.to_bytes(), signature=signature, survivors=tuple(sorted(hashes))))
    turn.change(kind="survivors")


def _judge_commit(turn: Turn, work: InstanceWork, member: str, raw: bytes) -> bytes:
    """Payload digest of a commit that is this member's, for this instance and context."""
    key = work.node_keys.get(member, b"")
    signed = open_statement(raw, InstanceCommit, [key] if key else [])
    commit = signed.fact
    same(f"parts.{member}.instance", commit.instance, work.instance)
    same(f"parts.{member}.ctx", commit.ctx, work.ctx, "saw another instance-open")
    same(f"parts.{member}.member", commit.member, member)
    same(f"parts.{member}.length", commit.length, shape_of(turn.exchange, work.purpose)[0])
    same(f"parts.{member}.trailer", len(commit.trailer), trailer_length(work))
    own_word(turn, signed)
    _judge_number(turn, member, signed)
    return signed.envelope.payload_sha256


def _judge_number(turn: Turn, member: str, signed: Signed[InstanceCommit]) -> None:
    """Rule 7: a node's numbers only rise, and each is given to one statement."""
    key, digest = signed.key.hex(), signed.envelope.payload_sha256
    seen, latest = turn.state.seqs.get(key, -1), turn.state.latest.get(key)
    if signed.seq < seen:
        raise _TwoHistories(member, f"its statements went back from {seen} to {signed.seq}")
    if signed.seq == seen and digest != latest:
        raise _TwoHistories(member, f"it signed two statements {seen}")
    turn.change(seqs={**turn.state.seqs, key: signed.seq}, latest={**turn.state.latest, key: digest})


def judge_survivors(turn: Turn, work: InstanceWork, said: InstanceSurvivors) -> tuple[str, ...]:
    """The survivors, if a quorum of this instance's cohort signed exactly this set for this context."""
    same("survivors.instance", said.instance, work.instance)
    same("survivors.ctx", said.ctx, work.ctx)
    members = tuple(s.member for s in said.survivors)
    same("survivors.survivors", list(members), sorted(set(members)), "must be distinct and in order")
    verify_certificate(
        instance_id(work.instance),
        work.ctx,
        work.cohort,
        {s.member: s.commit_sha256 for s in said.survivors},
        {s.member: s.signature for s in said.certificate},
        work.node_keys,
        turn.site.colluders,
        turn.u_min,
    )
    return members


def judge_proof(turn: Turn, envelope: bytes, proof: bytes) -> None:
    """That the survivors' entry is in the log, under a head that a quorum of the members' witnesses cosigned: everybody can know this set.

    Without it a coordinator could show two quorums' worth of members different histories and open in the dark.
    """
    shown, (newest, *earlier) = TlogProof.from_bytes(proof), turn.site.witnessing
    for by in reversed(earlier):
        with contextlib.suppress(CheckpointRefused):
            shown.verify(envelope, by.log, by.keys, quorum=by.quorum)
            return
    shown.verify(envelope, newest.log, newest.keys, quorum=newest.quorum)


def take_certificates(turn: Turn, envelopes: bytes) -> None:
    """Certificates of instances this node does not know the end of: they may have been opened, and now it knows whom their sums are of."""
    for raw in unpack(envelopes, "certificates"):
        said = open_statement(raw, InstanceSurvivors, turn.site.coordinator_keys).fact
        work = next((w for w in turn.state.past if w.instance == said.instance), None)
        if work is None:
            continue
        members = judge_survivors(turn, work, said)
        for sent in turn.history.sent:
            if sent.instance == work.instance:
                turn.record(replace(sent, survivors=members))
        turn.change(past=tuple(w for w in turn.state.past if w.instance != work.instance))


def follow_reveal(turn: Turn, directive: Directive) -> None:
    """Gives what opens exactly the certified set; `members` are dropped ones whose bundle does not open."""
    work = find_instance(turn.state.exchange, directive.instance)
    envelope = document(directive.documents, "survivors")
    said = open_statement(envelope, InstanceSurvivors, turn.site.coordinator_keys).fact
    members = judge_survivors(turn, work, said)
    judge_proof(turn, envelope, document(directive.documents, "proof"))
    judge_set(turn, turn.exchange, work, members)
    not_opening = tuple(m for m in directive.members if m != turn.site.member)
    secret, message = sums.reveal(
        secret_of(work),
        ctx=work.ctx,
        commits={s.member: s.commit_sha256 for s in said.survivors},
        signatures={s.member: s.signature for s in said.certificate},
        not_opening=not_opening,
        u_min=turn.u_min,
        node_keys=work.node_keys,
        node_key=turn.site.node_key,
    )
    mark(turn, work.instance, "summed" if turn.site.member in members else "out", members)
    turn.put_instance(replace(work, secret=secret.to_bytes(), survivors=members, survivors_envelope=envelope, reveal=message))
    turn.change(kind="reveal")
