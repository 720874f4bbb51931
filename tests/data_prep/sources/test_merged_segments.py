"""Segments that share seconds of a file: one clip with the labels of all, in one split."""

from pathlib import Path

import pytest
from segment_clips import clips, read

from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources import csv_files, segments

ID, OTHER = "--PJHxphWEs", "--ZhevVpy1s"
VGGSOUND = f"{ID},30,dog barking,test\n"
VGGSOUNDER = f"video_id,label,modality\n{ID}_000030,dog barking,A\n"
AUDIOCAPS = f"audiocap_id,youtube_id,start_time,caption\n1,{ID},30,A dog barks\n"


def test_a_segment_of_two_lists_is_one_clip_in_one_split(tmp_path):
    audioset = f'{ID}, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n{OTHER}, 0.500, 10.000, /m/1\n'
    more = f"{ID}, 30.000, 40.000, x\n"
    made = clips(tmp_path, [audioset, more], []).splits["train"]
    assert [clip.labels for clip in made] == [("/m/09x0r", "/t/dd00088", "x"), ("/m/1",)]
    found = [*read(tmp_path, audioset, "train"), *read(tmp_path, more, "eval")]
    known = csv_files.classes_of([label for segment in found for label in segment.labels])
    with pytest.raises(UserError, match=r"'--PJHxphWEs' is in train already, by .* line 1"):
        segments.segment_clips([], found, known, trimmed=False, seconds=10.0, eval_share=0.0)


def test_one_span_of_a_file_is_one_clip_whatever_lists_call_the_file(tmp_path):
    text = "video,start,end,label\nx/a.mp4,0,10,dog\na,0,10,cat\nA.MP4,0,10,cat\na.mp4,10,20,cow\n"
    made = clips(tmp_path, text, ["x/a.mp4"]).splits["train"]
    assert [(clip.labels, clip.start) for clip in made] == [(("dog", "cat"), 0), (("cow",), 10)]
    assert len({clip.clip_id for clip in made}) == 2
    text = "video,start,end,split\na.mp4,0,10,train\na,0,10,test\n"
    with pytest.raises(UserError, match=r"'a\.mp4' is in train already"):
        clips(tmp_path, text, ["a.mp4"], split=None)


@pytest.mark.parametrize("lists", [(VGGSOUNDER, VGGSOUND), (VGGSOUND, VGGSOUNDER)])
def test_how_a_label_is_perceived_is_kept_beside_a_list_that_does_not_say(tmp_path, lists):
    (clip,) = clips(tmp_path, lists, [f"{ID}.mp4"], split=None).splits["eval"]
    assert clip.labels == ("dog barking",) and clip.label_modalities == ("A",)


@pytest.mark.parametrize("tags", [("A", "V"), ("V", "AV")])
def test_two_writings_of_a_class_are_one_label(tmp_path, tags):
    text = "video_id,label,modality\n"
    text += (
        f'{ID}_000030,"railroad car, wagon",{tags[0]}\n{ID}_000030,railroad car_ wagon,{tags[1]}\n'
    )
    known = csv_files.Classes(("dog", "railroad car_ wagon"), {})
    (clip,) = clips(tmp_path, text, [f"{ID}.mp4"], split=None, classes=known).splits["eval"]
    assert clip.labels == ("railroad car_ wagon",) and clip.label_modalities == (tags[0],)
    mids = csv_files.Classes(("Speech",), {"/m/09x0r": "Speech"})
    both = f'{ID}, 30.000, 40.000, "/m/09x0r"\n{ID}, 30.000, 40.000, Speech\n'
    (clip,) = clips(tmp_path, both, [f"{ID}.mp4"], classes=mids).splits["train"]
    assert clip.labels == ("Speech",)


def test_a_file_is_in_one_split_whatever_lists_call_it(tmp_path):
    names = [f"k{number}.mp4" for number in range(40)]
    plain = "video,start,end\n" + "".join(f"{name},0,10\n" for name in names)
    other = "video,start,end\n" + "".join(f"x/{name[:-4]},10,20\n" for name in names)
    upper = "video,start,end\n" + "".join(f"{name.upper()},20,30\n" for name in names)
    found = [f"x/{name}" for name in names]

    def splits(*lists):
        made = clips(tmp_path, lists, found, split=None, eval_share=0.5).splits
        assert len(made) == 2
        return {(one.path, one.start): split for split, many in made.items() for one in many}

    alone, all_of_them = splits(plain), splits(plain, other, upper)
    assert len(all_of_them) == 120
    assert all(all_of_them[path, 10 * k] == alone[path, 0] for path, _ in alone for k in range(3))
    # The first name decides, as it did where a list has only one.
    for (path, _), split in alone.items():
        assert split == segments.hashed_split(Path(path).relative_to("/v/x"), 0.5)


def test_the_pieces_of_a_video_stay_with_the_whole(tmp_path):
    ids = [f"--PJHxphW{number:02}" for number in range(30)]
    names = [f"{one}_{start}_{start + 10}.mp4" for one in ids for start in (10, 20)]
    by_file = "video,start,end\n" + "".join(f"{name},0,5\n" for name in names)
    by_id = "".join(f"{one}, {start}, {start + 10}, dog\n" for one in ids for start in (10, 20))
    made = clips(tmp_path, [by_file, by_id], names, split=None, eval_share=0.5).splits
    of_id = {}
    for split, many in made.items():
        for clip in many:
            of_id.setdefault(clip.path.rpartition("/")[2][:11], set()).add(split)
    assert len(of_id) == 30 and all(len(one) == 1 for one in of_id.values())
    assert len(made) == 2


@pytest.mark.parametrize(
    ("lists", "names"),
    [
        ([f"{ID},30,dog,train\n", f"video,start,end,label,split\n{ID}.mp4,30,40,cat,eval\n"],
         [f"{ID}.mp4"]),
        ([f"{ID},30,dog,train\n", f"video,start,end,label,split\n{ID}_30_40.mp4,0,10,cat,eval\n"],
         [f"{ID}_30_40.mp4"]),
        (["video,start,end,label,split\na.mp4,0,20,dog,train\na.mp4,10,20,cat,eval\n"], ["a.mp4"]),
        (["video,start,end,label,split\na.mp4,0,,dog,train\na,0,10,cat,eval\n"], ["a.mp4"]),
    ],
)  # fmt: skip
def test_a_clip_in_two_splits_is_told_whatever_lists_call_it(tmp_path, lists, names):
    with pytest.raises(UserError, match=r"line \d: '.*' is in train already, by .*, line \d"):
        clips(tmp_path, lists, names, split=None)
    same = [text.replace(",eval", ",train") for text in lists]
    labels = [clip.labels for clip in clips(tmp_path, same, names, split=None).splits["train"]]
    assert labels[-1] == ("dog", "cat") and len(labels) in (1, 2)


def test_segments_that_overlap_give_each_clip_once(tmp_path):
    text = "video,start,end,label\na.mp4,0,20,x\na.mp4,10,20,y\na.mp4,10,15,z\na.mp4,5,20,x\n"
    made = clips(tmp_path, text, ["a.mp4"], rest=5.0).splits["train"]
    assert [(clip.clip_id, clip.start, clip.end, clip.labels) for clip in made] == [
        ("a_000000", 0, 10, ("x",)),
        ("a.mp4_000010_000020", 10, 20, ("x", "y")),
        ("a.mp4_000010_000015", 10, 15, ("z",)),
        ("a_000005", 5, 15, ("x",)),
        ("a_000015", 15, 20, ("x",)),
    ]
    twice = "video,start,end\na.mp4,0,24\na,10,24\n"
    assert clips(tmp_path, twice, ["a.mp4"], rest=5.0).tails == [4.0]


@pytest.mark.parametrize("names", [[f"{ID}.mp4"], [f"{ID}_30_40.mp4"], []])
def test_lists_with_and_without_an_end_have_the_same_clips(tmp_path, names):
    audioset = f"{ID}, 30.000, 40.000, /m/1\n"
    for lists in ([audioset, AUDIOCAPS], [AUDIOCAPS, audioset]):
        (clip,) = clips(tmp_path, lists, names).splits["train"]
        assert clip.clip_id == f"{ID}_000030" and clip.labels == ("/m/1",)
        assert (clip.refusal is None) == bool(names)


@pytest.mark.parametrize(("seconds", "end"), [(5.0, 35.0), (10.0, 40.0), (20.0, 40.0)])
def test_a_published_segment_ends_where_its_authors_end_it(tmp_path, seconds, end):
    (clip,) = clips(tmp_path, VGGSOUND, [f"{ID}.mp4"], split=None, seconds=seconds).splits["eval"]
    assert (clip.start, clip.end) == (30.0, end)
    own = "video,start\na.mp4,30\n"
    (clip,) = clips(tmp_path, own, ["a.mp4"], seconds=seconds).splits["train"]
    assert clip.end == 30 + seconds


def test_a_list_without_splits_takes_that_of_another(tmp_path):
    for lists in ([VGGSOUND, AUDIOCAPS], [AUDIOCAPS, VGGSOUND]):
        made = clips(tmp_path, lists, [f"{ID}.mp4"], split=None).splits
        assert list(made) == ["eval"] and len(made["eval"]) == 1
