"""A short run of scripts/chaos.py: docs/reliability.md has what a long one says."""

import json
import subprocess
import sys
from pathlib import Path

import openai
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/chaos.py"


@pytest.mark.skipif(int(openai.__version__.split(".")[0]) < 3, reason="it uses no package: once is enough")
def test_clients_of_all_manners_and_a_kill(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-B", str(SCRIPT), "--folder", str(tmp_path / "server"), "--json", str(report)]
    command += ["--clients", "40", "--seconds", "15", "--kill-every", "7", "--think", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    found = json.loads(report.read_text())
    assert found["kills"] >= 1 and found["lines of batches"]["answered"] > 0
