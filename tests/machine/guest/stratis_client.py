"""The stratis client: one call of the program, and keys by it. A call takes a second of Python."""

import pathlib
import subprocess

PROGRAM = "stratis-3.8.2"
# Not below the places that are searched for secrets.
KEY_FILES = pathlib.Path("/root/keys")
_keys = set()


def call(*arguments, stdin=None):
    """The ended program, whatever its status."""
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False, input=stdin)


def ok(*arguments, stdin=None):
    """What it printed."""
    ended = call(*arguments, stdin=stdin)
    assert ended.returncode == 0, f"{PROGRAM} {' '.join(arguments)}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def refused(*arguments, stdin=None):
    """What it said when it failed, which it must."""
    ended = call(*arguments, stdin=stdin)
    assert ended.returncode != 0, f"{PROGRAM} {' '.join(arguments)} succeeded: {ended.stdout}"
    return ended.stdout + ended.stderr


def key_file(name, passphrase):
    """A file that holds just the passphrase."""
    KEY_FILES.mkdir(mode=0o700, exist_ok=True)
    path = KEY_FILES / name
    path.write_text(passphrase)
    return str(path)


def set_key(name, passphrase):
    """In the kernel's keyring, by the client; changed if it is there."""
    verb = "reset" if name in _keys else "set"
    ok("key", verb, name, f"--keyfile-path={key_file(name, passphrase)}")
    _keys.add(name)


def unset_keys():
    """All that this test run has set; none is there after a boot."""
    while _keys:
        ok("key", "unset", _keys.pop())
