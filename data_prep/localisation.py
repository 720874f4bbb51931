"""Prepares benchmarks that say where a sound comes from, as datasets to evaluate on.

--layout=vggss is VGG-SS. FOLDER holds VGGSound's videos, under names that data_prep.videos reads,
or frames/ID.jpg and audio/ID.wav. --boxes is the published vggss.json.
--layout=flickr is Flickr-SoundNet. FOLDER holds Annotations/ID.xml, and frames/ID.jpg with
audio/ID.wav or Data/ as published. --list=flickr_test.csv takes the 250 pairs of the usual test.
--layout=avsbench is AVSBench. FOLDER is Single-source, with s4_meta_data.csv and s4_data/, or
Multi-sources, with ms3_meta_data.csv and ms3_data/.

The split eval is the published test. Each picture is scaled to a square as a whole, as the
benchmarks' own evaluations do. Clips that can't be used are listed with the reason in
OUTPUT/rejects.csv.

Examples:
  python -m data_prep.localisation vggsound/ --layout=vggss --boxes=vggss.json --output=data/vggss
  python -m data_prep.localisation flickr/ --layout=flickr --list=flickr_test.csv \\
      --output=data/flickr
  python -m data_prep.localisation avsbench_data/Single-source --layout=avsbench --output=data/s4
"""

import argparse

from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import flags
from data_prep.sources import avsbench, benchmarks, boxes
from data_prep.sources.benchmarks import Benchmark

LAYOUTS = ("vggss", "flickr", "avsbench")
# Which layouts a flag is for.
_ONLY = {"boxes": ("vggss",), "trimmed": ("vggss",), "list": ("vggss", "flickr")}


def read(arguments: argparse.Namespace) -> Benchmark:
    """Reads the benchmark that the flags name.

    Raises:
      UserError: a flag is for another layout, or the folder is not as published.
    """
    for flag, layouts in _ONLY.items():
        if getattr(arguments, flag) and arguments.layout not in layouts:
            raise UserError(f"--{flag} is for --layout={' or '.join(layouts)} alone")
    if arguments.layout == "avsbench":
        return avsbench.read(arguments.folder)
    wanted = benchmarks.read_list(arguments.list)
    if arguments.layout == "flickr":
        return boxes.read_flickr(arguments.folder, wanted)
    return boxes.read_vggss(arguments.folder, arguments.boxes, wanted, trimmed=arguments.trimmed)


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset that the command line asks for and prints a summary."""
    benchmark = read(arguments)
    stored = {"num_frames": benchmark.num_frames, "clip_seconds": benchmark.clip_seconds}
    preparation = flags.preparation(arguments, **stored)
    summary = flags.write(
        arguments,
        benchmark.splits,
        preparation,
        class_names=benchmark.class_names,
        source=arguments.layout,
        findings=benchmark.findings,
    )
    for note in benchmark.notes:
        print(note)
    flags.finish(arguments, summary)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="the benchmark as published")
    parser.add_argument("--layout", required=True, choices=LAYOUTS, help="which benchmark it is")
    parser.add_argument("--boxes", metavar="JSON", help="vggss.json, if it is not in FOLDER")
    parser.add_argument(
        "--list", metavar="CSV", help="take only the clips in the first column of this CSV"
    )
    parser.add_argument(
        "--trimmed",
        action="store_true",
        help="a video called ID is only its segment, not the whole video",
    )
    flags.add_flags(parser, without=("num_frames", "clip_seconds"))
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
