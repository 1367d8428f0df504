"""No strategy: queries, trains and evaluates by hand. An expectation that does not hold ends the run with its words."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from odd.task import bits_of, values_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = sorted(grid.get_node_ids())
    expect(len(nodes) == 4, f"{len(nodes)} nodes")
    asked = one(grid, nodes, "query.counts", {"what": "counts"})
    answers = asked.content["answers"]
    expect(answers["count"] == 406.0 and answers["histogram"] == [4.0, 6.0, 6000.0], f"{dict(answers)}")
    rng = np.random.default_rng(context.run_id)
    arrays = ArrayRecord(
        {
            "half": bits_of(rng.integers(1, 4, (3, 5)).astype(np.float32)),
            "count": Array(np.array(7)),
            "w": Array(rng.standard_normal((20, 30)).astype(np.float32)),
        }
    )
    for number, fault in enumerate(str(context.run_config["faults"]).split(), 1):
        arrays = round_of(grid, nodes, number, fault, arrays)
    (again,) = {m.error.reason for m in send(grid, nodes, "evaluate", {"round": 0}, arrays)}
    expect("already" in again, again)


def round_of(grid: Grid, nodes: list[int], number: int, fault: str, arrays: ArrayRecord) -> ArrayRecord:
    """One training in which a node may fail, and an evaluation of what came of it."""
    shards = {node: {"shard": at} for at, node in enumerate(nodes)}
    reply = one(grid, nodes, "train", {"fault": fault, "round": number}, arrays, shards)
    after, metrics = reply.content["arrays"], reply.content["metrics"]
    members = 4 if fault == "none" else 3
    expect(metrics["num-examples"] == 16 * members, f"{dict(metrics)} after {fault}")
    gain = 10 * (metrics["shard"] + 1)
    expect(abs(int(after["count"].numpy()) - int(arrays["count"].numpy()) - gain) <= 0.6, f"count {after['count'].numpy()}")
    expect(np.allclose(values_of(after["half"]), values_of(arrays["half"]) + 0.5, atol=2e-3), "half")
    expect(np.allclose(after["w"].numpy(), arrays["w"].numpy() + 0.25, atol=1e-3), "w")
    print(f"round {number} {fault}: {dict(metrics)}", flush=True)
    evaluated = one(grid, nodes, "evaluate", {"round": number}, after)
    expect(evaluated.content["metrics"]["num-examples"] == 10, f"{dict(evaluated.content['metrics'])}")
    expect(abs(evaluated.content["metrics"]["mean"] - after["w"].numpy().mean()) < 1e-3, "the mean of w")
    return after


def one(*message) -> Message:
    """The one reply that is the sum."""
    replies = send(*message)
    expect(not replies[0].has_error(), "; ".join(m.error.reason for m in replies if m.has_error()))
    expect(len(replies) == 1, f"{len(replies)} replies")
    return replies[0]


def send(
    grid: Grid, nodes: list[int], kind: str, config: dict, arrays: ArrayRecord | None = None, each: dict | None = None
) -> list[Message]:
    messages = []
    for node in nodes:
        content = RecordDict({"config": ConfigRecord({**config, **(each or {}).get(node, {})})})
        if arrays is not None:
            content["arrays"] = arrays
        messages.append(Message(content, node, kind))
    return list(grid.send_and_receive(messages))


def expect(holds: bool, why: str) -> None:
    if not holds:
        raise AssertionError(why)
