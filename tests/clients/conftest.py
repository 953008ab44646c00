"""A server of its own for the clients, on a free port, ended with the tests."""

import os
import subprocess
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def serve(model, *more):
    """Runs a server with a model of the fixtures, and yields its base URL."""
    program = os.environ["PERCEPT"]
    command = [program, "serve", str(FIXTURES / model), "--port", "0", "--log", "warn", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, line
        yield line.strip().rsplit(" ", 1)[1]
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def server():
    yield from serve("llava", "--alias", "gpt-4o")


@pytest.fixture(scope="session")
def speech_server():
    yield from serve("whisper", "--alias", "whisper-1", "--max-audio-bytes", "2MB")
