"""Published lists of segments to clips: formats, files' names, classes, and what is told."""

import csv
import re
from pathlib import Path

import pytest
from etils import epath
from media_files import make_video, number
from segment_clips import CLASSES, classes, clips, read
from video_program import program, splits_of

from cavmae_sync_jax.media.images import decode_jpeg
from cavmae_sync_jax.utils.errors import UserError
from data_prep import videos
from data_prep.sources import class_lists, csv_files, segment_files, segments
from data_prep.sources.video_files import Video

AUDIOSET = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
--ZhevVpy1s, 0.500, 10.000, "/m/012xff"
"""
VGGSOUNDER = """\
video_id,label,modality,background_music,static_image,voice_over
--i-y1v8Hy8_000000,child singing,AV,False,False,True
-0BIyqJj9ZU_000030,people giggling,V,False,False,False
--i-y1v8Hy8_000000,"child speech, kid speaking",A,False,False,True
"""
KINETICS = """\
label,youtube_id,time_start,time_end,split,is_cc
playing harp,--PJHxphWEs,20,30,train,0
tickling,--ZhevVpy1s,62,72,validate,0
tickling,---g-f_I2yQ,1,11,test,0
"""
VGGSOUND = '---g-f_I2yQ,1,"railroad car, train wagon",test\n--0PQM4-hqg,30,dog barking,train\n'
MARKS = {"bark": " (1)"}  # of a file that a browser has loaded twice


def test_audiosets_lists_are_read_as_published(tmp_path):
    first, second = read(tmp_path, AUDIOSET, "train")
    assert first[:5] == ("--PJHxphWEs", 30.0, 40.0, ("/m/09x0r", "/t/dd00088"), "train")
    assert second[:4] == ("--ZhevVpy1s", 0.5, 10.0, ("/m/012xff",))
    assert first.youtube and first.where.endswith("segments.csv, line 4")


def test_vggsounds_list_is_read_as_published(tmp_path):
    first, second = read(tmp_path, VGGSOUND)
    assert first[:5] == ("---g-f_I2yQ", 1.0, None, ("railroad car, train wagon",), "eval")
    assert second.split == "train"
    assert {segment.split for segment in read(tmp_path, VGGSOUND, "eval")} == {"eval"}


def test_vggsounders_labels_have_their_modalities(tmp_path):
    first, second = read(tmp_path, VGGSOUNDER)
    labels = ("child singing", "child speech, kid speaking")
    assert first[:5] == ("--i-y1v8Hy8", 0.0, None, labels, "eval")
    assert first.modalities == ("AV", "A") and second.modalities == ("V",) and second.start == 30
    made = clips(tmp_path, VGGSOUNDER, ["--i-y1v8Hy8_000000.mp4"], split=None)
    song, other = made.splits["eval"]
    assert song.clip_id == "--i-y1v8Hy8_000000" and song.refusal is None
    assert song.labels == labels and song.label_modalities == ("AV", "A")
    assert other.refusal[0] == "missing" and other.extras == song.extras == ("label_modalities",)
    # Beside another list, whose labels nobody has tagged.
    both = [*read(tmp_path, VGGSOUND), *read(tmp_path, VGGSOUNDER)]
    known = csv_files.classes_of([label for segment in both for label in segment.labels])
    settings = {"trimmed": False, "seconds": 10.0, "eval_share": 0.0}
    mixed = segments.segment_clips([], both, known, **settings)
    (dog,) = mixed.splits["train"]
    assert dog.labels == ("dog barking",) and dog.label_modalities == ("",)
    assert isinstance(dog, segments.TaggedClip)


def test_audiocaps_lists_name_each_clip_once(tmp_path):
    text = "audiocap_id,youtube_id,start_time,caption\n"
    text += '1,--PJHxphWEs,20,"A man speaks, then a dog barks"\n2,--PJHxphWEs,20,A dog barks\n'
    (clip,) = clips(tmp_path, text, ["--PJHxphWEs_20.mp4"], split="eval").splits["eval"]
    assert clip.clip_id == "--PJHxphWEs_000020" and clip.refusal is None and clip.labels == ()


def test_kinetics_lists_give_the_classes_that_one_wants(tmp_path):
    found = read(tmp_path, KINETICS)
    assert found[0][:5] == ("--PJHxphWEs", 20.0, 30.0, ("playing harp",), "train")
    assert [segment.split for segment in found] == ["train", "val", "eval"]
    sounds = class_lists.read("kinetics_sounds")
    assert len(sounds.names) == 32 and list(sounds.names) == sorted(set(sounds.names))
    kept, others = segments.of_classes(found, sounds)
    assert others == 1 and {segment.labels for segment in kept} == {("tickling",)}
    with pytest.raises(UserError, match="no segment has a class of --classes"):
        segments.of_classes(found[:1], sounds)
    # Of any other list, an unknown label is a mistake.
    assert segments.of_classes(read(tmp_path, VGGSOUND), sounds)[1] == 0
    names = ["--ZhevVpy1s_000062_000072.mp4", "tickling/---g-f_I2yQ.mp4"]
    made = clips(tmp_path, KINETICS, names, split=None)
    (val,), (held_out,) = made.splits["val"], made.splits["eval"]
    assert (val.start, val.end, val.refusal) == (0.0, 10.0, None)
    assert (held_out.start, held_out.end) == (1.0, 11.0) and held_out.clip_id.endswith("_000001")


def test_the_program_takes_kinetics_sounds_of_kinetics(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "--ZhevVpy1s_000062_000072.mp4").touch()
    (tmp_path / "val.csv").write_text(KINETICS)
    flags = [f"--segments=eval={tmp_path / 'val.csv'}", "--classes=kinetics_sounds", "--dry_run"]
    arguments = [str(tmp_path / "in"), *flags, f"--output={tmp_path / 'out'}"]
    videos.run(videos._parser().parse_args(arguments))
    said = capsys.readouterr().out
    assert "Rows of other classes that were left out: 1." in said
    assert "Split eval: clips 2, files 1, rejected already: 1 missing." in said


def test_ones_own_segments_may_have_several_labels(tmp_path):
    text = "video,start,end,label,split\nx/a.mp4,1.5,3,dog,train\nx/a.mp4,1.5,3,cat,train\n"
    text += "x/a.mp4,3,,,eval\n"
    first, second = read(tmp_path, text)
    assert first[:5] == ("x/a.mp4", 1.5, 3.0, ("dog", "cat"), "train")
    assert second[:5] == ("x/a.mp4", 3.0, None, (), "eval")
    assert not first.youtube


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no segment"),
        ("# only comments\n", "has no segment"),
        ("abcdefghijk,1,2\n", "line 1: need YTID, start, end"),
        ("abcdefghijk,now,dog,test\n", "line 1: 'now' is not a time"),
        ("abcdefghijk,nan,dog,test\n", "line 1: 'nan' is not a time"),
        ("abcdefghijk,-1,dog,test\n", "line 1: '-1' is not a time"),
        (VGGSOUND + "abcdefghijk,1,dog,dev\n", "line 3: need YTID,start,label,split"),
        (AUDIOSET + "abcdefghijk, 30.000\n", "line 6: need YTID, start, end"),
        ("video,start,lable\na,1,dog\n", "line 1: the header may have video,start,end,label,split"),
        ("video,start\n", "has no segment"),
        ("video,start,label\na,1\n", "line 2: need 3 cells"),
        ("video,start,split\na,1,test\na,1,train\n", "line 3: 'a' is in eval already"),
        ("video,start,split\na,1,dev\n", "line 2: split must be"),
        ('video,start\n"a,1\n', "line 2, can't be read as CSV: unexpected end"),
        ("video,start\n.,1\n", "line 2: '.' is not a name of a file"),
        ("video_id,label,modality\na,dog,A\n", "line 2: need a video_id such as ID_000030"),
        ("video_id,label,modality\na_000001,dog,B\n", "line 2: the modality must be one of A, V"),
        ("video_id,label,modality\n" + "a_000001,dog,A\n" * 2, "line 3: 'a_000001' has the label"),
        ("video_id,label,modality\n", "has no segment"),
        ("label,youtube_id,time_start,time_end\na,b,2\n", "line 2: need 4 cells, not 3"),
        (KINETICS.replace("validate", "dev"), "line 3: split must be one of"),
        ("video,start,start\na,1,1\n", "line 1: the header may have"),
        ("video,start\na,1e308\n", "line 2: '1e308' is not a time"),
    ],
)
def test_malformed_lists_are_told_with_their_line(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "trimmed", "span"),
    [
        ("--PJHxphWEs.mp4", False, (30.0, 40.0)),
        ("--PJHxphWEs.mp4", True, (0.0, 10.0)),
        ("sub/Y--PJHxphWEs.mkv", False, (30.0, 40.0)),
        ("A dog [--PJHxphWEs].webm", False, (30.0, 40.0)),
        ("A dog [--PJHxphWEs] 25-45.webm", False, (5.0, 15.0)),
        ("[--PJHxphWEs]-[30-40].mp4", False, (0.0, 10.0)),
        ("train/dog/v--PJHxphWEs_30_40_out.mkv", False, (0.0, 10.0)),
        ("--PJHxphWEs/video.mp4", False, (30.0, 40.0)),
        ("00017_--PJHxphWEs.mp4", False, (30.0, 40.0)),
        ("--PJHxphWEs_video.mp4", False, (30.0, 40.0)),
        ("--PJHxphWEs_1080p.mp4", False, (30.0, 40.0)),
        ("--PJHxphWEs.f137.mp4", False, (30.0, 40.0)),
        ("--PJHxphWEs_000030.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_30.000_40.000.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_30000_40000.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_30000.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_30.0-40.0.mp4", False, (0.0, 10.0)),
        ("x--PJHxphWEs_30_40_out.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs.30-40.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_00:00:30-00:00:40.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_start30_end40.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_t30.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs/30_40.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs/000030.MP4", False, (0.0, 10.0)),
        ("--PJHxphWEs/1080p.mp4", False, (30.0, 40.0)),
        ("--PJHxphWEs (1).mp4", False, (30.0, 40.0)),
        ("--PJHxphWEs_30_40 (1).mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_000030_000040.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_000030000_000040000.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs-30-40.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_30s_40s.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs_30-to-40.mp4", False, (0.0, 10.0)),
        ("clip_--PJHxphWEs_0030_0040.webm", False, (0.0, 10.0)),
        ("Y--PJHxphWEs_30.000.mp4", False, (0.0, 10.0)),
        ("dog/--PJHxphWEs.mp4.webm", False, (30.0, 40.0)),
        ("--PJHxphWEs/--PJHxphWEs_30_40.mp4", False, (0.0, 10.0)),
        ("--PJHxphWEs/31.mp4", False, None),
        ("--PJHxphWEs_000031.mp4", False, None),
        ("--PJHxphWEs_31000_41000.mp4", False, None),
        ("--PJHxphWEs_10_20.mp4", False, None),
        ("--PJHxphWEx.mp4", False, None),
    ],
)
def test_files_have_the_names_that_downloads_give_them(tmp_path, name, trimmed, span):
    made = clips(tmp_path, AUDIOSET, [name], trimmed).splits["train"]
    assert [clip.clip_id for clip in made] == ["--PJHxphWEs_000030", "--ZhevVpy1s_000000.500"]
    if span is None:
        assert made[0].refusal[0] == "missing"
        assert "segments.csv, line 4" in made[0].path
    else:
        assert (made[0].start, made[0].end) == span
        assert made[0].path == f"/v/{name}"
        assert made[0].refusal is None
    assert made[1].refusal[0] == "missing"


def test_a_piece_is_as_long_as_its_name_says_and_a_whole_video_longer_than_its_segment(tmp_path):
    def first(name, trimmed=False):
        return clips(tmp_path, AUDIOSET, [name], trimmed).splits["train"][0]

    assert first("--PJHxphWEs_30_40.mp4").cut_to == 10
    assert first("--PJHxphWEs_25000_45000.mp4").cut_to == 20
    assert first("--PJHxphWEs_000030.mp4").cut_to == 10
    assert first("--PJHxphWEs.mp4", trimmed=True).cut_to == 10
    whole = first("--PJHxphWEs.mp4")
    assert whole.cut_to is None and whole.listed == (30, 40)


@pytest.mark.parametrize(
    "text",
    [
        "--PJHxphWEs\t30\tdog\ttrain\n",
        "--PJHxphWEs;30;dog;Training\r\n",
        "YouTube ID,start seconds,label,split\n--PJHxphWEs,30,dog,train\n",
        "https://www.youtube.com/watch?v=--PJHxphWEs&t=30,30,dog,train\n",
        "https://youtu.be/--PJHxphWEs,0:30,dog,train\n",
        "--PJHxphWEs.mp4,30.000,dog,train\n",
        "--PJHxphWEs_000030.mp4,dog\n",
        "--PJHxphWEs,30,dog\n",
        "Label,Start,Video\ndog,00:00:30,--PJHxphWEs\n",
        ",File Name,start_time,class,subset\n0,--PJHxphWEs.mp4,30,dog,train\n",
        '"--PJHxphWEs";"30";"dog";"train"\r\n',
    ],
)
def test_lists_that_other_programs_have_touched(tmp_path, text):
    (made,) = clips(tmp_path, text, ["--PJHxphWEs.mkv"]).splits["train"]
    assert (made.clip_id, made.start, made.end) == ("--PJHxphWEs_000030", 30.0, 40.0)
    assert made.labels == ("dog",) and made.refusal is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_what_each_line_has(tmp_path, delimiter):
    rows = [("--PJHxphWEs", "30", "race car, auto; racing", "train")]
    rows += [("--ZhevVpy1s", "5", "dog", "train")]
    lines = [[f'"{cell}"' if delimiter in cell else cell for cell in row] for row in rows]
    text = "".join(delimiter.join(cells) + "\n" for cells in lines)
    first, second = read(tmp_path, text)
    assert (first.start, first.labels) == (30, ("race car, auto; racing",))
    assert (second.start, second.labels) == (5, ("dog",))


def test_audiosets_labels_without_quotes_and_segments_without_label_or_length(tmp_path):
    text = "--PJHxphWEs, 30.000, 40.000, /m/1,/m/2\n--ZhevVpy1s, 5.000, 5.000, /m/1\n"
    text += "-0abcdefghi, 3.000, 2.000, /m/2\n"
    names = ["--PJHxphWEs.mp4", "--ZhevVpy1s.mp4", "-0abcdefghi.mp4"]
    first, *others = clips(tmp_path, text, names).splits["train"]
    assert first.labels == ("/m/1", "/m/2")
    assert [clip.refusal[0] for clip in others] == ["too_short"] * 2
    assert "line 3: the end 2 is not after the start 3" in others[1].refusal[1]
    (made,) = clips(tmp_path, "--PJHxphWEs,30,,train\n", names).splits["train"]
    assert made.labels == ()


@pytest.mark.parametrize(
    "names",
    [
        ("a/--PJHxphWEs.mp4", "b/--PJHxphWEs.webm"),
        ("--PJHxphWEs.mp4", "--PJHxphWEs.mkv"),
        ("--PJHxphWEs_30_40.mp4", "--PJHxphWEs_30000_40000.mp4"),
    ],
)
def test_a_segment_with_two_files_is_a_reject_that_names_both(tmp_path, names):
    made = clips(tmp_path, AUDIOSET, [*names, "--ZhevVpy1s.mp4"])
    first, second = made.splits["train"]
    assert first.refusal[0] == "ambiguous" and second.refusal is None
    assert "line 4: '--PJHxphWEs' may be" in first.refusal[1]
    assert all(f"/v/{name}" in first.refusal[1] for name in names)
    assert made.unused == []


def test_two_segments_that_one_trimmed_file_may_hold_are_rejects(tmp_path):
    text = "--PJHxphWEs,30,dog,train\n--PJHxphWEs,120,violin,eval\n--ZhevVpy1s,30,dog,train\n"
    made = clips(tmp_path, text, ["--PJHxphWEs.mp4", "--ZhevVpy1s.mp4"], trimmed=True, split=None)
    (dog, other), (violin,) = made.splits["train"], made.splits["eval"]
    assert dog.refusal[0] == violin.refusal[0] == "ambiguous" and other.refusal is None
    assert "/v/--PJHxphWEs.mp4 may hold this segment or that of " in dog.refusal[1]
    assert "line 2" in dog.refusal[1] and "line 1" in violin.refusal[1] and made.unused == []
    named = ["--PJHxphWEs_30_40.mp4", "--PJHxphWEs_120_130.mp4", "--ZhevVpy1s.mp4"]
    made = clips(tmp_path, text, named, trimmed=True, split=None)
    assert not any(clip.refusal for of_split in made.splits.values() for clip in of_split)


def test_a_clip_without_a_split_is_where_the_lists_put_its_file(tmp_path):
    names = [f"video{number:02}.mp4" for number in range(25)]
    said = "file,start,end,split\n" + "".join(
        f"{name},0,10,{('eval', 'train')[number % 2]}\n" for number, name in enumerate(names[:20])
    )
    unsaid = "file,start,end\n" + "".join(f"{name},30,40\n" for name in names)
    for lists in ([said, unsaid], [unsaid, said]):
        made = clips(tmp_path, lists, names, split=None, eval_share=0.5)
        splits = {
            split: {Path(clip.path).stem for clip in found} for split, found in made.splits.items()
        }
        assert not splits["train"] & splits["eval"]
        assert {name for name in splits["train"] if name < "video20"} == {
            f"video{number:02}" for number in range(1, 20, 2)
        }


def test_copies_in_the_folders_of_several_labels_are_one_file(tmp_path):
    for name, content in (("dog", b"xy"), ("bark", b"xy"), ("cat", b"other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"--PJHxphWEs_30_40{MARKS.get(name, '')}.mp4").write_bytes(content)
    found = read(tmp_path, AUDIOSET, "train")
    known = csv_files.classes_of([label for segment in found for label in segment.labels])
    for names, refused in ((("bark", "dog"), None), (("bark", "cat"), "ambiguous")):
        files = [Path(name) / f"--PJHxphWEs_30_40{MARKS.get(name, '')}.mp4" for name in names]
        both = [Video(epath.Path(tmp_path / file), file) for file in files]
        made = segments.segment_clips(
            both, found, known, trimmed=False, seconds=10.0, eval_share=0.0
        )
        refusal = made.splits["train"][0].refusal
        assert (refusal and refusal[0]) == refused and made.unused == []


def test_a_merged_file_goes_before_its_parts_and_a_piece_before_the_whole(tmp_path):
    for names in (
        ("--PJHxphWEs.f137.mp4", "--PJHxphWEs.mp4", "--PJHxphWEs.temp.mp4"),
        ("--PJHxphWEs.mkv", "--PJHxphWEs_30_40.mp4", "--PJHxphWEs_50_60.mp4"),
        ("--PJHxphWEs_20_50.mp4", "--PJHxphWEs_30_40.mp4"),
    ):
        clip = clips(tmp_path, AUDIOSET, names).splits["train"][0]
        assert clip.path == f"/v/{names[1]}"


def test_names_that_no_segment_has_are_told(tmp_path):
    made = clips(tmp_path, AUDIOSET, ["--PJHxphWEs.mp4", "x.mp4", "--PJHxphWEs_50_60.mp4"])
    assert [video.name.name for video in made.unused] == ["x.mp4", "--PJHxphWEs_50_60.mp4"]


def test_a_pattern_reads_any_names(tmp_path):
    pattern = segment_files.read_pattern(r"clip(?P<start>\d+)-(?P<end>\d+)/(?P<id>.{11})$")
    made = clips(tmp_path, AUDIOSET, ["clip30-40/--PJHxphWEs.mp4"], pattern=pattern)
    clip = made.splits["train"][0]
    assert (clip.start, clip.end, clip.cut_to) == (0.0, 10.0, 10.0)
    own = segment_files.read_pattern("^film_(?P<id>[0-9]+)")
    text = "video,start,end\n17,5,15\n"
    (clip,) = clips(tmp_path, text, ["film_17_hd.mp4"], pattern=own).splits["train"]
    assert (clip.path, clip.start, clip.end) == ("/v/film_17_hd.mp4", 5.0, 15.0)
    for wrong in ("(", "[a-z]+"):
        with pytest.raises(UserError, match="--name_pattern="):
            segment_files.read_pattern(wrong)


def test_a_long_segment_is_cut_into_clips(tmp_path):
    text = "video,start,end,label\na.mp4,0,30,dog\na.mp4,40,64,cat\na.mp4,80,87,cat\n"
    made = clips(tmp_path, text, ["a.mp4"], rest=5.0)
    spans = [(clip.clip_id, clip.start, clip.end, clip.labels) for clip in made.splits["train"]]
    assert spans == [
        ("a_000000", 0, 10, ("dog",)),
        ("a_000010", 10, 20, ("dog",)),
        ("a_000020", 20, 30, ("dog",)),
        ("a_000040", 40, 50, ("cat",)),
        ("a_000050", 50, 60, ("cat",)),
        ("a_000080", 80, 87, ("cat",)),
    ]
    assert made.tails == [4.0]
    longer = clips(tmp_path, text, ["a.mp4"], rest=4.0)
    assert longer.splits["train"][5].clip_id == "a_000060" and longer.tails == []


def test_spans_that_share_a_start_have_ids_of_their_own(tmp_path):
    text = "video,start,end\na.mp4,0,10\na.mp4,0,5\nb.mp4,0,5\nb.mkv,0,5\n"
    made = clips(tmp_path, text, ["a.mp4", "b.mp4", "b.mkv"]).splits["train"]
    assert [clip.clip_id for clip in made] == [
        "a.mp4_000000_000010",
        "a.mp4_000000_000005",
        "b.mp4_000000_000005",
        "b.mkv_000000_000005",
    ]


def test_mids_become_names_and_strangers_are_told(tmp_path):
    known = classes(tmp_path)
    assert known.names == ("Speech", "Gush", "Toothbrush, electric")
    assert known.named("/t/dd00088", "x") == known.named("Gush", "x") == "Gush"
    vggsound = csv_files.Classes(("airplane", "railroad car_ train wagon"), {})
    assert vggsound.named("railroad car, train wagon", "x") == "railroad car_ train wagon"
    with pytest.raises(UserError, match=r"line 7: '/t/dd0008' .* did you mean '/t/dd00088'"):
        known.named("/t/dd0008", "list.csv, line 7")


def test_the_program_prepares_published_lists(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    make_video(folder / "--PJHxphWEs.mp4", seconds=5, fps=10)
    make_video(folder / "Y---g-f_I2yQ.mp4", seconds=3, fps=10)
    train, held_out = tmp_path / "train.csv", tmp_path / "eval.csv"
    train.write_text(AUDIOSET.replace("30.000, 40.000", "2.000, 4.000"))
    held_out.write_text('---g-f_I2yQ, 1.000, 3.000, "/t/dd00088"\n')
    (tmp_path / "classes.csv").write_text(CLASSES)
    done = program(
        folder,
        f"--segments=train={train}",
        f"--segments=eval={held_out}",
        f"--classes={tmp_path / 'classes.csv'}",
        f"--output={tmp_path / 'out'}",
        *("--num_frames=4", "--image_size=32", "--workers=1", "--compute_stats"),
    )
    assert done.returncode == 0, done.stderr
    assert "2 examples: 1 in train, 1 in eval" in done.stdout
    splits = splits_of(tmp_path / "out")
    record = splits["train"]["--PJHxphWEs_000002"]
    assert list(record["labels"]) == [0, 1]
    assert [number(decode_jpeg(frame)) for frame in record["frames"]] == [20, 25, 30, 35]
    assert len(record["fbank"]) == 198
    assert list(splits["eval"]["---g-f_I2yQ_000001"]["labels"]) == [1]
    with (tmp_path / "out" / "rejects.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["clip_id"], row["reason"]) == ("--ZhevVpy1s_000000.500", "missing")
    assert f"{train}, line 5" in row["detail"]
