"""Writes the job folder with FLARE's own job API: `python make_job.py OUT PARAMS NODES ROUNDS MARKS`. Runs in FLARE's environment."""

import sys
from pathlib import Path

from noise_server import MarkedFedAvg
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner

HERE = Path(__file__).resolve().parent


def main() -> None:
    out, params, nodes, rounds, marks = sys.argv[1:]
    job = FedJob(name="noise", min_clients=int(nodes))
    job.to_server(MarkedFedAvg(params=int(params), marks=marks, num_clients=int(nodes), num_rounds=int(rounds)))
    for i in range(int(nodes)):
        job.to(ScriptRunner(script=str(HERE / "noise_client.py"), framework=FrameworkType.NUMPY), f"site-{i + 1}")
    job.export_job(out)


if __name__ == "__main__":
    main()
