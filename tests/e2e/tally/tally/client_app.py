"""The client counts its trainings in its own state, which must survive, and must not be counted on twice."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tally.task import delta, examples

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    partition, partitions = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    number = int(message.content["config"]["server-round"])
    before = int(context.state["tally"]["trainings"]) if "tally" in context.state else 0
    context.state["tally"] = ConfigRecord({"trainings": before + 1})
    time.sleep(float(context.run_config["train-s"]))
    chatter(int(context.run_config["log-mb"]))
    if f"{partition}/{number}" in str(context.run_config["worker-dies"]).split() and _first_time(f"died-{context.run_id}-{number}"):
        os.kill(os.getpid(), signal.SIGKILL)
    weights = message.content["arrays"]["w"].numpy() + delta(partition, partitions, number, before + 1)
    arrays = ArrayRecord({"w": Array(weights.astype(np.float32))})
    metrics = MetricRecord({"trainings": before + 1, "num-examples": examples(partition)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def chatter(megabytes: int) -> None:
    line = "a line of a log that nobody will read\n" * 27_000
    for _ in range(megabytes):
        print(line, end="")


def _first_time(name: str) -> bool:
    mark = Path.home() / name
    if mark.exists():
        return False
    mark.touch()
    return True
