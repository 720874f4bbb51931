"""Lists of segments with a header: each column means what its name says, wherever it stands."""

import re

import pytest
from media_files import make_video
from segment_clips import clips, read

from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import Preparation, prepare_clip
from data_prep.sources import csv_files

ID = "--PJHxphWEs"


@pytest.mark.parametrize("header", ["", "video\n", "video_id\n", ",filename\n"])
@pytest.mark.parametrize("name", [f"{ID}_30_40", f"{ID}_000030.mp4"])
def test_a_list_may_hold_names_alone(tmp_path, header, name):
    index = "0," if header.startswith(",") else ""
    made = clips(tmp_path, f"{header}{index}{name}\n", [f"{ID}.mp4"], split="eval")
    (clip,) = made.splits["eval"]
    assert (clip.clip_id, clip.start, clip.end, clip.labels) == (f"{ID}_000030", 30.0, 40.0, ())


@pytest.mark.parametrize(
    "text",
    [
        f"video_id,start,end,label,split\n{ID},30,40,dog,test\n",
        f"label,video_id,split,start,end\ndog,{ID},test,30,40\n",
        f"start,end,YouTube ID,label,split\n30.0,40.0,{ID},dog,test\n",
        f",video_id,start,label,split\n0,{ID},30,dog,test\n",
        f"index;ytid;start_seconds;end_seconds;class;set\r\n0;{ID};30;40;dog;test\r\n",
        f"Unnamed: 0\tyoutube_id\tonset\toffset\tcategory\tsubset\n7\t{ID}\t30\t40\tdog\ttest\n",
        f"video_id,start_ms,end_ms,label,split\n{ID},30000,40000,dog,test\n",
        f"ytid,Start Time (ms),End Time (ms),label,split\n{ID},30000.0,40000.0,dog,test\n",
        f"url,start,end,label,split\nhttps://youtu.be/{ID},30,40,dog,test\n",
        f"video,start,label,split\nhttps://www.youtube.com/watch?v={ID},0:30,dog,test\n",
        f"filename,label,split\n{ID}_000030.mp4,dog,test\n",
        f"split,video_id,label\ntest,{ID}_000030,dog\n",
        f"idx,video_id,start,label,split\n1,{ID},30,dog,test\n",
        f"video_id,start,duration,label,split\n{ID},30,10,dog,test\n",
        f"ytid;onset;Length (ms);tags;set\n{ID};30,0;10000;dog;test\n",
        f"filename\tevent_labels\tsplit\n{ID}_30_40\tdog\ttest\n",
        f"clip_id,label,split\n{ID}_30,dog,test\n",
        f"path,label,split\nvideos/test/{ID}_000030.mp4,dog,test\n",
    ],
)
def test_columns_may_stand_in_any_order_under_many_names(tmp_path, text):
    made = clips(tmp_path, text, [f"{ID}.mp4"], split=None)
    assert set(made.splits) == {"eval"}
    ((clip,),) = made.splits.values()
    assert (clip.clip_id, clip.start, clip.end) == (f"{ID}_000030", 30.0, 40.0)
    assert clip.labels == ("dog",) and clip.refusal is None and clip.listed == (30, 40)


@pytest.mark.parametrize(
    "text",
    [
        f"video_id,start,end,split\n{ID},30,40,train\n",
        f"youtube_id,end,start,split\n{ID},40,30,train\n",
    ],
)
def test_a_column_is_no_label_because_of_its_place(tmp_path, text):
    (segment,) = read(tmp_path, text)
    assert (segment.start, segment.end) == (30, 40)
    assert segment.labels == () and segment.split == "train"


@pytest.mark.parametrize("head", ["video_id,start,end,label\n", "video,start,end,label\n", ""])
def test_a_name_keeps_its_commas_and_mids_are_several(tmp_path, head):
    (segment,) = read(tmp_path, f'{head}{ID},30,40,"train horn, whistle"\n')
    assert segment.labels == ("train horn, whistle",)
    (segment,) = read(tmp_path, f'{head}{ID},30,40,"/m/09x0r,/t/dd00088"\n')
    assert segment.labels == ("/m/09x0r", "/t/dd00088")


@pytest.mark.parametrize(
    ("header", "cell", "labels"),
    [
        ("labels", "Speech,Dog", ("Speech", "Dog")),
        ("tags", "Speech; Dog|Cat", ("Speech", "Dog", "Cat")),
        ("event_labels", "/m/09x0r,/t/dd00088", ("/m/09x0r", "/t/dd00088")),
        ("labels", "railroad car, train wagon", ("railroad car, train wagon",)),
        ("label", "Speech;Dog", ("Speech;Dog",)),
    ],
)
def test_a_column_of_several_labels_says_so(tmp_path, header, cell, labels):
    (segment,) = read(tmp_path, f'video,start,{header}\na.mp4,1,"{cell}"\n')
    assert segment.labels == labels
    (tmp_path / "labels.csv").write_text(f'video,{header}\na.mp4,"{cell}"\n')
    found = csv_files.read_labels(tmp_path / "labels.csv", lambda name: [name])
    assert found.rows["a.mp4"].labels == labels


@pytest.mark.parametrize(
    ("text", "seconds"), [("30,5", 30.5), ("0:30,5", 30.5), ("00:00:30,500", 30.5)]
)
def test_decimal_commas_are_read(tmp_path, text, seconds):
    (segment,) = read(tmp_path, f"video;start;label\na.mp4;{text};dog\n")
    assert segment.start == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video;start\na;1,234\n", "line 2: '1,234' is not a time in seconds"),
        ("video,start,end,duration\na,1,3,2\n", "leave out the column 'duration'"),
        (f"clip_id,label\n{ID}_30000,dog\n", "line 2: need a start in seconds"),
        (
            f"segment_id,start_time,label\n{ID}_30000,0.0,dog\n",
            "line 1: 'start_time' is not a time",
        ),
        (f"part,when,label\n{ID},30,dog\n", "nor is the line a header with the columns video"),
        (f"video_id,start_frame,label\n{ID},30,dog\n", "leave out the column 'start_frame'"),
        (f"video_id,start,label,title\n{ID},30,dog,x\n", "leave out the column 'title'"),
        # An offset may be where a clip begins, unless an onset stands beside it.
        (f"filename,offset,label\n{ID}_000030.mp4,10,dog\n", "leave out the column 'offset'"),
        (f"video_id,start,start_ms,label\n{ID},3,3000,dog\n", "leave out the column 'start'"),
        (f"video_id,start_ms\n{ID},soon\n", "line 2: 'soon' is not a time in milliseconds"),
        (f"video_id,start,end\n{ID},,40\n", "line 2: '' is not a time in seconds"),
        (f"video_id,label\n{ID},dog\n", "line 2: need a start in seconds, or YTID_000030.mp4"),
    ],
)
def test_a_header_that_can_be_misread_is_told(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path, text)


def test_ids_that_are_no_youtubes_are_names_of_files(tmp_path):
    text = "video_id,start,end,label\nkitchen_12,1,3,dog\n"
    made = clips(tmp_path, text, ["a/kitchen_12.mov"], split=None)
    ((clip,),) = made.splits.values()
    assert (clip.path, clip.start, clip.end) == ("/v/a/kitchen_12.mov", 1.0, 3.0)


@pytest.mark.parametrize("name", ["a.mp4", f"{ID}.mp4"])
def test_a_file_of_nothing_but_its_segment_is_not_taken_for_the_video(tmp_path, name):
    make_video(tmp_path / name, seconds=10, fps=2)
    preparation = Preparation(num_frames=2, image_size=32)

    def reason(start, end, **settings):
        text = f"video,start,end,label\n{name},{start},{end},dog\n"
        made = clips(tmp_path, text, [name], split=None, **settings)
        ((clip, *_),) = made.splits.values()
        here = clip.__class__(**vars(clip) | {"path": str(tmp_path / name)})
        return getattr(prepare_clip(here, preparation), "reason", None)

    # The list means 3 to 13 s of a video, and the file ends at 10 s.
    assert reason(3, 13) == reason(4.5, 14) == "wrong_length"
    assert reason(3, 13, trimmed=True) is None
    assert reason(3, 8) is None and reason(0, 10) is None
    assert reason(7, 12) is None  # the video ends before the segment does
