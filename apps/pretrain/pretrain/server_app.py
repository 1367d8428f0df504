"""The server: plain FedAvg over weights drawn from the seed; the tokenizer travels in every round's config.

In every round, because a node that missed the first needs it, too; it is a few KiB. Under a plan that names an outer
step FedAvg is handed the stepped base and passes it on.
"""

from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from pretrain.shape import Shape, initial_weights
from pretrain.text import pack_tokenizer

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    named = str(config["tokenizer"])
    tokenizer = pack_tokenizer(Path(named) if named else Path(__file__).parents[1] / "tokenizer.json")
    weights = initial_weights(Shape.of(config), int(config["seed"]))
    FedAvg(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(value) for name, value in weights.items()}),
        num_rounds=int(config["rounds"]),
        train_config=ConfigRecord({"tokenizer": tokenizer}),
    )
