"""A server of its own for the clients, on a free port, ended with the tests."""

import os
import subprocess
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.fixture(scope="session")
def server():
    program = os.environ["PERCEPT"]
    command = [program, "serve", str(FIXTURES / "llava"), "--port", "0", "--alias", "gpt-4o", "--log", "warn"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, line
        yield line.strip().rsplit(" ", 1)[1]
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
