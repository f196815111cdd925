"""The budget desk: looks at the Runtime for the viewers, and sets budgets for them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.runtime import Runtime
from dvt_edge.serve.budgets import figures, find_steps, other_keys
from dvt_edge.serve.hub import Hub

LOOK_S = 1.0
"""Between two looks at the Runtime, while there are viewers."""


class Desk:
    """Keeps the state of ``hub`` up to date; belongs to one event loop.

    The Runtime is asked in ``threads``: its promise waits for the frame at work. Solving has a
    thread of its own, one at a time.
    """

    def __init__(self, runtime: Runtime, hub: Hub, threads: ThreadPoolExecutor) -> None:
        self._runtime, self._hub, self._threads = runtime, hub, threads
        self._solver = ThreadPoolExecutor(1, "dvt-edge solver")
        self._budget: BudgetConfig | None = None
        self._since = 0
        """Number of the first second that belongs to this budget alone."""
        self._steps_for: BudgetConfig | None = None
        self._looking = asyncio.Lock()

    async def keep_looking(self) -> None:
        """Until cancelled; without viewers the Runtime is left alone."""
        while True:
            if self._hub.viewers:
                await self._look()
                await self._solve_steps()
            await asyncio.sleep(LOOK_S)

    async def set_budget(self, latency_ms: float | None) -> None:
        """Put it in force; raises what ``Runtime.set_budget`` raises."""
        change = partial(self._runtime.set_budget, latency_ms=latency_ms)
        await asyncio.get_running_loop().run_in_executor(self._solver, change)
        await self._look()

    def close(self) -> None:
        """Nothing more is solved; what is being solved is not waited for."""
        self._solver.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> None:
        async with self._looking:
            loop = asyncio.get_running_loop()
            budget = self._runtime.budget
            values = await loop.run_in_executor(self._threads, look, self._runtime)
            if budget != self._budget:
                self._budget, self._since = budget, self._hub.seconds.now + 1
            values["since"] = self._since
            if values != self._hub.state.values:
                self._hub.state = replace(self._hub.state, values=values)

    async def _solve_steps(self) -> None:
        """Again where the budget changed by more than what the slider moves."""
        others = other_keys(self._runtime.budget)
        if others == self._steps_for:
            return
        loop = asyncio.get_running_loop()
        steps = await loop.run_in_executor(self._solver, find_steps, self._runtime)
        self._steps_for = others
        self._hub.state = replace(self._hub.state, steps=asdict(steps))


def look(runtime: Runtime) -> dict[str, Any]:
    """Budget, what the thresholds in force give on the records, and the promise."""
    budget, solution, thresholds = runtime.budget, runtime.solution, runtime.thresholds
    moved = thresholds != tuple(solution.thresholds.tolist())
    if moved:
        solution = runtime.replay(thresholds)
    promise = getattr(runtime, "promise", None)
    return {
        "budget": str(budget),
        "latency_ms": budget.latency_ms,
        "statistic": budget.statistic,
        "records": figures(solution, runtime.costs.energy_mj),
        "moved": moved,  # by adapting or an audit
        "promise": promise and {"state": promise.state, "sentence": promise.sentence},
    }
