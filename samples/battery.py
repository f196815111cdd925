"""A budget that follows the battery: what is left of it must last for the hours still to go.

Energy per exit must be measured, or declared in the profile. For a minute, on a made-up battery:

    dvt-edge build --profile samples/profiles/battery.yaml
    dvt-edge profile --profile samples/profiles/battery.yaml --duration 2
    python samples/battery.py --profile samples/profiles/battery.yaml --source test:// \\
        --hours 0.0167 --every 5 --made-wh 0.045 --made-watts 2.8
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from time import monotonic

import dvt_edge


def battery_wh(supplies: Path) -> float:
    """Watt-hours left in this machine's battery."""
    for file in sorted(supplies.glob("*/type")):
        if file.read_text().strip() == "Battery":
            if (energy := file.with_name("energy_now")).exists():  # microwatt-hours
                return int(energy.read_text()) / 1e6
            charge, voltage = file.with_name("charge_now"), file.with_name("voltage_now")
            return int(charge.read_text()) * int(voltage.read_text()) / 1e12
    sys.exit(f"error: there is no battery in {supplies}; pretend one with --made-wh")


def follow(runtime: dvt_edge.Runtime, wh: float, hours: float, fps: float) -> None:
    """Choose thresholds for what is left; where it cannot last, run stage 1 alone."""
    try:
        runtime.set_budget(battery={"wh": wh, "hours": hours, "fps": fps}, max_stage=None)
    except dvt_edge.BudgetError as error:
        if runtime.costs.net_mj is None or runtime.costs.idle_mw is None:
            raise  # energy is unknown
        runtime.set_budget(battery=None, max_stage=1)
        print(f"It will not last, so no later stage than 1 runs: {error}")
    shares = ", ".join(f"{share:.0%}" for share in runtime.solution.exit_fraction)
    print(f"{wh:.4f} Wh are left for {hours:.4f} h: frames leave at exits 1, 2, ... by {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Let the budget follow the battery.")
    parser.add_argument("--profile", required=True, help="what to run, with its energy (YAML)")
    parser.add_argument("--source", default="0", help="camera, stream or file; test:// is made up")
    parser.add_argument("--max-frames", type=int, help="end after so many")
    parser.add_argument("--hours", type=float, default=8.0, help="how long it must last")
    parser.add_argument("--fps", type=float, default=30.0, help="frames per second meanwhile")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks at it")
    parser.add_argument("--supplies", type=Path, default=Path("/sys/class/power_supply"))
    parser.add_argument("--made-wh", type=float, help="pretend a battery of so many watt-hours")
    parser.add_argument("--made-watts", type=float, default=5.0, help="what is used of that one")
    args = parser.parse_args()

    with dvt_edge.Runtime(args.profile) as runtime, dvt_edge.open_source(args.source) as source:
        began, look_at = monotonic(), 0.0
        for frame in islice(source, args.max_frames):
            if (gone := (monotonic() - began) / 3600) >= args.hours:
                break
            if monotonic() >= look_at:
                made = args.made_wh and max(args.made_wh - args.made_watts * gone, 1e-6)
                wh = made or battery_wh(args.supplies)
                follow(runtime, wh, args.hours - gone, args.fps)
                look_at = monotonic() + args.every
            print(runtime.classify(frame.pixels, color_order=frame.color_order).label)
        print(f"Energy is {runtime.costs.energy_source}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except (dvt_edge.DvtEdgeError, OSError) as error:
        sys.exit(f"error: {error}")
