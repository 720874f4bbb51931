"""Collects what several evaluations wrote into one file and tells where their pictures are.

Example:
  python -m cavmae_sync_jax.evals.summary runs/demo/evals --output=runs/demo/results.json

FOLDER holds NAME.json and NAME.png as the evaluations write them; OUTPUT gets one key an
evaluation.
"""

import argparse
import json
from typing import Any

from etils import epath

from cavmae_sync_jax import cli
from cavmae_sync_jax.cli import UserError


def run(folder: epath.PathLike, output: epath.PathLike) -> dict[str, Any]:
    """Writes the evaluations' results of `folder` to `output`, one key each, and returns them.

    Raises:
      UserError: if there are none, or one of them is no JSON.
    """
    folder, results = epath.Path(folder), {}
    for path in sorted(folder.glob("*.json")):
        try:
            results[path.stem] = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not the JSON of an evaluation: {error}") from error
    if not results:
        raise UserError(f"{folder} holds no evaluation's NAME.json")
    output = epath.Path(output)
    cli.make_folder(output.parent)
    output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"scores: {output}")
    for picture in sorted(folder.glob("*.png")):
        print(f"picture: {picture}")
    return results


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("folder", metavar="FOLDER", help="the evaluations' --output")
    arguments.add_argument("--output", required=True, help="JSON file to write")

    def start(args: argparse.Namespace) -> None:
        run(args.folder, args.output)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
