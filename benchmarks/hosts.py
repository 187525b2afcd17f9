"""What does the network cost? Updates per second on one host and on two that are joined by 100 Mbit/s.

    .venv/bin/python benchmarks/hosts.py [--repeats 5]

The hosts are emulated on this machine (tests/slurm/cluster: namespaces, a bridge, a token bucket at both ends of each
cable; needs root), so that both have the same cores: rank 0 and a worker on the first host, a worker on the second.
The three placements are measured in turn. Prints a table and writes it to benchmarks/results/hosts.{md,json}.

Beside it stands what bare MPI calls of the same bytes reach on the slow network, between one rank of each host: an
Allreduce for sync/allreduce, a gradient there and parameters back for the other two.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, markdown_table, save, spread

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.slurm.emulation import Cluster, emulated

FLAGS = "--env CartPole-v1 --num-envs 8 --horizon 16 --ppo.epochs 4 --ppo.minibatches 4 --log.no-tensorboard --seed 1"
STEPS = {"sync/allreduce": 2 * 8 * 16 // (4 * 4), "sync/p2p": 2 * 8 * 16 // (4 * 4), "async/p2p": 8 * 16}
"""Of an update."""
UPDATES = {64: 3200, 256: 320, 1024: 32}
"""Width of the two hidden layers; updates of each run."""
SLOW = "100mbit"
PLACES = {"one host": ("n1:3", "40gbit"), "two": ("n1:2,n2:1", "40gbit"), "two, 100 Mbit/s": ("n1:2,n2:1", SLOW)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare)
        return
    with tempfile.TemporaryDirectory() as folder, emulated("hosts", 2, Path(folder)) as hosts:
        rows = [measure(hosts, cell, hidden, options.repeats) for hidden in UPDATES for cell in STEPS]
    head = (
        "network",
        "parameters",
        "mode/exchange",
        *(f"{place}, updates/s" for place in PLACES),
        "bare MPI, 100 Mbit/s",
    )
    command = f".venv/bin/python benchmarks/hosts.py --repeats {options.repeats}"
    text = (
        f"# Two hosts\n\n`{command}`; {machine()}. Flags of each run: `{FLAGS}`.\n\nUpdates per second, median [least,"
        f" most] of {options.repeats} runs on 3 ranks: a server and a worker on the first host, a worker on the second."
        " An update takes the gradient of a minibatch of both workers (sync), of a rollout of one of them (async), so"
        " that an async worker that waits for the network is one of two. Bare MPI: an Allreduce of the same bytes, or a"
        " gradient there and parameters back, between one rank of each host.\n\n"
        f"{markdown_table(head, map(cells, rows))}"
    )
    save("hosts", text, {"command": command, "machine": machine(), "rows": rows})


def measure(hosts: Cluster, cell: str, width: int, repeats: int) -> dict[str, Any]:
    """Updates per second of each placement, in turn."""
    mode, exchange = cell.split("/")
    flags = f"{FLAGS} --mode {mode} --exchange {exchange} --total-steps {UPDATES[width] * STEPS[cell]}"
    flags += f" --model.hidden {width} {width}"
    rates: dict[str, list[float]] = {place: [] for place in PLACES}
    for repeat in range(repeats):
        for number, (place, (where, rate)) in enumerate(PLACES.items()):
            hosts("limit", rate)
            run_dir = hosts.folder / f"{mode}-{exchange}-{width}-{number}-{repeat}"
            said = hosts.mpirun(where, 3, "-m", "dppo.run", *flags.split(), "--run-dir", run_dir, timeout=300)
            summary = json.loads((run_dir / "summary.json").read_text())
            rates[place].append(summary["updates"] / summary["train_s"])
    (parameters,) = re.findall(r"(\d+) parameters", said)
    hosts("limit", SLOW)
    bare = json.loads(hosts.mpirun("n1:1,n2:1", 2, __file__, "--bare", parameters))[exchange]
    row = {"cell": cell, "width": width, "parameters": int(parameters), "rates": rates, "bare": bare}
    print(*cells(row), sep=" | ", flush=True)
    return row


def bare(parameters: int) -> None:
    """On two ranks: prints how often in a second bare MPI calls pass so many parameters."""
    import numpy as np
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    vector = np.zeros(parameters, np.float32)

    def there_and_back() -> None:
        for sender in (0, 1):
            if comm.rank == sender:
                comm.Send(vector, 1 - comm.rank)
            else:
                comm.Recv(vector, 1 - comm.rank)

    calls = {"allreduce": lambda: comm.Allreduce(MPI.IN_PLACE, vector), "p2p": there_and_back}
    rates = {}
    for name, call in calls.items():
        taken = []
        for _ in range(20):
            comm.Barrier()
            since = time.perf_counter()
            call()
            taken.append(time.perf_counter() - since)
        rates[name] = 1 / statistics.median(taken)
    if comm.rank == 0:
        print(json.dumps(rates))


def cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['width']} x {row['width']}",
        f"{row['parameters']:,}",
        row["cell"],
        *(spread(rates, ",.0f" if min(rates) > 20 else ".1f") for rates in row["rates"].values()),
        f"{row['bare']:,.0f}" if row["bare"] > 20 else f"{row['bare']:.1f}",
    ]


if __name__ == "__main__":
    main()
