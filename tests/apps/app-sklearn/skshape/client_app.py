"""One pass of SAGA over this node's irises per round."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from skshape.task import UNIQUE_LABELS, create_model, get_model_params, load_data, set_model_params

app = ClientApp()


def _model(msg: Message, context: Context):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model(context.run_config["penalty"])
    set_model_params(model, msg.content["arrays"].to_numpy_ndarrays())
    return model, load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(msg: Message, context: Context) -> Message:
    model, (X, y, _, _) = _model(msg, context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
    metrics = MetricRecord(
        {
            "num-examples": len(X),
            "train_logloss": log_loss(y, model.predict_proba(X), labels=UNIQUE_LABELS),
            "train_accuracy": model.score(X, y),
        }
    )
    return Message(content=RecordDict({"arrays": ArrayRecord(get_model_params(model)), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    model, (_, _, X, y) = _model(msg, context)
    loss = log_loss(y, model.predict_proba(X), labels=UNIQUE_LABELS)
    metrics = MetricRecord({"num-examples": len(X), "test_logloss": loss, "accuracy": model.score(X, y)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
