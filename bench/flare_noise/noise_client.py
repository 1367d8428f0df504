"""NVIDIA FLARE's client: base + noise, and the CPU time it took as a metric, as bench/noise's ClientApp. Runs in FLARE's environment."""

import time

import numpy as np
import nvflare.client as flare
from task import noisy


def main() -> None:
    flare.init()
    node = int(flare.get_site_name().rsplit("-", 1)[1])
    while flare.is_running():
        model = flare.receive()
        began = time.thread_time()
        params = {name: noisy(np.asarray(array), node, model.current_round + 1, i) for i, (name, array) in enumerate(model.params.items())}
        cpu_s = time.thread_time() - began
        flare.send(flare.FLModel(params=params, metrics={"app-cpu-s": cpu_s}))


if __name__ == "__main__":
    main()
