"""Classify every image below a folder, and write the answers as CSV.

    python samples/folder_to_csv.py --profile samples/profiles/demo-cpu.yaml \\
        --folder samples/demo/scenes/test/bag --csv out/bags.csv

Images that cannot be read are named on standard error and left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import dvt_edge

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify a folder's images into a CSV file.")
    parser.add_argument("--profile", required=True, help="what to run, and its budget (YAML)")
    parser.add_argument("--folder", required=True, type=Path, help="searched with its subfolders")
    parser.add_argument("--csv", required=True, type=Path, help="written anew")
    args = parser.parse_args()

    paths = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in ENDINGS)
    if not paths:
        sys.exit(f"error: {args.folder} holds no images ({', '.join(sorted(ENDINGS))})")
    unread = 0
    with (
        dvt_edge.Runtime(args.profile) as runtime,
        args.csv.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(["file", "label", "confidence", "exit", "latency_ms"])
        for path in paths:
            try:
                with Image.open(path) as image:
                    upright = ImageOps.exif_transpose(image)  # as the camera was held
                    pixels = np.asarray(upright.convert("RGB"))  # uint8 [H, W, 3]
            except Exception as error:  # decoders raise whatever they like
                print(f"{path}: left out ({error})", file=sys.stderr)
                unread += 1
                continue
            answer = runtime.classify(pixels, color_order="rgb")
            name = path.relative_to(args.folder)
            sure, took_ms = f"{answer.confidence:.4f}", f"{answer.latency_ms:.3f}"
            table.writerow([name, answer.label, sure, answer.exit_stage, took_ms])
    print(f"{len(paths) - unread} of {len(paths)} images classified into {args.csv}")
    return 1 if unread else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (dvt_edge.DvtEdgeError, OSError) as error:
        sys.exit(f"error: {error}")
