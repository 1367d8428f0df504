"""A small Flower app whose update is known in advance and which misbehaves on one node when asked to: plain numpy, stock strategies."""

from __future__ import annotations

from pathlib import Path

ADDED = 0.001
"""Node 0 adds this to every weight, node 1 twice as much, and so on."""

PYPROJECT = """
[project]
name = "echo"
version = "1.0.0"

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "echo.server_app:app"
clientapp = "echo.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
elements = 1000
strategy = "FedAvg"
fault = ""
faulty = 0
"""

SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp, strategy

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    rng = np.random.default_rng(context.run_id)
    weights = {"big": rng.standard_normal(int(config["elements"]), np.float32), "small": np.zeros((2, 3), np.float32)}
    arrays = ArrayRecord({k: Array(v) for k, v in weights.items()})
    chosen = getattr(strategy, config["strategy"])(fraction_evaluate=0.0)
    chosen.start(grid=grid, initial_arrays=arrays, num_rounds=int(config["num-server-rounds"]))
"""

CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    me, config = int(context.node_config["partition-id"]), context.run_config
    weights = {k: v.numpy().copy() for k, v in message.content["arrays"].items()}
    for value in weights.values():
        value += np.float32({ADDED} * (me + 1))
    fault = config["fault"] if int(config["faulty"]) in (me, -1) else ""
    if fault == "nan":
        weights["big"][7] = np.nan
    if fault == "shape":
        weights["small"] = weights["small"].reshape(3, 2)
    if fault == "dtype":
        weights["small"] = weights["small"].astype(np.float64)
    if fault == "renamed":
        weights["tiny"] = weights.pop("small")
    if fault == "raise":
        raise ValueError("no such data")
    arrays = ArrayRecord({k: Array(v) for k, v in weights.items()})
    metrics = MetricRecord({"loss": 1.0 / int(message.content["config"]["server-round"]), "num-examples": 10, "dure.tokens": 100})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
"""


def echo_app(folder: Path) -> Path:
    """Write the app into a new folder. Run config: elements, strategy; fault (one of those below) of node faulty, -1 for all."""
    (folder / "echo").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    for name, text in (("__init__", ""), ("server_app", SERVER), ("client_app", CLIENT.replace("{ADDED}", str(ADDED)))):
        (folder / "echo" / f"{name}.py").write_text(text)
    return folder
