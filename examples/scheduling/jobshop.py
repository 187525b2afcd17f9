"""Job shop: 6 jobs have an operation on each of 6 machines, in an order of their own; the last one shall end early.

An episode plans one random shop. An action names the job whose next operation is planned, as early as possible. The
mask leaves active schedules only, of which one is the best of all (Giffler and Thompson 1960).

    python examples/scheduling/jobshop.py RUN [--picture FILE]     the run's policy beside dispatching rules
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import tyro

import dppo

JOBS, MACHINES, LONGEST = 6, 6, 10  # durations are whole numbers from 1 to LONGEST, all as likely
FT06 = """2 1 0 3 1 6 3 7 5 3 4 6   1 8 2 5 4 10 5 10 0 10 3 4   2 5 3 4 5 8 0 9 1 1 4 7
          1 5 0 5 2 5 3 3 4 8 5 9   2 9 1 3 4 5 5 4 0 3 3 1     1 3 3 3 5 9 0 10 4 4 2 1"""
"""Machine and duration of each operation, job by job (Fisher and Thompson 1963); the best makespan is 55."""


class JobShop(gymnasium.Env[np.ndarray, np.int64]):
    """Observation: 11 numbers of each job. Reward: minus the rise of a lower bound of the makespan, as a share of the
    first one; the return is 1 - makespan / first bound. shop: `random`, or `ft06` for that one in each episode.
    """

    def __init__(self, shop: str = "random") -> None:
        self._shop = shop
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (11 * JOBS,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(JOBS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.machines = self.np_random.permuted(np.tile(np.arange(MACHINES), (JOBS, 1)), axis=1)
        self.durations = self.np_random.integers(1, LONGEST + 1, (JOBS, MACHINES))
        if self._shop == "ft06":
            self.machines, self.durations = np.array(FT06.split(), int).reshape(JOBS, MACHINES, 2).transpose(2, 0, 1)
        self.planned, self.plan = np.zeros(JOBS, int), []  # operations of each job; (job, machine, start, end) of each
        self.job_free, self.machine_free = np.zeros(JOBS), np.zeros(MACHINES)
        self.job_work, self.machine_work = self.durations.sum(axis=1), np.zeros(MACHINES)  # what is left to be planned
        np.add.at(self.machine_work, self.machines, self.durations)
        self.bound = self.first_bound = self._bound()
        return self._look(), {"action_mask": self.mask}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        job, machine, duration, start = int(action), *(a[action] for a in (self.machine, self.duration, self.start))
        self.plan.append((job, machine, start, start + duration))
        self.job_free[job] = self.machine_free[machine] = start + duration
        self.job_work[job] -= duration
        self.machine_work[machine] -= duration
        self.planned[job] += 1
        before, self.bound = self.bound, self._bound()
        observation, done = self._look(), len(self.plan) == JOBS * MACHINES
        return observation, (before - self.bound) / self.first_bound, done, False, {"action_mask": self.mask}

    def _bound(self) -> float:
        """Returns a time before which no plan can end: of the job or the machine with most; at last the makespan."""
        return float(max((self.job_free + self.job_work).max(), (self.machine_free + self.machine_work).max()))

    def _look(self) -> np.ndarray:
        """Returns the observation; sets of each job the machine, duration and start of its next operation."""
        jobs, next_one = np.arange(JOBS), np.minimum(self.planned, MACHINES - 1)
        left, after = self.planned < MACHINES, np.minimum(self.planned + 1, MACHINES - 1)
        self.machine, self.duration = self.machines[jobs, next_one], self.durations[jobs, next_one]
        self.start = np.where(left, np.maximum(self.job_free, self.machine_free[self.machine]), np.inf)
        first = np.argmin(self.start + self.duration)
        self.mask = (self.machine == self.machine[first]) & (self.start < self.start[first] + self.duration[first])
        now = self.start.min() if left.any() else self.bound
        slack, following = self.bound - self.machine_free - self.machine_work, self.machines[jobs, after]
        times = (
            self.duration, self.durations[jobs, after], np.where(left, self.start - now, 0.0), self.job_work,
            self.machine_free[following] - now, self.bound - self.job_free - self.job_work,
            slack[self.machine], slack[following],
        )  # fmt: skip
        return np.concatenate((left, self.mask, self.planned / MACHINES, *(t / LONGEST for t in times)), dtype="f4")


def earliest(shop: JobShop, priorities: np.ndarray) -> np.int64:
    """Returns the job with the highest priority of those whose operation can start first."""
    return np.argmax(np.where(shop.start == shop.start.min(), priorities, -np.inf))


RULES = {
    "shortest processing time": lambda shop, _: earliest(shop, -shop.duration),
    "most work remaining": lambda shop, _: earliest(shop, shop.job_work),
    "first come, first served": lambda shop, _: earliest(shop, -shop.job_free),
}


def makespan(shop: JobShop, seed: int, choose: Any) -> float:
    """Plans the shop of that seed; `choose` takes the shop and an observation, and returns a job."""
    observation, done = shop.reset(seed=seed)[0], False
    while not done:
        observation, _, done, _, _ = shop.step(choose(shop, observation))
    return shop.bound


def main(run: tyro.conf.Positional[str], picture: str | None = None, shops: int = 200) -> None:
    """Prints mean makespans of the same shops, and those of ft06."""
    policy, random, ft06, means = dppo.load_policy(run), JobShop(), JobShop("ft06"), {}
    for name, player in {**RULES, "policy": lambda shop, o: policy.act(o, mask=shop.mask)}.items():
        means[name] = np.mean([makespan(random, seed, player) for seed in range(shops)])
        print(f"{name:25} mean makespan {means[name]:.2f}, ft06 {makespan(ft06, 0, player):.0f}", flush=True)
    if picture:
        from matplotlib.figure import Figure

        plan, bars = Figure(figsize=(9, 3), layout="constrained").subplots(1, 2, width_ratios=(5, 2))
        for job, machine, start, end in ft06.plan:
            plan.barh(machine, end - start, left=start, color=f"C{job}", edgecolor="white")
        plan.set(xlabel="time", ylabel="machine", title=f"ft06 by the policy: {ft06.bound:.0f} (best: 55)")
        bars.bar_label(bars.barh(list(means), list(means.values()), color=["#bbbbbb"] * 3 + ["C0"]), fmt="%.1f")
        bars.set(title=f"mean of {shops} shops", xlabel="makespan", xlim=(0, 80))
        plan.figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
