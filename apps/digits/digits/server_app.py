"""The server: plain FedAvg over weights drawn from the run id."""

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits.task import initial_weights

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    weights = initial_weights(context.run_id, int(context.run_config["hidden"]))
    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(value) for name, value in weights.items()}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
