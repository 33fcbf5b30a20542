"""Cockpit's storage page in a real browser: logs in, fills dialogs, presses buttons, takes pictures.

Elements are found as a user finds them, by what they say, or by Cockpit's own marks for tests.
Knows nothing of the tests.
"""

import base64
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, "/opt/playwright")
from playwright.sync_api import sync_playwright  # noqa: E402

ADDRESS = "http://127.0.0.1:9090"
USER, PASSWORD = "admin", "a password for Cockpit"
# The browser runs in User-mode Linux here, perhaps beside another machine.
PATIENCE_MS = 120_000


def make_user():
    """A user of Cockpit who may become root, as on most installations."""
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", USER], check=False)
    subprocess.run(["chpasswd"], input=f"{USER}:{PASSWORD}", text=True, check=True)
    with open("/etc/sudoers.d/cockpit", "w") as rules:
        rules.write(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")


def disable_io_uring():
    """User-mode Linux complains of the pages that the browser maps from it."""
    switch = pathlib.Path("/proc/sys/kernel/io_uring_disabled")
    if switch.exists():
        switch.write_text("2")


class StoragePage:
    """A browser that shows the storage page to a user with administrative access."""

    def __init__(self):
        make_user()
        disable_io_uring()
        self._driver = sync_playwright().start()
        # Chromium's own sandbox needs user namespaces of an ordinary user; everything here is root.
        self._browser = self._driver.chromium.launch(
            executable_path="/usr/bin/chromium-headless-shell", args=["--no-sandbox", "--disable-gpu"]
        )
        self.page = self._browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{ADDRESS}/storage")
        self.page.fill("#login-user-input", USER)
        self.page.fill("#login-password-input", PASSWORD)
        self.page.click("#login-button")
        self.page.get_by_role("button", name="Limited access").click()
        self.page.get_by_role("button", name="Close", exact=True).first.click()
        self.frame = self.page.frame_locator('iframe[name="cockpit1:localhost/storage"]')
        self.row("ubdc", "vdc").wait_for()

    def close(self):
        self._browser.close()
        self._driver.stop()

    def picture(self, name):
        """Takes a picture, which the host keeps."""
        if not os.environ.get("PICTURES"):
            return
        data = base64.b64encode(self.page.screenshot()).decode()
        print(f"\nPICTURE {name} {data}", flush=True)

    def row(self, *names):
        """The row of the list with one of these names."""
        return self.frame.locator(", ".join(f'[data-test-row-name="{name}"]' for name in names)).first

    def card(self, title):
        return self.frame.locator(f'[data-test-card-title="{title}"]')

    def open(self, name):
        self.row(name).click()

    def menu(self, of, entry):
        """Chooses an entry of the menu of a row or a card."""
        of.locator("button.pf-v6-c-menu-toggle, button.pf-v5-c-menu-toggle").first.click()
        self.frame.get_by_role("menuitem", name=entry).click()
        self.dialog.wait_for()

    def press(self, where, text):
        """Presses the button or link with this text, which opens a dialog or acts."""
        where.get_by_text(text, exact=True).first.click()

    # ---- the dialog that is open ----

    @property
    def dialog(self):
        return self.frame.locator("#dialog")

    def field(self, name):
        of_name = f'[data-field="{name}"]'
        return self.dialog.locator(f"{of_name} input, input{of_name}").first

    def fill(self, **fields):
        for name, text in fields.items():
            self.field(name).fill(text)

    def choose_disk(self, disk):
        self.dialog.locator('[data-field="disks"]').get_by_text(disk, exact=True).click()

    def answer(self, button):
        """Presses a button of the dialog; its action must succeed."""
        self.dialog.get_by_role("button", name=button, exact=True).click()
        self.dialog.wait_for(state="detached")

    def refused(self, button):
        """Presses a button of the dialog; its action must fail. Returns the error shown, and
        cancels."""
        self.dialog.get_by_role("button", name=button, exact=True).click()
        alert = self.dialog.locator(".pf-v6-c-alert, .pf-v5-c-alert").filter(has_text="Danger alert")
        alert.wait_for()
        said = alert.inner_text()
        self.dialog.get_by_role("button", name="Cancel").click()
        self.dialog.wait_for(state="detached")
        return said
