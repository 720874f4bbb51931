"""The session with a device: its parts are commands that exist, it goes on after a failure."""

import importlib
import json
import os
import sys
from unittest import mock

import pytest

from benchmarks.training import device_session
from benchmarks.training.device_session import Part
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

pytestmark = pytest.mark.release


def parser_of(name):
    """What a benchmark would parse with."""
    found = []
    with mock.patch.object(cli, "main", lambda parser, run, **_: found.append(parser)):
        importlib.import_module(name).main()
    return found[0]


@pytest.mark.parametrize("tiny", [False, True])
def test_every_part_is_a_command_that_its_program_takes(tiny):
    for part in device_session.parts(tiny).values():
        flags = [flag for flag in part.flags if not flag.startswith("--config")]
        if part.writes_json:
            flags.append("--output=x")
        with mock.patch.dict(os.environ):  # benchmarks set what JAX reads
            parser_of(part.module).parse_args(flags)


def python(code, **environment):
    """A part that runs a line of Python with the part's flags."""
    return Part("timeit", ("-n1", "-r1", code), environment, False)


def test_a_failure_does_not_stop_the_others_and_done_parts_stay(tmp_path, capsys):
    trace = tmp_path / "trace"
    note = f"import os; open({str(trace)!r}, 'a').write(os.environ.get('MARK', '-'))"
    todo = {"bad": python("1 / 0"), "good": python(note, MARK="x")}
    with mock.patch.object(device_session, "device_kind", lambda: "none"):
        found = device_session.run(tmp_path / "out", todo, 1)
        assert found["parts"]["bad"]["status"] == "failed with status 1"
        assert found["parts"]["good"]["status"] == "done" and trace.read_text() == "x"
        assert json.loads((tmp_path / "out" / "session.json").read_text()) == found
        assert "ZeroDivisionError" in (tmp_path / "out" / "bad.log").read_text()
        # Again: what failed is tried again, what is done is not.
        again = device_session.run(tmp_path / "out", todo | {"bad": python(note)}, 1)
        assert again["parts"]["bad"]["status"] == "done" and trace.read_text() == "x-"
        # No time: nothing begins.
        assert not device_session.run(tmp_path / "later", todo, 0)["parts"]
    assert "bad: failed with status 1" in capsys.readouterr().out


def test_another_file_in_its_place(tmp_path):
    (tmp_path / "session.json").write_text("[]")
    with pytest.raises(UserError, match=r"session.json is not a session's"):
        device_session.run(tmp_path, {}, 1)


def test_what_is_missing_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device_session, "parts", lambda tiny: {"bad": python("1 / 0")})
    monkeypatch.setattr(device_session, "device_kind", lambda: "none")
    monkeypatch.setattr(sys, "argv", ["device_session", f"--output={tmp_path}"])
    with pytest.raises(SystemExit) as stopped:
        device_session.main()
    assert stopped.value.code == 3 and "not done: bad" in capsys.readouterr().err
