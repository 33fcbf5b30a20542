//! Every command of `stratis-min`: output, errors and exit status.

use std::{io::Read, os::unix::process::ExitStatusExt, process::Stdio};

use crate::{RUN_DIRECTORY, Rig, STRATIS_MIN, STRATISD_MIN};
use support::processes::command;

#[track_caller]
fn does(rig: &Rig, arguments: &[&str]) {
    assert_eq!(rig.run(arguments, ""), (0, String::new(), String::new()), "{arguments:?}");
}

#[track_caller]
fn prints(rig: &Rig, arguments: &[&str], output: &str) {
    assert_eq!(rig.run(arguments, ""), (0, output.to_owned(), String::new()), "{arguments:?}");
}

#[track_caller]
fn fails(rig: &Rig, arguments: &[&str], text: &str) {
    fails_with(rig, arguments, "", "", text);
}

#[track_caller]
fn fails_with(rig: &Rig, arguments: &[&str], input: &str, output: &str, text: &str) {
    let (status, out, error) = rig.run(arguments, input);
    assert_eq!((status, out.as_str()), (1, output), "{arguments:?}: {error}");
    assert!(
        error.starts_with("Error: \"") && error.ends_with("\"\n") && error.contains(text),
        "{arguments:?}: {error}"
    );
}

const NO_EFFECT: &str = "The requested action had no effect";
const PROMPT: &str = "Enter passphrase followed by return: ";
const VERIFY: &str = "Verify passphrase: ";

#[test]
fn pools_and_filesystems_from_the_command_line() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    prints(&rig, &["key"], "Key Description   \n");
    prints(&rig, &["pool"], "Name      Total Physical   Properties   UUID\n");
    prints(&rig, &["filesystem"], "Pool Name   Name   Used   Created   Device   UUID   \n");
    does(&rig, &["pool", "create", "p1", "/dev/a", "/dev/b"]);
    fails(&rig, &["pool", "create", "p1", "/dev/a", "/dev/b"], NO_EFFECT);
    does(&rig, &["pool", "add-data", "p1", "/dev/c"]);
    does(&rig, &["pool", "init-cache", "p1", "/dev/d"]);
    does(&rig, &["pool", "add-cache", "p1", "/dev/e"]);
    fails(&rig, &["pool", "add-data", "p1", "/dev/c"], NO_EFFECT);
    does(&rig, &["filesystem", "create", "p1", "f1"]);
    fails(&rig, &["filesystem", "create", "p1", "f1"], NO_EFFECT);
    does(&rig, &["filesystem", "rename", "p1", "f1", "f2"]);
    prints(&rig, &["filesystem", "origin", "p1", "f2"], "None\n");
    fails(&rig, &["filesystem", "origin", "p1", "nope"], "no filesystem named nope");
    let (status, table, _) = rig.run(&["filesystem"], "");
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((status, row[0], row[1], row[5]), (0, "p1", "f2", "/dev/stratis/p1/f2"), "{table}");
    let (_, table, _) = rig.run(&["pool"], "");
    let row = table.lines().nth(1).unwrap();
    assert!(row.starts_with("p1 ") && row.contains("    Ca,~Cr   "), "{table}");
    let uuid = row.rsplit(' ').next().unwrap();
    for (question, answer) in
        [("is-encrypted", "false"), ("is-stopped", "false"), ("has-passphrase", "false"), ("is-bound", "false")]
    {
        prints(&rig, &["pool", question, uuid], &format!("{answer}\n"));
        prints(&rig, &["pool", question, "--name", "p1"], &format!("{answer}\n"));
    }
    fails(&rig, &["pool", "start", uuid], NO_EFFECT);
    does(&rig, &["pool", "stop", uuid]);
    fails(&rig, &["pool", "stop", uuid], NO_EFFECT);
    prints(&rig, &["pool", "is-stopped", uuid], "true\n");
    does(&rig, &["pool", "start", "p1", "--name"]);
    fails(&rig, &["pool", "destroy", "p1"], "filesystem");
    does(&rig, &["filesystem", "destroy", "p1", "f2"]);
    does(&rig, &["pool", "rename", "p1", "p2"]);
    let (status, report, _) = rig.run(&["report"], "");
    assert!(status == 0 && report.starts_with("{\n  \"") && report.ends_with("\n}\n"), "{report}");
    does(&rig, &["pool", "destroy", "p2"]);
    fails(&rig, &["pool", "destroy", "p2"], "no pool named p2");
    fails(&rig, &["pool", "is-stopped", uuid], "not found");
}

#[test]
fn keys_and_bindings_from_the_command_line() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    let file = rig.path("key");
    std::fs::write(&file, b"from a file\n").unwrap();
    let capture = |name| rig.run(&["key", "set", "--capture-key", name], "one\none\n");
    assert_eq!(capture("k1"), (0, format!("{PROMPT}{VERIFY}"), String::new()));
    fails_with(&rig, &["key", "set", "--capture-key", "k1"], "one\none\n", &format!("{PROMPT}{VERIFY}"), NO_EFFECT);
    does(&rig, &["key", "set", "--keyfile-path", file.to_str().unwrap(), "k2"]);
    let both = format!("{PROMPT}{VERIFY}");
    fails_with(&rig, &["key", "set", "--capture-key", "k"], "a\nb\n", &both, "Passphrases did not match");
    fails_with(&rig, &["key", "set", "--capture-key", "k"], " \n  \n", &both, "Passphrases did not match");
    fails_with(&rig, &["key", "set", "--capture-key", "k"], "\n\n", &both, "Password provided was empty");
    fails(&rig, &["key", "set", "--keyfile-path", "/no/such/file", "k"], "/no/such/file");
    let (_, keys, _) = rig.run(&["key", "list"], "");
    let mut lines: Vec<&str> = keys.lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["Key Description   ", "k1                ", "k2                "]);

    does(&rig, &["pool", "create", "--key-descs", "k1", "--clevis-infos", "pin=tpm2 token_slot=4", "e", "/dev/a"]);
    let say = |question: &str, answer: &str| prints(&rig, &["pool", question, "--name", "e"], &format!("{answer}\n"));
    say("is-encrypted", "true");
    say("has-passphrase", "true");
    say("is-bound", "true");
    does(&rig, &["pool", "bind", "keyring", "--name", "--key-desc", "k2", "--token-slot", "7", "e"]);
    does(&rig, &["pool", "rebind", "clevis", "--name", "--token-slot", "4", "e"]);
    does(&rig, &["pool", "unbind", "clevis", "--name", "--token-slot", "4", "e"]);
    say("is-bound", "false");
    does(&rig, &["pool", "bind", "tpm2", "--name", "e"]);
    does(&rig, &["pool", "unbind", "clevis", "--name", "e"]);
    does(&rig, &["pool", "stop", "--name", "e"]);
    say("is-stopped", "true");
    say("is-encrypted", "true");
    does(&rig, &["key", "unset", "k1"]);
    does(&rig, &["key", "unset", "k2"]);
    fails(&rig, &["key", "unset", "k2"], NO_EFFECT);
    let start = |slot: &'static str| ["pool", "start", slot, "--prompt", "--name", "e"];
    fails_with(&rig, &start("--token-slot=any"), "wrong\n", PROMPT, "");
    fails_with(&rig, &start("--token-slot=any"), "", PROMPT, "Password provided was empty");
    fails(&rig, &["pool", "start", "--name", "e"], "");
    assert_eq!(rig.run(&start("--token-slot=any"), "one\n"), (0, PROMPT.to_owned(), String::new()));
}

/// Ended by a signal at the prompt, `stratis-min` left the terminal without echo.
#[test]
fn a_signal_at_the_prompt_restores_echo() {
    use rustix::{
        process::{Pid, Signal, kill_process},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::{LocalModes, tcgetattr},
    };
    let rig = Rig::new();
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let terminal = std::fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
    let echoes = || tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO);
    assert!(echoes());
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut child = command(STRATIS_MIN)
            .args(["key", "set", "--capture-key", "k"])
            .env(RUN_DIRECTORY, rig.0.path())
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It asks once the echo is off.
        let mut asked = [0; PROMPT.len()];
        child.stdout.take().unwrap().read_exact(&mut asked).unwrap();
        assert!(!echoes());
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        assert!(echoes(), "after {signal:?}");
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let rig = Rig::new();
    for (arguments, text) in [
        (&[][..], "Usage:"),
        (&["nothing"], "unrecognized subcommand"),
        (&["pool", "list"], "unrecognized subcommand"),
        (&["filesystem", "list"], "unrecognized subcommand"),
        (&["report", "x"], "unexpected argument"),
        (&["pool", "destroy"], "the following required arguments were not provided"),
        (&["pool", "create", "p"], "the following required arguments were not provided"),
        (&["key", "set", "k"], "the following required arguments were not provided"),
        (&["key", "set", "--capture-key", "--keyfile-path", "f", "k"], "cannot be used with"),
        (&["pool", "bind"], "Usage:"),
        (&["pool", "unbind", "clevis", "--name", "--token-slot", "x", "p"], "invalid value"),
        (&["pool", "bind", "nbde", "--trust-url", "--thumbprint", "t", "p", "u"], "cannot be used with"),
    ] {
        let (status, out, error) = rig.run(arguments, "");
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}");
        assert!(error.contains(text), "{arguments:?}: {error}");
    }
    for program in [STRATIS_MIN, STRATISD_MIN] {
        let name = program.rsplit('/').next().unwrap();
        let version = command(program).arg("--version").output().unwrap();
        assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        assert!(command(program).arg("--help").output().unwrap().status.success());
    }
    let level = command(STRATISD_MIN).args(["--log-level", "off"]).output().unwrap();
    assert_eq!(level.status.code(), Some(2));
}

#[test]
fn a_missing_daemon_is_named() {
    let rig = Rig::new();
    fails(&rig, &["pool"], "No such file or directory (os error 2)");
    // Wrong values need no daemon.
    fails(&rig, &["key", "unset", "a;b"], "Key description a;b contains a ';'");
    let daemon = rig.ready();
    let directory = rig.0.path().to_str().unwrap().to_owned();
    let second = command(STRATISD_MIN).arg("--sim").env(RUN_DIRECTORY, &directory).output().unwrap();
    let error = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(error.starts_with("Error: \"") && error.contains(&format!("process {}", daemon.process.id())), "{error}");
}
