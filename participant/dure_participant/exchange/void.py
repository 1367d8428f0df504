"""Void: this node gives an instance up for good. Its secrets, and the keys they came from, are erased before it says so."""

from __future__ import annotations

from dataclasses import replace

from dure.secagg import instance as sums
from dure.statements.kinds import InstanceVoid
from dure.wire.messages import Directive
from dure_participant.exchange.state import InstanceWork
from dure_participant.exchange.turn import Turn, advance_chains, find_instance, known_instances, plain, secret_of


def follow_void(turn: Turn, directive: Directive) -> None:
    """Signs once; a node that has revealed in it, or never dealt in it, signs none."""
    work = find_instance(turn.state.exchange, directive.instance)
    if not work.void:
        secret = sums.void(secret_of(work))
        advance_chains(turn, turn.exchange.number)
        reason = plain(directive.reason or "given up by the coordinator")
        statement = turn.seal(InstanceVoid(work.instance, turn.site.member, reason)).to_bytes()
        turn.put_instance(replace(work, secret=secret.to_bytes(), share=b"", void=statement))
        turn.note(f"gave up {work.purpose} of exchange {turn.exchange.number}: {reason}")
    turn.change(kind="void")


def part(turn: Turn, reason: str) -> None:
    """At the run's end every secret of it is erased; what this node sent bytes in, and does not know the end of, it gives up.

    So a run that was aborted in mid-exchange frees its base: V of these words, and the instance can never be opened.
    """
    undecided = {s.instance for s in turn.history.sent if s.outcome == "open"}
    given_up = [_parted(turn, w, reason) for w in known_instances(turn.state) if w.instance in undecided]
    rest = [_thin(w) for w in turn.state.past if w.instance not in undecided]
    exchange = turn.state.exchange
    if exchange is not None:
        decided = tuple(_thin(w) for w in exchange.instances if w.instance not in undecided)
        turn.change(exchange=replace(exchange, instances=decided))
    turn.change(past=tuple([*rest, *given_up][-256:]))


def _parted(turn: Turn, work: InstanceWork, reason: str) -> InstanceWork:
    if not work.void and not work.reveal:
        statement = turn.seal(InstanceVoid(work.instance, turn.site.member, plain(f"the run is over: {reason}"))).to_bytes()
        work = replace(work, void=statement)
    return _thin(work)


def _thin(work: InstanceWork) -> InstanceWork:
    return replace(work, secret=b"", group_key=b"", share=b"")
