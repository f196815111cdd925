"""Thresholds on a bundle's records: our optimum, the authors' rule, a genetic search, certificates.

    python benchmarks/policy.py records BUNDLE_OR_RECORDS_NPZ [--json FILE] [--plot FILE.png]
    python benchmarks/policy.py unseen RECORDS_NPZ ... --cost MS ... [--splits N] [--json FILE]
    python benchmarks/policy.py time [--largest N] [--json FILE]

``records`` chooses on one half and judges on the other, at the 59 budgets that the authors' rule
happens to spend on the first half, so that it wastes none of them. Costs are the bundle's measured
means where there is a costs.json, else ``--cost``. ``unseen`` chooses on few records and judges on
all others, over many splits: what the solver gains by maximising the estimated probability of being
right, against the most right answers on the records and the authors' rule. ``time`` measures
estimate and solver. Tables go to the
terminal, figures to ``--json``; nothing is asserted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from baselines import authors_rule, cheapest_right, genetic_search, most_right, uniform_margin

from dvt_edge.errors import BudgetError
from dvt_edge.machine.board import processor_name
from dvt_edge.policy import (
    ExitCosts,
    ExitLatency,
    Records,
    Solution,
    frontier,
    replay,
    solve,
    solve_budget,
    solve_certified,
)
from dvt_edge.profile import BudgetConfig

CERTIFIED = 0.95
SIZES = (200, 400, 1_000, 2_000)
"""Records that ``unseen`` chooses on."""
ASKED = (0.78, 0.80, 0.82, 0.84)
"""Accuracies that ``unseen`` asks for, which the demo reaches."""
BUDGETS = 20
"""Of the authors' 59, spread evenly."""
COUNTS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
LARGEST_SEARCHED = {2: 200_000, 3: 200_000, 4: 10_000, 5: 20_000}
ENOUGH_S = 20.0
"""Larger problems of a kind are left out once one took so long."""


def machine() -> str:
    return f"{processor_name()}, Python {platform.python_version()}, NumPy {np.__version__}"


def load(path: Path, cost: list[float] | None) -> tuple[Records, np.ndarray]:
    folder = path if path.is_dir() else path.parent
    with np.load(path / "records.npz" if path.is_dir() else path) as archive:
        label = archive["label"] if "label" in archive.files else None
        records = Records(archive["confidence"], archive["prediction"], label)
    if cost is None:
        measured = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
        cost = [e["mean_ms"] for e in measured["exits"]]
    return records, np.asarray(cost)


def over_records(path: Path, cost: list[float] | None, seed: int, plot: Path | None) -> dict:
    records, costs = load(path, cost)
    order = np.random.default_rng(seed).permutation(len(records))
    half, other = (records.take(part) for part in np.array_split(order, 2))
    measured = ExitCosts(ExitLatency(costs, costs, costs, costs, costs))
    methods = ("ours", "authors", "genetic", "certified", "uniform")
    rows, started = [], dict.fromkeys(methods, 0.0)
    # Half of the error, as a certificate spends on the budget.
    margin = uniform_margin(costs, len(half), (1 - CERTIFIED) / 2)
    for number, rule in enumerate(authors_rule(half, costs)):
        limit = max(rule.cost, float(costs[0]))
        ways: dict[str, Callable[[], Solution]] = {
            "ours": lambda limit=limit: solve(half, costs, limit),
            "authors": lambda rule=rule: rule,
            "genetic": lambda limit=limit: genetic_search(half, costs, limit),
            "certified": lambda limit=limit, number=number: solve_certified(
                half, measured, BudgetConfig(latency_ms=limit), CERTIFIED, seed=number
            )[0],
            "uniform": lambda limit=limit: solve(half, costs, max(limit - margin, float(costs[0]))),
        }
        row: dict[str, object] = {"limit": limit}
        for method, way in ways.items():
            begin = perf_counter()
            found = way()
            started[method] += perf_counter() - begin
            judged = replay(other, costs, found.thresholds)
            row[method] = {
                "chosen_on": {"accuracy": found.accuracy, "cost": found.cost},
                "other_half": {"accuracy": judged.accuracy, "cost": judged.cost},
            }
        rows.append(row)
    summary = {m: summarise(rows, m) for m in methods}
    print(
        f"{len(half)} records to choose on, {len(other)} to judge, cost per exit {costs.round(4)}"
    )
    print(f"accuracy of every exit on the other half: {other.accuracy.round(4)}")
    print(
        f"{'method':<10} {'chosen on':>10} {'other half':>11} {'best of 59':>11} "
        f"{'cost/limit':>11} {'budgets missed':>15} {'worst miss':>11} {'s per solve':>12}"
    )
    for method, s in summary.items():
        print(
            f"{method:<10} {s['accuracy_chosen_on']:>10.4f} {s['accuracy_other_half']:>11.4f} "
            f"{s['best_on_chosen']:>11} {s['cost_over_limit']:>11.4f} {s['missed']:>15} "
            f"{s['worst_miss']:>10.2%} {started[method] / len(rows):>12.4f}"
        )
    print(
        "missed: the mean cost on the other half is above the limit; half of them by chance alone "
        f"without a certificate. certified, uniform: at {CERTIFIED:.0%} each"
    )
    if plot:
        draw(plot, half, other, costs, rows)
    return {"costs": costs.tolist(), "summary": summary, "rows": rows}


def summarise(rows: list[dict], method: str) -> dict:
    chosen = np.array([r[method]["chosen_on"]["accuracy"] for r in rows])
    best = np.array(
        [max(r[m]["chosen_on"]["accuracy"] for m in ("ours", "authors", "genetic")) for r in rows]
    )
    ratio = np.array([r[method]["other_half"]["cost"] / r["limit"] for r in rows])
    return {
        "accuracy_chosen_on": float(chosen.mean()),
        "accuracy_other_half": float(np.mean([r[method]["other_half"]["accuracy"] for r in rows])),
        "best_on_chosen": int((chosen >= best).sum()),
        "cost_over_limit": float(ratio.mean()),
        "missed": int((ratio > 1 + 1e-9).sum()),
        "worst_miss": float(max(0.0, ratio.max() - 1)),
    }


def over_splits(paths: list[Path], costs: np.ndarray, splits: int) -> dict:
    """Mean accuracy on the records that were not chosen on, and how far ours is above the others'.

    Every split draws the records anew, so the means over the budgets of one split count as one
    observation. The splits of one set overlap: their standard errors are a little too small for the
    largest sizes.
    """
    parts = [load(path, costs.tolist())[0] for path in paths]
    if any(part.label is None for part in parts):
        raise SystemExit("records without labels cannot judge accuracy")
    records = Records(
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.prediction for part in parts]),
        np.concatenate([part.truth for part in parts]),
    )
    methods = ("ours", "most right", "authors")
    chosen = np.unique(np.linspace(0, 58, BUDGETS).round().astype(int))
    print(f"{len(records)} records, {splits} splits, {len(chosen)} budgets, costs {costs.round(4)}")
    print(
        f"{'records':>7} {'method':<10} {'accuracy on unseen':>21} {'ours above it':>18} "
        f"{'cost/limit':>11} {'above authors by':>18}"
    )
    rows = []
    for size in (n for n in SIZES if n < len(records)):
        accuracy = np.empty((len(methods), splits))
        ratio = np.empty((len(methods), splits))
        for split in range(splits):
            order = np.random.default_rng(split).permutation(len(records))
            few, unseen = records.take(order[:size]), records.take(order[size:])
            rules = authors_rule(few, costs)
            judged = []
            for rule in (rules[i] for i in chosen):
                limit = max(rule.cost, float(costs[0]))
                ways = (solve(few, costs, limit), most_right(few, costs, limit), rule)
                found = [replay(unseen, costs, way.thresholds) for way in ways]
                judged.append([(s.accuracy, s.cost / limit) for s in found])
            accuracy[:, split], ratio[:, split] = np.mean(judged, axis=0).T
        for k, method in enumerate(methods):
            row = {
                "records": size,
                "method": method,
                "accuracy": mean_and_error(accuracy[k]),
                "ours_above": mean_and_error(accuracy[0] - accuracy[k]),
                "above_authors": mean_and_error(accuracy[k] - accuracy[-1]),
                "cost_over_limit": float(ratio[k].mean()),
            }
            rows.append(row)
            print(
                f"{size:>7} {method:<10} {in_percent(row['accuracy']):>21} "
                f"{in_percent(row['ours_above'], '+') if k else '':>18} "
                f"{row['cost_over_limit']:>11.4f} "
                f"{in_percent(row['above_authors'], '+') if k < 2 else '':>18}",
                flush=True,
            )
    return {
        "costs": costs.tolist(),
        "splits": splits,
        "budgets": len(chosen),
        "rows": rows,
        "min_accuracy": over_accuracies(records, costs, splits),
    }


def over_accuracies(records: Records, costs: np.ndarray, splits: int) -> list[dict]:
    """How far accuracy on unseen records is from the ``min_accuracy`` that was asked for."""
    latency, rows = ExitLatency(costs, costs, costs, costs, costs), []
    print(
        f"{'records':>7} {'asked':>6} {'ours less asked':>18} {'by count alone':>18} {'costs':>15}"
    )
    for size, asked in itertools.product((n for n in SIZES if n < len(records)), ASKED):
        found = []
        for split in range(splits):
            order = np.random.default_rng(split).permutation(len(records))
            few, unseen = records.take(order[:size]), records.take(order[size:])
            counted = cheapest_right(few, costs, asked)
            if counted is not None:  # otherwise both refuse
                ours = solve_budget(few, latency, None, BudgetConfig(min_accuracy=asked))
                judged = [replay(unseen, costs, s.thresholds) for s in (ours, counted)]
                found.append([(s.accuracy - asked, s.cost) for s in judged])
        values = np.array(found)  # (splits, ours and counted, accuracy and cost)
        less = [mean_and_error(values[:, k, 0]) for k in range(2)]
        cost = values[:, :, 1].mean(axis=0).tolist()
        rows.append(
            {"records": size, "asked": asked, "ours": less[0], "count": less[1], "cost": cost}
        )
        print(
            f"{size:>7} {asked:>6.2f} {in_percent(less[0], '+'):>18} "
            f"{in_percent(less[1], '+'):>18} {cost[0]:>7.3f} {cost[1]:>7.3f}",
            flush=True,
        )
    return rows


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def in_percent(figure: tuple[float, float], sign: str = "") -> str:
    return f"{100 * figure[0]:{sign}.3f} +- {100 * figure[1]:.3f}"


def draw(path: Path, half: Records, other: Records, costs: np.ndarray, rows: list[dict]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    curve = [replay(other, costs, s.thresholds) for s in frontier(half, costs)]
    axes.plot(
        [s.cost for s in curve], [100 * s.accuracy for s in curve], label="dvt-edge: frontier"
    )
    for method, name, style in (
        ("authors", "authors' rule, 59 budgets", "."),
        ("genetic", "genetic search", "x"),
        ("certified", f"dvt-edge, certified at {CERTIFIED:.0%}", "+"),
    ):
        points = [r[method]["other_half"] for r in rows]
        axes.plot(
            [p["cost"] for p in points],
            [100 * p["accuracy"] for p in points],
            style,
            label=name,
            markersize=5,
        )
    axes.plot(costs, 100 * other.accuracy, "ks", label="one exit for all", markersize=5)
    axes.set_xlabel("mean latency per frame in ms")
    axes.set_ylabel("top-1 in %")
    axes.set_title("Chosen on one half of the records, judged on the other")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    print(f"wrote {path}")


def made_records(count: int, exits: int, seed: int = 0) -> Records:
    """Records whose confidences are about calibrated, each exit better than the one before."""
    rng = np.random.default_rng(seed)
    hard = rng.random(count)[:, None]
    logits = (np.linspace(0.62, 0.95, exits) - hard) * 8 + rng.normal(0, 0.8, (count, exits))
    confidence = 1 / (1 + np.exp(-logits))
    prediction = (rng.random((count, exits)) > confidence).astype(np.int32)
    return Records(confidence.astype(np.float32), prediction, np.zeros(count, np.int32))


def expected(records: Records, found: Solution) -> float:
    at = records.exits_taken(found.thresholds)
    return float(records.probability_right[np.arange(len(records)), at].mean())


def brute_force(records: Records, costs: np.ndarray, limit: float) -> Solution:
    best = replay(records, costs, [-np.inf] * records.exits)
    values = [[np.inf, *np.unique(records.confidence[:, k])] for k in range(records.exits - 1)]
    for thresholds in itertools.product(*values):
        found = replay(records, costs, [*thresholds, -np.inf])
        if found.cost <= limit and expected(records, found) > expected(records, best):
            best = found
    return best


def solver_times(largest: int) -> dict:
    rows = []
    print(f"{'exits':>5} {'records':>8} {'estimate s':>11} {'solver s':>10} {'brute force s':>14}")
    for exits in (2, 3, 4, 5):
        costs = np.cumsum(1.9 ** np.arange(exits))
        limit = float(costs[0] + 0.3 * (costs[-1] - costs[0]))
        brute_counts = {2: (100, 1000), 3: (30, 100), 4: (10, 30), 5: (10,)}[exits]
        for count in (*brute_counts, *COUNTS):
            if count > min(largest, LARGEST_SEARCHED[exits]):
                continue
            records = made_records(count, exits)
            times, estimates = [], []
            for _ in range(3):
                fresh = Records(records.confidence, records.prediction, records.label)
                begin = perf_counter()
                _ = fresh.probability_right
                estimates.append(perf_counter() - begin)
                begin = perf_counter()
                found = solve(fresh, costs, limit)
                times.append(perf_counter() - begin)
                if times[-1] > 2:
                    break
            row = {
                "exits": exits,
                "records": count,
                "estimate_s": min(estimates),
                "solver_s": min(times),
            }
            brute = ""
            if count in brute_counts:
                begin = perf_counter()
                exact = brute_force(records, costs, limit)
                row["brute_force_s"] = perf_counter() - begin
                row["equal"] = expected(records, exact) <= expected(records, found) + 1e-9
                brute = f"{row['brute_force_s']:.3f}" + ("" if row["equal"] else " (differs)")
            rows.append(row)
            print(
                f"{exits:>5} {count:>8} {row['estimate_s']:>11.4f} {row['solver_s']:>10.4f} "
                f"{brute:>14}",
                flush=True,
            )
            if row["solver_s"] > ENOUGH_S:
                break
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    on_records = commands.add_parser("records", help="accuracy at 59 budgets")
    on_records.add_argument("path", type=Path, help="a bundle or its records.npz")
    on_records.add_argument("--cost", type=float, nargs="+", help="cumulative cost of each exit")
    on_records.add_argument("--seed", type=int, default=0, help="of the split into halves")
    on_records.add_argument("--plot", type=Path, help="PNG of the frontier")
    on_unseen = commands.add_parser("unseen", help="accuracy on records not chosen on")
    on_unseen.add_argument("path", type=Path, nargs="+", help="records.npz or evaluation.npz")
    on_unseen.add_argument(
        "--cost", type=float, nargs="+", required=True, help="cumulative cost of each exit"
    )
    on_unseen.add_argument("--splits", type=int, default=80, help="splits for every size")
    timing = commands.add_parser("time", help="solver time against records and exits")
    timing.add_argument("--largest", type=int, default=max(COUNTS), help="most records")
    for command in (on_records, on_unseen, timing):
        command.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    command_line = f"python benchmarks/policy.py {' '.join(sys.argv[1:])}"
    print(f"{machine()}\n{command_line}")
    try:
        if options.command == "records":
            result = over_records(options.path, options.cost, options.seed, options.plot)
        elif options.command == "unseen":
            result = over_splits(options.path, np.asarray(options.cost), options.splits)
        else:
            result = solver_times(options.largest)
    except (BudgetError, OSError) as error:
        raise SystemExit(f"{error}") from None
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps({"machine": machine(), "command": command_line, **result}, indent=1),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
