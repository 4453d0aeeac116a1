"""Networks of a test's own, which it can cut."""
import os
import shutil
import subprocess

import pytest

from hosts import introduce


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def networks():
    """Two network namespaces with a cable between them: (names, addresses)."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and ip(8) for network namespaces")
    names = [f"ferry-{os.getpid()}-{side}" for side in "ab"]
    addresses = ["10.98.76.1", "10.98.76.2"]
    made = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, addresses):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names, addresses
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def cut(names, state):
    ip("-n", names[0], "link", "set", "cable", state)


def swallow(networks, verb):
    """With "add" nothing that the second host says arrives any more, and nobody is told; "del" ends that."""
    names, addresses = networks
    ip("-n", names[1], "route", verb, "blackhole", f"{addresses[0]}/32")


def networked_pair(hosts, networks, *options):
    """A host in each network, that know each other."""
    made = []
    for side, name, address in zip("ab", *networks):
        host = hosts.new(side, "--insecure", "--listen", f"{address}:7300", "--migrate-address", address, *options)
        host.prefix = ["ip", "netns", "exec", name]
        made.append(host.start(listen=False))
    introduce(*made)
    return made
