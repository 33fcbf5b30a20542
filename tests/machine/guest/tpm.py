"""A TPM in software, which the daemon finds by its environment; the machine itself has none."""

import os
import pathlib
import signal
import subprocess

import system

PORT = 2321
TCTI = f"swtpm:host=127.0.0.1,port={PORT}"
DROP_IN = pathlib.Path(f"/run/systemd/system/{system.UNIT}.d/tpm.conf")


class Tpm:
    """A TPM with its own state, which it keeps while it is off."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir()
        DROP_IN.parent.mkdir(exist_ok=True)
        DROP_IN.write_text(f"[Service]\nEnvironment=TPM2TOOLS_TCTI={TCTI}\n")
        system.run("systemctl", "daemon-reload")
        system.stop_daemon()
        system.start_daemon()
        self._process = None

    def on(self):
        """Returns when the TPM answers."""
        pid_file = self.folder / "pid"
        subprocess.run(["swtpm", "socket", "--tpm2", "--daemon", "--tpmstate", f"dir={self.folder}", "--flags",
                        "startup-clear", "--server", f"type=tcp,port={PORT}", "--ctrl", f"type=tcp,port={PORT + 1}",
                        "--pid", f"file={pid_file}"], check=True)  # fmt: skip
        self._process = os.pidfd_open(int(pid_file.read_text()))
        return self

    def off(self):
        if self._process is not None:
            signal.pidfd_send_signal(self._process, signal.SIGTERM)
            system.wait_for_end(self._process)
            os.close(self._process)
            self._process = None

    def remove(self):
        self.off()
        DROP_IN.unlink()
        system.run("systemctl", "daemon-reload")
