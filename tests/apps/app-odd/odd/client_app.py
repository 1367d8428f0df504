"""Node 3 goes wrong in another way each time it is told to; the others never do."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from odd.task import bits_of, values_of

app = ClientApp()
FAULTY = 3


@app.train()
def train(message: Message, context: Context) -> Message:
    config, me = message.content["config"], context.node_config["partition-id"]
    fault = config["fault"] if me == FAULTY else ""
    if fault == "raise":
        raise ValueError("no such data")
    if fault == "sleep":
        time.sleep(context.run_config["sleep-s"])
    seen = int(context.state["seen"]["n"]) + 1 if "seen" in context.state else 1
    context.state["seen"] = ConfigRecord({"n": seen})
    arrays = message.content["arrays"]
    moved = {
        "half": bits_of(values_of(arrays["half"]) + 0.5),
        "count": Array(np.asarray(arrays["count"].numpy() + 10 * (config["shard"] + 1))),
        "w": Array(arrays["w"].numpy() + np.float32(0.25)),
    }
    metrics = {"seen": seen, "shard": config["shard"], "num-examples": {"no-weight": 0, "heavy": 1025}.get(fault, 16)}
    if fault == "metrics":
        metrics["extra"] = 1.0
    return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord(metrics)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    w = message.content["arrays"]["w"].numpy()
    metrics = MetricRecord({"mean": float(w.mean()), "num-examples": 1 + context.node_config["partition-id"]})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query("counts")
def query(message: Message, context: Context) -> Message:
    me = context.node_config["partition-id"]
    answers = MetricRecord({"count": 100 + me, "histogram": [1, me, 1000 * me]})
    return Message(RecordDict({"answers": answers}), reply_to=message)
