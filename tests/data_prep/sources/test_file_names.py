"""What files' names say of spans: read in many ways, and believed where a segment agrees."""

import pytest
from segment_clips import clips

ID = "--PJHxphWEs"


def first(tmp_path, text, *names):
    return clips(tmp_path, text, names).splits["train"][0]


@pytest.mark.parametrize(
    "name",
    [
        # Clocks and decimals as file systems and countries have them.
        f"{ID}_00-00-30_00-00-40.mp4",
        f"{ID}_00.00.30-00.00.40.mp4",
        f"{ID}_00：00：30-00：00：40.mp4",
        f"{ID}_0m30s-0m40s.mp4",
        f"{ID}_0h00m30s.mp4",
        f"{ID}_30sec-40sec.mp4",
        f"{ID}_30,000-40,000.mp4",
        f"{ID}_30,0-40,0.mp4",
        # A start and how long it lasts.
        f"{ID}_30_10.mp4",
        # Numbers that do not follow the id at once.
        f"{ID}_dog_30_40.mp4",
        f"{ID}_video_30000_40000.mp4",
        f"{ID}.mp4_30_40.mp4",
        f"30_40_{ID}.mp4",
        f"30-40/{ID}.mp4",
        f"{ID}/clip_30_40.mp4",
    ],
)
def test_a_piece_is_found_however_its_span_is_written(tmp_path, name):
    clip = first(tmp_path, f"{ID}, 30.000, 40.000, dog\n", name)
    assert (clip.start, clip.end, clip.cut_to) == (0.0, 10.0, 10.0)


@pytest.mark.parametrize(
    "name",
    [f"00017_{ID}.mp4", f"{ID} Top 30 of 2019.mp4", f"{ID}_25fps.mp4", f"31_41_{ID}.mp4"],
)
def test_other_numbers_in_a_name_are_no_span(tmp_path, name):
    clip = first(tmp_path, f"{ID}, 30.000, 40.000, dog\n", name)
    assert (clip.start, clip.end, clip.cut_to) == (30.0, 40.0, None)


@pytest.mark.parametrize("pad", ["{}", "{:06d}", "{}_out"])
def test_seconds_of_one_piece_are_no_milliseconds_of_another(tmp_path, pad):
    text = f"{ID},0,dog,train\n{ID},10,cat,train\n"
    names = [f"{ID}_{pad.format(start)}.mp4" for start in (0, 10)]
    both = clips(tmp_path, text, names).splits["train"]
    assert [clip.path for clip in both] == [f"/v/{name}" for name in names]
    dog, cat = clips(tmp_path, text, names[1:]).splits["train"]
    assert dog.refusal[0] == "missing" and cat.path == f"/v/{names[1]}"


def test_a_number_is_what_the_list_has_at_that_second(tmp_path):
    text = f"{ID},1,dog,train\n{ID},1000,cat,train\n"
    dog, cat = clips(tmp_path, text, [f"{ID}_1000.mp4"]).splits["train"]
    assert dog.refusal[0] == "missing" and cat.refusal is None
    # Nothing begins at 1000 s, so that these are milliseconds.
    assert first(tmp_path, f"{ID},1,dog,train\n", f"{ID}_1000.mp4").refusal is None


@pytest.mark.parametrize("name", [f"{ID}_5_16000.mp4", f"{ID}_5_20190304.mp4"])
def test_a_rate_or_a_date_behind_the_start_moves_nothing(tmp_path, name):
    clip = first(tmp_path, f"{ID},5,dog,train\n", name)
    assert (clip.start, clip.end) == (0.0, 10.0)


def test_whole_seconds_are_those_of_a_start_without_a_fraction_if_there_is_one(tmp_path):
    text = f"{ID}, 30.000, 40.000, dog\n{ID}, 30.500, 40.500, cat\n"
    dog, cat = clips(tmp_path, text, [f"{ID}_30.mp4"]).splits["train"]
    assert dog.refusal is None and cat.refusal[0] == "missing"
    names = [f"{ID}_30.mp4", f"{ID}_30.5.mp4"]
    both = clips(tmp_path, text, names).splits["train"]
    assert [(clip.path, clip.refusal) for clip in both] == [(f"/v/{name}", None) for name in names]
    # With both files, the one that says the fraction, also where nothing begins at 30 s.
    alone = f"{ID}, 30.500, 40.500, cat\n"
    assert first(tmp_path, alone, *names).path == f"/v/{names[1]}"
    assert first(tmp_path, alone, names[0]).refusal is None
    # Of two starts with fractions, nobody knows which one it is: they stay two clips.
    text = f"{ID}, 30.250, 40.250, dog\n{ID}, 30.500, 40.500, cat\n"
    dog, cat = clips(tmp_path, text, names[:1]).splits["train"]
    assert (dog.labels, cat.labels) == (("dog",), ("cat",)) and dog.clip_id != cat.clip_id
