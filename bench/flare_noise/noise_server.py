"""NVIDIA FLARE's own FedAvg, with the lines in `marks` that bench/noise's ServerApp leaves. Runs in FLARE's environment."""

import json
import time

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg
from task import initial


class MarkedFedAvg(FedAvg):
    """FedAvg as it ships (in-time aggregation, the model saved after every round), clocked.

    `cpu_s` is what the aggregation takes of its threads' time; saving is left in, as writing the model durably is on our side.
    """

    def __init__(self, params: int, marks: str, num_clients: int, num_rounds: int):
        super().__init__(num_clients=num_clients, num_rounds=num_rounds, persistor_id="")
        self.params, self.marks, self.own_s = params, marks, 0.0

    def load_model(self) -> FLModel:
        model = FLModel(params=initial(self.params))
        self._mark(0, {})
        return model

    def _aggregate_one_result(self, result: FLModel) -> bool:
        return self._clocked(super()._aggregate_one_result, result)

    def _get_aggregated_result(self) -> FLModel:
        return self._clocked(super()._get_aggregated_result)

    def update_model(self, *args, **kwargs) -> FLModel:
        return self._clocked(super().update_model, *args, **kwargs)

    def save_model(self, model: FLModel) -> None:
        super().save_model(model)
        self._mark(self.current_round + 1, {"app_cpu_s": model.metrics["app-cpu-s"]})

    def _clocked(self, do, *args, **kwargs):
        began = time.thread_time()
        try:
            return do(*args, **kwargs)
        finally:
            self.own_s += time.thread_time() - began

    def _mark(self, number: int, facts: dict) -> None:
        with open(self.marks, "a") as file:
            file.write(json.dumps({"round": number, "time": time.time(), "cpu_s": self.own_s, "grid_cpu_s": 0.0, **facts}) + "\n")
