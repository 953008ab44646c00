"""A server of its own for the clients, on a free port, ended with the tests."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from demo import CHAT, CLAUDE

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def serve(model, *more):
    """Runs a server with a model of the fixtures, and yields its base URL."""
    yield from run(str(FIXTURES / model), *more)


run_fixture = contextlib.contextmanager(serve)


@contextlib.contextmanager
def serve_all(models):
    """A server of several, each under the name of its folder."""
    yield from run(*(f"{model}={FIXTURES / model}" for model in models), "--max-sequences", "16")


def run(*arguments):
    with launch(*arguments) as (url, _):
        yield url


@contextlib.contextmanager
def launch(*arguments):
    """Runs a server; its base URL, and the number of its process."""
    program = os.environ["PERCEPT"]
    command = [program, "serve", *arguments, "--port", "0", "--log", "warn"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, line
        yield line.strip().rsplit(" ", 1)[1], process.pid
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def server():
    yield from serve("llava", "--alias", "gpt-4o", "--alias", "claude-sonnet-4-5")


@pytest.fixture(scope="session")
def speech_server():
    yield from serve("whisper", "--alias", "whisper-1", "--max-audio-bytes", "2MB")


@pytest.fixture(scope="session")
def demo_server():
    """The two models that are part of the program, under names that applications have built in.

    What to ask them is in demo.py."""
    names = (f"--alias={name}=percept-demo-vlm" for name in (CHAT, CLAUDE))
    yield from run(*names)
