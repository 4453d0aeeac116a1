"""Hosts with certificates: they and ferry speak TLS only, VMs move encrypted, and who is not who he should be is refused by
name, the VM being where it was."""
import contextlib
import os
import random
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest

from certs import BUILD, DEADLINE, Authority
from fake_ferryd import FakeFerryd
from hosts import Hosts, TlsConnection, assert_refused, introduce, wait_until
from moving import STRESS, goes_on, needs_guests
from recorder import Recorder

UNLICENSED = "Host not licensed"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def other_authority(tmp_path):
    (tmp_path / "other").mkdir()
    return Authority(tmp_path / "other")


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


def licensed(hosts, name, bundle, *options):
    """A host that is started with the certificate in BUNDLE."""
    host = hosts.new(name, *options)
    host.license(bundle)
    return host.start()


def licensed_pair(hosts, authority, *options):
    a, b = (licensed(hosts, name, authority.issue(name, "127.0.0.1"), *options) for name in "ab")
    introduce(a, b)
    return a, b


def assert_stays(host, *elsewhere):
    assert host.vm("web")["state"] == "RUNNING"
    assert all(other.vm("web") is None for other in elsewhere)


@needs_guests
def test_hosts_with_certificates_talk_and_move_guests_encrypted(authority):
    with Hosts(vm_program=BUILD / "ferry-vm") as hosts:
        a, b = licensed_pair(hosts, authority)
        a.run("web", kernel=str(STRESS), cmdline="mem=2M rate=4M interval=20", memory=32 << 20)
        goes_on(a)
        with Recorder(b.address, b"HTTP/1.1", b'"definition"') as recorder:
            a.delete("/v1/hosts/b")
            a.post("/v1/hosts", {"name": "b", "address": recorder.address})
            demanded = a.move("web", b, tls=True)
            assert recorder.first and set(recorder.first) == {0x16}
            assert recorder.count == {b"HTTP/1.1": 0, b'"definition"': 0}
        assert demanded["outcome"] == "completed", demanded
        assert demanded["encryption"].startswith("TLSv1.3 with TLS_")
        goes_on(b)
        # without a word about it, too, and a forecast knows it
        assert b.post("/v1/vms/web/check", {"destination": "a", "forecast": True})["forecast"]["converges"]
        back = b.move("web", a)
        assert back["outcome"] == "completed", back
        assert back["encryption"] == demanded["encryption"]
        goes_on(a)


def test_hosts_with_certificates_refuse_who_has_none(hosts, authority, other_authority):
    b = licensed(hosts, "b", authority.issue("b", "127.0.0.1"))
    assert_refused(lambda: b.get("/v1/vms", tcp=True), 422, "refused", "host b speaks TLS only", UNLICENSED)
    assert_refused(lambda: b.get("/v1/vms", tls={}), 422, "refused", "host b wants to see a certificate of its CA")
    for bundle, words in ((other_authority.issue("alice", "--person"), "is not from the CA that is trusted here"),
                          (authority.issue_expired("a"), "has expired (20")):
        assert_refused(lambda bundle=bundle: b.get("/v1/vms", tls={"bundle": bundle}), 422, "refused",
                       "host b refuses this client", words)
    assert b.get("/v1/vms", tls={"bundle": authority.issue("alice", "--person")}) == []
    # whoever can sign in is still only who he is
    offer = {"id": "1b4e28ba-2fa1-41d2-883f-0016d3cca427", "definition": {"name": "web", "kernel": "/k"}, "source": "a",
             "protocol": b.get("/v1/host")["protocol"], "tls": True}
    assert_refused(lambda: b.post("/v1/incoming", offer, tls={"bundle": authority.issue("c")}), 422, "refused",
                   "it says that it is host a, but its certificate is that of c")
    with pytest.raises(ssl.SSLError):
        b.get("/v1/vms", tls={"bundle": authority.issue("a"), "newest": ssl.TLSVersion.TLSv1_2})


def test_host_without_certificate_is_not_licensed_for_encrypted_moves(hosts, authority):
    a, b = hosts.pair("--insecure")  # so that they talk while only one of them has one
    a.run("web")

    def encrypted():
        return a.post("/v1/vms/web/migrate", {"destination": "b", "tls": True})

    def assert_not_licensed(name):
        assert_refused(encrypted, 422, "refused", f"{UNLICENSED}: host {name} has no certificate")
        check = a.post("/v1/vms/web/check", {"destination": "b", "tls": True})
        assert not check["possible"] and UNLICENSED in check["checks"][0]["message"]
        assert_stays(a, b)

    assert_not_licensed("a")
    a.install(authority.issue("a"))
    assert_not_licensed("b")
    clear = a.move("web", b)  # --insecure allows it, and says so
    assert clear["outcome"] == "completed" and not clear.get("encryption")
    assert any(line["text"].startswith("in the clear: host b has no certificate") for line in a.get(f"/v1/migrations/{clear['id']}")["log"])
    assert b.move("web", a)["outcome"] == "completed"
    b.install(authority.issue("b"))
    assert a.get("/v1/hosts")[1]["migration_status"] == "Host enabled"
    assert a.post("/v1/vms/web/check", {"destination": "b", "tls": True})["possible"]


def test_hosts_that_demand_tls_take_nothing_else(hosts, authority):
    a, b = licensed_pair(hosts, authority, "--insecure", "--require-tls")
    c = hosts.start("c")
    assert_refused(lambda: b.get("/v1/vms", tcp=True), 422, "refused", "host b speaks TLS only")
    assert_refused(lambda: c.post("/v1/hosts", {"name": "b", "address": b.address}), 422, "refused", UNLICENSED)
    assert_refused(lambda: b.post("/v1/hosts", {"name": "c", "address": c.address}), 422, "refused",
                   f"at {c.address} does not speak TLS", UNLICENSED)
    assert [row["reachable"] for row in a.get("/v1/hosts")] == [True, True]


@pytest.mark.parametrize("case", ["other CA", "expired", "expired here", "another host"])
def test_host_with_a_certificate_that_is_not_right_gets_no_vm(hosts, authority, other_authority, case):
    a, b = licensed_pair(hosts, authority, "--peer-timeout", "3")
    a.run("web")
    address = b.address
    b.stop()
    wrong, words = {
        "other CA": (lambda: other_authority.issue("b"), "the certificate that host b at .* shows is not from the CA"),
        "expired": (lambda: authority.issue_expired("b"), r"the certificate that host b at .* shows has expired \(20"),
        "expired here": (lambda: authority.issue("b"), "host b refuses this client: the certificate .* has expired"),
        "another host": (lambda: authority.issue("c"), "the certificate that host b at .* shows is that of c"),
    }[case]
    if case == "another host":
        b = hosts.new("c")
        b.address = address
    if case == "expired here":
        a.stop()
        a.license(authority.issue_expired("a"))
        a.start()
    b.license(wrong())
    b.start()
    refused = assert_refused(lambda: a.migrate("web", hosts.hosts[1]), 422, "refused")
    assert re.search(words, refused.message), refused.message
    assert_stays(a, b)
    row = a.get("/v1/hosts")[1]
    assert not row["reachable"] and re.search(words, row["why"])


@pytest.mark.parametrize("options", [(), ("--insecure",)])
def test_plain_answer_of_a_host_that_has_a_certificate_is_refused(hosts, authority, tmp_path, options):
    a, b = licensed_pair(hosts, authority, *options)
    a.run("web")
    a.get("/v1/hosts")
    address = b.address
    b.stop()
    fake = FakeFerryd(tmp_path / "b", "b")
    fake.start(address)
    try:
        assert_refused(lambda: a.migrate("web", b), 422, "refused", f"host b at {address} does not speak TLS")
        assert_refused(lambda: a.migrate("web", b, tls=True), 422, "refused", "does not speak TLS")
        assert fake.requests == []
    finally:
        fake.close()
    assert_stays(a)


def test_offer_to_take_a_vm_in_the_clear_is_refused(hosts, authority, tmp_path):
    a = licensed(hosts, "a", authority.issue("a"))
    a.run("web")
    fake = FakeFerryd(tmp_path / "b", "b")
    fake.certificate = {"name": "b"}
    fake.protocol = a.get("/v1/host")["protocol"]
    fake.start(tls=authority.issue("b"))
    try:
        a.post("/v1/hosts", {"name": "b", "address": fake.address})
        assert_refused(lambda: a.migrate("web", fake), 422, "refused",
                       "host b would take VM web in the clear, although both hosts have certificates")
        assert fake.bodies("POST", "/v1/incoming")[-1]["tls"] is True
    finally:
        fake.close()
    assert_stays(a)


def test_encryption_that_was_demanded_is_still_so_after_a_restart_in_the_queue(hosts, authority):
    a, b = hosts.pair("--insecure", "--migrate-max", "1")
    for host in (a, b):
        host.install(authority.issue(host.name))
    a.run("first", cmdline="hang-send")
    a.run("web")
    first = a.migrate("first", b)
    queued = a.migrate("web", b, tls=True)
    b.stop()
    (b.state_dir / "certificate.pem").unlink()
    b.start()
    a.restart()
    a.post(f"/v1/migrations/{first}/cancel")
    end = a.finish(queued)
    assert end["outcome"] == "failed" and UNLICENSED in end["error"], end
    assert_stays(a, b)


# --- hostile clients ---

HALF_HELLO = b"\x16\x03\x01\x02\x00\x01"


def knock(host, data=b""):
    place, port = host.address.rsplit(":", 1)
    connection = socket.create_connection((place, int(port)), timeout=DEADLINE)
    with contextlib.suppress(OSError):  # it may have been turned away
        connection.sendall(data)
    return connection


def threads(host):
    return len(os.listdir(f"/proc/{host.process.pid}/task"))


def is_cut(connection):
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def drip(connection, cut):
    """A request that comes byte by byte, never silent for long."""
    for byte in b"GET /v1/host HTTP/1.1\r\nX-Nothing: " + bytes(10000):
        try:
            connection.sendall(bytes([byte | 1]))
        except OSError:
            cut.set()
            return
        if cut.wait(0.2):
            return


def test_who_stops_in_the_middle_keeps_nobody_else_waiting(hosts, authority):
    b = licensed(hosts, "b", authority.issue("b", "127.0.0.1"), "--peer-timeout", "2")
    alice = authority.issue("alice", "--person")
    assert b.get("/v1/vms", tls={"bundle": alice}) == []
    before = threads(b)
    slow = TlsConnection(b.address, DEADLINE)
    slow.connect()
    cut = threading.Event()
    dripping = threading.Thread(target=drip, args=(slow.sock, cut))
    dripping.start()
    crowd = [knock(b, HALF_HELLO) for _ in range(300)] + [knock(b) for _ in range(100)]
    # one address does not get all there is, so another host is served at once
    begin = time.monotonic()
    assert b.get("/v1/vms", tls={"bundle": alice, "source": "127.0.0.2"}) == []
    assert time.monotonic() - begin < 2
    assert threads(b) <= before + 130
    assert all(is_cut(connection) for connection in crowd)
    assert cut.wait(DEADLINE), "a request may take for ever to come"
    dripping.join()
    wait_until(lambda: threads(b) <= before, "their threads to end")
    assert b.get("/v1/vms", tls={"bundle": alice}) == []


def test_garbage_at_the_door_harms_nobody(hosts, authority):
    b = licensed(hosts, "b", authority.issue("b", "127.0.0.1"))
    noise = random.Random(7411)
    for number in range(60):
        start = (b"\x16\x03\x01", b"\x16\x03\x03\x00\x05", b"GET / HTTP/1.1\r\n", b"")[number % 4]
        connection = knock(b, start + noise.randbytes(1 + number * 40) + b"\r\n\r\n")
        with contextlib.suppress(OSError):  # it may have been cut already
            connection.shutdown(socket.SHUT_WR)
        assert is_cut(connection)
        connection.close()
    assert b.get("/v1/vms", tls={"bundle": authority.issue("alice", "--person")}) == []


# --- ferry ---


@pytest.fixture
def ferry(tmp_path):
    environment = dict(os.environ, HOME=str(tmp_path), TZ="UTC")
    environment.pop("XDG_CONFIG_HOME", None)

    def run(host, *words, data=None, **more):
        return subprocess.run([BUILD / "ferry", "--host", str(host), *map(str, words)], cwd=tmp_path,
                              env=dict(environment, **more), capture_output=True, text=True, input=data, timeout=DEADLINE)

    return run


def test_ferry_commands_a_host_by_the_users_certificate(hosts, authority, other_authority, ferry):
    b = licensed(hosts, "b", authority.issue("b", "127.0.0.1"))
    b.run("web")
    done = ferry(b.address, "list")
    assert done.returncode != 0 and "host b speaks TLS only" in done.stderr and UNLICENSED in done.stderr
    assert ferry(b.state_dir, "host", "certs", "install", "--user", authority.issue("alice", "--person")).returncode == 0
    for target in (b.address, f"https://{b.address}"):
        done = ferry(target, "list")
        assert done.returncode == 0 and "web" in done.stdout, done.stderr
    done = ferry(b.address, "logs", "web")
    assert done.returncode == 0, done.stderr
    done = ferry(f"http://{b.address}", "list")
    assert done.returncode != 0 and "host b speaks TLS only" in done.stderr
    stranger = other_authority.issue("eve", "--person")
    done = ferry(b.address, "list", FERRY_CERTIFICATE=str(stranger))
    assert done.returncode != 0 and "is not from the CA that is trusted here" in done.stderr
    # a host that does not speak TLS is not spoken to
    plain = hosts.start("c")
    done = ferry(plain.address, "list")
    assert done.returncode != 0 and "does not speak TLS" in done.stderr and UNLICENSED in done.stderr
    assert ferry(f"http://{plain.address}", "list").returncode == 0


def test_console_over_tls_loses_nothing_of_what_the_guest_said_last(hosts, authority, ferry):
    b = licensed(hosts, "b", authority.issue("b", "127.0.0.1"))
    b.run("web")
    text = "".join(f"line {number} " for number in range(4000))

    def said():
        return b.request("GET", "/v1/vms/web/console/log")[1].replace(b"echo ", b"")

    def end_the_guest():
        wait_until(lambda: b"line 3999" in said(), "the guest's last words")
        b.post("/v1/vms/web/kill")

    thread = threading.Thread(target=end_the_guest)
    thread.start()
    done = ferry(b.address, "console", "web", data=text, FERRY_CERTIFICATE=str(authority.issue("alice", "--person")))
    thread.join()
    assert done.returncode == 0 and text in done.stdout.replace("echo ", ""), done.stderr


def test_migrate_says_why_it_does_not_encrypt(hosts, ferry):
    a, b = hosts.pair()
    a.run("web")
    done = ferry(a.state_dir, "migrate", "web", "b", "--tls")
    assert done.returncode != 0 and f"{UNLICENSED}: host a has no certificate" in done.stderr
    assert "ferry host certs issue a" in done.stderr
    assert_stays(a, b)
    assert ferry(a.state_dir, "migrate", "web", "b").returncode == 0
