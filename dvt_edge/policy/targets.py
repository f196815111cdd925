"""What a budget limits: every key of it as one limit in milliseconds or millijoules per frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dvt_edge.errors import BudgetError
from dvt_edge.policy.exit_costs import ExitCosts, ExitLatency, with_audit
from dvt_edge.policy.records import Floats
from dvt_edge.policy.solver import Limit, round_up
from dvt_edge.policy.statistic import TAIL_SHARE, Statistic


class Battery(Protocol):
    """A charge that must last: a :class:`~dvt_edge.profile.BatteryConfig`, which explains it."""

    @property
    def wh(self) -> float: ...
    @property
    def hours(self) -> float: ...
    @property
    def fps(self) -> float: ...


class Budget(Protocol):
    """What must be kept: a :class:`~dvt_edge.profile.BudgetConfig`, which explains and checks it.

    Pure NumPy code cannot import that.
    """

    @property
    def latency_ms(self) -> float | None: ...
    @property
    def statistic(self) -> Statistic: ...
    @property
    def fps(self) -> float | None: ...
    @property
    def utilisation(self) -> float: ...
    @property
    def duty_cycle(self) -> float | None: ...
    @property
    def energy_mj(self) -> float | None: ...
    @property
    def battery(self) -> Battery | None: ...
    @property
    def min_accuracy(self) -> float | None: ...
    @property
    def max_stage(self) -> int | None: ...
    @property
    def confidence_level(self) -> float | None: ...
    @property
    def audit(self) -> float: ...
    @property
    def point(self) -> int | None: ...


@dataclass(frozen=True)
class Target:
    """One limit of a budget."""

    key: str
    """Of the budget: ``latency_ms``, ``fps``, ``duty_cycle``, ``energy_mj`` or ``battery``."""
    what: str
    """What is limited, for people: ``mean latency``, ``p99 latency``, ``mean energy``."""
    statistic: Statistic
    most: float
    """In ``unit``."""
    unit: str
    """``ms`` or ``mJ``."""
    cost: Floats
    """[K]: the statistic of leaving at each exit, in ``unit``."""
    because: str = ""
    """How ``most`` follows from the budget, where it is not what stands there."""

    def __str__(self) -> str:
        return f"{self.what} of {self.most:.4g} {self.unit}{self.because}"

    @property
    def of_latency(self) -> bool:
        return self.unit == "ms"

    def limit(self, latency: ExitLatency, exits: int, audit: float) -> Limit | None:
        """What the solver keeps, of the first ``exits``, with a share ``audit`` of the frames
        running all of them; None where it is kept by not using the other exits (``max``)."""
        if self.statistic == "max":
            return None
        if self.statistic == "mean":
            return Limit(with_audit(self.cost, audit, exits), self.most)
        share = latency.exceeding(self.most)
        return Limit(with_audit(share, audit, exits), TAIL_SHARE[self.statistic])


def find_targets(costs: ExitCosts, budget: Budget) -> tuple[Target, ...]:
    """Every limit of ``budget`` for a machine with ``costs``.

    Raises :class:`~dvt_edge.errors.BudgetError` where a limit needs what was not measured, or a
    battery does not even last at rest.
    """
    return (*_latencies(costs, budget), *_energies(costs, budget))


def mean_latency_ms(targets: tuple[Target, ...]) -> float | None:
    """The tightest limit on the mean latency in milliseconds; None where there is none."""
    found = [t.most for t in targets if t.of_latency and t.statistic == "mean"]
    return min(found, default=None)


def _latencies(costs: ExitCosts, budget: Budget) -> Iterator[Target]:
    mean = costs.latency.mean
    if budget.latency_ms is not None:
        figures = getattr(costs.latency, budget.statistic)
        what = f"{budget.statistic} latency"
        yield Target("latency_ms", what, budget.statistic, budget.latency_ms, "ms", figures)
    if budget.fps is not None:
        most = 1e3 / budget.fps * budget.utilisation
        why = f" ({budget.fps:g} fps at {100 * budget.utilisation:g} % utilisation)"
        yield Target("fps", "mean latency", "mean", most, "ms", mean, why)
    if budget.duty_cycle is not None:
        if costs.fps is None:
            raise BudgetError(
                "duty_cycle is a share of the time between the camera's frames, and costs were "
                "measured back to back; run 'dvt-edge profile' without --solve-for back-to-back"
            )
        most = 1e3 / costs.fps * budget.duty_cycle
        why = f" (busy {100 * budget.duty_cycle:g} % of the time at {costs.fps:g} fps)"
        yield Target("duty_cycle", "mean latency", "mean", most, "ms", mean, why)
    if budget.battery is not None:
        most = 1e3 / budget.battery.fps
        why = f" (the battery's {budget.battery.fps:g} fps)"
        yield Target("battery", "mean latency", "mean", most, "ms", mean, why)


def _energies(costs: ExitCosts, budget: Budget) -> Iterator[Target]:
    if budget.energy_mj is not None:
        if costs.energy_mj is None:
            raise BudgetError(
                "an energy budget needs the measured energy per exit, and none was measured; "
                "run 'dvt-edge profile' where a power sensor can be read or energy.watts is "
                "declared, or set latency_ms instead"
            )
        energy = np.asarray(costs.energy_mj, float)
        yield Target("energy_mj", "mean energy", "mean", budget.energy_mj, "mJ", energy)
    if budget.battery is not None:
        if costs.net_mj is None or costs.idle_mw is None:
            raise BudgetError(
                "a battery needs the measured energy per exit and the power at rest, and they were "
                "not measured; run 'dvt-edge profile' where a power sensor can be read, or declare "
                "energy.watts and energy.idle_watts"
            )
        wh, hours, fps = budget.battery.wh, budget.battery.hours, budget.battery.fps
        spare_mw = 1e3 * wh / hours - costs.idle_mw
        if spare_mw <= 0:
            idle_w = costs.idle_mw / 1e3
            raise BudgetError(
                f"a battery of {wh:g} Wh lasts {wh / idle_w:.3g} h at rest ({idle_w:.3g} W), "
                f"not {hours:g} h; give a larger battery.wh or fewer battery.hours"
            )
        why = f" above idle ({wh:g} Wh for {hours:g} h at {fps:g} fps)"
        net = np.asarray(costs.net_mj, float)
        yield Target("battery", "mean energy", "mean", spare_mw / fps, "mJ", net, why)


def first_exit_refusal(target: Target, least: float, nearest: str) -> BudgetError:
    """Why not even leaving at the first exit, which costs ``least``, keeps ``target``; ``nearest``
    says what the smallest possible budget gives."""
    remedies = {
        "fps": "; lower fps or raise utilisation",
        "duty_cycle": "; raise duty_cycle or lower camera.fps",
        "battery": "; lower battery.fps or battery.hours",
    }
    return BudgetError(
        f"the {target.what} budget of {target.most:.4g} {target.unit}{target.because} is smaller "
        f"than the first exit's; the smallest possible is {round_up(least):g} {target.unit}"
        f"{nearest}{remedies.get(target.key, '')}"
    )
