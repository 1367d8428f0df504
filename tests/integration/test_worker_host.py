"""The worker as a real process: the digits app end to end, and everything a worker may do to its host."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dure.model.content import ArrayItem, ConfigItem, Instruction
from dure.model.layout import Layout
from dure.model.weights import flatten, open_flat, unflatten, weights_id
from dure_participant import worker_host
from dure_participant.worker_host import Task, WorkerHost, WorkerSettings

DIGITS = Path(__file__).parents[2] / "apps" / "digits"
RUN_CONFIG = {"local-epochs": 1, "learning-rate": 0.1, "batch-size": 32, "hidden": 8}

APP = """
import os, sys, time, subprocess
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

print("imported")
app = ClientApp()

def reply(message, arrays=None, metrics=None, **more):
    records = dict(more)
    if arrays is not False:
        records["arrays"] = ArrayRecord({k: Array(v) for k, v in (arrays or weights(message)).items()})
    records["metrics"] = MetricRecord({"num-examples": 3, **(metrics or {})})
    return Message(RecordDict(records), reply_to=message)

def weights(message):
    return {k: v.numpy().copy() for k, v in message.content["arrays"].items()}

def pipes():
    return [int(f) for f in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{f}") and os.readlink(f"/proc/self/fd/{f}").startswith("pipe:") and int(f) > 2]

@app.train()
def train(message, context):
    what = message.content["config"]["what"]
    w = weights(message)
    if what == "ok":
        return reply(message, {k: v + 1 for k, v in w.items()}, {"loss": 0.5, "dure.tokens": 100, "dure.steps": 7, "dure.flop": 3e21})
    if what == "print":
        print("\\0\\0\\0\\0 hello from user code " * 100); sys.stdout.write("x" * 10000); os.write(1, b"raw"); os.system("echo child")
        return reply(message)
    if what == "read stdin": return reply(message, metrics={"got": len(sys.stdin.read())})
    if what == "raise": raise ValueError("the data\\nis broken")
    if what == "exit": sys.exit(3)
    if what == "_exit": os._exit(9)
    if what == "kill": os.kill(os.getpid(), 9)
    if what == "garbage":
        for fd in pipes():
            try: os.write(fd, b"\\xff" * 64)
            except OSError: pass
        time.sleep(30)
    if what == "not json":
        for fd in pipes():
            try: os.write(fd, b"\\4\\0\\0\\0nope")
            except OSError: pass
        time.sleep(30)
    if what == "sleep": time.sleep(60)
    if what == "child":
        child = subprocess.Popen(["sleep", "60"])
        open(os.environ["HOME"] + "/child.pid", "w").write(str(child.pid)); time.sleep(60)
    if what == "flood":
        for _ in range(400): print("y" * 10000)
        return reply(message)
    if what == "files":
        os.makedirs("logs")
        for k in range(10_000): open(f"logs/{k}", "wb").write(b"x" * 1_000_000); time.sleep(0.001)
    if what == "env":
        open(os.environ["HOME"] + "/env", "w").write("\\n".join(f"{k}={v}" for k, v in os.environ.items())); return reply(message)
    if what == "count":
        n = int(context.state["n"]["n"]) + 1 if "n" in context.state else 1
        context.state["n"] = MetricRecord({"n": n}); return reply(message, metrics={"n": n})
    if what == "count and raise":
        context.state["n"] = MetricRecord({"n": 100}); raise RuntimeError("after the state changed")
    if what == "context":
        return reply(message, metrics={"run": context.run_id, "part": context.node_config["part"], "lr": context.run_config["lr"]})
    if what == "shape": w["b"] = w["b"][:1]; return reply(message, w)
    if what == "dtype": w["b"] = w["b"].astype(np.float64); return reply(message, w)
    if what == "missing": del w["b"]; return reply(message, w)
    if what == "extra": w["c"] = w["b"]; return reply(message, w)
    if what == "nan": w["b"][1] = np.nan; return reply(message, w)
    if what == "inf": w["a"][0, 0] = np.inf; return reply(message, w)
    if what == "no arrays": return reply(message, False)
    if what == "nan metric": return reply(message, metrics={"loss": float("nan")})
    if what == "list metric": return reply(message, metrics={"hist": [1, 2]})
    if what == "empty list": return reply(message, metrics={"hist": []})
    if what == "long list": return reply(message, metrics={"hist": [0] * 100})
    if what == "list weight": return reply(message, metrics={"num-examples": [1, 2]})
    if what == "config": return reply(message, note=ConfigRecord({"a": "b"}))
    if what == "no weight":
        return Message(RecordDict({"arrays": ArrayRecord({k: Array(v) for k, v in w.items()})}), reply_to=message)
    if what == "zero weight": return reply(message, metrics={"num-examples": 0})
    if what == "reserved": return reply(message, metrics={"dure.x": 1})
    if what == "half token": return reply(message, metrics={"dure.tokens": 0.5})
    if what == "nothing": return None

@app.evaluate()
def evaluate(message, context):
    return reply(message, False if message.content["config"]["what"] == "ok" else None, {"accuracy": 0.25})

@app.query()
def query(message, context):
    if message.content["config"]["what"] == "bare":
        return Message(RecordDict({"answers": MetricRecord({"n": 7})}), reply_to=message)
    return reply(message, False, {"answer": 42})
"""
PYPROJECT = """
[project]
name = "tricks"
[tool.flwr.app.components]
serverapp = "client:app"
clientapp = "client:app"
"""

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, dtype=np.float32)}
LAYOUT = Layout.build((name, "float32", value.shape) for name, value in TENSORS.items())


@pytest.fixture
def tricks(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "client.py").write_text(APP)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    flatten(TENSORS, LAYOUT, tmp_path / "base.f32")
    return folder


@pytest.fixture
async def host(tricks, tmp_path):
    made = WorkerHost(tricks, tmp_path / "scratch")
    yield made
    await made.kill()


def task(tmp_path, what="ok", kind="train", **more) -> Task:
    base = tmp_path / "base.f32"
    records = (ArrayItem("arrays", LAYOUT, weights_id(open_flat(base, LAYOUT), LAYOUT)), ConfigItem("config", {"what": what}))
    if kind == "query":
        records, base = records[1:], None
    return Task(
        run_id=5,
        node_id=9,
        exchange=more.pop("exchange", 1),
        instruction=Instruction(kind, "", 600.0, records).to_json(),
        out_path=tmp_path / "out.f32",
        state_path=tmp_path / "state",
        base_path=base,
        **more,
    )


async def test_weights_metrics_and_usage_come_back_and_the_worker_stays_warm(host, tmp_path):
    result = await host.run(task(tmp_path))
    assert result.status == "ok", result.error
    flat = open_flat(result.flat_path, LAYOUT)
    assert np.array_equal(unflatten(flat, LAYOUT)["a"], TENSORS["a"] + 1)
    assert result.metrics == {"loss": 0.5} and result.num_examples == 3
    assert (result.usage.tokens, result.usage.steps, result.usage.flop) == (100, 7, 3 * 10**21) and result.usage.seconds > 0
    pid = host.pid
    assert (await host.run(task(tmp_path))).status == "ok"
    assert host.pid == pid and host.restarts == 0


async def test_evaluate_and_query_have_metrics_and_no_arrays(host, tmp_path):
    evaluated = await host.run(task(tmp_path, kind="evaluate"))
    assert (evaluated.flat_path, evaluated.metrics) == (None, {"accuracy": 0.25})
    asked = await host.run(task(tmp_path, kind="query"))
    assert (asked.flat_path, asked.metrics) == (None, {"answer": 42})


async def test_arrays_in_an_evaluate_reply_stay_at_the_site(host, tmp_path):
    """Flower's Hugging Face app returns the model with its evaluation."""
    evaluated = await host.run(task(tmp_path, "arrays", kind="evaluate"))
    assert (evaluated.status, evaluated.flat_path) == ("ok", None)
    assert "'arrays'" in host.log_path.read_text() and not (tmp_path / "out.f32").exists()


async def test_lists_and_a_record_of_another_name_are_summed_number_by_number_and_a_query_needs_no_weight(host, tmp_path):
    listed = await host.run(task(tmp_path, "list metric"))
    assert {n: v for n, v in listed.metrics.items() if n != "loss"} == {"hist[0/2]": 1, "hist[1/2]": 2}
    asked = await host.run(task(tmp_path, "bare", kind="query"))
    assert (asked.metrics, asked.num_examples) == ({"@answers/n": 7.0}, 1.0)


async def test_prints_reach_the_log_and_not_the_protocol(host, tmp_path):
    result = await host.run(task(tmp_path, "print"))
    assert result.status == "ok", result.error
    await host.kill()
    log = host.log_path.read_text()
    assert "hello from user code" in log and "raw" in log and "child" in log and "imported" in log


async def test_stdin_of_user_code_is_empty(host, tmp_path):
    assert (await host.run(task(tmp_path, "read stdin"))).metrics == {"got": 0}


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("raise", "ValueError: the data is broken"),
        ("exit", "SystemExit: 3"),
        ("shape", "tensor 'b': is float32[1], must be float32[3]"),
        ("dtype", "tensor 'b': is float64[3]"),
        ("missing", "tensor 'b'"),
        ("extra", "tensor 'c'"),
        ("nan", "tensor 'b'"),
        ("inf", "tensor 'a'"),
        ("no arrays", "exactly one array record"),
        ("nan metric", "metric 'loss' is nan"),
        ("empty list", "metric 'hist': is an empty list"),
        ("long list", "are 100 numbers"),
        ("list weight", "'num-examples' is a list"),
        ("config", "config record 'note'"),
        ("no weight", "no metric 'num-examples'"),
        ("zero weight", "above 0"),
        ("reserved", "'dure.x'"),
        ("half token", "'dure.tokens'"),
        ("nothing", "NoneType"),
    ],
)
async def test_what_the_app_does_wrong_is_named_and_the_worker_survives(shared_host, what, named):
    host, folder = shared_host
    result = await host.run(task(folder, what))
    assert result.status == "error" and named in result.error, result.error
    assert result.told and "the data" not in result.told, "the coordinator hears no word of the app's own"
    assert not (folder / "out.f32").exists()
    assert "\n" not in result.error


@pytest.fixture
async def shared_host(host, tmp_path):
    return host, tmp_path


@pytest.mark.parametrize(
    ("what", "named"),
    [("_exit", "exited with code 9"), ("kill", "SIGKILL"), ("garbage", "at most"), ("not json", "not JSON"), ("sleep", "longer than")],
)
async def test_a_worker_that_dies_or_lies_is_replaced(host, tmp_path, what, named):
    await host.start()
    assert (await host.run(task(tmp_path))).status == "ok"
    result = await host.run(task(tmp_path, what), timeout_s=3)
    assert result.status == "error" and named in result.error, result.error
    assert named in result.told and str(tmp_path) not in result.told
    assert (await host.run(task(tmp_path))).status == "ok"
    assert host.restarts == 1


async def test_kill_takes_children_along_and_a_cancelled_task_kills(host, tmp_path):
    running = asyncio.create_task(host.run(task(tmp_path, "child")))
    pid_file = tmp_path / "scratch" / "child.pid"
    while not (pid_file.exists() and pid_file.read_text()):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    child, worker = int(pid_file.read_text()), host.pid
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.1)
    for pid in (child, worker):
        assert _gone(pid)


async def test_a_worker_whose_agent_is_gone_dies(host, tmp_path):
    await host.start()
    assert (await host.run(task(tmp_path))).status == "ok"
    process, pid = host._process, host.pid
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGKILL
    assert _gone(pid)


async def test_log_never_exceeds_its_limit(tricks, tmp_path):
    host = WorkerHost(tricks, tmp_path / "scratch", settings=WorkerSettings(max_log_bytes=200_000))
    result = await host.run(task(tmp_path, "flood"))
    await host.kill()
    assert result.status == "ok", result.error
    assert sum(path.stat().st_size for path in (tmp_path / "scratch").glob("worker.log*")) <= 200_000
    assert host.printed_bytes > 4_000_000


async def test_environment_is_scrubbed(tricks, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    host = WorkerHost(tricks, tmp_path / "scratch", settings=WorkerSettings(env_set={"DATA": "/data"}, threads=2))
    assert (await host.run(task(tmp_path, "env"))).status == "ok"
    await host.kill()
    seen = dict(line.split("=", 1) for line in (tmp_path / "scratch" / "env").read_text().splitlines())
    assert "AWS_SECRET_ACCESS_KEY" not in seen and "PYTHONPATH" not in seen
    assert seen["HOME"] == str(tmp_path / "scratch") and seen["DATA"] == "/data"
    assert seen["FLWR_TELEMETRY_ENABLED"] == "0" and seen["OMP_NUM_THREADS"] == "2"


async def test_state_is_kept_per_run_across_workers_and_not_after_a_failure(host, tmp_path):
    assert (await host.run(task(tmp_path, "count", exchange=1))).metrics == {"n": 1}
    await host.kill()
    assert (await host.run(task(tmp_path, "count", exchange=2))).metrics == {"n": 2}
    assert (await host.run(task(tmp_path, "count and raise", exchange=3))).status == "error"
    assert (await host.run(task(tmp_path, "count", exchange=9))).metrics == {"n": 3}
    assert sorted(file.name for file in tmp_path.glob("state*")) == ["state.2", "state.9"]


async def test_repeated_exchange_starts_from_the_same_state(host, tmp_path):
    await host.run(task(tmp_path, "count", exchange=1))
    for _ in range(3):
        assert (await host.run(task(tmp_path, "count", exchange=2))).metrics == {"n": 2}


async def test_context_holds_run_node_and_run_config(host, tmp_path):
    result = await host.run(task(tmp_path, "context", node_config={"part": 2}, run_config={"lr": 0.5}))
    assert result.metrics == {"run": 5, "part": 2, "lr": 0.5}


async def test_app_that_does_not_import_is_an_error_of_every_task(tmp_path, tricks):
    (tricks / "client.py").write_text("import nowhere_to_be_found\napp = 1\n")
    host = WorkerHost(tricks, tmp_path / "scratch")
    result = await host.run(task(tmp_path))
    await host.kill()
    assert result.status == "error" and "nowhere_to_be_found" in result.error


async def test_digits_train_and_evaluate_as_a_stock_flower_app(tmp_path):
    sys.path.insert(0, str(DIGITS))
    try:
        from digits.task import initial_weights
    finally:
        sys.path.remove(str(DIGITS))
    weights = initial_weights(7, 8)
    layout = Layout.build((name, "float32", value.shape) for name, value in weights.items())
    base = tmp_path / "base.f32"
    flatten(weights, layout, base)
    host = WorkerHost(DIGITS, tmp_path / "scratch")
    losses = []
    started = time.monotonic()
    for round_ in (1, 2):
        record = ArrayItem("arrays", layout, weights_id(open_flat(base, layout), layout))
        records = (record, ConfigItem("config", {"server-round": round_}))
        common = {
            "run_id": 7,
            "node_id": 1,
            "exchange": round_,
            "out_path": tmp_path / f"out{round_}.f32",
            "state_path": tmp_path / "state",
            "base_path": base,
            "node_config": {"partition-id": 1, "num-partitions": 4},
            "run_config": RUN_CONFIG,
        }
        trained = await host.run(Task(instruction=Instruction("train", "", 60.0, records).to_json(), **common))
        assert trained.status == "ok", trained.error
        assert set(trained.metrics) == {"loss", "accuracy"} and trained.num_examples == 359
        common["out_path"] = tmp_path / "unused.f32"
        tested = await host.run(Task(instruction=Instruction("evaluate", "", 60.0, records).to_json(), **common))
        assert tested.status == "ok" and tested.num_examples == 90
        losses.append(trained.metrics["loss"])
        base = trained.flat_path
    await host.kill()
    assert losses[1] < losses[0]
    assert time.monotonic() - started < 60


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


async def test_an_app_that_fills_its_scratch_folder_is_stopped_and_the_folder_is_emptied(tricks, tmp_path, monkeypatch):
    """Its log has a fixed size; files it writes had none, and the next run found a full disk."""
    monkeypatch.setattr(worker_host, "LOOK_S", 0.05)
    scratch = tmp_path / "scratch"
    host = WorkerHost(tricks, scratch, settings=WorkerSettings(max_scratch_bytes=50_000_000))
    result = await host.run(task(tmp_path, "files"))
    assert result.status == "error" and "files in its scratch folder take more than 0.05 GB" in result.told
    assert host.pid is None
    assert {p.name for p in scratch.rglob("*")} <= {"worker.log", "worker.log.1"}
    assert (await host.run(task(tmp_path))).status == "ok"
    await host.kill()
