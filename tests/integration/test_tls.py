"""Encrypted moves of a real guest, between two ferry-vm: the guest arrives whole, nothing of it is seen on the way, and
who is not the expected host gets nothing and harms nothing."""
import shutil
import socket
import ssl

import pytest

from certs import Authority
from hosts import wait_until
from recorder import Recorder
from vms import DEADLINE, MIB, RpcError

WORK = "ferry.work=threads=1,mem=16M,rate=8M"
# In the memory of every Linux, and in ours.
NEEDLES = (b"Linux version 6.", b"ferry.work=threads")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def working(vms, guest):
    vm = vms.start("a", guest.definition("web", WORK, memory=192 * MIB))
    vm.wait_for_work(2)
    return vm


def certificates(authority):
    return authority.issue("a"), authority.issue("b")


def move(source, send):
    source.control.call("migrate.send", **send)
    return source.control.wait_for("migration.finished")


def assert_goes_on(vm):
    assert vm.state() == "RUNNING"
    vm.wait_for_work(2)


def test_nothing_of_a_moving_guest_is_seen_on_its_way(vms, working, authority):
    here, there = certificates(authority)
    moved = vms.start_incoming("b", working.definition)
    send = vms.prepare(working, moved, certificates=(here, there))
    with Recorder(send["address"], *NEEDLES) as recorder:
        end = move(working, {**send, "address": recorder.address, "streams": 2, "verify_memory": True})
        assert end["outcome"] == "completed", end["error"]
        assert end["encryption"].startswith("TLSv1.3 with TLS_")
        assert recorder.bytes > end["wire_bytes"] > 10 * MIB
        assert recorder.first == [0x16] * 3
        assert recorder.count == dict.fromkeys(NEEDLES, 0)
    assert any("Encrypted: TLSv1.3" in line["text"] for line in end["log"])
    moved.wait_for_state("RUNNING")
    moved.wait_for_work(2, passes=1)
    assert moved.control.call("migrate.status")["encryption"] == end["encryption"]

    # the same, back and in the clear: the recorder does see what there is to see
    back = vms.start_incoming("c", moved.definition)
    send = vms.prepare(moved, back)
    with Recorder(send["address"], *NEEDLES) as recorder:
        end = move(moved, {**send, "address": recorder.address})
        assert end["outcome"] == "completed" and end["encryption"] == ""
        assert all(recorder.count.values()), recorder.count
    back.wait_for_state("RUNNING")
    back.wait_for_work(2, passes=1)


def test_guest_moves_to_and_fro_encrypted(vms, working, authority):
    vm = working
    for number in range(6):
        name = "ba"[number % 2] + str(number)
        moved = vms.start_incoming(name, vm.definition)
        send = vms.prepare(vm, moved, certificates=(authority.issue(vm.directory.name), authority.issue(name)))
        end = move(vm, {**send, "streams": 1 + number})
        assert end["outcome"] == "completed", end["error"]
        moved.wait_for_state("RUNNING")
        moved.wait_for_work(1)
        vm = moved
    vm.wait_for_work(2, passes=1)


def other_authority(tmp_path):
    directory = tmp_path / "other"
    directory.mkdir()
    return Authority(directory)


def test_who_is_not_expected_is_refused_and_the_guest_goes_on(vms, working, authority, tmp_path):
    here, there = certificates(authority)
    other = other_authority(tmp_path)
    cases = [
        ("source of another CA", other.issue("a"), there,
         "the certificate that host b shows is not from the CA", "does not accept this host's"),
        ("source expired", authority.issue_expired("a"), there,
         "host b does not accept this host's certificate: it has expired",
         "the certificate that host a shows has expired"),
        ("destination expired", here, authority.issue_expired("b"),
         "the certificate that host b shows has expired", "does not accept this host's"),
        ("source is another", authority.issue("c"), there,
         "host b does not accept this host's certificate", "the certificate that host a shows is that of c"),
        ("destination is another", here, authority.issue("c"),
         "the certificate that host b shows is that of c", "does not accept this host's"),
        ("source in the clear", None, there,
         "b says: host b encrypts this migration; the source does not", "does not speak TLS"),
        ("destination in the clear", here, None,
         "host b does not speak TLS on this connection; has it a certificate?", "it speaks TLS, but host b"),
    ]
    for case, ours, theirs, sentence, at_the_other in cases:
        moved = vms.start_incoming("b", working.definition)
        end = move(working, vms.prepare(working, moved, certificates=(ours, theirs)))
        assert (end["outcome"], end["cause"]) == ("failed", "network"), (case, end)
        assert sentence in end["error"], case
        wait_until(lambda: at_the_other in moved.log(), at_the_other)
        assert moved.state() != "RUNNING"
        assert_goes_on(working)
        moved.control.call("migrate.cancel", id=end["id"])
        moved.wait()
        shutil.rmtree(moved.directory)
    # and with the right ones it moves
    moved = vms.start_incoming("b", working.definition)
    end = move(working, vms.prepare(working, moved, certificates=(here, there)))
    assert end["outcome"] == "completed", end["error"]
    moved.wait_for_state("RUNNING")
    moved.wait_for_work(2, passes=1)


def client(address, bundle=None, version=ssl.TLSVersion.TLSv1_3):
    """A TLS client that trusts anybody. What the server's refusal was, or None."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    if bundle:
        context.load_cert_chain(bundle)
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as plain:
            with context.wrap_socket(plain) as secure:
                return None if secure.recv(1) else "closed"
    except OSError as error:
        return str(error)


def test_strangers_are_refused_and_the_guest_moves_past_them(vms, working, authority):
    here, there = certificates(authority)
    moved = vms.start_incoming("b", working.definition)
    send = vms.prepare(working, moved, certificates=(here, there))
    assert "certificate required" in client(send["address"]).lower().replace("_", " ")
    assert "protocol" in client(send["address"], here, ssl.TLSVersion.TLSv1_2).lower()
    assert "bad certificate" in client(send["address"], authority.issue("c")).lower().replace("_", " ")
    assert client(send["address"], here) is None
    for words in ("host a shows no certificate", "host a does not speak TLS 1.3",
                  "the certificate that host a shows is that of c"):
        assert words in moved.log()
    end = move(working, send)
    assert end["outcome"] == "completed", end["error"]
    moved.wait_for_state("RUNNING")
    moved.wait_for_work(2)


def test_other_addresses_than_loopback_need_encryption_only(vms, guest, authority):
    _, there = certificates(authority)
    moved = vms.start_incoming("b", guest.definition("web"))
    address = moved.control.call("migrate.receive", id="12", token="0" * 64, source="a", destination="b",
                                 listen="0.0.0.0:0", certificate=str(there))["address"]
    assert address.startswith("0.0.0.0:")


def test_certificate_that_cannot_be_used_is_refused_at_once(vms, guest, tmp_path):
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("nothing")
    rubbish.chmod(0o600)
    moved = vms.start_incoming("b", guest.definition("web"))
    with pytest.raises(RpcError, match="holds no key"):
        moved.control.call("migrate.receive", id="12", token="0" * 64, source="a", destination="b",
                           listen="127.0.0.1:0", certificate=str(rubbish))
