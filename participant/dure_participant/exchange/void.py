"""Void: this node gives an instance up for good. Its secrets, and the keys they came from, are erased before it says so."""

from __future__ import annotations

from dataclasses import replace

from dure.secagg import instance as sums
from dure.statements.kinds import InstanceVoid
from dure.wire.messages import Directive
from dure_participant.exchange.turn import Turn, advance_chains, find_instance, plain, secret_of


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
