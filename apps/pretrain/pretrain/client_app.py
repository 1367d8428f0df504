"""The client: one round of the inner loop on the text this node keeps in the folder its operator named (`data`)."""

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pretrain.inner import Moments, Schedule
from pretrain.inner import train as train_steps
from pretrain.model import load, weights_of
from pretrain.shape import Shape
from pretrain.text import own_tokens

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    shape, schedule = Shape.of(context.run_config), Schedule.of(context.run_config)
    config = message.content["config"]
    number = int(config["server-round"])
    tokens, text_key = own_tokens(_data_folder(context), bytes(config["tokenizer"]), shape.vocabulary)
    if len(tokens) <= shape.sequence:
        raise ValueError(f"this node's text has {len(tokens)} tokens; at least {shape.sequence + 1} are needed")
    model = load(shape, {name: array.numpy() for name, array in message.content["arrays"].items()})
    done = train_steps(
        model,
        tokens,
        schedule,
        text_key=text_key,
        first_step=(number - 1) * schedule.steps,
        steps=schedule.steps,
        moments=_kept(context.state, number),
    )
    _keep(context.state, number, done.moments)
    # num-examples is the weight in the mean: one member, one vote.
    used = {"dure.tokens": done.tokens, "dure.steps": schedule.steps, "dure.flop": done.flop}
    metrics = MetricRecord({"loss": done.loss, "num-examples": 1, **used})
    arrays = ArrayRecord({name: Array(value) for name, value in weights_of(model).items()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _data_folder(context: Context) -> Path:
    folder = context.node_config.get("data")
    if not folder:
        raise ValueError("this node names no data folder; dure node config set data=FOLDER (with train.txt in it)")
    return Path(str(folder))


def _kept(state: RecordDict, number: int) -> Moments | None:
    """AdamW's state from the round before; None if this node was away then: older moments belong to other weights."""
    if "inner" not in state or state["inner"]["round"] != number - 1:
        return None
    moments = {name: np.array(array.numpy()) for name, array in state["moments"].items()}
    return Moments(moments["first"], moments["second"], int(state["inner"]["steps"]))


def _keep(state: RecordDict, number: int, moments: Moments) -> None:
    state["inner"] = ConfigRecord({"round": number, "steps": moments.steps})
    state["moments"] = ArrayRecord({"first": Array(moments.first_P), "second": Array(moments.second_P)})
