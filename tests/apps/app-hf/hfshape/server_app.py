"""FedAvg over a transformers model's state dict."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from hfshape.task import get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = FedAvg(fraction_train=config["fraction-train"], fraction_evaluate=config["fraction-evaluate"])
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(get_model().state_dict()), num_rounds=config["num-server-rounds"])
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
