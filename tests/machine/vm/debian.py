"""Packages of a given Debian suite, from the archive that the host itself uses.

A private apt root leaves the host's lists and sources alone. Knows nothing of what the packages are
for.
"""

from shell import Failure, run, write

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _host_archives():
    """Addresses of the host's main archive and security archive; the latter may be missing."""
    rows = run("apt-get indextargets --format '$(SITE)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)' 'Created-By: Packages'")
    main = security = None
    for line in rows.splitlines():
        _, address, codename, component = line.split("|")
        if component != "main":
            continue
        if codename.endswith("-security"):
            security = security or address
        elif "-" not in codename:
            main = main or address
    if not main:
        raise Failure("apt has no Debian archive among its sources to install the guest from; run `apt-get update`")
    return main, security


def source_lines(suite):
    """apt source lines for `suite` with its security updates."""
    main, security = _host_archives()
    lines = [f"deb [signed-by={KEYRING}] {main} {suite} main"]
    if security and "-" not in suite:
        lines.append(f"deb [signed-by={KEYRING}] {security} {suite}-security main")
    return lines


class PrivateApt:
    """apt with its own root directory, for one suite."""

    def __init__(self, folder, suite):
        self.folder = folder
        for part in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/lib/apt/lists/partial",
                     "var/cache/apt/archives/partial"):  # fmt: skip
            (folder / part).mkdir(parents=True)
        write(folder / "status", "")
        write(folder / "etc/apt/sources.list", "\n".join(source_lines(suite)) + "\n")
        # For downloads apt becomes the user _apt, who cannot read a private directory.
        self.options = f"-o Dir={folder} -o Dir::State::status={folder}/status -o APT::Sandbox::User=root -q"
        run(f"apt-get {self.options} update")

    def dependency(self, package, pattern):
        """The first dependency of `package` that matches the basic regular expression."""
        return run(f"apt-cache {self.options} depends {package} | grep -o '{pattern}' | sed -n 1p").strip()

    def unpack(self, package, into):
        """Downloads `package` and unpacks its files."""
        downloads = into / "download"
        downloads.mkdir(parents=True, exist_ok=True)
        run(f"apt-get {self.options} download {package} && dpkg-deb -x ./*.deb .. && rm -- *.deb", cwd=downloads)
        downloads.rmdir()
