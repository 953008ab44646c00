"""Runs the official packages' own tests of endpoints against a server of the demo models; prints what fails.

Called by sdk-suites.sh with the folder that has the sources of the packages.
"""

import collections
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from anthropic._data import DEPRECATED_MODELS

# Of each package: tests of endpoints that percept has, the base URL's end, and what its tests are run with.
SUITES = {
    "openai": (
        [
            "chat/test_completions.py",
            "test_responses.py",
            "test_completions.py",
            "test_embeddings.py",
            "audio/test_transcriptions.py",
            "audio/test_translations.py",
            "realtime/test_client_secrets.py",
            "test_files.py",
            "test_batches.py",
            "test_models.py",
        ],
        "/v1",
        [],
    ),
    "anthropic": (
        [
            "test_messages.py",
            "beta/test_messages.py",
            "messages/test_batches.py",
            "beta/messages/test_batches.py",
            "test_files.py",
            "beta/test_files.py",
            "test_models.py",
            "beta/test_models.py",
        ],
        "",
        ["-p", "tests._alias_httpx"],
    ),
}
# Kept chat completions and responses, which percept has not: it keeps none. Files and batches it keeps.
KEPT = {
    "chat/test_completions.py": "not (retrieve or update or list or delete)",
    "test_responses.py": "not (retrieve or delete or cancel or compact)",
}
EMBEDDER = "bert"
FIXTURES = Path(__file__).resolve().parents[1] / "tests/fixtures"


def files(folder, package):
    """The files of a suite, by the names above."""
    found = {name: folder / package / "tests/api_resources" / name for name in SUITES[package][0]}
    missing = [str(file) for file in found.values() if not file.is_file()]
    if missing:
        sys.exit(f"the package has no {', '.join(missing)} any more")
    return found


def aliases(folder):
    """The names that the tests ask for, and the models that they mean; speech models have theirs already."""
    found = {}
    for package in SUITES:
        for name, file in files(folder, package).items():
            if name.startswith(("audio/", "realtime/")):
                continue
            asked = r'\bmodel"?(?:=|: )"([^"]+)"'
            if name.endswith("test_models.py"):
                asked = r'(?:model_id=|retrieve\(\s*)"([^"]+)"'
            model = EMBEDDER if name == "test_embeddings.py" else "percept-demo-vlm"
            found |= dict.fromkeys(re.findall(asked, file.read_text()), model)
    # One test asks for each of these.
    found |= dict.fromkeys(DEPRECATED_MODELS, "percept-demo-vlm")
    return [f"--alias={name}={model}" for name, model in sorted(found.items())]


def failures(folder, package, url):
    """How many tests passed, and the reasons of failed ones, by test without its variants."""
    _, end, more = SUITES[package]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        for name, file in files(folder, package).items():
            kept = ["-k", KEPT[name]] if package == "openai" and name in KEPT else []
            command = [
                sys.executable,
                "-m",
                "pytest",
                "--quiet",
                "-o",
                "addopts=",
                "-W",
                "ignore",
                *more,
                *kept,
            ]
            done = subprocess.run(
                [*command, f"--junit-xml={report}", file.relative_to(folder / package)],
                cwd=folder / package,
                env=os.environ | {"TEST_API_BASE_URL": url + end},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            # 1 is that tests failed, more that they could not be run.
            if done.returncode > 1:
                sys.exit(f"{package} {name} could not be run:\n{done.stdout}")
            yield name, *read(report)


def read(report):
    passed, failed = 0, collections.defaultdict(collections.Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            name = case.get("name").split("[")[0]
            reason = re.sub("req_[0-9a-f]+", "req_…", " ".join(problem.get("message", "").split()))
            failed[name][reason] += 1
        elif case.find("skipped") is None:
            passed += 1
    return passed, failed


def main():
    folder = Path(sys.argv[1])
    models = ["percept-demo-vlm", "percept-demo-whisper", f"{EMBEDDER}={FIXTURES / EMBEDDER}"]
    with tempfile.TemporaryDirectory() as kept:
        options = [*aliases(folder), "--files", kept, "--port", "0", "--log", "error"]
        command = [os.environ["PERCEPT"], "serve", *models, *options]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            url = server.stdout.readline().strip().rsplit(" ", 1)[1].removesuffix("/v1")
            for package in SUITES:
                for file, passed, failed in failures(folder, package, url):
                    count = sum(sum(reasons.values()) for reasons in failed.values())
                    print(f"{package} {file}: {passed} passed, {count} failed", flush=True)
                    for name, reasons in sorted(failed.items()):
                        for reason, times in reasons.items():
                            print(f"    {name}, {times} times: {reason[:300]}", flush=True)
        finally:
            server.terminate()
            server.wait(timeout=120)


if __name__ == "__main__":
    main()
