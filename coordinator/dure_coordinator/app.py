"""Wiring of a coordinator process: folder, database, runs, ports. The only place that reads files and clocks for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import grpc
import structlog

from dure import failpoints
from dure.apps import App, config_of_plan, read_app, unpack_app
from dure.blobs import BlobId, BlobStore
from dure.charter import root
from dure.charter.coordinator import CoordinatorFolder
from dure.charter.log_keys import log_keys, origin_of, witness_name, witnessing
from dure.charter.model import Charter, expired
from dure.environments import place
from dure.environments.runtime import command_in
from dure.errors import BadInput, Conflict, DureError, Unavailable
from dure.logs import configure_logs
from dure.memory import keep_freed_memory
from dure.model.content import flower_run_id
from dure.model.layout import Layout
from dure.scrape import serve_metrics
from dure.statements.dsse import key_id
from dure.statements.kinds import RunPlan
from dure.tlog.files import LogFiles
from dure_coordinator import standing
from dure_coordinator.bases import Start
from dure_coordinator.callers import Member, Roster
from dure_coordinator.duties_done import Duties
from dure_coordinator.engine import Changes, Logic, RunEngine, Snapshots
from dure_coordinator.exchange import decide, snapshot
from dure_coordinator.exchange.duties import duties, next_deadline
from dure_coordinator.exchange.events import Abort, Done, TakenUp, Tick, decode_event, encode_event
from dure_coordinator.exchange.facts import RunFacts
from dure_coordinator.exchange.state import RunPhase, RunState
from dure_coordinator.fleet import Fleet
from dure_coordinator.flower.launch import FLAGS, OWN_INTERPRETER, ProcessConfig, ServerAppProcess
from dure_coordinator.flower.probe import probe
from dure_coordinator.forecasting import key_of, no_room
from dure_coordinator.journals import Journals
from dure_coordinator.log.charter import Charters
from dure_coordinator.log.heads import NamedHeads
from dure_coordinator.log.intake import Intake
from dure_coordinator.log.publisher import Publisher
from dure_coordinator.log.witnesses import HttpWitness, Witnesses
from dure_coordinator.metrics import samples
from dure_coordinator.quotas import Quotas
from dure_coordinator.retention import Retention
from dure_coordinator.rpc.admin import ADMIN_SOCKET, Admin
from dure_coordinator.rpc.log import Log
from dure_coordinator.rpc.server import Door, Limits, TlsFiles, members_port, unix_server
from dure_coordinator.rpc.serverapp import ServerAppGrid
from dure_coordinator.settings import FILE, CoordinatorSettings, load
from dure_coordinator.sockets import prepare_socket
from dure_coordinator.spool import Spools
from dure_coordinator.storage.store import BlobRow, RunRow, Store
from dure_pb.v1 import admin_pb2_grpc, serverapp_pb2_grpc

log = structlog.get_logger()

GRID_MESSAGE_BYTES = 64 << 20
"""Instructions without their arrays, which travel as files."""
ADMIN_MESSAGE_BYTES = 256 << 20
"""An app archive."""
DRAIN_S = 5.0
CLOCK_LIMIT_S = 300.0
"""A clock this far behind the folder's own files is wrong; nodes refuse one as far from theirs."""
KEPT = ("coordinator.json", "consortium.json", "coordinator.sqlite", "coordinator.sqlite-wal")


def exchange_logic(facts: RunFacts) -> Logic:
    """The exchange logic as the engine drives it."""
    return Logic(
        begin=lambda now: decide.begin(facts, now),
        apply=decide.apply,
        encode=encode_event,
        decode=decode_event,
        duties=duties,
        next_deadline=next_deadline,
        label=label_of,
        tick=Tick,
        done=Done,
        abort=Abort,
        snapshots=Snapshots(snapshot.SHAPE, snapshot.settled, snapshot.freeze, lambda head, past: snapshot.thaw(facts, head, past)),
    )


def label_of(state: RunState) -> tuple[str, str]:
    """(open | finished | aborted, reason)."""
    if state.phase is RunPhase.FINISHED:
        return "finished", state.reason
    if state.phase is RunPhase.ABORTED:
        return "aborted", state.reason
    return "open", ""


def roster_of(charters: Charters) -> Roster:
    """The charter as the members' port uses it."""
    charter = charters.newest
    members = {m.id: Member(m.id, m.host, m.ca_pem.encode(), m.signing_key) for m in charter.members}
    current = {m.ca_pem for m in members.values()}
    former = {m.ca_pem.encode() for earlier in charters.all for m in earlier.members} - current
    digests = frozenset(c.digest for c in charters.all)
    return Roster(
        charter.terms.consortium_id,
        charter.version,
        charter.digest,
        charters.roots,
        members,
        digests,
        former_cas=tuple(sorted(former)),
    )


async def check_own(store: Store, roots: tuple[bytes, ...]) -> None:
    """That nobody but this consortium's coordinator has signed into this database.

    Raises:
        Conflict: it is another one's; in one database two consortia would answer each other's questions.
    """
    own = {key_id(root.terms_of(root.parse(raw)).coordinator.signing_key) for raw in roots}
    if strangers := await store.signers() - own:
        raise Conflict(
            f"the database is another coordinator's (key {min(strangers)[:16]}); give each consortium one of its own (database in {FILE})"
        )


def database_of(folder: CoordinatorFolder, settings: CoordinatorSettings) -> str:
    """URL of the database: the setting's, or SQLite in the folder."""
    return settings.database or f"sqlite:///{folder.directory.resolve()}/coordinator.sqlite"


def outside_witnesses(charter: Charter, settings: CoordinatorSettings, former: Collection[str] = ()) -> dict[str, HttpWitness]:
    """Witnesses that members run outside their node, from the settings.

    Args:
        former: members that left; theirs are passed over: a line that is still in the settings must not keep a removal from being obeyed.

    Raises:
        BadInput: one is of nobody in the charter, or no URL.
    """
    found = {}
    for member, url in settings.http_witnesses.items():
        if member in former:
            continue
        try:
            found[witness_name(charter.member(member).host)] = HttpWitness(url)
        except BadInput as error:
            raise BadInput(f"{FILE}: http_witnesses.{member}: {error}") from None
    return found


@dataclass
class Coordinator:
    """One coordinator process."""

    folder: CoordinatorFolder
    settings: CoordinatorSettings
    charters: Charters
    roster: Roster
    store: Store
    blobs: BlobStore
    spools: Spools
    journals: Journals
    fleet: Fleet
    duties: Duties
    publisher: Publisher
    witnesses: Witnesses
    retention: Retention
    publishing: asyncio.Task[None] | None = None
    serverapps: dict[bytes, asyncio.Task[None]] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    layouts: dict[tuple[bytes, str], Layout] = field(default_factory=dict)
    """Of models that apps were asked about, by code and settings (`forecasting.key_of`)."""
    door: Door | None = None
    """The members' port, once it is open."""
    cutting: asyncio.Task[None] | None = None
    """Ends the calls of a revoked node."""
    charter_trouble: str = ""
    """Why a published charter version is not obeyed."""
    obeying: bool = False
    """A version is an entry, and not all that follows from it has been done."""

    @property
    def charter(self) -> Charter:
        """The version in force."""
        return self.charters.newest

    @classmethod
    async def open(cls, folder: CoordinatorFolder, settings: CoordinatorSettings) -> Coordinator:
        """Everything but the ports. Raises DureError where the folder, charter or database cannot be used."""
        folder.charter()  # before a database is made
        store = await Store.open(database_of(folder, settings))
        try:
            await check_own(store, tuple(folder.versions()))
        except Conflict:
            await store.close()
            raise
        charters = await Charters.open(store, folder)
        charter = charters.newest
        blobs = BlobStore(folder.directory / "blobs")
        await asyncio.to_thread(blobs.sweep)
        quotas = Quotas(settings.spool_quota_bytes, settings.run_quota_bytes, settings.run_reserve_bytes)
        spools = Spools(folder.directory / "spools", quotas=quotas, sync_bytes=settings.spool_sync_bytes)
        spools.belong(await store.runs_of_uploads())
        journals = Journals(store)
        changes, witnesses = Changes(), Witnesses(fixed=outside_witnesses(charter, settings, charters.former))
        newest, *former = log_keys(charters.all)
        publisher = Publisher(
            store=store,
            files=await asyncio.to_thread(LogFiles, folder.directory / "log", newest, former=former),
            origin=origin_of(charter.terms),
            key=charters.log_key,
            witnessing=lambda size: witnessing(charters.at(size).terms),
            reach=witnesses.reach,
            committed=changes,
            published=witnesses.tell,
        )

        def facts_of(row: RunRow, plan: RunPlan) -> RunFacts:
            then, keys = charters.all[plan.charter_version - 1], charters.signing_keys(plan.charter_version)
            return RunFacts(
                consortium=charter.terms.consortium_id,
                run=row.run,
                plan=plan,
                plan_envelope=row.plan,
                charter_version=plan.charter_version,
                charter_sha256=plan.charter_sha256,
                member_signing_keys={m: keys[m] for m in plan.roster},
                challenge_window_s=then.terms.challenge_window_s,
            )

        duties = Duties(store, blobs, spools, journals, lambda: charters.signing_key, publisher)
        fleet = Fleet(
            store=store,
            blobs=blobs,
            spools=spools,
            roster=lambda: made.roster,
            logic_of=exchange_logic,
            facts_of=facts_of,
            performer=duties,
            heads=NamedHeads(publisher),
            changes=changes,
            taken_up=TakenUp(*(int(s * 1000) for s in (settings.gone_grace_s, settings.return_grace_s, settings.join_grace_s))),
        )
        spools.open_runs = fleet.open_runs
        retention = Retention(
            store,
            spools,
            charter.terms.challenge_window_s,
            blobs=blobs,
            runs=fleet.runs.values,
            keep_bases=settings.keep_bases,
            wanted=duties.is_wanted,
            shelf=duties.shelf,
        )
        made = cls(
            folder, settings, charters, roster_of(charters), store, blobs, spools, journals, fleet, duties, publisher, witnesses, retention
        )
        made.roster = replace(made.roster, revoked=await standing.revoked_in(store))
        fleet.on_opened, fleet.on_revoked = made.start_serverapp, partial(standing.revoke, made)
        await fleet.load()
        return made

    # -- a run's ServerApp -----------------------------------------------------------------------------------------

    def start_serverapp(self, engine: RunEngine) -> None:
        """Serve the run's Grid and run its ServerApp until the run is over."""
        if engine.run not in self.serverapps:
            self.serverapps[engine.run] = asyncio.create_task(self._serverapp(engine), name=f"serverapp-{engine.run.hex()[:8]}")

    def run_dir(self, run: bytes) -> Path:
        return self.folder.directory.resolve() / "runs" / run.hex()[:16]

    async def app_of(self, plan: RunPlan, run_dir: Path) -> App:
        """The run's app, unpacked once."""
        app_dir = run_dir / "app"
        if not (app_dir / "pyproject.toml").exists():
            archive = await asyncio.to_thread(self.blobs.read_bytes, BlobId.parse(plan.app_blob), limit=1 << 30)
            await asyncio.to_thread(unpack_app, archive, app_dir, digest=plan.app_sha256)
        return read_app(app_dir)

    async def start_rows(self, run: bytes, start: Start) -> tuple[BlobRow, ...]:
        """What `_base_of` finds again."""
        layout = await asyncio.to_thread(self.blobs.put_bytes, start.layout.to_json())
        return (BlobRow(run, "from", str(start.blob)), BlobRow(run, "from-layout", str(layout)))

    async def _base_of(self, plan: RunPlan, run: bytes) -> dict[str, str]:
        """`ProcessConfig`'s fields of the weights the plan starts from; none where it names none."""
        if plan.base is None:
            return {}
        rows = {r.purpose: BlobId.parse(r.blob) for r in await self.store.blobs(run) if r.purpose in ("from", "from-layout")}
        flat, layout = (str(self.blobs.path(rows[name])) for name in ("from", "from-layout"))
        return {"base_flat": flat, "base_layout": layout, "base_origin": plan.base.origin}

    async def probe(self, plan: RunPlan, archive: bytes, start: Start | None) -> Layout | None:
        """The layout of the model the app would train under this plan; starts no run.

        Raises:
            BadInput: why the app cannot run so, in its own words; with `start`, the first tensor that differs.
        """
        self.check_environment(plan)
        scratch = self.folder.directory.resolve() / "runs" / f"probe-{secrets.token_hex(8)}"
        try:
            app = await asyncio.to_thread(unpack_app, archive, scratch / "app", digest=plan.app_sha256)
            config = self._config(app, plan, scratch / "app", scratch / "work", secrets.token_bytes(32))
            config = replace(config, probe=True)
            if start is not None:
                layout = scratch / "layout.json"
                await asyncio.to_thread(layout.write_bytes, start.layout.to_json())
                config = replace(config, base_flat=str(self.blobs.path(start.blob)), base_layout=str(layout), base_origin=start.base.origin)
            found = await probe(config, await self._launcher(plan))
            if found is not None:
                self.layouts = dict(list(self.layouts.items())[-63:]) | {key_of(plan): found}
            return found
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _config(self, app: App, plan: RunPlan, app_dir: Path, work_dir: Path, run: bytes) -> ProcessConfig:
        return ProcessConfig(
            run_dir=str(work_dir),
            socket=str(work_dir / "grid.sock"),
            app_dir=str(app_dir),
            run_id=flower_run_id(run),
            run_config=config_of_plan(app, plan.settings),
            seed=int.from_bytes(run[:4], "little"),
            quorum=plan.u_min,
            members=len(plan.roster),
            per_node_keys=tuple(plan.per_node_config),
            linear_strategy=tuple(app.dure.linear_strategy),
        )

    def _no_room(self, plan: RunPlan, layout: Layout) -> str:
        return no_room(self.folder.directory, plan, layout)

    async def _serverapp(self, engine: RunEngine) -> None:
        facts: RunFacts = engine.state.facts
        run_dir = self.run_dir(engine.run)
        try:
            app = await self.app_of(facts.plan, run_dir)
            work_dir = run_dir / "serverapp"
            path = prepare_socket(work_dir, "grid.sock")
            grid = ServerAppGrid(
                engine, await self.journals.of(engine.run), work_dir, self.blobs, self.store, lambda: self.fleet.here, self._no_room
            )
            server = unix_server(
                path,
                [lambda s: serverapp_pb2_grpc.add_ServerAppGridServiceServicer_to_server(grid, s)],
                max_bytes=GRID_MESSAGE_BYTES,
            )
            await server.start()
            config = replace(
                self._config(app, facts.plan, run_dir / "app", work_dir, engine.run),
                socket=str(path),
                initial=_rules(facts.plan),
                **await self._base_of(facts.plan, engine.run),
            )
            process = ServerAppProcess(config, run_dir / "serverapp.log", await self._launcher(facts.plan))
            watch = asyncio.create_task(self._stop_when_over(engine, process))
            try:
                ended = await process.run()
                if not engine.ended and not engine.state.stopping:
                    await engine.submit(Abort(f"the ServerApp ended without a result: {ended.reason}; see {run_dir / 'serverapp.log'}"))
            finally:
                watch.cancel()
                await process.stop()
                await server.stop(DRAIN_S)
        except asyncio.CancelledError:
            raise
        except DureError as error:
            log.error("serverapp.failed", run=engine.run.hex()[:12], reason=str(error))
            await engine.submit(Abort(f"the ServerApp could not be started: {error}"[:500]))

    def check_environment(self, plan: RunPlan) -> None:
        """`BadInput` where the environment in which the plan's ServerApp runs is not prepared here."""
        if plan.env_sha256 is not None and place.prepared(self.folder.directory, plan.env_sha256) is None:
            raise BadInput(
                f"environment {plan.env_sha256.hex()[:16]}…, in which the ServerApp runs, is not prepared here; first: "
                f"dure coordinator env prepare APP --wheels FOLDER --dir {self.folder.directory}"
            )

    async def _launcher(self, plan: RunPlan) -> Sequence[str]:
        """How the ServerApp is started: in the plan's environment, once it is prepared here."""
        if plan.env_sha256 is None:
            return OWN_INTERPRETER
        said = False
        while (found := place.prepared(self.folder.directory, plan.env_sha256)) is None:
            if not said:
                log.warning("serverapp.waits", environment=plan.env_sha256.hex(), next="dure coordinator env prepare APP --wheels FOLDER")
            said = True
            await asyncio.sleep(1.0)
        return await asyncio.to_thread(command_in, found, FLAGS)

    async def _stop_when_over(self, engine: RunEngine, process: ServerAppProcess) -> None:
        while not engine.ended:
            await engine.changes.wait(engine.changes.version, 5.0)
        await asyncio.sleep(1.0)  # a Finish that ended the run is being answered
        await process.stop()

    def tls_files(self) -> TlsFiles:
        """The members' port's, under the CA of the version in force."""
        return TlsFiles(*self.folder.served_under(self.charter.terms.coordinator))

    def log_service(self) -> Log:
        """The log on the members' port."""
        return Log(Intake(self.fleet), self.publisher, self.witnesses)

    async def enter_charter(self) -> None:
        """Every version published is an entry when this returns; before anything else is signed or taken in."""
        async with self.duties.chain_lock:
            await self.charters.enter(self.publisher.seen)
        await self.fleet.changes.bump()

    def roster_changed(self) -> None:
        """The port and the witnesses go by the charter in force from here on."""
        self.roster = replace(roster_of(self.charters), revoked=self.roster.revoked)
        self.publisher.files.signed_by(log_keys(self.charters.all))
        self.witnesses.fixed = outside_witnesses(self.charter, self.settings, self.charters.former)

    async def start(self) -> None:
        """Publish the log and let all open runs go on."""
        await self.charters.enter_first()
        self.publisher.before_signing = self.enter_charter
        await standing.settle(self)
        self.publishing = asyncio.create_task(self.publisher.run(), name="log")
        await self.fleet.start()

    async def close(self) -> None:
        """Stop without deciding anything: what is owed is owed at the next start."""
        if self.publishing is not None:
            self.publishing.cancel()
            await asyncio.gather(self.publishing, return_exceptions=True)
        for task in self.serverapps.values():
            task.cancel()
        await asyncio.gather(*self.serverapps.values(), return_exceptions=True)
        await self.fleet.close()
        await self.store.close()
        self.spools.close()


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Two coordinators on one folder would sign two histories.

    Raises:
        Unavailable: another process serves this folder.
    """
    try:
        file = (directory / "serve.lock").open("w")
    except OSError as error:
        raise Unavailable(f"{directory} cannot be written: {error.strerror}; give --dir a folder this user may write") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another process serves {directory}; stop it first") from None
        yield


def check_clock(folder: CoordinatorFolder, now: float) -> None:
    """Refuse a clock that cannot be right: it is well before something in this folder was last written.

    Raises:
        BadInput: says by how much.
    """
    written = max((folder.directory / name).stat().st_mtime for name in KEPT if (folder.directory / name).exists())
    if now < written - CLOCK_LIMIT_S:
        raise BadInput(
            f"this machine's clock is {written - now:.0f} s before {folder.directory} was last written; set it (NTP), "
            "or, if it is right now and was ahead before, wait that long"
        )


def listen_address(folder: CoordinatorFolder, settings: CoordinatorSettings, chosen: str | None) -> str:
    """Where the members' port is bound."""
    if chosen or settings.listen:
        return chosen or settings.listen
    host, _, port = folder.advertise.rpartition(":")
    return f"{host if host in ('127.0.0.1', 'localhost') else '0.0.0.0'}:{port}"  # noqa: S104  # mutual TLS guards it


def serve(directory: Path, listen: str | None, metrics: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT; `metrics` is the port of the Prometheus scrape, None for none.

    Raises:
        DureError: it cannot start; one line says why and what to do.
    """
    configure_logs()
    keep_freed_memory()
    # Chunk work in threads and gRPC in the event loop share the interpreter; 5 ms turns would starve the streams.
    sys.setswitchinterval(0.0005)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    folder = CoordinatorFolder.load(directory)
    with only_one(directory):
        check_clock(folder, time.time())
        asyncio.run(_serve(folder, load(directory), listen, metrics))


async def _serve(folder: CoordinatorFolder, settings: CoordinatorSettings, listen: str | None, metrics: str | None) -> None:
    coordinator = await Coordinator.open(folder, settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    admin: grpc.aio.Server | None = None
    sweeping = asyncio.create_task(coordinator.retention.run(), name="retention")
    watching: asyncio.Task[None] | None = None
    try:
        address = listen_address(folder, settings, listen)
        roster, service = coordinator.fleet.roster, coordinator.log_service()
        coordinator.door = Door(
            lambda tls, at: members_port(coordinator.fleet, roster, tls, at, Limits(), service), coordinator.tls_files, address
        )
        path = prepare_socket(folder.directory / "sockets", ADMIN_SOCKET)
        admin = unix_server(
            path,
            [lambda s: admin_pb2_grpc.add_AdminServiceServicer_to_server(Admin(coordinator), s)],
            max_bytes=ADMIN_MESSAGE_BYTES,
        )
        await coordinator.door.open()
        await admin.start()
        await coordinator.start()
        watching = asyncio.create_task(standing.watch(coordinator), name="charter")
        print(f"members' port  {coordinator.door.port.address}  mutual TLS, charter version {coordinator.charter.version}", flush=True)
        print(f"admin socket   {path}", flush=True)
        if metrics is not None:
            print(f"metrics        http://{serve_metrics(metrics, lambda: samples(coordinator))}/metrics", flush=True)
        if time.time() >= coordinator.charter.expires:
            log.warning("charter.expired", reason=expired(coordinator.charter.version))
        notify_ready()
        await stop.wait()
        log.info("coordinator.draining")
    finally:
        background = [task for task in (sweeping, watching) if task is not None]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if coordinator.door is not None:
            coordinator.door.port.members.draining.set()
            await coordinator.fleet.changes.bump()
            await coordinator.door.port.server.stop(DRAIN_S)
        if admin is not None:
            await admin.stop(DRAIN_S)
        await coordinator.close()


def notify_ready() -> None:
    """Tell systemd that the ports are open (sd_notify, READY=1); nothing elsewhere."""
    target = os.environ.get("NOTIFY_SOCKET")
    if not target:
        return
    address = "\0" + target[1:] if target.startswith("@") else target
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        channel.sendto(b"READY=1", address)


def _rules(plan: RunPlan) -> tuple[tuple[str, str, str], ...]:
    return () if plan.initial is None else tuple((rule.tensors, rule.kind, rule.value) for rule in plan.initial.rules)
