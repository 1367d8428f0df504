"""Rule 2 of secure-aggregation.md §5: at most one contribution per weights id and category, in whatever run; and what counts as void."""

from __future__ import annotations

from dataclasses import replace

from dure.errors import DureError, Refused
from dure.secagg import thresholds
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceVoid
from dure.statements.statement import open_statement
from dure_participant.exchange.site import History, Sent
from dure_participant.exchange.state import ExchangeWork, InstanceWork
from dure_participant.exchange.turn import Turn, secret_of, unpack


def counting(history: History, exchange: ExchangeWork, purpose: str) -> list[Sent]:
    """Earlier instances that count against sending bytes of this purpose in this exchange; voided ones do not."""
    arrays = bool(exchange.layout)
    return [
        sent
        for sent in history.sent
        if sent.purpose == purpose
        and sent.category == exchange.category
        and sent.outcome != "void"
        and (sent.weights_id == exchange.weights_id if arrays else sent.content_id == exchange.content_id and sent.weights_id == bytes(32))
    ]


def may_send(turn: Turn, exchange: ExchangeWork, purpose: str, instance: bytes = b"") -> None:
    """`Refused` if bytes of this purpose on these weights were sent before and are not voided."""
    what = f"{exchange.category} replies on these weights" if exchange.layout else f"a reply to this {exchange.category} message"
    for sent in counting(turn.history, exchange, purpose):
        if sent.instance != instance:
            where = f"exchange {sent.exchange}" + ("" if sent.run == turn.state.run else f" of run {sent.run.hex()[:12]}")
            raise Refused("weights", f"this node has sent {what} in {where} already ({sent.outcome}); a second sum could single it out")


def may_begin(turn: Turn, exchange: ExchangeWork) -> None:
    """What can be refused before training: the last instance of this exchange would be a second contribution."""
    pair = exchange.category == "train" and bool(exchange.layout)
    may_send(turn, exchange, "update" if pair else "scalars")
    if not exchange.layout:
        before = {
            s.content_id
            for s in turn.history.sent
            if s.run == turn.state.run and s.category == exchange.category and s.weights_id == bytes(32)
        }
        if len(before) >= turn.plan.scalars_max:
            raise Refused("exchange", f"the plan allows {turn.plan.scalars_max} {exchange.category} exchanges without arrays")


def record_of(turn: Turn, exchange: ExchangeWork, work: InstanceWork, outcome: str = "open") -> Sent:
    return Sent(
        weights_id=exchange.weights_id,
        category=exchange.category,
        purpose=work.purpose,
        run=turn.state.run,
        exchange=exchange.number,
        instance=work.instance,
        content_id=exchange.content_id,
        outcome=outcome,
    )


def mark(turn: Turn, instance: bytes, outcome: str) -> None:
    """The end of an instance this node sent bytes in."""
    for sent in turn.history.sent:
        if sent.instance == instance and sent.outcome != outcome:
            turn.record(replace(sent, outcome=outcome))


def take_voids(turn: Turn, envelopes: bytes) -> None:
    """Voids of other members: V of an instance's own cohort free its base. A node that has revealed in it takes none."""
    known: list[InstanceWork] = list(turn.state.past)
    known += turn.state.exchange.instances if turn.state.exchange else ()
    by_instance: dict[bytes, set[str]] = {}
    for raw in unpack(envelopes, "voids"):
        for work in known:
            if (member := _void_of(work, raw)) is not None:
                by_instance.setdefault(work.instance, set()).add(member)
    for work in known:
        given = by_instance.get(work.instance, set()) | ({turn.site.member} if work.void else set())
        if len(given) >= thresholds.voids_needed(len(work.cohort), turn.site.colluders) and not work.reveal:
            _freed(turn, work)


def _void_of(work: InstanceWork, raw: bytes) -> str | None:
    """The cohort member whose valid void of this instance these bytes are."""
    for member in work.cohort:
        try:
            word = open_statement(raw, InstanceVoid, [work.node_keys[member]]).fact
        except (DureError, KeyError):
            continue
        if (word.instance, word.member) == (work.instance, member):
            return member
    return None


def _freed(turn: Turn, work: InstanceWork) -> None:
    mark(turn, work.instance, "void")
    state = turn.state
    turn.change(past=tuple(w for w in state.past if w.instance != work.instance))
    exchange = state.exchange
    if exchange is not None and any(i.instance == work.instance for i in exchange.instances):
        if work.secret and not secret_of(work).erased:
            return  # this node's own void comes first: it erases
        turn.change(last_closed=max(state.last_closed, exchange.number))


def sent_bytes(history: History, instance: bytes) -> bool:
    """Whether this node may have sent bytes in this instance."""
    return any(s.instance == instance for s in history.sent)


def payload_sha256(envelope: bytes) -> bytes:
    return Envelope.from_bytes(envelope).payload_sha256
