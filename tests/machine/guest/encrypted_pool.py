"""One encrypted pool that several tests use in sequence, since key derivation takes long: "p", on
two disks, with a keyring binding in token slot 0, one to a tang server in slot 1, and a second
server. Each test leaves it started, with its filesystem mounted.
"""

import luks_dump
import stratis_client as client
import system
from stratis_bus import Stratis, done
from tang import Tang

# Texts to search for, which occur nowhere else.
FIRST, SECOND, THIRD = "xylophone-first-secret", "xylophone-second-secret", "xylophone-third-secret"
WRONG = "xylophone-wrong-secret"
FILES = "/mnt/f"


class EncryptedPool:
    """The pool and its accessories."""

    def __init__(self, disks):
        self.disks, self.spare = disks[:2], disks[2]
        self.stratis = Stratis()
        self.tangs = [Tang(f"/root/tang{number}", 7500 + number).start() for number in range(2)]
        client.set_key("k1", FIRST)
        tang = self.tangs[0]
        client.ok("pool", "create", "p", *self.disks, "--key-desc=k1", "--clevis=tang", f"--tang-url={tang.url}",
                  f"--thumbprint={tang.thumbprint()}")  # fmt: skip
        self.uuid = self.stratis.pool("p").uuid
        self.node = luks_dump.node_of(self.uuid)
        client.ok("filesystem", "create", "p", "f", "--size=1GiB")
        self.mount()
        self.files = {}
        self.put("first")

    def end(self):
        system.unmount_all()
        client.unset_keys()
        for tang in self.tangs:
            tang.stop()
        self.stratis.close()

    def again(self):
        """Reconnects after a restart of the daemon."""
        self.stratis.close()
        self.stratis = Stratis()

    def mount(self):
        system.settle()
        system.mount("/dev/stratis/p/f", FILES)

    def put(self, name):
        self.files[name] = system.put(FILES, name, 8 << 20)

    def stop(self):
        system.unmount_all()
        done(self.stratis.stop_pool(self.uuid))
        assert system.mapped_devices() == []

    def start(self, *arguments, stdin=None):
        """Starts the pool and checks that it and its data are there."""
        client.ok("pool", "start", "--name", "p", *arguments, stdin=stdin)
        self.mount()
        assert system.contents(FILES) == self.files

    def start_refused(self, *arguments, stdin=None):
        """Expects the start to fail and leave nothing open; returns the client's message."""
        said = client.refused("pool", "start", "--name", "p", *arguments, stdin=stdin)
        assert system.mapped_devices() == [], "devices were left open"
        assert self.uuid in self.stratis.stopped_pools(), "the pool is no longer known as stopped"
        return said

    def get(self, name):
        return self.stratis.get(self.stratis.pool("p").path, "pool", name)

    def header(self):
        return luks_dump.header(self.node)

    def tokens(self):
        return self.header()["tokens"]

    def opens(self, passphrase, token):
        return luks_dump.opens(self.node, passphrase.encode(), token)
