"""The study of a search, as Optuna keeps it: a journal in the sweep's folder, to which several processes append."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dppo.errors import UsageError
from dppo.study.search import JOURNAL, Search

NAME = "dppo"
"""The study's name; a journal may hold several."""
OWNER, PRUNED, REASON = "worker", "pruned", "reason"
"""What a study keeps of a trial: its worker, whether its pruner has stopped it, and why it failed."""
REPORTS = 20
"""The number of returns that a run tells its pruner, where --eval.every does not say when."""
STARTUP = 10
"""The most trials that TPE draws at random before it learns from them: a quarter of all, if that is less."""


def load_optuna() -> Any:
    """Imports Optuna, which only searches need. Raises UsageError where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"a [search] needs Optuna, which cannot be imported ({error}): pip install 'dppo[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """The study in a folder, which is begun where there is none.

    Args:
      writes: whether the folder may be written to; a report only reads.
    """

    def __init__(self, folder: Path, search: Search, *, writes: bool = True) -> None:
        optuna = load_optuna()
        self.search = search
        path = folder.resolve() / JOURNAL  # Optuna's lock is a link to it, which must not be relative
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        if writes:
            with locked(path):
                _repair(path)
        self._states = optuna.trial.TrialState
        self._storage = optuna.storages.journal.JournalStorage(backend)
        parts = {"sampler": optuna.samplers.RandomSampler(0), "pruner": make_pruner(search)}
        if writes:
            parts |= {"direction": "minimize" if search.minimises else "maximize", "load_if_exists": True}
        make = optuna.create_study if writes else optuna.load_study
        self._study = make(storage=self._storage, study_name=NAME, **parts)

    @property
    def optuna(self) -> Any:
        """The study as Optuna's own functions take it."""
        return self._study

    def trials(self) -> list[Any]:
        """Returns all of Optuna's trials but those whose process died while it drew their settings."""
        return [trial for trial in self._all() if trial.params.keys() == self.search.space.keys()]

    def trial(self, number: int) -> Any:
        """Returns Optuna's trial of this number."""
        return self._all()[number]

    def best(self) -> Any:
        """Returns the best trial of those that ran to their end; None where there is none."""
        ended = [trial for trial in self.trials() if trial.state.name == "COMPLETE"]
        sign = 1 if self.search.minimises else -1
        return min(ended, key=lambda trial: (sign * trial.value, trial.number), default=None)

    def begin(self) -> int | None:
        """Begins a trial, and draws its settings; no other process may do so meanwhile. Returns its number; None where
        the study has all its trials.
        """
        taken, number = len(self.trials()), len(self._all())
        if taken >= self.search.trials:
            return None
        self._study.sampler = make_sampler(self.search, number, taken)
        return int(self._study.ask(fixed_distributions=distributions(self.search)).number)

    def tell(self, number: int, value: float) -> None:
        """Ends a trial with its value."""
        self._study.tell(number, value)

    def fail(self, number: int) -> None:
        """Ends a trial that has no value."""
        self._study.tell(number, state=self._states.FAIL)

    def prune(self, number: int) -> None:
        """Ends a trial that its pruner has stopped."""
        self._study.tell(number, state=self._states.PRUNED)

    def note(self, number: int, key: str, value: Any) -> None:
        """Keeps something of a trial that has not ended."""
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def report(self, number: int, step: int, value: float) -> bool:
        """Tells the pruner a trial's value so far. Returns whether the trial should stop.

        Args:
          step: the number of the report, from 1; a report that was made before stays.
        """
        if step not in self.trial(number).intermediate_values:
            self._storage.set_trial_intermediate_value(self._id(number), step, value)
        return bool(self._study.pruner.prune(self._study, self.trial(number)))

    def _all(self) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False))

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(NAME)
        return int(self._storage.get_trial_id_from_study_id_trial_number(study, number))


def make_pruner(search: Search) -> Any:
    """Returns Optuna's pruner. Its steps are the reports of a trial's runs, from 1 on."""
    pruners = load_optuna().pruners
    if search.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    if search.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource="auto", reduction_factor=3)
    if search.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
    return pruners.NopPruner()


def make_sampler(search: Search, number: int, cell: int) -> Any:
    """Returns the sampler of one trial: what it draws depends on search.seed, the trial's number and the trials before
    alone.

    Args:
      cell: the trial's place in the grid.
    """
    samplers = load_optuna().samplers
    seed = int.from_bytes(hashlib.sha256(f"{search.seed}/{number}".encode()).digest()[:4], "big")
    if search.sampler == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=min(STARTUP, max(1, search.trials // 4)))
    drawn = samplers.RandomSampler(seed)
    if search.sampler != "grid":
        return drawn
    with warnings.catch_warnings(action="ignore"):  # it is experimental, since 2020
        return samplers.PartialFixedSampler(search.grid()[cell], drawn)


def distributions(search: Search) -> dict[str, Any]:
    """Returns the search's space in Optuna's terms."""
    of = load_optuna().distributions
    out: dict[str, Any] = {}
    for name, d in search.space.items():
        if d.choices is not None:
            out[name] = of.CategoricalDistribution(d.names)
        elif d.is_whole:
            out[name] = of.IntDistribution(d.low, d.high, log=d.log, step=d.step or 1)
        else:
            out[name] = of.FloatDistribution(d.low, d.last, log=d.log, step=d.step)
    return out


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps all other processes out that lock the same file, on all hosts, also on NFS."""
    from optuna.storages.journal import JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _repair(path: Path) -> None:
    """Removes a last line that a crash of a machine has cut: Optuna could not read what is appended to it."""
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**20))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
