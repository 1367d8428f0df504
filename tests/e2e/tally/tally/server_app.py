"""Plain FedAvg; with `drift` the ServerApp puts the time into what it sends, so that it cannot be replayed."""

import time

from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from tally.task import initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = ConfigRecord({"now": time.time()} if context.run_config["drift"] else {})
    FedAvg(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord({"w": Array(initial(context.run_id))}),
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=config,
    )
