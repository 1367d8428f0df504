"""All runs and all connected nodes of one coordinator: what the RPC edges talk to.

Free of gRPC. A member's node is *here* while it follows; a run hears of that as `Seen` and `Gone`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import structlog

from dure.blobs import BlobId, BlobReader, BlobStore, DiskFull
from dure.errors import BadInput, DureError, NotAuthorised, Refused, Unavailable
from dure.failpoints import Point, reach
from dure.statements.kinds import Dispute, InstanceCommit, NodeDelegation, NodeRevocation, RunPlan
from dure.statements.statement import open_statement, read_verified
from dure.wire.messages import (
    PROTOCOL_VERSION,
    Directive,
    DirectiveKind,
    EvidenceQuery,
    Hello,
    HelloReply,
    Report,
    ReportKind,
    ReportReply,
    SumEvidence,
    why_not_spoken,
)
from dure_coordinator.callers import Caller, Member, Roster
from dure_coordinator.engine import Changes, Decided, Logic, Performer, RunEngine
from dure_coordinator.exchange import view
from dure_coordinator.exchange.accept import split_accept
from dure_coordinator.exchange.events import Dismissed, Gone, Reported, Seen, TakenUp, Uploaded
from dure_coordinator.exchange.facts import RunFacts
from dure_coordinator.exchange.state import RunState
from dure_coordinator.gate import Gate
from dure_coordinator.log.heads import NamedHeads
from dure_coordinator.log.referred import check_chained, check_references
from dure_coordinator.spool import Spool, Spools, SpoolsFull
from dure_coordinator.storage.store import NOTHING, NodeRow, RunRow, StatementRow, Store, StoreUnusable, With, upload_row
from dure_coordinator.turns import Turns

log = structlog.get_logger()

ENVELOPES = {ReportKind.APPROVAL, ReportKind.ACCEPT, ReportKind.VOID, ReportKind.DISPUTE}
"""Reports that bring DSSE envelopes (an acceptance: its own and the usage): kept verbatim among the statements once accepted."""
POINTS = {
    ReportKind.KEM: Point.KEM_DURABLE,
    ReportKind.READY: Point.READY_DURABLE,
    ReportKind.REVEAL: Point.REVEAL_DURABLE,
    ReportKind.ACCEPT: Point.ACCEPT_DURABLE,
}


@dataclass(frozen=True)
class Session:
    """A node that said Hello: its certificate's name and its member's word for its key."""

    caller: Caller
    node_key: bytes
    generation: int
    delegation: bytes
    software: str
    since: float


@dataclass(frozen=True)
class Ended:
    """A run that is over, not folded."""

    row: RunRow
    plan: RunPlan

    @cached_property
    def directive(self) -> Directive:
        """What its members' nodes hear of it."""
        return Directive(self.row.run, DirectiveKind.FINISHED, reason=self.row.reason or self.row.label)


@dataclass
class Fleet:
    """Made by `app.py`; `load` before anything else."""

    store: Store
    blobs: BlobStore
    spools: Spools
    roster: Callable[[], Roster]
    logic_of: Callable[[RunFacts], Logic]
    facts_of: Callable[[RunRow, RunPlan], RunFacts]
    performer: Performer
    heads: NamedHeads
    """What members' statements name is looked at by it before they are taken in."""
    taken_up: TakenUp
    """What every open run is told when this process takes it up."""
    clock: Callable[[], float] = time.time
    changes: Changes = field(default_factory=Changes)
    runs: dict[bytes, RunEngine] = field(default_factory=dict)
    rows: dict[bytes, RunRow] = field(default_factory=dict)
    ended: dict[bytes, Ended] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    here: dict[str, object] = field(default_factory=dict)
    """Token of the stream each connected member follows on; a newer stream takes over."""
    on_revoked: Callable[[NodeRevocation], Awaitable[None]] | None = None
    """Called once a revocation is an entry, with the gate closed; what it returns is durable."""
    on_opened: Callable[[RunEngine], None] | None = None
    """Called for every run that is or becomes active, once per process (starts its ServerApp)."""
    era: int = 0
    """Follow streams of an earlier era end: whoever may still come greets again, and hears of the newest charter."""
    gate: Gate = field(default_factory=Gate)
    """Passed by whoever takes in what a member signed; closed while it changes whose keys count."""
    turns: Turns = field(init=False)
    """Taken by whoever judges a statement by those its signer made before, until it is kept."""
    trouble: str = ""
    """Why uploads cannot be taken at the moment, for the operator; "" once one was taken again."""
    _made: dict[tuple[bytes, str], tuple[RunState, Directive]] = field(default_factory=dict)
    """(run, member) -> (a state, the member's directive in it)."""
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.turns = Turns(self.gate)

    # -- runs ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Every open run, folded from its log; the others by their registry row."""
        for row in await self.store.runs():
            self.rows[row.run] = row
            try:
                await self._load(row)
            except StoreUnusable:
                raise
            except Exception as error:  # whatever is wrong with one run is no reason to keep the others waiting
                why = str(error) if isinstance(error, DureError) else f"{type(error).__name__}: {error}"
                log.error("run.unreadable", run=row.run.hex()[:12], reason=why, exc_info=not isinstance(error, DureError))
                self.runs.pop(row.run, None)
                self.rows[row.run] = replace(
                    row, label="unreadable", reason=f"its plan or log cannot be read: {' '.join(why.split())[:300]}"
                )

    async def _load(self, row: RunRow) -> None:
        if row.label != "open":
            self.ended[row.run] = Ended(row, self.plan_of(row))
            return
        engine = await self._fold(row)
        await engine.submit(self.taken_up)

    async def start(self) -> None:
        """Lets all open runs go on."""
        for engine in list(self.runs.values()):
            await self._begin(engine)

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self.runs.values()))

    async def add(self, row: RunRow, also: With) -> RunEngine:
        """Registers a run and lets it begin. Durable when this returns."""
        await self.store.add_run(row, also)
        self.rows[row.run] = row
        engine = await self._fold(row)
        await engine.submit(self.taken_up)
        await self._begin(engine)
        for member in engine.state.facts.roster:
            if member in self.here:
                await self._seen(engine, member)
        await self.changes.bump()
        return engine

    async def engine(self, run: bytes) -> RunEngine | None:
        """A run, folded if it is not yet; None if there is none."""
        async with self._loading:
            if run not in self.runs and run in self.ended:
                await self._fold(self.ended[run].row)
        return self.runs.get(run)

    async def find(self, prefix: str) -> RunEngine:
        """The run whose id (hex) starts so, or that has this name alone; `BadInput` names the candidates."""
        wanted = prefix.lower()
        found = [r for r in self.rows.values() if re.fullmatch(r"[0-9a-f]{1,64}", wanted) and r.run.hex().startswith(wanted)]
        found = found or [r for r in self.rows.values() if r.name == prefix]
        if not found:
            raise BadInput(f"no run {prefix!r}; `dure run list` shows all")
        if len(found) > 1:
            raise BadInput(f"{prefix!r} is {len(found)} runs: {', '.join(r.run.hex()[:12] for r in found[:5])}; give more digits")
        engine = await self.engine(found[0].run)
        if engine is None:
            raise Unavailable(f"run {found[0].run.hex()[:12]}: {found[0].reason}; use the Dure that wrote it, or a backup of the database")
        return engine

    def plan_of(self, row: RunRow) -> RunPlan:
        return read_verified(row.plan, RunPlan)

    async def _fold(self, row: RunRow) -> RunEngine:
        facts = self.facts_of(row, self.plan_of(row))
        engine = RunEngine(row.run, row.created, self.logic_of(facts), self.store, self.performer, self.changes, self.clock, self._ended)
        await engine.load()
        self.runs[row.run] = engine
        return engine

    async def _begin(self, engine: RunEngine) -> None:
        if not engine.ended:
            await engine.start()
            if self.on_opened is not None:
                self.on_opened(engine)

    async def _ended(self, engine: RunEngine) -> None:
        row = self.rows[engine.run]
        label, reason = engine.label
        self.rows[engine.run] = RunRow(row.run, row.name, row.plan, row.app_digest, label, reason, row.created)
        log.info("run.ended", run=engine.run.hex()[:12], label=label, reason=reason)

    # -- nodes -----------------------------------------------------------------------------------------------------

    async def hello(self, caller: Caller, hello: Hello) -> HelloReply:
        """Binds the certificate's node to the key its member delegated to.

        Raises:
            Refused: the protocol version, saying who must upgrade; or a delegation that does not hold.
            NotAuthorised: an older generation than this member's latest node.
        """
        async with self.gate.passing():
            return await self._hello(caller, hello)

    async def _hello(self, caller: Caller, hello: Hello) -> HelloReply:
        roster = self.roster()
        if why := why_not_spoken(hello.protocol_version, f"the node of {caller.member}"):
            raise Refused("protocol_version", why)
        if hello.charter_digest not in roster.digests:
            raise Refused(
                "charter_digest",
                "is of no charter version here; this node is of another consortium, or its charter is newer than the coordinator's",
            )
        member = self._member(caller.member)
        delegation = self._delegation(hello.delegation, caller, member.signing_key)
        known = await self.store.node(caller.member)
        if known is not None and delegation.generation < known.generation:
            raise NotAuthorised(
                f"node {caller.node} has generation {delegation.generation}, {caller.member} came with {known.generation} already; "
                "a restored or spare node needs a new key under a higher generation"
            )
        if known is not None and delegation.generation == known.generation and delegation.node_key != known.node_key:
            raise NotAuthorised(f"generation {known.generation} of {caller.member} is another node key; use a higher generation")
        await self.store.put_node(NodeRow(caller.member, caller.node, delegation.node_key, delegation.generation))
        self.sessions[caller.member] = Session(
            caller, delegation.node_key, delegation.generation, hello.delegation, hello.software, self.clock()
        )
        return HelloReply(PROTOCOL_VERSION, roster.digest, int(self.clock() * 1000), roster.roots)

    def _member(self, name: str) -> Member:
        """The member of that id; it may have left since its call was let in."""
        roster = self.roster()
        if name not in roster.members:
            raise NotAuthorised(f"{name} is no member of charter version {roster.version}")
        return roster.members[name]

    def _delegation(self, raw: bytes, caller: Caller, signing_key: bytes) -> NodeDelegation:
        """Signed by the member, for this node's name, valid now."""
        fact = open_statement(raw, NodeDelegation, [signing_key]).fact
        if (fact.member, fact.node) != (caller.member, caller.node):
            raise Refused("delegation", f"is for {fact.member}/{fact.node}, the certificate says {caller.member}/{caller.node}")
        if fact.generation <= self.roster().revoked_generation(fact.member):
            raise NotAuthorised(f"generation {fact.generation} of {fact.member} was revoked by it; make a new node (`dure node init`)")
        if not fact.not_before <= self.clock() <= fact.not_after:
            raise Refused("delegation", "is not valid at this time; renew it, or check this machine's clock")
        return fact

    def session(self, caller: Caller) -> Session:
        """The caller's session; `NotAuthorised` where Hello is missing or a newer node took over."""
        session = self.sessions.get(caller.member)
        if session is None:
            raise NotAuthorised("say Hello first")
        if session.caller != caller:
            raise NotAuthorised(f"node {session.caller.node} speaks for {caller.member} now; say Hello first")
        return session

    async def arrive(self, member: str) -> object:
        """The member's node follows now. Returns the token for `leave` and `current`."""
        token = object()
        self.here[member] = token
        for engine in self._open_runs_of(member):
            await self._seen(engine, member)
        await self.changes.bump()
        return token

    async def leave(self, member: str, token: object) -> None:
        """The stream ended; nothing if a newer one took over."""
        if self.here.get(member) is not token:
            return
        del self.here[member]
        for engine in self._open_runs_of(member):
            await engine.submit(Gone(member))
        await self.changes.bump()

    async def dismiss(self, why: Mapping[str, str]) -> None:
        """These members' nodes may take no part any more: runs hear of it at once, and they must greet again if they ever may."""
        for member, reason in why.items():
            self.sessions.pop(member, None)
            log.warning("node.dismissed", member=member, reason=reason)
            for engine in self._open_runs_of(member):
                await engine.submit(Dismissed(member, reason))

    async def new_era(self) -> None:
        """Everybody connects anew."""
        self.era += 1
        await self.changes.bump()

    def current(self, member: str, token: object) -> bool:
        return self.here.get(member) is token

    async def _seen(self, engine: RunEngine, member: str) -> None:
        session = self.sessions.get(member)
        if session is None:  # dismissed meanwhile
            return
        decision = await engine.submit(Seen(member, session.node_key, session.generation, session.delegation))
        if not decision.reply.accepted:
            log.warning("node.refused", run=engine.run.hex()[:12], member=member, field=decision.reply.field, reason=decision.reply.reason)

    def open_runs(self) -> list[bytes]:
        """Runs that are not over."""
        return [run for run, engine in self.runs.items() if not engine.ended]

    def _open_runs_of(self, member: str) -> list[RunEngine]:
        return [e for e in self.runs.values() if not e.ended and member in e.state.facts.roster]

    # -- directives and reports ------------------------------------------------------------------------------------

    def directives(self, member: str) -> dict[bytes, Directive]:
        """What this member's node should be doing, per run it is in."""
        found = {run: ended.directive for run, ended in self.ended.items() if member in ended.plan.roster}
        for run, engine in self.runs.items():
            if member in engine.state.facts.roster:
                found[run] = self._directive(engine, member)
        return found

    def _directive(self, engine: RunEngine, member: str) -> Directive:
        """Made once per state: every change anywhere makes every stream look."""
        known = self._made.get((engine.run, member))
        if known is None or known[0] is not engine.state:
            known = self._made[engine.run, member] = (engine.state, view.directive(engine.state, member))
        return known[1]

    async def report(self, caller: Caller, report: Report) -> ReportReply:
        """Decides a node's report; what is answered is durable. The same report gets the same answer."""
        async with self.gate.passing():
            return await self._report(caller, report)

    async def _report(self, caller: Caller, report: Report) -> ReportReply:
        self.session(caller)
        engine = await self.engine(report.run)
        if engine is None or caller.member not in engine.state.facts.roster:
            return ReportReply(False, "run", "no run of this member; it may belong to another coordinator")
        try:
            bodies = envelopes_in(report)
        except Refused as refused:
            return ReportReply(False, refused.field, refused.why)
        if not bodies:
            return await self._decide(engine, caller.member, report, ())
        return await self.turns.alone(caller.member, lambda: self._decide(engine, caller.member, report, bodies))

    async def _decide(self, engine: RunEngine, member: str, report: Report, bodies: tuple[bytes, ...]) -> ReportReply:
        """`bodies`: the statements it brings."""
        try:
            await self.heads.check(*bodies)
            await check_references(self.store, *bodies)
            await check_chained(self.store, self.clock(), *bodies)
        except Refused as refused:
            return ReportReply(False, refused.field, refused.why)

        def also(decision: Decided) -> With:
            if not bodies or not decision.reply.accepted:  # a refused one may still have let the clock move the run
                return NOTHING
            pin = read_verified(report.body, Dispute).instance if report.kind is ReportKind.DISPUTE else None
            return With(statements=tuple(StatementRow.of(body, engine.run) for body in bodies), pin=pin)

        reply = await self._submit(engine, Reported(member, report), also)
        if report.kind in POINTS:
            reach(POINTS[report.kind])
        if not reply.accepted:
            log.info("report.refused", run=engine.run.hex()[:12], member=member, kind=report.kind.value, reason=reply.reason)
        return reply

    async def _submit(self, engine: RunEngine, event: Reported | Uploaded, also: Callable[[Decided], With]) -> ReportReply:
        """The answer to what a node said. An accepted one's statements are entries of the log by then, also where the run had no use for
        them any more: the node counts on it."""
        decision = await engine.submit(event, also)
        statements = also(decision).statements
        if statements and decision.reply.accepted and not decision.changed:
            await self.store.write(engine.run, With(statements=statements))
        reply: ReportReply = decision.reply
        return reply

    # -- bulk: who may move which bytes ------------------------------------------------------------------------------

    async def open_blob(self, member: str, blob: BlobId) -> tuple[bytes, BlobReader]:
        """(run, the blob, or a survivor's committed upload, open), if a run of this member lets it be read now.

        Raises:
            NotAuthorised: no run says so; the same answer whether the blob exists or not.
            SpoolRefused: the upload's challenge window has closed and it is gone.
        """
        if (found := self._readable(member, text := str(blob))) is None:
            for run in {r for r, _ in await self.store.runs_of_blob(text)} & self.ended.keys() - self.runs.keys():
                await self.engine(run)
            found = self._readable(member, text)
        if found is None:
            raise NotAuthorised("no run of this member lets it read this blob now")
        engine, kept = found
        if kept is None:
            return engine.run, await asyncio.to_thread(self.blobs.open, blob)
        return engine.run, await asyncio.to_thread(self.spools.reader, kept.upload, length=kept.length, chunk_bytes=kept.chunk_bytes)

    def _readable(self, member: str, text: str) -> tuple[RunEngine, view.KeptUpload | None] | None:
        """The run that lets this member read the blob of that id text, and the upload it is, if it is one; None if none does."""
        engines = sorted((e for e in self.runs.values() if member in e.state.facts.roster), key=lambda e: e.ended)
        for engine in engines:
            if view.may_read(engine.state, member, text):
                return engine, None
        for engine in engines:
            if (kept := view.readable_upload(engine.state, member, text)) is not None:
                return engine, kept
        return None

    def disk_full(self, error: DiskFull | SpoolsFull) -> None:
        """An upload found no room: said once in the log, and by status and show until an upload is taken again."""
        if not self.trouble:
            log.error("uploads.no_room", reason=str(error))
        self.trouble = f"uploads wait for room: {error}"

    async def evidence(self, caller: Caller, query: EvidenceQuery) -> tuple[SumEvidence, ...]:
        """What the sums of an exchange were opened from, for members of that exchange. Like a pull it needs no Hello:
        a coordinator that was just restarted must not seem to withhold.

        Raises:
            NotAuthorised: no such run or exchange of this member.
        """
        engine = await self.engine(query.run)
        sums = view.opened_sums(engine.state, caller.member, query.exchange) if engine is not None else ()
        if not sums:
            raise NotAuthorised("no sum was opened in an exchange of that number in a run of this member")
        return sums

    async def open_upload(self, member: str, upload: bytes) -> tuple[bytes, Spool | bytes | view.UploadSlot]:
        """(run, where this upload's chunks go, or the answer its commit got); a slot without length takes a commit only."""
        known = await self.store.upload(upload)
        if known is not None and known.commit is not None and known.member == member:
            return known.run, ACCEPTED
        engine, slot = self._slot(member, upload)
        if slot.length == 0:
            return engine.run, slot
        if known is None:  # rows are made with the instance's open
            await self.store.begin_upload(upload_row(engine.run, slot))
        opened = await asyncio.to_thread(self.spools.open, upload, length=slot.length, chunk_bytes=slot.chunk_bytes, run=engine.run)
        return engine.run, opened

    async def commit_upload(self, member: str, upload: bytes, commit: bytes) -> ReportReply:
        """Judges the signed commit and makes it durable; only then does the upload count.

        Raises:
            Refused: the commit's form, or its root is not that of the chunks that came.
        """
        async with self.gate.passing():
            return await self._commit_upload(member, upload, commit)

    async def _commit_upload(self, member: str, upload: bytes, commit: bytes) -> ReportReply:
        engine, slot = self._slot(member, upload)
        session = self.sessions.get(member)
        if session is None:
            raise NotAuthorised("say Hello first")
        fact = open_statement(commit, InstanceCommit, [session.node_key]).fact
        if (fact.member, fact.instance) != (member, slot.instance):
            raise Refused("commit", "is of another member or instance than this upload")
        if fact.length != slot.length:
            raise Refused("length", f"says {fact.length}, this upload has {slot.length} bytes")
        await self.heads.check(commit)
        await check_references(self.store, commit)
        if slot.length:
            spool = await asyncio.to_thread(self.spools.open, upload, length=slot.length, chunk_bytes=slot.chunk_bytes, run=engine.run)
            await asyncio.to_thread(spool.finish, fact.root)
        else:
            if await self.store.upload(upload) is None:
                await self.store.begin_upload(upload_row(engine.run, slot))
        self.trouble = ""
        also = With(statements=(StatementRow.of(commit, engine.run),), committed=(upload, commit))

        async def count() -> ReportReply:
            await check_chained(self.store, self.clock(), commit)
            return await self._submit(engine, Uploaded(member, slot.instance, commit), lambda _decision: also)

        reply = await self.turns.alone(member, count)
        reach(Point.COMMIT_DURABLE)
        return reply

    def _slot(self, member: str, upload: bytes) -> tuple[RunEngine, view.UploadSlot]:
        for engine in self._open_runs_of(member):
            for slot in view.upload_slots(engine.state):
                if slot.upload == upload and slot.member == member:
                    return engine, slot
        raise NotAuthorised("no run takes this upload from this member now; follow the directives")


def envelopes_in(report: Report) -> tuple[bytes, ...]:
    """The statements that a report brings. Raises Refused: an acceptance that is no pair of them."""
    if report.kind not in ENVELOPES:
        return ()
    bodies = split_accept(report.body) if report.kind is ReportKind.ACCEPT else (report.body,)
    return tuple(body for body in bodies if body)


ACCEPTED = b"accepted"
"""The answer to a commit that counts."""


def summary_of(engine: RunEngine, row: RunRow, connected: Mapping[str, object]) -> dict[str, object]:
    """One run for people and scripts."""
    try:
        facts = dict(view.summary(engine.state))
    except DureError as e:  # a view must never take status down
        facts = {"phase": "?", "reason": str(e)}
    return {
        "run": row.run.hex(),
        "plan_digest": row.run.hex(),
        "name": row.name,
        "state": engine.label[0],
        "reason": engine.label[1],
        "created": row.created,
        "roster": list(engine.state.facts.roster),
        "connected": sorted(m for m in engine.state.facts.roster if m in connected),
        **{k: v for k, v in facts.items() if k not in ("run",)},
    }
