"""The benchmarks of buckets run, and read the same bytes on each of their sides."""

import json

import pytest
from benchmark_tables import FLAGS, table

from benchmarks.data import bucket_emulator, bucket_faults, layouts, streaming
from benchmarks.training.faults import Run
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils.errors import UserError

pytestmark = pytest.mark.release


def test_streaming_times_the_bucket_beside_the_disk(dataset_dir, capsys, monkeypatch):
    sizes = ["--examples=16", "--repeats=1", "--latency_ms", "1", "--requests", "1", "4"]
    given = ["streaming", *FLAGS, *sizes, f"--data={dataset_dir}", "--own=2"]
    monkeypatch.setattr("sys.argv", given)
    streaming.main()
    rows, header = table(capsys.readouterr().out)
    assert header == [*streaming.COLUMNS]
    assert list(rows)[:3] == ["disk", "1 ms, 1 in flight", "1 ms, 4 in flight"]
    assert rows["disk"][1] == "100 (100–100)"
    most = [int(cells[-1]) for name, cells in rows.items() if "in flight" in name]
    assert most[0] == 1 < most[1] <= 4


def test_layouts_read_the_parts_that_an_example_needs(dataset_dir, tmp_path, capsys, monkeypatch):
    records, chosen = loader.Records(dataset_dir, "train"), [(0, 0), (3, 3), (3, 1)]
    whole, halves, halves_between, bytes_, bytes_between = layouts.layouts(
        records, tmp_path, chosen, 96
    )
    for layout, width in ((halves, 2), (bytes_, 1)):
        data = layout.path.read_bytes()
        for (clip, frame), (jpeg, window) in zip(chosen, layout.spans, strict=True):
            assert data[jpeg.begin : jpeg.end] == records[clip]["frames"][frame]
            assert window.end - window.begin == 96 * 128 * width
    for layout, width in ((halves_between, 2), (bytes_between, 1)):
        data = layout.path.read_bytes()
        for (clip, frame), (span,) in zip(chosen, layout.spans, strict=True):
            read, frames = data[span.begin : span.end], records[clip]["frames"]
            assert frames[frame] in read
            pictures = sum(len(jpeg) for jpeg in frames if jpeg in read)
            assert len(read) == 96 * 128 * width + pictures
    record = whole.path.read_bytes()[slice(*whole.spans[1][0])]
    assert record == records.shards.read(3)
    given = ["layouts", f"--data={dataset_dir}", "--rows=96", "--examples=4", "--repeats=1"]
    monkeypatch.setattr("sys.argv", [*given, "--latency_ms=1"])
    layouts.main()
    rows, _ = table(capsys.readouterr().out)
    assert float(rows["whole records"][0]) > float(rows["JPEGs and uint8 log-mel apart"][0])


def test_faults_in_a_bucket_are_noticed(tmp_path):
    run = Run(tmp_path, tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    bucket_faults.same(run, {1: 0.5})
    for reference in ({1: 0.25}, {1: 0.5, 2: 0.5}):
        with pytest.raises(UserError, match="differ"):
            bucket_faults.same(run, reference)
    store = bucket_emulator.Store(tmp_path / "store")
    store.write("bucket", "a/summary.json", b"gs://bucket/a/noise")
    assert bucket_faults.contents(store, "a") == {"/summary.json": b"noise"}
