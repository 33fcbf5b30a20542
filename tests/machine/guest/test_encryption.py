"""An encrypted pool managed by the client, with real tang servers: bound, stopped, unlocked by
every means, wrong key first.

cryptsetup and Clevis read the headers, so that not only this daemon understands them.
"""

import json
import threading

import luks_dump
import stratis_client as client
import system
from encrypted_pool import FIRST, SECOND, THIRD, WRONG
from stratis_bus import ANY_SLOT, Stratis, done
from tang import Tang

GIB = 1 << 30


def keyring_token(description, token):
    return {"type": "luks2-keyring", "keyslots": token["keyslots"], "key_description": f"stratis-1-key-{description}"}


def test_headers_follow_the_specification(encrypted):
    pool, first = encrypted, encrypted.tangs[0]
    header = pool.header()
    assert header["config"] == {"json_size": str((64 << 10) - 4096), "keyslots_size": str(16352 << 10)}
    (segment,) = header["segments"].values()
    assert (segment["type"], segment["offset"], segment["encryption"]) == ("crypt", str(34816 * 512), "aes-xts-plain64")
    assert all(keyslot["key_size"] == 64 for keyslot in header["keyslots"].values())
    assert header["tokens"]["0"] == {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "stratis-1-key-k1"}
    clevis = header["tokens"]["1"]
    assert (set(clevis), clevis["type"], clevis["keyslots"]) == ({"type", "keyslots", "jwe"}, "clevis", ["1"])
    assert set(clevis["jwe"]) == {"protected", "iv", "ciphertext", "tag"}
    assert luks_dump.thumbprint(clevis["jwe"]) == first.thumbprint()
    assert pool.opens(FIRST, 0)
    assert luks_dump.clevis_list(pool.node) == [f"1: tang '{json.dumps({'url': first.url}, separators=(',', ':'))}'"]
    luks_dump.clevis_passphrase(pool.node, 1)

    shown = client.ok("pool", "list", "--name", "p")
    for words in ("Encryption Enabled: Yes", "Free Token Slots Remaining: 13", "Key Description: k1",
                  "Clevis Pin: tang", first.thumbprint(), first.url):  # fmt: skip
        assert words in shown
    assert pool.get("VolumeKeyLoaded") is True


class SilentServer:
    """The start of another pool whose tang server is silent: it takes a minute until it times out."""

    def __init__(self, pool):
        self.stratis, self.server = pool.stratis, Tang("/root/silent", 7502).start()
        config = {"url": self.server.url, "stratis:tang:trust_url": True}
        done(self.stratis.create_pool("other", [pool.spare], clevis=[("tang", config)]))
        self.uuid = self.stratis.pool("other").uuid
        done(self.stratis.stop_pool(self.uuid))
        self.server.stop()
        self.server.start(silent=True)
        self.replies = []
        self.start = threading.Thread(
            target=lambda: self.replies.append(Stratis().start_pool(self.uuid, slot=ANY_SLOT)), daemon=True
        )
        self.start.start()
        assert self.server.asked.wait(60)

    def waits(self):
        return self.start.is_alive()

    def end(self):
        """Checks that the start timed out, and succeeds with the server."""
        self.start.join()
        (reply,) = self.replies
        assert reply.code == 1 and self.server.url in reply.text, reply
        self.server.stop()
        self.server.start()
        done(self.stratis.start_pool(self.uuid, slot=ANY_SLOT))
        done(self.stratis.destroy_pool(self.stratis.pool("other").path))
        self.server.stop()


def test_bindings_are_added_and_removed(encrypted):
    """While the start of another pool waits for a silent server, without blocking anything."""
    pool, (first, second) = encrypted, encrypted.tangs
    silent = SilentServer(pool)
    before = pool.tokens()
    # A missing key, and a server with other keys.
    assert "absent" in client.refused("pool", "bind", "keyring", "p", "absent")
    client.refused("pool", "bind", "nbde", "p", first.url, f"--thumbprint={second.thumbprint()}")
    assert pool.tokens() == before
    path = pool.stratis.pool("p").path
    ((filesystem, _),) = done(pool.stratis.create_filesystem(path, "g", GIB))
    done(pool.stratis.destroy_filesystem(path, filesystem))
    assert silent.waits(), "the start no longer waits for the server"

    client.set_key("k2", SECOND)
    client.ok("pool", "bind", "keyring", "p", "k2")
    client.ok("pool", "bind", "nbde", "p", second.url, "--trust-url")
    now = pool.tokens()
    assert sorted(now) == ["0", "1", "2", "3"]
    assert {slot: now[slot] for slot in before} == before
    assert now["2"] == keyring_token("k2", now["2"])
    assert luks_dump.thumbprint(now["3"]["jwe"]) == second.thumbprint()
    assert pool.opens(SECOND, 2)
    assert "Free Token Slots Remaining: 11" in client.ok("pool", "list", "--name", "p")

    client.set_key("k3", THIRD)
    client.ok("pool", "rebind", "keyring", "p", "k3", "--token-slot=2")
    client.ok("pool", "rebind", "clevis", "p", "--token-slot=3")
    after = pool.tokens()
    assert after["2"] == keyring_token("k3", after["2"])
    assert after["3"]["jwe"] != now["3"]["jwe"] and luks_dump.thumbprint(after["3"]["jwe"]) == second.thumbprint()
    assert pool.opens(THIRD, 2) and not pool.opens(SECOND, 2)

    for kind, slot in (("keyring", 2), ("clevis", 3)):
        client.ok("pool", "unbind", kind, "p", f"--token-slot={slot}")
    left = pool.header()
    assert left["tokens"] == before
    assert sorted(left["keyslots"]) == sorted(keyslot for token in before.values() for keyslot in token["keyslots"])
    pool.put("after bindings")
    silent.end()


def test_each_unlock_method_starts_the_pool(encrypted):
    pool, server = encrypted, encrypted.tangs[0]
    right, wrong = client.key_file("right", FIRST), client.key_file("wrong", WRONG)
    pool.stop()
    assert "encrypted" in pool.start_refused()
    assert "passphrase does not open pool" in pool.start_refused(f"--keyfile-path={wrong}")
    assert "passphrase does not open pool" in pool.start_refused("--token-slot=0", f"--keyfile-path={wrong}")
    pool.start(f"--keyfile-path={right}")
    pool.stop()
    pool.start_refused("--capture-key", stdin=WRONG + "\n")
    client.ok("pool", "start", "--uuid", pool.uuid, "--capture-key", stdin=FIRST + "\n")
    pool.mount()
    pool.stop()

    # By the keyring: no key, another key, the key.
    client.unset_keys()
    assert "k1" in pool.start_refused("--token-slot=0")
    client.set_key("k1", WRONG)
    pool.start_refused("--token-slot=0")
    client.set_key("k1", FIRST)
    pool.start("--token-slot=0")
    pool.stop()

    # By Clevis: no server, then the server.
    server.stop()
    assert server.url in pool.start_refused("--token-slot=1")
    assert "9" in pool.start_refused("--token-slot=9")
    # By any: with the key alone, with nothing, with the server alone.
    pool.start("--unlock-method=any")
    pool.stop()
    client.unset_keys()
    said = pool.start_refused("--unlock-method=any")
    assert server.url in said and "k1" in said
    server.start()
    pool.start("--token-slot=1")
    pool.stop()
    pool.start("--unlock-method=any")
    client.set_key("k1", FIRST)


def test_an_adopted_pool_gets_its_volume_key_again(encrypted):
    pool, server = encrypted, encrypted.tangs[0]
    before = pool.tokens()
    # Without an unlock method that works, the pool serves its data but cannot grow.
    client.unset_keys()
    server.stop()
    log = system.Log()
    system.kill_daemon()
    system.start_daemon()
    log.wait_for("cannot grow", "volume key")
    log.close()
    pool.again()
    assert pool.get("VolumeKeyLoaded") is False
    assert pool.tokens() == before
    assert system.contents("/mnt/f") == pool.files
    assert "WC001" in client.ok("pool", "list")
    # A key that unlocks the pool suffices.
    client.set_key("k1", FIRST)
    path = pool.stratis.pool("p").path
    pool.stratis.wait_until(path, "pool", "VolumeKeyLoaded", True)
    crypt = f"/dev/mapper/stratis-1-private-{pool.uuid}-crypt"
    small = int(system.run("blockdev", "--getsize64", crypt))
    client.ok("pool", "add-data", "p", pool.spare)
    pool.stratis.refresh()
    pool.put("more")
    assert int(system.run("blockdev", "--getsize64", crypt)) > small
    server.start()
    pool.stop()
    pool.start("--unlock-method=any")
