"""SIGKILL during whole commands: old outputs or new ones, never a mixture, never a wrong number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interp.files import places

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not places.LOCKS, reason="a dead process cannot be told from a living one")
@pytest.mark.parametrize("command", ["report", "probe", "icl", "weights"])
def test_a_killed_command_leaves_old_outputs_or_new_ones(command, tmp_path):
    run = [sys.executable, "-m", "tests.files.killed_runs", command, "15", str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["old"] + told["new"] == 15
