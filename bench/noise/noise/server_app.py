"""The server: stock FedAvg; after every round a line in `marks` with the clock and this process's CPU time, the Grid's part apart."""

import json
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from noise.task import initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    marks = Path(str(config["marks"]))
    in_grid_s = 0.0
    through = grid.send_and_receive

    def timed(*args, **kwargs):
        nonlocal in_grid_s
        began = time.process_time()
        try:
            return list(through(*args, **kwargs))
        finally:
            in_grid_s += time.process_time() - began

    grid.send_and_receive = timed
    metrics = {}

    def mark(number: int, arrays: ArrayRecord) -> None:
        line = {"round": number, "time": time.time(), "cpu_s": time.process_time(), "grid_cpu_s": in_grid_s, **metrics}
        with marks.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def mean_cpu(records: list[RecordDict], _weighted_by: str) -> MetricRecord:
        seconds = [float(record["metrics"]["app-cpu-s"]) for record in records]
        metrics["app_cpu_s"] = sum(seconds) / len(seconds)
        return MetricRecord({"app-cpu-s": metrics["app_cpu_s"]})

    nodes = int(config["nodes"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, train_metrics_aggr_fn=mean_cpu)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(value) for name, value in initial(int(config["params"])).items()}),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=mark,
    )
