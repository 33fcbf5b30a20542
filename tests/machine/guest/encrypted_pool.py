"""One encrypted pool that several tests use one after the other, since a key takes long to derive: "p", on two disks, with a
keyring binding in token slot 0 and one to a tang server in slot 1; and a second server. Each test leaves it so, started and
with its filesystem mounted.
"""

import luks_dump
import stratis_client as client
import system
from stratis_bus import Stratis, done
from tang import Tang

# Words that are searched for: they must be nowhere else.
FIRST, SECOND, THIRD = "xylophone-first-secret", "xylophone-second-secret", "xylophone-third-secret"
WRONG = "xylophone-wrong-secret"
FILES = "/mnt/f"


class EncryptedPool:
    """The pool and what belongs to it."""

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
        """The daemon has been started anew."""
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
        """It is there again, and so is what was written."""
        client.ok("pool", "start", "--name", "p", *arguments, stdin=stdin)
        self.mount()
        assert system.contents(FILES) == self.files

    def start_refused(self, *arguments, stdin=None):
        """What the client said; the pool is as closed as it was."""
        said = client.refused("pool", "start", "--name", "p", *arguments, stdin=stdin)
        assert system.mapped_devices() == [], "all is closed again"
        assert self.uuid in self.stratis.stopped_pools(), "it can be started later"
        return said

    def get(self, name):
        return self.stratis.get(self.stratis.pool("p").path, "pool", name)

    def header(self):
        return luks_dump.header(self.node)

    def tokens(self):
        return self.header()["tokens"]

    def opens(self, passphrase, token):
        return luks_dump.opens(self.node, passphrase.encode(), token)
