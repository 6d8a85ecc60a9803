"""Triton's interpreter where there is no GPU, chosen before anything imports Triton; and scripts called in
this process.
"""

import importlib
import io
import os
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from unittest import mock

from lab.device import run_torch_script

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


# Files that take longest; begun last, one of them would keep a single worker busy at the end.
LONG = ("test_flash.py", "test_trust.py", "test_experiments.py", "test_docs.py", "test_processes.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


def skip_without_interpreter(way):
    """Skip a test that has this backend compute on a CPU, if Triton's kernels cannot: Triton is missing, or
    compiles them for the GPU that is there.
    """
    if way == "triton" and (torch.cuda.is_available() or pytest.importorskip("triton") is None):
        pytest.skip("on a GPU the kernels do not run on a CPU's tensors")


def call(name, *arguments, stdin="", check=False):
    """Run a script as its command line does, but here → SimpleNamespace(returncode, stdout, stderr).

    It is a hundred times faster than a process that must import torch. A traceback is raised, not printed.
    check: fail unless it exits with 0.
    """
    main, arguments = importlib.import_module(name).main, [str(argument) for argument in arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        mock.patch("sys.argv", [f"{name}.py", *arguments]),
        mock.patch("sys.stdin", io.StringIO(stdin)),
        pytest.raises(SystemExit) as stop,
    ):
        run_torch_script(lambda: main(arguments))
    out = SimpleNamespace(returncode=stop.value.code or 0, stdout=stdout.getvalue(), stderr=stderr.getvalue())
    assert not check or out.returncode == 0, out.stderr[-2000:]
    return out


def error_line(out):
    """The one line of a user error: exit code 2, nothing else on stderr."""
    lines = out.stderr.strip().splitlines()
    assert out.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), (out.returncode, lines)
    return lines[0]
