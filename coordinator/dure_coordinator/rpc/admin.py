"""The admin socket: what an administrator's commands ask. The folder the socket lies in is the access control."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dure.apps import App, run_config, unpack_app
from dure.errors import BadInput, DureError, Unavailable, world_error
from dure.identity.keys import public_bytes
from dure.model.layout import Layout
from dure.model.lineage_words import lineage
from dure.statements.dsse import key_id
from dure.statements.kinds import AllocationPublished, ReleasePublished, RunPlan
from dure.statements.statement import read_verified, seal
from dure_coordinator.bases import Start, start_from
from dure_coordinator.deadlines import checked
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.history import history, over, rounds_over, time_left_s
from dure_coordinator.exchange.state import Counted
from dure_coordinator.exchange.timing import phase_table
from dure_coordinator.export import model_of, write_model
from dure_coordinator.fleet import summary_of
from dure_coordinator.forecasting import beside, check_disk, key_of, links_of, said_of
from dure_coordinator.log.intake import Intake
from dure_coordinator.log.publisher import Publisher
from dure_coordinator.planning import make_plan, outer_step, with_joint_initial
from dure_coordinator.rpc.attested import publish
from dure_coordinator.rpc.steering import EVENTS, steer
from dure_coordinator.storage.store import BlobRow, RunRow, StatementRow, With
from dure_pb.v1 import admin_pb2 as pb
from dure_pb.v1 import admin_pb2_grpc

if TYPE_CHECKING:
    from dure_coordinator.app import Coordinator

log = structlog.get_logger()

CONFIRM_S = 30.0
"""Nodes come back to a coordinator that was restarted within 15 s."""
ADMIN_SOCKET = "admin.sock"


@dataclass(frozen=True)
class Made:
    """A plan, and what it was made of."""

    app: App
    blob: str
    """Blob id text of the app's archive."""
    plan: RunPlan
    start: Start | None
    layout: Layout | None
    """Of the app's model, where it is known already."""


class Admin(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]  # generated, untyped
    """One method; a command's name picks what it does."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator
        self._commands: dict[str, Callable[[dict[str, Any], bytes], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "run-plan": self._plan,
            "run-start": self._start,
            "run-list": self._list,
            "run-show": self._show,
            "run-export": self._export,
            "enter": self._enter,
            "run-let-go": self._let_go,
            "release-publish": lambda arguments, _archive: publish(self._c, ReleasePublished, arguments),
            "allocation-publish": lambda arguments, _archive: publish(self._c, AllocationPublished, arguments),
            **{command: partial(self._steer, command) for command in EVENTS},
        }

    async def Call(self, request: pb.CallRequest, _context: Any) -> pb.CallResponse:
        try:
            if request.command not in self._commands:
                raise BadInput(f"command {request.command!r}: unknown to this coordinator; is it older than this `dure`?")
            try:
                arguments = json.loads(request.arguments or "{}")
            except ValueError:
                raise BadInput("arguments: not JSON") from None
            result = await self._commands[request.command](arguments, request.archive)
            return pb.CallResponse(result=json.dumps(result, ensure_ascii=False, sort_keys=True))
        except DureError as error:
            return pb.CallResponse(error=str(error), exit_code=error.exit_code)
        except OSError as error:
            known = world_error(error)
            if known is None:
                raise
            return pb.CallResponse(error=f"the coordinator: {known}", exit_code=known.exit_code)

    # -- looking ---------------------------------------------------------------------------------------------------

    async def _status(self, _arguments: dict[str, Any], _archive: bytes) -> dict[str, Any]:
        return {
            "name": self._c.folder.name,
            "address": self._c.folder.advertise,
            "trouble": self._c.fleet.trouble or self._c.charter_trouble,
            "charter_version": self._c.charter.version,
            "charter_digest": self._c.charter.digest.hex(),
            "up_s": round(time.time() - self._c.started, 1),
            "connected": sorted(self._c.fleet.here),
            "members": [m.id for m in self._c.charter.members],
            "log": _log_of(self._c.publisher),
            "runs": (await self._list({}, b""))["runs"],
            "uploads": {**(await self._c.store.kept_bytes()).__dict__, "quota": self._c.settings.spool_quota_bytes},
        }

    async def _list(self, _arguments: dict[str, Any], _archive: bytes) -> dict[str, Any]:
        rows = sorted(self._c.fleet.rows.values(), key=lambda r: r.created)
        return {"runs": [self._listed(r) for r in rows]}

    def _listed(self, row: RunRow) -> dict[str, Any]:
        engine = self._c.fleet.runs.get(row.run)
        paused = engine is not None and not engine.ended and bool(engine.state.paused)
        facts = {"state": _state(row.label), "paused": paused, "reason": row.reason, "created": row.created}
        return {"run": row.run.hex(), "name": row.name, **facts}

    async def _show(self, arguments: dict[str, Any], _archive: bytes) -> dict[str, Any]:
        engine = await self._c.fleet.find(str(arguments.get("run", "")))
        shown = {**self.show(engine), "uploads": (await self._c.store.kept_bytes(engine.run)).__dict__}
        if arguments.get("beside"):
            shown["forecast"] = await beside(self._c, engine, shown["members"])
        if arguments.get("phases"):
            shown["phases"] = phase_table(engine.state)
        return shown

    def show(self, engine: RunEngine) -> dict[str, Any]:
        """One run for people and scripts: where it stands, and per member what was counted."""
        row = self._c.fleet.rows[engine.run]
        shown: dict[str, Any] = summary_of(engine, row, self._c.fleet.here)
        state = engine.state
        shown["run_phase"] = shown["phase"]
        shown["waiting"] = state.reason
        shown["state"] = _state(engine.label[0])
        done = [*state.closed, *([state.exchange] if state.exchange is not None else [])]
        ended = over(state)
        shown["exchanges_closed"] = len(ended)
        if shown["run_phase"] == "exchange":
            shown["phase"] = shown["instance_phase"] or shown["exchange_phase"]
        shown["trouble"] = "" if engine.ended else engine.trouble or self._c.fleet.trouble
        shown["dropouts"] = _dropouts(done)
        shown["outer_step"] = state.facts.plan.outer_step.name
        shown["lineage"] = lineage(state.facts.plan.outer_step.name)
        shown["history"] = history(state)
        shown["rounds"], shown["rounds_over"] = state.facts.plan.rounds, rounds_over(state)
        shown["time_left_s"] = time_left_s(state, time.time())
        shown["elapsed_s"] = round((ended[-1].ended if engine.ended and ended else time.time()) - row.created, 1)
        last = next((e.reply for e in reversed(ended) if e.reply is not None and e.reply.status == "ok" and e.reply.metrics), None)
        shown["metrics"] = dict(last.metrics) if last is not None else {}
        for member, facts in shown["members"].items():
            facts.update(_counted(state.counted.get(member, Counted())))
            facts["phase"] = facts["doing"] if facts["connected"] else "away"
        return shown

    # -- starting and ending ---------------------------------------------------------------------------------------

    async def _made(self, arguments: dict[str, Any], archive: bytes) -> Made:
        digest = bytes.fromhex(str(arguments["app_sha256"]))
        scratch = self._c.folder.directory / "runs" / f"plan-{secrets.token_hex(8)}"
        try:
            app = await asyncio.to_thread(unpack_app, archive, scratch, digest=digest)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        rounds = arguments.get("rounds")
        overrides = list(arguments.get("set", []))
        if rounds is not None and app.rounds_key is not None:
            overrides.append(f"{app.rounds_key}={rounds}")
        config = run_config(app, overrides)
        if rounds is None:
            rounds = config.get(app.rounds_key) if app.rounds_key is not None else None
        if not isinstance(rounds, int):
            raise BadInput("--rounds: the app names no number of rounds; give one, at least 1")
        if rounds < 1:
            raise BadInput(f"--rounds {rounds}: at least 1")
        blob = await asyncio.to_thread(self._c.blobs.put_bytes, archive)
        start = await self._from(arguments)
        plan = make_plan(
            charter=self._c.charter,
            app=app,
            app_sha256=digest,
            app_blob=str(blob),
            config=config,
            rounds=rounds,
            members=tuple(arguments.get("members", ())),
            step=outer_step(app, arguments.get("outer_step")),
            nonce=secrets.token_bytes(16),
            deadlines=checked(arguments.get("deadlines", {})),
            now=time.time(),
            keep_uploads=str(arguments.get("keep_uploads", "none")),
            base=None if start is None else start.base,
        )
        drawn = start is None and _drawn(app, str(arguments.get("initial", "")))
        layout = self._c.layouts.get(key_of(plan))
        if start is not None or (drawn and layout is None):
            layout = await self._c.probe(plan, archive, start)
        if drawn:
            plan = with_joint_initial(plan, app, layout)
        return Made(app, str(blob), plan, start, layout)

    async def _from(self, arguments: dict[str, Any]) -> Start | None:
        if "from" not in arguments:
            return None
        number = arguments.get("round")
        colluders = self._c.charter.terms.colluders
        return await start_from(self._c.fleet, str(arguments["from"]), None if number is None else int(number), colluders)

    async def _plan(self, arguments: dict[str, Any], archive: bytes) -> dict[str, Any]:
        links, made = links_of(arguments), await self._made(arguments, archive)
        plan, layout, unknown = made.plan, made.layout, ""
        if layout is None and "parameters" not in arguments:
            try:
                layout = await self._c.probe(plan, archive, None)
            except BadInput as error:  # the plan is worth showing all the same
                unknown = str(error)
        said, _ = await said_of(self._c, plan, layout, arguments.get("parameters"), links)
        awake = sorted(self._c.fleet.here)
        env = plan.env_sha256.hex() if plan.env_sha256 else None
        facts = {"app": plan.app_name, "app_sha256": plan.app_sha256.hex(), "env_sha256": env}
        missing = [m for m in plan.roster if m not in awake]
        return {**said, **facts, "connected_now": awake, "missing_now": missing, "size_unknown": unknown}

    async def _start(self, arguments: dict[str, Any], archive: bytes) -> dict[str, Any]:
        made = await self._made(arguments, archive)
        plan = made.plan
        self._c.check_environment(plan)
        await self._may_sign()
        said, found = await said_of(self._c, plan, made.layout, arguments.get("parameters"), links_of(arguments))
        if found is not None and not arguments.get("ignore_disk"):
            check_disk(self._c, found)
        performer: Any = self._c.fleet.performer
        async with performer.chain_lock:
            key = self._c.charters.signing_key
            party = key_id(public_bytes(key))
            chain = (await self._c.store.chain_of(party)).having_seen(self._c.publisher.seen)
            envelope, after = seal(plan, key, chain, time.time())
            raw = envelope.to_bytes()
            read_verified(raw, RunPlan)  # what nobody could read back is not kept
            run = envelope.payload_sha256
            row = RunRow(run, plan.name, raw, plan.app_sha256, created=time.time())
            blobs = (BlobRow(run, "app", made.blob), *(await self._c.start_rows(run, made.start) if made.start else ()))
            also = With(statements=(StatementRow.of(raw, run),), blobs=blobs, chain=(party, after))
            await self._c.fleet.add(row, also)
        log.info("run.started", run=run.hex()[:12], app=plan.app_name, rounds=plan.rounds)
        return {"run": run.hex(), "plan_digest": run.hex(), "roster": list(plan.roster), **said}

    async def _may_sign(self) -> None:
        """Right after a start the witnesses have yet to say that this log is no older copy of itself."""
        publisher = self._c.publisher
        try:
            async with asyncio.timeout(CONFIRM_S):
                await publisher.may_sign()
        except TimeoutError:
            away = "; ".join(f"{name}: {why}" for name, why in sorted(publisher.refusals.items()))
            raise Unavailable(
                publisher.trouble or f"too few witnesses have confirmed the log since this coordinator was started ({away}); wake them"
            ) from None

    async def _steer(self, command: str, arguments: dict[str, Any], _archive: bytes) -> dict[str, Any]:
        return await steer(self._c.fleet, command, arguments)

    async def _enter(self, arguments: dict[str, Any], _archive: bytes) -> dict[str, Any]:
        """What a member signed with its own key: its signature is all that counts, not who brings it."""
        member, statements = str(arguments.get("member", "")), [base64.b64decode(s) for s in arguments.get("statements", [])]
        intake = Intake(self._c.fleet)
        for raw in statements:
            if why_not := await intake.enter(member, raw):
                raise BadInput(f"{member}: {why_not}")
        return {"member": member, "statements": len(statements)}

    async def _let_go(self, arguments: dict[str, Any], _archive: bytes) -> dict[str, Any]:
        engine = await self._c.fleet.find(str(arguments.get("run", "")))
        if not engine.ended:
            raise BadInput(f"run {engine.run.hex()[:12]} is still running; its uploads are kept as its plan says")
        count = await self._c.store.unpin_uploads(engine.run)
        await self._c.retention.sweep()
        return {"run": engine.run.hex(), "let_go": count, "uploads": (await self._c.store.kept_bytes(engine.run)).__dict__}

    async def _export(self, arguments: dict[str, Any], _archive: bytes) -> dict[str, Any]:
        engine = await self._c.fleet.find(str(arguments.get("run", "")))
        wanted = arguments.get("round")
        found = await model_of(engine, self._c.store, self._c.blobs, None if wanted is None else int(wanted))
        await engine.performer.restored(engine, str(found.blob), check=True)
        out = Path(str(arguments["out"]))
        await asyncio.to_thread(write_model, self._c.blobs, found, out, engine.run)
        facts = {"model": str(out / "model.safetensors"), "parameters": found.layout.parameters}
        return {"run": engine.run.hex(), "round": found.round, "what": found.what, **facts}


def _log_of(publisher: Publisher) -> dict[str, Any]:
    return {
        "size": publisher.size,
        "trouble": publisher.trouble,
        "missing": publisher.missing(),
        "witnesses": dict(publisher.refusals),
    }


def _drawn(app: App, wanted: str) -> bool:
    """Whether the members draw the first weights together: as `--initial` says, else where the app has rules for them."""
    if wanted not in ("", "joint", "app"):
        raise BadInput(f"--initial {wanted}: must be joint (drawn by all members together) or app (the app's own arrays)")
    if wanted == "joint" and not app.dure.initial:
        raise BadInput('--initial joint: the app has no rules for it; in [tool.dure]: initial = ["*.bias constant 0", "* normal 0.02"]')
    return bool(app.dure.initial) and wanted != "app"


def _state(label: str) -> str:
    return "running" if label == "open" else label


def _dropouts(exchanges: list[Any]) -> list[dict[str, Any]]:
    """Members left out of an exchange, with phase and reason."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for exchange in exchanges:
        for source in (*(i.dropouts for i in exchange.instances), exchange.sat_out):
            for member, (phase, reason) in source.items():
                fact = {"exchange": exchange.number, "member": member, "phase": phase, "reason": reason}
                found.setdefault((exchange.number, member), fact)
    return [found[key] for key in sorted(found)]


def _counted(counted: Counted) -> dict[str, Any]:
    """What a member's accepted exchanges come to; usage is its own declaration."""
    facts = {"exchanges_counted": counted.exchanges, "seconds": round(counted.milliseconds / 1000, 3)}
    return {**facts, **{name: getattr(counted, name) for name in ("tokens", "steps", "bytes_up", "bytes_down")}}
