"""A ServerApp process and workers, all real, with a plain sum between them: the seam without the secure sum."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import grpc
import numpy as np
import pytest

from dure.apps import read_app, run_config
from dure.model.content import flower_node_id
from dure.model.layout import Layout
from dure.model.weights import open_flat, unflatten
from dure_coordinator.flower import codec
from dure_coordinator.flower.backend import ExchangeReply, Node
from dure_coordinator.flower.journal import Diverged, Journal, already_summed_reason
from dure_coordinator.flower.launch import ProcessConfig, ServerAppProcess
from dure_participant.worker_host import Task, WorkerHost
from dure_pb.v1 import serverapp_pb2 as pb
from dure_pb.v1 import serverapp_pb2_grpc as rpc

DIGITS = Path(__file__).parents[2] / "apps" / "digits"
MEMBERS = ("alpha", "beta", "gamma")


class Coordinator(rpc.ServerAppGridServiceServicer):
    """What the daemon does at this socket, in short: journal, members (workers on this host), a plain mean."""

    def __init__(self, folder: Path, hosts: dict[str, WorkerHost]):
        self.folder, self.run_dir, self.hosts = folder, folder / "run", hosts
        self.journal, self.running = Journal(), {}
        self.live, self.result, self.failure = [], None, None
        self.before = lambda seq: None
        self.missing = ""

    async def Nodes(self, request, context):
        if self.missing:
            return codec.missing_to_pb(self.missing)
        return codec.nodes_to_pb([Node(flower_node_id(member), member) for member in MEMBERS])

    async def Exchange(self, message, context):
        request = codec.request_from_pb(message, self.run_dir)
        try:
            self.journal, entry = self.journal.ask(request)
        except Diverged as error:
            return codec.stopped_to_pb(str(error))
        # The exchange outlives the call: a ServerApp that dies and asks again joins it.
        if request.seq not in self.running:
            self.running[request.seq] = asyncio.create_task(self.execute(request, entry))
        return codec.reply_to_pb(await asyncio.shield(self.running[request.seq]))

    async def execute(self, request, entry) -> ExchangeReply:
        self.before(request.seq)
        if earlier := self.journal.summed_before(entry):
            reply = ExchangeReply("failed", reason=already_summed_reason(earlier))
        else:
            self.live.append(request.seq)
            reply = await self.sum(request)
        self.journal = self.journal.answered(request.seq, {"seq": request.seq}, summed=reply.status == "ok")
        return reply

    async def Finish(self, message, context):
        self.result = codec.result_from_pb(message, self.run_dir)
        return pb.ServerAppGridServiceFinishResponse()

    async def Fail(self, message, context):
        self.failure = (message.kind, message.message)
        return pb.ServerAppGridServiceFailResponse()

    async def sum(self, request) -> ExchangeReply:
        results = {}
        for part, member in enumerate(MEMBERS):
            task = Task(
                run_id=7,
                node_id=flower_node_id(member),
                exchange=request.seq,
                instruction=request.instruction.to_json(),
                out_path=self.folder / f"{member}-{request.seq}.f32",
                state_path=self.folder / f"{member}.state",
                base_path=request.flat_path,
                node_config={"partition-id": part, "num-partitions": len(MEMBERS)},
                run_config=CONFIG,
            )
            results[member] = await self.hosts[member].run(task)
        assert all(result.status == "ok" for result in results.values()), results
        total = sum(result.num_examples for result in results.values())
        share = {member: result.num_examples / total for member, result in results.items()}
        metrics = {name: sum(result.metrics[name] * share[member] for member, result in results.items()) for name in ("loss", "accuracy")}
        common = {"metrics": metrics, "num_examples": total, "survivors": request.nodes}
        if request.instruction.category != "train":
            return ExchangeReply("ok", **common)
        layout = request.instruction.arrays.layout
        base = open_flat(request.flat_path, layout)
        mean = sum((open_flat(result.flat_path, layout) - base) * np.float32(share[member]) for member, result in results.items())
        out = self.run_dir / f"mean-{request.seq}.f32"
        out.write_bytes(mean.astype("<f4").tobytes())
        return ExchangeReply("ok", arrays="mean-update", flat_path=out, **common)


CONFIG = run_config(read_app(DIGITS), ["num-server-rounds=3", "hidden=8", "local-epochs=1"])


@pytest.fixture
async def coordinator(tmp_path):
    hosts = {member: WorkerHost(DIGITS, tmp_path / member) for member in MEMBERS}
    made = Coordinator(tmp_path, hosts)
    yield made
    for host in hosts.values():
        await host.kill()


async def listen(coordinator, socket):
    server = grpc.aio.server()
    rpc.add_ServerAppGridServiceServicer_to_server(coordinator, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    return server


@contextlib.asynccontextmanager
async def serving(coordinator, **more):
    coordinator.folder.mkdir(parents=True, exist_ok=True)
    runtime = tempfile.mkdtemp(prefix="dure-")  # a Unix path over 107 characters does not bind
    socket = f"{runtime}/s"
    coordinator.server = await listen(coordinator, socket)
    coordinator.socket = socket
    fields = {"run_id": 7, "app_dir": str(DIGITS), "run_config": CONFIG, "reconnect_s": 5.0}
    config = ProcessConfig(run_dir=str(coordinator.run_dir), socket=socket, **{**fields, **more})
    process = ServerAppProcess(config, coordinator.folder / "serverapp.log", restart_wait_s=0.05)
    yield process
    await process.stop()
    await coordinator.server.stop(None)
    shutil.rmtree(runtime)


async def run_whole(coordinator, **more):
    async with serving(coordinator, **more) as process:
        ended = await asyncio.wait_for(process.run(), 60)
    return ended, (coordinator.folder / "serverapp.log").read_text()


async def test_digits_run_from_its_initial_weights_to_a_result(coordinator):
    ended, log = await run_whole(coordinator)
    assert ended.reason == "finished", log
    result = coordinator.result
    assert result.rounds == 3 and coordinator.live == [1, 2, 3, 4, 5, 6]
    losses = [result.metrics["evaluate"][round_]["loss"] for round_ in (1, 2, 3)]
    assert losses[2] < losses[0]
    layout = Layout.from_json(result.layout_json.encode())
    assert list(unflatten(open_flat(result.flat_path, layout), layout)) == ["hidden.weight", "hidden.bias", "output.weight", "output.bias"]


@pytest.mark.deep
async def test_serverapp_killed_twice_resumes_from_the_journal_bit_identically(tmp_path):
    finals = []
    for name, kills in (("whole", []), ("killed", [2, 5])):
        hosts = {member: WorkerHost(DIGITS, tmp_path / name / member) for member in MEMBERS}
        coordinator = Coordinator(tmp_path / name, hosts)
        left = list(kills)
        async with serving(coordinator) as process:

            def kill(seq, left=left, process=process):
                if left and seq == left[0]:
                    left.pop(0)
                    os.kill(process.pid, signal.SIGKILL)

            coordinator.before = kill
            ended = await asyncio.wait_for(process.run(), 90)
        assert ended.reason == "finished" and ended.restarts == len(kills), (tmp_path / name / "serverapp.log").read_text()
        assert coordinator.live == [1, 2, 3, 4, 5, 6]
        finals.append(coordinator.result.flat_path.read_bytes())
        for host in hosts.values():
            await host.kill()
    assert finals[0] == finals[1]


async def test_serverapp_waits_for_a_coordinator_that_restarts(coordinator):
    async def restart():
        await coordinator.server.stop(None)
        await asyncio.sleep(0.3)
        coordinator.server = await listen(coordinator, coordinator.socket)

    restarts = []
    coordinator.before = lambda seq: restarts.append(asyncio.create_task(restart())) if seq in (1, 4) else None
    ended, log = await run_whole(coordinator)
    assert ended.reason == "finished" and ended.restarts == 0, log
    assert coordinator.live == [1, 2, 3, 4, 5, 6] and len(restarts) == 2


def app_with(tmp_path, server: str) -> str:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "other_server.py").write_text(server)
    (folder / "pyproject.toml").write_text('[tool.flwr.app.components]\nserverapp = "other_server:app"\nclientapp = "other_server:app"\n')
    return str(folder)


HEAD = """
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp import strategy as s
app = ServerApp()
@app.main()
def main(grid, context):
    start = ArrayRecord({"w": Array(np.zeros(3, dtype=np.float32))})
"""


@pytest.mark.parametrize(
    ("body", "kind", "named"),
    [
        ("    s.Krum().start(grid, start)", "GridRefused", "Krum cannot run under secure aggregation"),
        ("    s.FedAvg(fraction_train=0.4).start(grid, start)", "GridRefused", "fraction_train"),
        ("    grid.push_messages([])", "GridRefused", "only their sum"),
        ("    raise ValueError('mine')", "ServerAppFailed", "ValueError: mine"),
        ("    raise SystemExit(0)", "ServerAppFailed", "SystemExit"),
        ("    s.FedAvg().start(grid, ArrayRecord({'n': Array(np.zeros(2, 'c8'))}))", "GridRefused", "tensor 'n': is complex64"),
    ],
)
async def test_what_the_serverapp_does_wrong_ends_the_run_with_its_reason(coordinator, tmp_path, body, kind, named):
    ended, log = await run_whole(coordinator, app_dir=app_with(tmp_path, HEAD + body))
    assert ended.reason == "failed" and ended.restarts == 0, log
    assert coordinator.failure[0] == kind and named in coordinator.failure[1]
    assert coordinator.live == []


OLD = """
from flwr.compat.server import ServerAppComponents
from flwr.serverapp import ServerApp
app = ServerApp(server_fn=lambda context: ServerAppComponents())
"""


async def test_a_serverapp_of_flowers_older_interface_is_refused_with_the_way_on(coordinator, tmp_path):
    ended, log = await run_whole(coordinator, app_dir=app_with(tmp_path, OLD))
    assert ended.reason == "failed" and coordinator.live == [], log
    kind, message = coordinator.failure
    assert kind == "GridRefused" and "no @app.main()" in message and "flwr.serverapp.strategy" in message


WORKFLOW = """
from flwr.server import LegacyContext, ServerApp
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow
app = ServerApp()
@app.main()
def main(grid, context):
    DefaultWorkflow()(grid, LegacyContext(context=context, strategy=FedAvg(min_available_clients=50)))
"""


async def test_a_workflow_that_would_wait_for_members_for_a_day_is_refused_at_once(coordinator, tmp_path):
    ended, log = await run_whole(coordinator, app_dir=app_with(tmp_path, WORKFLOW))
    assert ended.reason == "failed" and coordinator.live == [], log
    kind, message = coordinator.failure
    assert kind == "GridRefused" and "LegacyContext" in message and "flwr.serverapp.strategy" in message


async def test_missing_quorum_is_reported_with_the_names(coordinator):
    coordinator.missing = "gamma did not connect within 60 s"
    ended, _ = await run_whole(coordinator)
    assert ended.reason == "failed" and coordinator.failure == ("QuorumMissing", coordinator.missing)


async def test_diverging_serverapp_is_stopped_with_both_digests(coordinator):
    await run_whole(coordinator, run_config={**CONFIG, "num-server-rounds": 1})
    asked = coordinator.journal.entries[0].digest.hex()
    coordinator.result = None
    ended, _ = await run_whole(coordinator, run_id=8)  # the initial weights come from the run id
    assert ended.reason == "failed" and coordinator.result is None
    assert coordinator.failure[0] == "RunStopped" and asked in coordinator.failure[1]


async def test_process_sees_no_secret_of_the_daemon(coordinator, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    body = "    import os; raise ValueError(sorted(os.environ))"
    await run_whole(coordinator, app_dir=app_with(tmp_path, HEAD + body))
    assert "DATABASE_PASSWORD" not in coordinator.failure[1] and "HOME" in coordinator.failure[1]


async def test_process_that_finds_no_coordinator_is_restarted_and_then_given_up(tmp_path):
    config = ProcessConfig(
        run_dir=str(tmp_path / "run"), socket=str(tmp_path / "none"), app_dir=str(DIGITS), run_id=7, run_config=CONFIG, reconnect_s=0.2
    )
    process = ServerAppProcess(config, tmp_path / "log", max_restarts=1, restart_wait_s=0.01)
    ended = await asyncio.wait_for(process.run(), 60)
    assert ended.restarts == 1 and "exit code 4" in ended.reason
