"""What a node owes in a state: its current answer, or the work that leads to it. The same state, the same bytes."""

from __future__ import annotations

import json
from hashlib import sha256

from dure.model import per_node
from dure.model.content import Instruction
from dure.secagg.encode import from_words
from dure.secagg.ids import InstanceId, upload_id
from dure.wire.messages import Report, ReportKind
from dure_participant.exchange.actions import Action, AskOperator, Commit, Note, Send, Train, Upload, Verify
from dure_participant.exchange.dispute import owed_disputes, recompute_first
from dure_participant.exchange.execute import metrics_of
from dure_participant.exchange.site import Site
from dure_participant.exchange.state import ExchangeWork, InstanceWork, NodeRunState
from dure_participant.exchange.turn import plan_of, secret_of
from dure_participant.exchange.upload import e_bump, elements_of, shape_of


def owed_in(site: Site, state: NodeRunState) -> tuple[Action, ...]:
    """Actions of the directive followed now, and what is doubted. Long ones (Train, Upload, Verify, Recompute) run once under their id."""
    if state.stopped:
        return ()
    found = _followed(site, state)
    known = {a.id for a in found if not isinstance(a, Note)}
    return (*found, *(a for a in owed_disputes(site, state) if isinstance(a, Note) or a.id not in known))


def _followed(site: Site, state: NodeRunState) -> tuple[Action, ...]:
    if state.finished:
        return tuple(_send(state, ReportKind.VOID, w.void, instance=w.instance) for w in state.past if w.void)
    if state.kind == "approve":
        return _approve(state)
    if state.kind == "lost":
        return (_send(state, ReportKind.LOST, state.lost, epoch=state.lost_epoch),)
    if state.kind in ("advert", "kem", "group", "join"):
        return _epoch(state)
    if state.exchange is None or state.decision != "allowed":
        return ()
    return _exchange(site, state, state.exchange)


def _send(state: NodeRunState, kind: ReportKind, body: bytes, *, exchange: int = 0, instance: bytes = b"", epoch: int = 0) -> Send:
    report = Report(state.run, kind, exchange, instance, epoch, body)
    mark = sha256(instance + body).hexdigest()[:16]
    return Send(f"send/{state.run.hex()[:12]}/{kind}/{exchange}/{epoch}/{mark}", report)


def _approve(state: NodeRunState) -> tuple[Action, ...]:
    if state.decision == "ask":
        return (AskOperator(f"ask/{state.run.hex()}", state.run, state.plan_envelope, state.app_blob),)
    if state.decision == "refused":
        return (_send(state, ReportKind.REFUSAL, state.refusal.encode()),)
    return (_send(state, ReportKind.APPROVAL, state.approval),)


def _epoch(state: NodeRunState) -> tuple[Action, ...]:
    epoch = state.epoch
    if epoch is None:
        return ()
    if state.kind == "join":
        return (_send(state, ReportKind.JOINED, b"", epoch=epoch.number),)
    message = {"advert": epoch.advert, "kem": epoch.kem, "group": epoch.group}[state.kind]
    return (_send(state, ReportKind(state.kind), message, epoch=epoch.number),) if message else ()


def _exchange(site: Site, state: NodeRunState, exchange: ExchangeWork) -> tuple[Action, ...]:
    work = exchange.instances[-1] if exchange.instances else None
    if state.kind == "execute" or (exchange.sat_out and state.kind in ("share", "open", "result")):
        return (_execute(state, exchange),)
    if work is None:
        return ()
    where = {"exchange": exchange.number, "instance": work.instance}
    if state.kind == "share":
        if work.share:
            return (_send(state, ReportKind.SHARE, work.share, exchange=exchange.number, instance=work.instance),)
        return _verify_scales(site, state, exchange)
    if state.kind == "open":
        return (_upload(site, state, exchange, work),)
    body = {"survivors": work.signature, "reveal": work.reveal, "result": exchange.accept, "void": work.void}.get(state.kind, b"")
    kind = {"survivors": ReportKind.SIGNATURE, "reveal": ReportKind.REVEAL, "result": ReportKind.ACCEPT, "void": ReportKind.VOID}
    if body:
        return (_send(state, kind[state.kind], body, exchange=where["exchange"], instance=work.instance),)  # type: ignore[arg-type]
    return _judged(site, state, exchange, work) if state.kind == "result" else ()


def _judged(site: Site, state: NodeRunState, exchange: ExchangeWork, work: InstanceWork) -> tuple[Action, ...]:
    """Verifying a sum; before it, adding it up again where the site wants that. A doubted one is `owed_disputes`' affair."""
    if work.doubt or not work.aggregate_envelope:
        return ()
    if site.recompute_first and not work.recomputed:
        return (recompute_first(work),)
    return (_verify(state, exchange, work),)


def _execute(state: NodeRunState, exchange: ExchangeWork) -> Action:
    if exchange.sat_out:
        return _send(state, ReportKind.SIT_OUT, exchange.sat_out, exchange=exchange.number)
    if exchange.ready:
        return _send(state, ReportKind.READY, exchange.ready, exchange=exchange.number)
    return Train(
        id=f"train/{state.run.hex()[:12]}/{exchange.number}",
        exchange=exchange.number,
        instruction=Instruction.from_json(json.loads(exchange.instruction)).with_node_values(per_node.from_json(exchange.values)),
        weights=exchange.weights,
        base_record=exchange.base_record,
        deadline_ms=exchange.deadline_ms,
        w_max=plan_of(state.plan_envelope).w_max,
    )


def _verify_scales(site: Site, state: NodeRunState, exchange: ExchangeWork) -> tuple[Action, ...]:
    """An update waits to be dealt until the scales it names are verified."""
    waiting = [w for w in (*exchange.instances, *state.past) if w.purpose == "scales" and w.aggregate_envelope and not w.verified]
    return tuple(action for w in waiting for action in _judged(site, state, exchange, w))


def _name(state: NodeRunState, work: InstanceWork) -> str:
    return InstanceId.decode(work.instance).key


def _upload(site: Site, state: NodeRunState, exchange: ExchangeWork, work: InstanceWork) -> Action:
    length, chunk_bytes = shape_of(exchange, work.purpose)
    trained = exchange.trained
    assert trained is not None
    update = work.purpose == "update" and exchange.scales is not None
    upload = Upload(
        id=f"upload/{_name(state, work)}",
        instance=work.instance,
        upload=upload_id(work.instance, site.member),
        purpose=work.purpose,  # type: ignore[arg-type]  # judged when the instance was taken
        exchange=exchange.number,
        cohort=work.cohort,
        member=site.member,
        ctx=work.ctx,
        elements=elements_of(exchange, work.purpose),
        length=length,
        chunk_bytes=chunk_bytes,
        update_root=trained.update_root,
        rounding_key=work.rounding_key,
        weight_int=trained.weight_int,
        metrics=metrics_of(trained),
        group_key=work.group_key,
        secret=secret_of(work),
        base_record=exchange.base_record,
        e_b=exchange.scales.e_b if update and exchange.scales else "",
        e_bump=e_bump(exchange) if update else 0,
    )
    return Commit(f"commit/{_name(state, work)}", upload, work.commit) if work.commit else upload


def _verify(state: NodeRunState, exchange: ExchangeWork, work: InstanceWork) -> Action:
    plan = plan_of(state.plan_envelope)
    length, chunk_bytes = shape_of(exchange, work.purpose)
    totals = from_words(work.aggregate_trailer)
    update = work.purpose == "update" and exchange.scales is not None
    return Verify(
        id=f"verify/{_name(state, work)}",
        instance=work.instance,
        purpose=work.purpose,  # type: ignore[arg-type]  # judged when the instance was taken
        exchange=exchange.number,
        sum=work.sum,
        elements=elements_of(exchange, work.purpose),
        length=length,
        chunk_bytes=chunk_bytes,
        ctx=work.ctx,
        group_key=work.group_key,
        cohort=work.cohort,
        weight_sum=totals[1] if len(totals) > 1 else 0,
        base_record=exchange.base_record,
        layout=exchange.layout,
        e_cap=plan.e_cap,
        e_b=exchange.scales.e_b if update and exchange.scales else "",
        e_bump=e_bump(exchange) if update else 0,
        outer_step=plan.outer_step.config if update else {},
        averaged=plan.outer_step.averaged if update else (),
    )
