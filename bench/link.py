"""A link of a set rate between two network namespaces, shaped by tc's token bucket; gone afterwards. Needs root."""

import json
import os
import subprocess

MTU = 1500
DEVICE = "shaped"


def _run(*words):
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)


class Link:
    """`ends` are the namespaces' prefixes for commands, `addresses` what is reached in each."""

    def __init__(self, bits_per_s):
        self.bits_per_s = bits_per_s
        self.names = [f"ferry-bench-{os.getpid()}-{end}" for end in "ab"]
        self.addresses = ["10.211.77.1", "10.211.77.2"]
        self.ends = [["ip", "netns", "exec", name] for name in self.names]
        try:
            self._make()
        except subprocess.CalledProcessError as error:
            self.close()
            raise RuntimeError(f"no shaped link here: {error.stderr.strip() or error}") from error

    def _make(self):
        for name in self.names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", "name", DEVICE, "mtu", MTU, "netns", self.names[0], "type", "veth",
             "peer", "name", DEVICE, "mtu", MTU, "netns", self.names[1])
        for name, address in zip(self.names, self.addresses):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            _run("ip", "-n", name, "link", "set", "dev", DEVICE, "up")
            _run("ip", "-n", name, "link", "set", "dev", "lo", "up")
            # What fits into 10 ms at the rate may wait: longer queues would only be latency.
            _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", "rate",
                 f"{self.bits_per_s}bit", "burst", max(self.bits_per_s // 8 // 1000, 32768), "latency", "10ms")

    def tcp_rate(self, seconds=4):
        """Bytes a second that one plain TCP connection carries from a to b, by iperf3."""
        server = subprocess.Popen([*self.ends[1], "iperf3", "-s", "-1", "--forceflush"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            while "listening" not in server.stdout.readline():
                if server.poll() is not None:
                    raise RuntimeError("iperf3 does not listen")
            done = subprocess.run([*self.ends[0], "iperf3", "-c", self.addresses[1], "-t", str(seconds), "-J"],
                                  check=True, capture_output=True, text=True, timeout=seconds + 30)
            return json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 8
        finally:
            server.kill()
            server.wait()
            server.stdout.close()

    def close(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
