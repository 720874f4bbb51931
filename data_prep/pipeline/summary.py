"""Counts of what a preparation found and made: printed, and kept as `OUTPUT/summary.json`."""

import collections
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from etils import epath

from cavmae_sync_jax.media.resampler import SOUNDS_ELSEWHERE
from data_prep.pipeline.clips import NOTES, Clip, Reject

SUMMARY, REJECTS = "summary.json", "rejects.csv"
_BETWEEN_WORDS = re.compile(r"[\s_-]+")
_NAMED = 5  # names that a sentence gives as examples
_KEPT = 100  # names that the file keeps


@dataclass
class Findings:
    """What a source has seen before any clip is prepared.

    Attributes:
      files: media files that were found.
      links: further names of these files, by which links lead to them.
      copies: copies of these files, which count once.
      skipped: other files, by extension.
      unused: names of media files that no list names.
      absent: names in a list of which there is no file.
      tails: lengths in seconds of what was left over and too short for a clip.
      other_classes: rows of a list that were left out, because their class is not wanted.
    """

    files: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    unused: Sequence[str] = ()
    absent: Sequence[str] = ()
    tails: Sequence[float] = ()
    other_classes: int = 0
    links: int = 0
    copies: int = 0

    def lines(self) -> list[str]:
        """Returns the same in sentences, without what is zero."""
        lines = []
        if self.files:
            other = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.skipped.items()))
            lines.append(f"Media files: {self.files:,}" + (other and f"; other files: {other}"))
        if self.links:
            lines.append(f"Links to these files under further names: {self.links:,}")
        if self.copies:
            lines.append(f"Copies of these files, which count once: {self.copies:,}")
        if self.unused:
            lines.append(f"Files that no list names: {len(self.unused):,}{_such(self.unused)}")
        if self.absent:
            lines.append(
                f"Names in a list without a file: {len(self.absent):,}{_such(self.absent)}"
            )
        if self.other_classes:
            lines.append(f"Rows of other classes that were left out: {self.other_classes:,}")
        if self.tails:
            lines.append(
                f"Ends of files that are too short for a clip of their own (--min_seconds): "
                f"{len(self.tails):,}, {sum(self.tails):.1f} s in all"
            )
        return [f"{line}." for line in lines]

    def stored(self) -> dict[str, Any]:
        """Returns the same for the file."""
        return {
            "files": self.files,
            "links": self.links,
            "copies": self.copies,
            "skipped": dict(self.skipped),
            "names_without_row": {"count": len(self.unused), "names": self.unused[:_KEPT]},
            "rows_without_file": {"count": len(self.absent), "names": self.absent[:_KEPT]},
            "rows_of_other_classes": {"count": self.other_classes},
            "tails_left_out": {"count": len(self.tails), "seconds": sum(self.tails)},
        }


def _such(names: Sequence[str]) -> str:
    return ", such as " + ", ".join(map(repr, names[:_NAMED]))


class SplitSummary(NamedTuple):
    """What came of the clips of a split.

    Attributes:
      files: how many files they are of.
      clips: how many there were.
      examples: how many are in the dataset.
      rejects: the others.
      notes: sums over the examples: `padded_seconds`, and how many have each of `clips.NOTES`.
    """

    files: int
    clips: int
    examples: int
    rejects: tuple[Reject, ...]
    notes: dict[str, float]


class Summary(NamedTuple):
    """The outcome of a preparation: the dataset's folder, each split, and what was found before."""

    directory: epath.Path
    splits: dict[str, SplitSummary]
    findings: Findings

    @property
    def examples(self) -> dict[str, int]:
        """The examples of each split that the dataset has."""
        return {name: split.examples for name, split in self.splits.items() if split.examples}

    @property
    def rejects(self) -> tuple[Reject, ...]:
        """The clips that are no examples."""
        return tuple(reject for split in self.splits.values() for reject in split.rejects)

    @property
    def reject_share(self) -> float:
        """The part of the clips that were rejected, in the splits that the dataset has."""
        there = [split for split in self.splits.values() if split.examples]
        return sum(len(split.rejects) for split in there) / sum(split.clips for split in there)

    def report(self) -> str:
        """Returns the same in words."""
        counts = ", ".join(f"{count} in {name}" for name, count in self.examples.items())
        lines = [f"{self.directory} has {sum(self.examples.values())} examples: {counts}."]
        for name, split in self.splits.items():
            if not split.examples:
                reasons = count_reasons(split.rejects)
                lines.append(f"There is no split {name!r}: none of its clips is left ({reasons}).")
        if self.rejects:
            path = self.directory.parent.parent / REJECTS
            reasons = count_reasons(self.rejects)
            lines.append(f"{len(self.rejects)} clips were rejected ({reasons}); {path} lists them.")
        if elsewhere := _sound_elsewhere(self.rejects):
            lines.append(
                f"Silent clips that sound in another channel or track: {elsewhere:,}; the list "
                "says for each what to do."
            )
        sums = collections.Counter[str]()
        for split in self.splits.values():
            sums.update(split.notes)
        if padded := sums.pop("padded_seconds", 0.0):
            lines.append(f"The clips lack {padded:.1f} s to their full length.")
        for note, count in sums.most_common():
            lines.append(f"Examples with the note {note!r} ({NOTES[note]}): {count:,}.")
        return "\n".join(lines)

    def write(self, output: epath.Path) -> None:
        """Puts the summary to OUTPUT."""
        stored = {
            "dataset": str(self.directory),
            **self.findings.stored(),
            "splits": {
                name: {
                    "files": split.files,
                    "clips": split.clips,
                    "examples": split.examples,
                    "rejects": dict(_reasons(split.rejects)),
                    "silent_but_elsewhere": _sound_elsewhere(split.rejects),
                    "padded_seconds": 0.0,
                    **dict.fromkeys(NOTES, 0),
                    **split.notes,
                }
                for name, split in self.splits.items()
            },
        }
        text = json.dumps(stored, indent=2, ensure_ascii=False) + "\n"
        (output / SUMMARY).write_bytes(text.encode("utf-8", "backslashreplace"))


def plan_report(splits: Mapping[str, Sequence[Clip]], findings: Findings) -> str:
    """Returns what will be prepared, in words."""
    lines = findings.lines()
    for name, clips in splits.items():
        refused = collections.Counter(clip.refusal[0] for clip in clips if clip.refusal is not None)
        line = f"Split {name}: clips {len(clips):,}, files {count_files(clips):,}"
        if refused:
            line += ", rejected already: "
            line += ", ".join(f"{count:,} {reason}" for reason, count in refused.most_common())
        lines.append(f"{line}.")
    return "\n".join(lines)


def alike_report(class_names: Iterable[str]) -> str:
    """Returns which classes are written nearly the same, in words, or "" if none are."""
    written: dict[str, list[str]] = collections.defaultdict(list)
    for name in class_names:
        written[_BETWEEN_WORDS.sub(" ", name.casefold()).strip()].append(name)
    pairs = [" and ".join(map(repr, names)) for names in written.values() if len(names) > 1]
    if not pairs:
        return ""
    shown = "; ".join(pairs[:_NAMED]) + ("; …" if len(pairs) > _NAMED else "")
    return f"Classes that may be one, but stay apart: {shown}."


def count_files(clips: Iterable[Clip]) -> int:
    """Returns the number of files of the clips that are not refused."""
    return len({clip.path for clip in clips if clip.refusal is None})


def count_reasons(rejects: Sequence[Reject]) -> str:
    """Returns for example "3 silent, 1 unreadable", the most frequent reason first."""
    return ", ".join(f"{count} {reason}" for reason, count in _reasons(rejects))


def _reasons(rejects: Sequence[Reject]) -> list[tuple[str, int]]:
    return collections.Counter(reject.reason for reject in rejects).most_common()


def _sound_elsewhere(rejects: Sequence[Reject]) -> int:
    return sum(SOUNDS_ELSEWHERE in reject.detail for reject in rejects)
