"""The contents of the LUKS2 headers on disks, read by cryptsetup and Clevis instead of the daemon.
"""

import base64
import hashlib
import json
import subprocess

import system

# Magic bytes of the first and the second copy of a header.
MAGIC = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
# Headers of version 1 and version 2 pools end before this offset from the start of a disk.
ROOM = 64 << 20


def node_of(pool_uuid):
    """The LUKS device of a running version 2 pool."""
    return f"/dev/mapper/stratis-1-private-{pool_uuid}-physical-cache"


def header(node):
    return json.loads(system.run("cryptsetup", "luksDump", "--dump-json-metadata", node))


def thumbprint(jwe):
    """Thumbprint of the key that signed the advertisement in a token (RFC 7638, SHA-256)."""
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
    """The passphrase that Clevis itself gets from a token of ours; checks with cryptsetup that it
    opens the token's keyslot."""
    passphrase = subprocess.run(["clevis", "luks", "pass", "-d", node, "-s", str(keyslot_of(node, token))],
                                stdout=subprocess.PIPE, check=True).stdout  # fmt: skip
    assert opens(node, passphrase, token), "the passphrase from Clevis does not open the keyslot"
    return passphrase


def keyslot_of(node, token):
    (keyslot,) = header(node)["tokens"][str(token)]["keyslots"]
    return int(keyslot)


def opens(node, passphrase, token):
    """Whether a passphrase opens a token's keyslot. Runs in a session without keys, which
    cryptsetup would try first."""
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
    """Whether any part of a header is on a disk."""
    system.run("blockdev", "--flushbufs", disk)
    with open(disk, "rb") as node:
        beginning = node.read(ROOM)
    return any(magic in beginning for magic in MAGIC)
