//! The two udev helpers, run as udev runs them: output and exit status
//! (`docs/spec/tools/utilities.md` §7, 8).

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::{Command, Output},
};

const CMP: &str = env!("CARGO_BIN_EXE_stratis-str-cmp");
const DECODE: &str = env!("CARGO_BIN_EXE_stratis-base32-decode");

// These tests are about programs; there is no other way to run them.
#[allow(clippy::disallowed_methods)]
fn run(program: &str, arguments: &[&[u8]]) -> Output {
    Command::new(program)
        .args(arguments.iter().map(|bytes| OsStr::from_bytes(bytes)))
        .output()
        .expect("cannot start the helper")
}

#[track_caller]
fn prints(program: &str, arguments: &[&[u8]], stdout: &str) {
    let output = run(program, arguments);
    assert_eq!(output.stdout, stdout.as_bytes(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[track_caller]
fn refuses(program: &str, arguments: &[&[u8]], stderr: &str) {
    let output = run(program, arguments);
    assert_eq!(String::from_utf8_lossy(&output.stderr), stderr);
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}

const NO_FIRST: &str = "Error: \"missing first argument, this program requires exactly 2 arguments\"\n";
const NO_SECOND: &str = "Error: \"missing second argument, this program requires exactly 2 arguments\"\n";

#[test]
fn str_cmp_prints_whether_texts_differ_and_succeeds() {
    prints(CMP, &[b"a", b"a"], "0\n");
    prints(CMP, &[b"a", b"b"], "1\n");
    prints(CMP, &[b"a", b"A"], "1\n");
    prints(CMP, &[b"", b""], "0\n");
    prints(CMP, &[b"a", b"a", b"extra"], "0\n");
    // Not UTF-8: udev passes on whatever a device reports.
    prints(CMP, &[b"\xff", b"\xff"], "0\n");
    prints(CMP, &[b"\xff", b"\xfe"], "1\n");
}

/// The rules compare an event's UUID with the device name, which has no hyphens.
#[test]
fn str_cmp_knows_the_device_of_a_filesystem() {
    let uuid = b"3f2504e0-4f89-41d3-9a0c-0305e82c3301";
    let pool = "0123456789abcdef0123456789abcdef";
    let name = format!("stratis-1-{pool}-thin-fs-3f2504e04f8941d39a0c0305e82c3301");
    prints(CMP, &[uuid, name.as_bytes()], "0\n");
    for other in [
        format!("stratis-1-{pool}-thin-fs-3f2504e04f8941d39a0c0305e82c3302"),
        format!("stratis-1-{pool}-flex-mdv-3f2504e04f8941d39a0c0305e82c3301"),
        format!("x-{pool}-thin-fs-3f2504e04f8941d39a0c0305e82c3301"),
        "3f2504e04f8941d39a0c0305e82c3301".to_owned(),
        "-thin-fs-".to_owned(),
    ] {
        prints(CMP, &[uuid, other.as_bytes()], "1\n");
    }
    prints(CMP, &[b"", name.as_bytes()], "1\n");
    prints(CMP, &[b"3f2504e04f8941d39a0c0305e82c3301", name.as_bytes()], "1\n");
}

#[test]
fn str_cmp_needs_two_arguments() {
    refuses(CMP, &[], NO_FIRST);
    refuses(CMP, &[b"a"], NO_SECOND);
}

#[test]
fn base32_decode_prints_an_assignment() {
    prints(DECODE, &[b"K", b"MFRGG"], "K=abc\n");
    prints(DECODE, &[b"STRATIS_POOL_NAME", b"MY"], "STRATIS_POOL_NAME=f\n");
    prints(DECODE, &[b"K", b""], "K=\n");
    prints(DECODE, &[b"K", b"MFRGG", b"extra"], "K=abc\n");
}

#[test]
fn base32_decode_is_the_inverse_of_the_encoding() {
    for name in ["p1", "a,b", "x=y@z", "ünïcode☺", &"n".repeat(255)] {
        let encoded = data_encoding::BASE32_NOPAD.encode(name.as_bytes());
        prints(DECODE, &[b"NAME", encoded.as_bytes()], &format!("NAME={name}\n"));
    }
}

#[test]
fn base32_decode_refuses_what_is_not_base32() {
    refuses(DECODE, &[], NO_FIRST);
    refuses(DECODE, &[b"K"], NO_SECOND);
    refuses(DECODE, &[b"K", b"mfrgg"], "Error: DecodeError { position: 0, kind: Symbol }\n");
    refuses(DECODE, &[b"K", b"MFRGG==="], "Error: DecodeError { position: 5, kind: Symbol }\n");
    refuses(DECODE, &[b"K", b"MFRGG1AA"], "Error: DecodeError { position: 5, kind: Symbol }\n");
    refuses(DECODE, &[b"K", b"MFRGG="], "Error: DecodeError { position: 5, kind: Length }\n");
    refuses(DECODE, &[b"K", b"MFR"], "Error: DecodeError { position: 2, kind: Length }\n");
    refuses(DECODE, &[b"K", b"MZ"], "Error: DecodeError { position: 1, kind: Trailing }\n");
}

#[test]
fn base32_decode_refuses_what_is_not_text() {
    let encoded = data_encoding::BASE32_NOPAD.encode(b"a\xff");
    let output = run(DECODE, &[b"K", encoded.as_bytes()]);
    assert!(output.stdout.is_empty());
    assert!(output.stderr.starts_with(b"Error: "), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}
