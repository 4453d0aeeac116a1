"""Certificates for tests: an authority of `ferry host certs`, and what it issues."""
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("FERRY_BUILD", ROOT / "build"))
DEADLINE = 60


class Authority:
    """One certificate authority in a directory of its own."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.count = 0
        self.run("init")

    def run(self, verb, *words):
        done = subprocess.run([BUILD / "ferry", "host", "certs", verb, "--ca", self.directory / "ca", *words],
                              capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def issue(self, name, *words):
        """The path of a new bundle for NAME."""
        self.count += 1
        path = self.directory / f"{name}-{self.count}.pem"
        self.run("issue", name, *words, "--out", path)
        return path

    def issue_expired(self, name):
        self.count += 1
        path = self.directory / f"{name}-{self.count}.pem"
        subprocess.run([BUILD / "tests" / "host" / "expired_certificate", self.directory / "ca", name, path], check=True,
                       timeout=DEADLINE)
        return path
