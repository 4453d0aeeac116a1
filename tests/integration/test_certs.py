"""Certificates: made, issued and installed without anybody knowing openssl's commands."""
import json
import os
import re
import stat
import subprocess

import pytest

from certs import BUILD, DEADLINE, Authority
from hosts import Hosts, assert_refused


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def ferry(tmp_path):
    """Runs ferry in a home of its own; returns what came of it."""
    environment = dict(os.environ, HOME=str(tmp_path), TZ="UTC")
    environment.pop("XDG_CONFIG_HOME", None)

    def run(*words, host=None):
        where = ["--host", str(host)] if host else []
        return subprocess.run([BUILD / "ferry", *where, *map(str, words)], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=DEADLINE)

    return run


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_authority_and_bundle_are_their_owners_alone(ferry, tmp_path):
    done = ferry("host", "certs", "init")
    assert done.returncode == 0, done.stderr
    assert "Keep authority.key to yourself" in done.stdout
    ca = tmp_path / ".config" / "ferry" / "ca"
    assert (mode(ca), mode(ca / "authority.key")) == (0o700, 0o600)
    done = ferry("host", "certs", "issue", "b", "10.0.0.2", "b.example.org")
    assert done.returncode == 0, done.stderr
    assert "on host b: ferry host certs install b.pem" in done.stdout
    assert mode(tmp_path / "b.pem") == 0o600
    assert re.search(r"^[0-9A-F]+\tb\tuntil 20", (ca / "issued").read_text(), re.M)
    # neither is overwritten
    again = ferry("host", "certs", "init")
    assert (again.returncode, again.stderr) == (1, f"ferry: there is a certificate authority in {ca} already\n")
    again = ferry("host", "certs", "issue", "b")
    assert again.returncode == 1 and "there is a file b.pem already" in again.stderr


def test_certificates_as_objects(ferry):
    made = json.loads(ferry("host", "certs", "init", "--ca", "ca", "--days", "100", "--json").stdout)
    assert made["directory"] == "ca"
    issued = json.loads(ferry("host", "certs", "issue", "b", "--ca", "ca", "--json").stdout)
    assert (issued["name"], issued["kind"], issued["file"]) == ("b", "host", "b.pem")
    assert issued["until"][:16] == made["until"][:16]  # not beyond its authority's end
    person = json.loads(ferry("host", "certs", "issue", "alice@x.org", "--ca", "ca", "--person", "--json").stdout)
    assert person["kind"] == "person"


@pytest.mark.parametrize("words, status, sentence", [
    (["issue", "b"], 1, "there is no certificate authority in ca; make one with: ferry host certs init"),
    (["issue", "b/c"], 2, '"b/c" is not a name for a certificate'),
    (["issue", "b", "--days", "0"], 2, "--days is 1 to 36500"),
    (["issue", "b", "--person", "1.2.3.4"], 2, "a person's certificate has no addresses"),
    (["init", "--days", "99999999"], 2, "--days is 1 to 36500"),
])
def test_what_cannot_be_issued_is_refused(ferry, words, status, sentence):
    done = ferry("host", "certs", *words, "--ca", "ca")
    assert done.returncode == status
    assert sentence in done.stderr


def test_running_host_takes_its_certificate_at_once(hosts, authority, ferry):
    host = hosts.start("b")
    assert host.get("/v1/host")["certificate"] is None
    assert host.get("/v1/host")["migration_status"] == "Host not licensed"
    shown = ferry("host", "show", host=host.state_dir).stdout
    assert "Host not licensed" in shown and "ferry host certs" in shown

    done = ferry("host", "certs", "install", authority.issue("b"), host=host.state_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Installed the certificate of b (from Ferry CA ")
    assert mode(host.state_dir / "certificate.pem") == 0o600
    seen = host.get("/v1/host")
    assert seen["migration_status"] == "Host enabled"
    assert seen["certificate"]["names"] == "DNS:b"
    assert seen["certificate"]["days_left"] in (729, 730)
    shown = ferry("host", "show", host=host.state_dir).stdout
    assert "valid until 20" in shown and "issue a new one" not in shown
    host.post("/v1/host/migration", {"enabled": False})
    assert host.get("/v1/host")["migration_status"] == "Host disabled"


def test_host_warns_before_its_certificate_ends(hosts, authority, ferry):
    host = hosts.start("b")
    assert ferry("host", "certs", "install", authority.issue("b", "--days", "29"), host=host.state_dir).returncode == 0
    assert re.search(r"ends in 2[89] days, 20.*: issue a new one", ferry("host", "show", host=host.state_dir).stdout)
    assert "the certificate of this host ends in 2" in host.log()
    assert ferry("host", "certs", "install", authority.issue("b", "--days", "32"), host=host.state_dir).returncode == 0
    assert "valid until 20" in ferry("host", "show", host=host.state_dir).stdout


def test_certificate_that_is_not_the_hosts_changes_nothing(hosts, authority, ferry, tmp_path):
    host = hosts.start("b")
    good = authority.issue("b")
    assert ferry("host", "certs", "install", good, host=host.state_dir).returncode == 0
    before = host.get("/v1/host")["certificate"]["until"]
    done = ferry("host", "certs", "install", authority.issue("c"), host=host.state_dir)
    assert done.returncode == 2
    assert done.stderr == "ferry: the certificate is that of c (DNS:c), not of host b\n"
    person = ferry("host", "certs", "install", authority.issue("b", "--person"), host=host.state_dir)
    assert person.returncode == 2 and "not of host b" in person.stderr
    # the key of one, the certificate of another
    mixed = tmp_path / "mixed.pem"
    mixed.write_text(good.read_text().split("-----BEGIN CERT")[0] +
                     authority.issue("b").read_text().split("-----END PRIVATE KEY-----\n")[1])
    mixed.chmod(0o600)
    done = ferry("host", "certs", "install", mixed, host=host.state_dir)
    assert done.returncode == 2 and "no certificate that belongs to its key" in done.stderr
    good.chmod(0o644)
    done = ferry("host", "certs", "install", good, host=host.state_dir)
    assert done.returncode == 1 and "everybody may read it" in done.stderr
    assert host.get("/v1/host")["certificate"]["until"] == before


def test_install_while_ferryd_does_not_run(hosts, authority, ferry):
    host = hosts.new("b")
    host.state_dir.mkdir()
    done = ferry("host", "certs", "install", authority.issue("b"), host=host.state_dir)
    assert done.returncode == 0, done.stderr
    assert "ferryd does not run" in done.stdout
    host.start()
    assert host.get("/v1/host")["certificate"]["name"] == "b"
    assert host.stop() == 0
    # and when it was killed, its socket still there
    host.start()
    host.process.kill()
    host.process.wait()
    host.process.stderr.close()
    host.process = None
    assert ferry("host", "certs", "install", authority.issue("b"), host=host.state_dir).returncode == 0


def test_ferryd_does_not_start_with_what_is_no_certificate_of_it(hosts, authority, ferry):
    host = hosts.new("b")
    host.state_dir.mkdir()
    file = host.state_dir / "certificate.pem"
    for content, words in ((authority.issue("c").read_text(), "not of host b"), ("rubbish", "no key")):
        file.write_text(content)
        file.chmod(0o600)
        done = subprocess.run([BUILD / "ferryd", "--state-dir", host.state_dir, "--name", "b"], capture_output=True,
                              text=True, timeout=DEADLINE)
        assert done.returncode == 1
        assert "this host's certificate" in done.stderr and words in done.stderr


def test_key_is_taken_by_the_unix_socket_only(hosts, authority, ferry):
    host = hosts.start("b")
    bundle = authority.issue("b")
    assert_refused(lambda: host.post("/v1/host/certificate", {"bundle": bundle.read_text()}, tcp=True), 400, "usage",
                   "Unix socket")
    done = ferry("host", "certs", "install", bundle, host=host.address)
    assert done.returncode == 2 and "on the host itself" in done.stderr
    assert host.get("/v1/host")["certificate"] is None


def test_certificate_of_a_user(ferry, authority, tmp_path):
    done = ferry("host", "certs", "install", "--user", authority.issue("alice", "--person"))
    assert done.returncode == 0, done.stderr
    file = tmp_path / ".config" / "ferry" / "certificate.pem"
    assert mode(file) == 0o600 and str(file) in done.stdout


def test_hosts_are_listed_with_their_status(hosts, authority, ferry):
    a, b = hosts.pair()
    rows = a.get("/v1/hosts")
    assert [(row["name"], row["migration_status"]) for row in rows] == [("a", "Host not licensed"),
                                                                        ("b", "Host not licensed")]
    assert "Host not licensed" in ferry("host", "list", host=a.state_dir).stdout
