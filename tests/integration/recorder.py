"""A proxy that stands between two hosts and keeps what it sees pass."""
import socket
import threading

BLOCK = 1 << 16


class Recorder:
    """Listens on loopback and forwards every connection to ADDRESS ("ADDR:PORT"). `count` says how often one of NEEDLES
    passed, in either direction; what is cut in two by a block's end counts, too."""

    def __init__(self, address, *needles):
        host, port = address.rsplit(":", 1)
        self.target = (host, int(port))
        self.needles = needles
        self.count = dict.fromkeys(needles, 0)
        self.bytes = 0
        self.first = []  # the first byte of each connection
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
            except OSError:
                return
            for pair in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, here, there, outward):
        kept = b""
        keep = max(map(len, self.needles), default=1) - 1
        begun = False
        while True:
            try:
                data = here.recv(BLOCK)
                if data:
                    there.sendall(data)
            except OSError:
                data = b""
            if not data:
                break
            with self.lock:
                if outward and not begun:
                    self.first.append(data[0])
                begun = True
                self.bytes += len(data)
                seen = kept + data
                for needle in self.needles:
                    self.count[needle] += seen.count(needle)
                kept = seen[-keep:] if keep else b""
        try:
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
