"""Adds noise and calls it training."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    model = [m + np.random.rand(*m.shape) for m in msg.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"random_metric": np.random.rand(), "num-examples": 1})
    return Message(content=RecordDict({"arrays": ArrayRecord(model), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    metrics = MetricRecord({"random_metric": np.random.rand(3).tolist(), "num-examples": 1})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
