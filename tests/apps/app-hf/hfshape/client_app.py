"""Trains and evaluates; both replies carry the model, and the training has no metric but its weight."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from transformers import logging

from hfshape.task import get_model, load_data, test_fn, train_fn

logging.set_verbosity_error()
app = ClientApp()


def _model(msg: Message, context: Context):
    model = get_model()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict(), strict=True)
    return model, load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(msg: Message, context: Context) -> Message:
    model, (loader, _) = _model(msg, context)
    train_fn(model, loader, epochs=1)
    metrics = MetricRecord({"num-examples": len(loader)})
    return Message(content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    model, (_, loader) = _model(msg, context)
    loss, accuracy = test_fn(model, loader)
    metrics = MetricRecord({"num-examples": len(loader), "loss": float(loss), "accuracy": float(accuracy)})
    return Message(content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)
