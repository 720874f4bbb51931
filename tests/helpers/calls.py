"""Calls of programs in this process."""

import contextlib
import importlib
import io
import sys
from unittest import mock

import pytest


def call_here(program, *arguments):
    """Calls a program's `main` in this process, which saves its imports: (status, out, err)."""
    out, err, argv = io.StringIO(), io.StringIO(), [program, *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        importlib.import_module(program).main()
    return ended.value.code, out.getvalue(), err.getvalue()
