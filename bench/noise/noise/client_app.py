"""The client: base + noise, and the CPU time it took as a metric."""

import time

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from noise.task import noisy

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    began = time.process_time()
    number = int(message.content["config"]["server-round"])
    arrays = ArrayRecord()
    for i, (name, array) in enumerate(message.content["arrays"].items()):
        arrays[name] = Array(noisy(array.numpy(), context.node_id, number, i))
    metrics = MetricRecord({"app-cpu-s": time.process_time() - began, "num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
