"""What is in the LUKS2 headers on disks, read by cryptsetup and Clevis and not by the daemon."""

import base64
import hashlib
import json
import subprocess

import system

# The first and the second copy of a header begin so.
MAGIC = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
# Headers of version 1 and of version 2 pools end before this, counted from the beginning of a disk.
ROOM = 64 << 20


def node_of(pool_uuid):
    """The device with the container of a running version 2 pool."""
    return f"/dev/mapper/stratis-1-private-{pool_uuid}-physical-cache"


def header(node):
    return json.loads(system.run("cryptsetup", "luksDump", "--dump-json-metadata", node))


def thumbprint(jwe):
    """Of the key that signed the advertisement within a token (RFC 7638, SHA-256)."""
    inside = json.loads(_decoded(jwe["protected"]))
    (key,) = [key for key in inside["clevis"]["tang"]["adv"]["keys"] if key["key_ops"] == ["verify"]]
    needed = {name: key[name] for name in ("crv", "kty", "x", "y")}
    text = json.dumps(needed, sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def _decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def clevis_list(node):
    return system.run("clevis", "luks", "list", "-d", node).splitlines()


def clevis_passphrase(node, token):
    """What Clevis itself makes of a token of ours; cryptsetup says that it opens the token's keyslot."""
    passphrase = subprocess.run(["clevis", "luks", "pass", "-d", node, "-s", str(keyslot_of(node, token))],
                                stdout=subprocess.PIPE, check=True).stdout  # fmt: skip
    assert opens(node, passphrase, token), "Clevis gave a passphrase that does not open the keyslot"
    return passphrase


def keyslot_of(node, token):
    (keyslot,) = header(node)["tokens"][str(token)]["keyslots"]
    return int(keyslot)


def opens(node, passphrase, token):
    """Whether a passphrase is that of a token's keyslot. In a session without keys: cryptsetup would try those first."""
    command = ["keyctl", "session", "-", "cryptsetup", "open", "--test-passphrase", "--key-file=-",
               f"--key-slot={keyslot_of(node, token)}", node]  # fmt: skip
    return subprocess.run(command, input=passphrase, check=False, stderr=subprocess.DEVNULL).returncode == 0


def volume_key(node, passphrase):
    """The volume key itself."""
    command = ["cryptsetup", "luksDump", "--dump-volume-key", "--batch-mode", "--key-file=-", node]
    said = subprocess.run(command, input=passphrase, stdout=subprocess.PIPE, check=True).stdout.decode()
    _, _, digits = said.partition("MK dump:")
    return bytes.fromhex("".join(digits.split()))


def is_left_on(disk):
    """Whether anything of a header is on a disk."""
    system.run("blockdev", "--flushbufs", disk)
    with open(disk, "rb") as node:
        beginning = node.read(ROOM)
    return any(magic in beginning for magic in MAGIC)
