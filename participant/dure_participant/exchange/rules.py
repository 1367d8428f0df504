"""Rule 2 of secure-aggregation.md §5: at most one contribution per weights id and category, in whatever run; and what counts as void."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dure.errors import DureError, Refused
from dure.model.layout import Layout
from dure.secagg import thresholds
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceVoid
from dure.statements.statement import open_statement, read_verified
from dure_participant.exchange.again import is_consented
from dure_participant.exchange.site import History, Sent
from dure_participant.exchange.state import ExchangeWork, InstanceWork
from dure_participant.exchange.turn import Turn, known_instances, own_word, secret_of, unpack

MAX_VOIDS = 1024
"""Void statements looked at in one directive: more is somebody's attempt to keep this node checking signatures."""


def counting(history: History, run: bytes, exchange: ExchangeWork, purpose: str) -> list[Sent]:
    """Earlier instances that count against sending bytes of this purpose in this exchange; voided ones do not.

    Weights count in whatever run; a message without arrays is answered once per run.
    """
    arrays = bool(exchange.layout)

    def same_content(sent: Sent) -> bool:
        if arrays:
            return sent.weights_id == exchange.weights_id
        return (sent.run, sent.content_id, sent.weights_id) == (run, exchange.content_id, bytes(32))

    alike = [s for s in history.sent if (s.purpose, s.category) == (purpose, exchange.category) and s.outcome != "void"]
    return [sent for sent in alike if same_content(sent)]


def may_send(turn: Turn, exchange: ExchangeWork, purpose: str, instance: bytes = b"") -> None:
    """`Refused` if bytes of this purpose on these weights were sent before and are not voided."""
    what = f"{exchange.category} replies on these weights" if exchange.layout else f"a reply to this {exchange.category} message"
    for sent in counting(turn.history, turn.state.run, exchange, purpose):
        if sent.instance != instance and not is_consented(turn, sent):
            where = f"exchange {sent.exchange}" + ("" if sent.run == turn.state.run else f" of run {sent.run.hex()[:12]}")
            way_on = "" if sent.run == turn.state.run else "; a plan that names them (`dure run start APP --from`) can ask for consent"
            why = f"this node has sent {what} in {where} already ({sent.outcome}); a second sum could single it out{way_on}"
            raise Refused("weights", why)


def first_weights(turn: Turn, offered: bytes) -> bytes:
    """The weights a run with a plan-named step began from, as far as this node is bound to them; `offered` before it is.

    Until this node has accepted an exchange it knows no base of its own, and the first is "as sent". Without this check a coordinator
    that withholds the result of the first sum could show the same weights again, one bit apart, without one member.
    """
    mine = (s.weights_id for s in turn.history.sent if s.run == turn.state.run and s.weights_id != bytes(32) and s.outcome != "void")
    return next(mine, offered)


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
        tensors=Layout.from_json(exchange.layout).tensors_sha256 if exchange.layout else bytes(32),
    )


def mark(turn: Turn, instance: bytes, outcome: str, survivors: tuple[str, ...] = ()) -> None:
    """The end of an instance this node sent bytes in, and whom its certificate names."""
    for sent in turn.history.sent:
        if sent.instance == instance and (sent.outcome, sent.survivors) != (outcome, survivors or sent.survivors):
            turn.record(replace(sent, outcome=outcome, survivors=survivors or sent.survivors))


def take_voids(turn: Turn, envelopes: bytes) -> None:
    """Voids of other members: V of an instance's own cohort free its base. A node that has revealed in it takes none."""
    known: dict[bytes, InstanceWork] = {work.instance: work for work in known_instances(turn.state)}
    by_instance: dict[bytes, set[str]] = {}
    raws = unpack(envelopes, "voids")
    if len(raws) > MAX_VOIDS:
        raise Refused("voids", f"at most {MAX_VOIDS} at a time, are {len(raws)}")
    for raw in raws:
        if (word := _void_in(turn, known, raw)) is not None:
            by_instance.setdefault(word.instance, set()).add(word.member)
    for work in known.values():
        given = by_instance.get(work.instance, set()) | ({turn.site.member} if work.void else set())
        if len(given) >= thresholds.voids_needed(len(work.cohort), turn.site.colluders) and not work.reveal:
            _freed(turn, work)


def _void_in(turn: Turn, known: Mapping[bytes, InstanceWork], raw: bytes) -> InstanceVoid | None:
    """The void in these bytes, if it is of an instance this node knows, by a member of that instance's own cohort, under its node key."""
    try:
        claimed = read_verified(raw, InstanceVoid)
        work = known.get(claimed.instance)
        if work is None or claimed.member not in work.cohort:
            return None
        signed = open_statement(raw, InstanceVoid, [work.node_keys[claimed.member]])
    except DureError:
        return None
    own_word(turn, signed)
    return signed.fact


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
