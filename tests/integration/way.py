"""A way to a host on which what is asked for can be cut off."""
import socket
import sys
import threading


class Way:
    """A way to ADDRESS. A connection on which PATH is asked for (only the first, with ONCE) is cut off when ANSWER bytes of its
    answer have come through, at 0 once the answer is under way; with None before the request arrives."""

    def __init__(self, address, path, answer, once=False):
        host, port = address.rsplit(":", 1)
        self.target, self.path, self.answer, self.once = (host, int(port)), path, answer, once
        self.cut = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near):
        """One connection is one request, whose answer ends it."""
        with near, socket.create_connection(self.target) as far:
            request = b""
            while b"\r\n\r\n" not in request:
                request += near.recv(1 << 16) or b"\r\n\r\n"
            cutting = self.path in request.split(b"\r\n")[0] and not (self.once and self.cut.is_set())
            if cutting and self.answer is None:
                self.cut.set()
                return
            far.sendall(request)
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
            self._forward(far, near, self.answer if cutting else sys.maxsize)
            if cutting:
                self.cut.set()
                near.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _forward(here, there, most=sys.maxsize):
        try:
            while data := here.recv(1 << 16):
                there.sendall(data[:most])
                most -= len(data)
                if most <= 0:
                    return
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass
