"""A real tang server on loopback: `tangd` on a socket of ours, which exists when `start` returns,
and can fall silent or be closed.

Knows nothing of Clevis and pools.
"""

import json
import pathlib
import socket
import subprocess
import threading

PROGRAM = "/usr/libexec/tangd"
MAKE_KEYS = "/usr/libexec/tangd-keygen"


class Tang:
    """A server with its own keys, in a directory that may exist from an earlier life of the
    machine."""

    def __init__(self, folder, port):
        self.folder, self.port = pathlib.Path(folder), port
        self.url = f"http://127.0.0.1:{port}"
        self.asked = threading.Event()
        self._listener, self._thread, self._silent = None, None, None
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            subprocess.run([MAKE_KEYS, self.folder], check=True)

    def thumbprint(self):
        """Thumbprint of the signing key, as `tang-show-keys` prints it."""
        for path in self.folder.glob("*.jwk"):
            if "verify" in json.loads(path.read_text())["key_ops"]:
                return subprocess.run(["jose", "jwk", "thp", "-i", path, "-a", "S256"], stdout=subprocess.PIPE,
                                      check=True, text=True).stdout.strip()  # fmt: skip
        raise AssertionError(f"no signing key in {self.folder}")

    def start(self, silent=False):
        """Serves from now on. `silent`: accepts connections and never answers."""
        self.asked.clear()
        self._silent = [] if silent else None
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._serve, args=[self._listener, self._silent], daemon=True)
        self._thread.start()
        return self

    def _serve(self, listener, silent):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            self.asked.set()
            if silent is not None:
                silent.append(connection)
                continue
            with connection:
                subprocess.run([PROGRAM, self.folder], stdin=connection, stdout=connection, stderr=subprocess.DEVNULL,
                               check=False)  # fmt: skip

    def stop(self):
        """Connections are refused from now on."""
        if self._listener is None:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._listener = None
        for connection in self._silent or []:
            connection.close()
