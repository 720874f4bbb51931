"""Mean and spread of the demo's scores over several seeds, as a Markdown table.

for s in 0 1 2; do make demo SEED=$s DEMO=runs/seed$s; done
python -m benchmarks.demo_seeds runs/seed0 runs/seed1 runs/seed2
"""

import json
import pathlib
import sys

import numpy as np

DIRECTIONS = ("visual_to_audio", "audio_to_visual")


def main(folders: list[str]) -> None:
    """Prints R@1, R@5 and the median rank of every row of the retrieval tables, in percent."""
    results = []
    for folder in folders:
        results.append(json.loads(pathlib.Path(folder, "results.json").read_text())["retrieval"])
    rows = {f"model, {name}": [r["scores"][name] for r in results] for name in results[0]["scores"]}
    rows |= {name: [r["baselines"][name] for r in results] for name in results[0]["baselines"]}
    print(
        "| | " + " | ".join(f"{d.replace('_to_', ' → ')}: R@1 | R@5 | median" for d in DIRECTIONS)
    )
    print("|---" * 7 + "|")
    for name, runs in rows.items():
        cells = []
        for direction in DIRECTIONS:
            for score, factor in (("R1", 100), ("R5", 100), ("median_rank", 1)):
                values = factor * np.array([run[direction][score] for run in runs])
                spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.1f}{spread}")
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
