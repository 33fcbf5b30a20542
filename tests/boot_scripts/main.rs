//! The scripts that start pools at boot, with stand-ins for the daemon, the prompt and the clock,
//! under each shell that may run them. The stand-ins are in this folder.

#![allow(clippy::unwrap_used, reason = "a failure of the harness is a failure of the test")]
#![allow(clippy::disallowed_methods, reason = "the programs under test are run as others run them")]

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const POOL: &str = "7f951e31-059b-48bd-ba8c-4fd0405974e5";
const FSTAB: &str = "stratis-fstab-setup";
const ROOT: &str = "stratis-rootfs-setup";
const CLEVIS: &str = "stratis-clevis-rootfs-setup";
/// Long enough for any machine; only a script that hangs reaches it.
const HANG_SECONDS: &str = "60";

fn project(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The installed shells, each with its arguments: the shell of the system, which is dash on Debian,
/// and busybox.
fn shells() -> Vec<Vec<String>> {
    let has_busybox = Command::new("busybox").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let mut shells = vec![vec!["sh".to_owned()]];
    if has_busybox {
        shells.push(vec!["busybox".to_owned(), "sh".to_owned()]);
    }
    shells
}

/// A boot: the state of the pool, its changes with their seconds, and the passphrases that are
/// typed.
struct Boot {
    state: TempDir,
    scripts: TempDir,
    settings: Vec<(&'static str, &'static str)>,
}

impl Boot {
    /// `state`: the state at the start.
    fn new(state: &[&str]) -> Boot {
        let boot =
            Boot { state: tempfile::tempdir().unwrap(), scripts: tempfile::tempdir().unwrap(), settings: Vec::new() };
        for name in state {
            boot.write(name, "");
        }
        boot.write("uptime", "1.00 0.00\n");
        boot.write("plan", "");
        boot.write("daemon", "");
        for name in [FSTAB, ROOT, "stratis-setup-functions"] {
            fs::copy(project("boot").join(name), boot.scripts.path().join(name)).unwrap();
        }
        boot
    }

    /// The initrd contains Clevis.
    fn with_clevis(self) -> Boot {
        fs::copy(project("boot").join(CLEVIS), self.scripts.path().join(CLEVIS)).unwrap();
        self
    }

    /// `10 appear tang`: that file of the state appears when the clock shows ten seconds.
    fn plan(self, lines: &[&str]) -> Boot {
        self.write("plan", &lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        self
    }

    fn answers(self, answers: &[&str]) -> Boot {
        self.write("answers", &answers.iter().map(|line| format!("{line}\n")).collect::<String>());
        self
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.state.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.state.path().join(name)).unwrap_or_default()
    }

    fn is_started(&self) -> bool {
        self.state.path().join("started").exists()
    }

    fn command(&self, shell: &[String], script: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg(HANG_SECONDS)
            .args(shell)
            .arg(self.scripts.path().join(script))
            .args(arguments)
            .env("PATH", format!("{}:{}", project("tests/boot_scripts").display(), env::var("PATH").unwrap()))
            .env("STATE", self.state.path())
            .env("STRATIS_NOTES", self.state.path().join("notes"))
            .env("STRATIS_UPTIME", self.state.path().join("uptime"))
            // busybox would run its own sleep.
            .env("STRATIS_SLEEP", project("tests/boot_scripts/sleep"))
            .env("STRATIS_ROOTFS_UUID", POOL)
            .envs(self.settings.iter().copied())
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    fn run(&self, shell: &[String], script: &str) -> (Option<i32>, String) {
        let arguments: &[&str] = if script == FSTAB { &[POOL] } else { &[] };
        let Output { status, stderr, .. } = self.command(shell, script, arguments).output().unwrap();
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    }
}

/// Runs the script in such a boot under each shell. `status`: how it must end; the pool is started
/// if, and only if, that is 0. Returns what was logged and the prompts of the last run.
#[track_caller]
fn check(script: &str, boot: impl Fn() -> Boot, status: i32) -> (String, String) {
    let mut seen = (String::new(), String::new());
    for shell in shells() {
        let boot = boot();
        let (ended, said) = boot.run(&shell, script);
        assert_eq!(ended, Some(status), "{shell:?} {script}: {said}\ncalls:\n{}", boot.read("calls"));
        assert_eq!(boot.is_started(), status == 0, "{shell:?} {script}: {said}");
        seen = (said, boot.read("prompts"));
    }
    seen
}

const BOTH: [&str; 2] = [FSTAB, ROOT];

#[test]
fn a_plain_pool_is_started() {
    for script in BOTH {
        let (said, prompts) = check(script, || Boot::new(&["known"]), 0);
        assert_eq!((said.as_str(), prompts.as_str()), ("", ""));
        check(script, || Boot::new(&["known", "started"]), 0);
    }
}

/// The existing script waits for six seconds and then succeeds without the pool.
#[test]
fn a_slow_device_is_waited_for() {
    for script in BOTH {
        let (said, _) = check(script, || Boot::new(&[]).plan(&["40 appear known"]), 0);
        assert!(said.contains("none of its devices has been found"), "{said}");
        let some = || Boot::new(&["known", "missing"]).plan(&["40 vanish missing"]);
        let (said, _) = check(script, some, 0);
        assert!(said.contains("1 of the 3 devices"), "{said}");
        // The reason is logged once, not each second.
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_missing_device_ends_the_wait() {
    for script in BOTH {
        let (said, _) = check(script, || Boot::new(&[]), 1);
        assert!(said.contains("not started after 90 s: none of its devices has been found"), "{said}");
        let (said, _) = check(script, || Boot::new(&["known", "missing"]), 1);
        assert!(said.contains("not started after 90 s") && said.contains("1 of the 3 devices"), "{said}");
        let (said, _) = check(script, || Boot::new(&["known", "broken"]), 1);
        assert!(said.contains("its thin pool must be checked"), "{said}");
    }
}

#[test]
fn a_daemon_that_is_late_is_waited_for() {
    let late = || {
        let boot = Boot::new(&[]).plan(&["30 appear daemon", "31 appear known"]);
        fs::remove_file(boot.state.path().join("daemon")).unwrap();
        boot
    };
    for script in BOTH {
        let (said, _) = check(script, late, 0);
        assert!(said.contains("the Stratis daemon does not answer"), "{said}");
    }
}

const BY_PASSPHRASE: [&str; 3] = ["known", "encrypted", "passphrase"];

#[test]
fn a_passphrase_may_be_mistyped_twice() {
    for script in BOTH {
        let (_, prompts) = check(script, || Boot::new(&BY_PASSPHRASE).answers(&["wrong", "", "right"]), 0);
        assert_eq!(prompts.lines().count(), 3);
        assert!(prompts.contains(&format!("--id=stratis:{POOL}")) && prompts.contains(POOL), "{prompts}");
        let (said, prompts) = check(script, || Boot::new(&BY_PASSPHRASE).answers(&["a", "b", "c", "right"]), 1);
        assert_eq!(prompts.lines().count(), 3);
        assert!(said.contains("no passphrase has started pool"), "{said}");
    }
}

/// A daemon that was just starting again was taken for a pool without a passphrase, and nobody was
/// asked.
#[test]
fn no_answer_is_not_taken_for_no() {
    for script in BOTH {
        for query in ["refused-is-encrypted", "refused-is-bound", "refused-has-passphrase"] {
            let state = [&BY_PASSPHRASE[..], &[query]].concat();
            let (_, prompts) = check(script, || Boot::new(&state).answers(&["right"]), 0);
            assert_eq!(prompts.lines().count(), 1, "{script} {query}");
        }
        check(script, || Boot::new(&["known", "encrypted", "bound", "tang", "refused-is-bound"]), 0);
    }
}

#[test]
fn a_prompt_that_nobody_answers_ends() {
    for script in BOTH {
        let (said, prompts) = check(script, || Boot::new(&[&BY_PASSPHRASE[..], &["nobody"]].concat()), 1);
        // The prompt does not appear again.
        assert_eq!(prompts.lines().count(), 1, "{said}");
    }
}

/// A prompt is useless while the pool cannot be started.
#[test]
fn nobody_is_asked_before_all_devices_exist() {
    for script in BOTH {
        let boot = || Boot::new(&[&BY_PASSPHRASE[..], &["missing"]].concat());
        let (_, prompts) = check(script, boot, 1);
        assert_eq!(prompts, "");
    }
}

const BY_BOTH: [&str; 4] = ["known", "encrypted", "passphrase", "bound"];

#[test]
fn clevis_makes_a_prompt_unnecessary() {
    let (_, prompts) = check(FSTAB, || Boot::new(&[&BY_BOTH[..], &["tang"]].concat()), 0);
    assert_eq!(prompts, "");
    check(FSTAB, || Boot::new(&["known", "encrypted", "bound", "tang"]), 0);
}

#[test]
fn a_dead_server_leads_to_the_prompt() {
    let (said, prompts) = check(FSTAB, || Boot::new(&BY_BOTH).answers(&["right"]), 0);
    assert_eq!(prompts.lines().count(), 1);
    assert!(said.contains("connection refused"), "{said}");
    // Nobody types a passphrase: the server comes up later, and the prompt goes away.
    let (_, prompts) = check(FSTAB, || Boot::new(&BY_BOTH).plan(&["60 appear tang"]), 0);
    assert_eq!(prompts.lines().count(), 1);
    // No passphrase could help.
    let only = || Boot::new(&["known", "encrypted", "bound"]);
    check(FSTAB, || only().plan(&["60 appear tang"]), 0);
    let (said, prompts) = check(FSTAB, only, 1);
    assert!(prompts.is_empty() && said.contains("has no passphrase"), "{said}");
}

/// In the initrd, Clevis has a unit of its own, which waits for the network.
#[test]
fn clevis_and_the_prompt_run_side_by_side() {
    for shell in shells() {
        // The network never comes up: the script of Clevis does not run at all.
        let boot = Boot::new(&BY_BOTH).with_clevis().answers(&["right"]);
        let (status, said) = boot.run(&shell, ROOT);
        assert_eq!((status, boot.is_started()), (Some(0), true), "{shell:?} {said}");
        assert_eq!(boot.read("uptime").split('.').next(), Some("31"), "Clevis had its time");
        // It comes up while the prompt is open.
        let boot = Boot::new(&BY_BOTH).with_clevis();
        let prompt = boot.command(&shell, ROOT, &[]).stderr(Stdio::null()).spawn().unwrap();
        while boot.read("prompts").is_empty() || boot.read(&format!("notes/prompt-{POOL}")).is_empty() {
            std::thread::yield_now();
        }
        boot.write("tang", "");
        assert_eq!(boot.run(&shell, CLEVIS).0, Some(0));
        assert!(prompt.wait_with_output().unwrap().status.success());
        assert!(boot.is_started());
    }
}

#[test]
fn clevis_goes_on_until_the_pool_is_started() {
    check(CLEVIS, || Boot::new(&BY_BOTH).with_clevis().plan(&["70 appear tang"]), 0);
    // The pool was started with a passphrase meanwhile.
    check(CLEVIS, || Boot::new(&BY_BOTH).with_clevis().plan(&["70 appear started"]), 0);
    for shell in shells() {
        // A pool without a Clevis binding is left alone, which is not a failure.
        let boot = Boot::new(&BY_PASSPHRASE).with_clevis();
        assert_eq!(boot.run(&shell, CLEVIS).0, Some(0));
        assert!(!boot.is_started());
    }
}

#[test]
fn several_pools_are_started_one_by_one() {
    for shell in shells() {
        let mut boot = Boot::new(&["known"]);
        boot.settings.push(("STRATIS_ROOTFS_UUID", "first second"));
        assert_eq!(boot.run(&shell, ROOT).0, Some(0));
        let calls = boot.read("calls");
        assert!(calls.contains("pool start first") && calls.contains("pool is-stopped second"), "{calls}");
    }
}

#[test]
fn stratisd_is_asked_once_it_runs() {
    check(FSTAB, || Boot::new(&["stratisd"]), 0);
    check(FSTAB, || Boot::new(&["stratisd", "encrypted"]).plan(&["20 appear tang"]), 0);
    let (said, _) = check(FSTAB, || Boot::new(&["stratisd", "encrypted"]), 1);
    assert!(said.contains("connection refused") && said.contains("stratis pool start"), "{said}");
}

#[test]
fn a_missing_uuid_is_an_error() {
    for shell in shells() {
        let boot = Boot::new(&["known"]);
        for arguments in [&[][..], &[""]] {
            let output = boot.command(&shell, FSTAB, arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert_eq!(String::from_utf8_lossy(&output.stderr), "Pool UUID required as an argument.\n");
        }
        let boot = Boot::new(&["known"]).with_clevis();
        for script in [ROOT, CLEVIS] {
            let output = boot.command(&shell, script, &[]).env_remove("STRATIS_ROOTFS_UUID").output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert!(String::from_utf8_lossy(&output.stderr).contains("STRATIS_ROOTFS_UUID"));
        }
    }
}
