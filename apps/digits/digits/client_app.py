"""The client: train on one partition of the digits, evaluate on its held-out fifth."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import evaluate as evaluate_weights
from digits.task import load_partition
from digits.task import train as train_weights

app = ClientApp()


def _partition(context: Context):
    """This node's digits; a node that was given no partition takes all of them."""
    return load_partition(int(context.node_config.get("partition-id", 0)), int(context.node_config.get("num-partitions", 1)))


def _weights(message: Message) -> dict[str, np.ndarray]:
    return {name: array.numpy().copy() for name, array in message.content["arrays"].items()}


@app.train()
def train(message: Message, context: Context) -> Message:
    weights = _weights(message)
    pixels, labels, _, _ = _partition(context)
    epochs = int(context.run_config["local-epochs"])
    loss = train_weights(
        weights,
        pixels,
        labels,
        epochs=epochs,
        learning_rate=float(context.run_config["learning-rate"]),
        batch_size=int(context.run_config["batch-size"]),
        seed=int(message.content["config"]["server-round"]),
    )
    _, accuracy = evaluate_weights(weights, pixels, labels)
    arrays = ArrayRecord({name: Array(value) for name, value in weights.items()})
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(labels)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    _, _, pixels, labels = _partition(context)
    loss, accuracy = evaluate_weights(_weights(message), pixels, labels)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
