//! Every request with its exact answer, and how descriptors are handled.

use std::{io::Write, os::fd::AsFd};

use crate::{Rig, read_all};

/// Requests in order, with their answers. `*` stands for digits that differ each time.
const TABLE: &[(&str, &str)] = &[
    (r#""KeyList""#, r#"{"Ok":{"KeyList":[[],0,"OK"]}}"#),
    (r#"{"KeyUnset":"kd1"}"#, r#"{"Ok":{"KeyUnset":[false,0,"OK"]}}"#),
    (r#"{"PoolCreate":["p1",["/dev/a","/dev/b"],null]}"#, r#"{"Ok":{"PoolCreate":[true,0,"OK"]}}"#),
    (r#"{"PoolCreate":["p1",["/dev/a","/dev/b"],null]}"#, r#"{"Ok":{"PoolCreate":[false,0,"OK"]}}"#),
    (r#" {"PoolList":null} "#, r#"{"Ok":{"PoolList":[["p1"],[[*,*]],[[false,false]],["*"]]}}"#),
    (r#"{"PoolIsEncrypted":{"Name":"p1"}}"#, r#"{"Ok":{"PoolIsEncrypted":[false,0,"OK"]}}"#),
    (r#"{"PoolIsStopped":{"Name":"p1"}}"#, r#"{"Ok":{"PoolIsStopped":[false,0,"OK"]}}"#),
    (r#"{"PoolHasPassphrase":{"Name":"p1"}}"#, r#"{"Ok":{"PoolHasPassphrase":[false,0,"OK"]}}"#),
    (r#"{"PoolIsBound":{"Name":"p1"}}"#, r#"{"Ok":{"PoolIsBound":[false,0,"OK"]}}"#),
    (r#"{"FsCreate":["p1","f1"]}"#, r#"{"Ok":{"FsCreate":[true,0,"OK"]}}"#),
    (r#"{"FsCreate":["p1","f1"]}"#, r#"{"Ok":{"FsCreate":[false,0,"OK"]}}"#),
    (r#"{"FsOrigin":["p1","f1"]}"#, r#"{"Ok":{"FsOrigin":[null,0,"OK"]}}"#),
    (r#"{"FsRename":["p1","f1","f2"]}"#, r#"{"Ok":{"FsRename":[true,0,"OK"]}}"#),
    (r#"{"FsRename":["p1","f2","f2"]}"#, r#"{"Ok":{"FsRename":[false,0,"OK"]}}"#),
    (r#""FsList""#, r#"{"Ok":{"FsList":[["p1"],["f2"],[*],["*-*-*T*:*:*Z"],["/dev/stratis/p1/f2"],["*"]]}}"#),
    (r#"{"FsDestroy":["p1","f2"]}"#, r#"{"Ok":{"FsDestroy":[true,0,"OK"]}}"#),
    (r#"{"FsDestroy":["p1","f2"]}"#, r#"{"Ok":{"FsDestroy":[false,1,"no filesystem named f2 found in pool p1"]}}"#),
    (r#"{"FsCreate":["nope","f1"]}"#, r#"{"Ok":{"FsCreate":[false,1,"no pool named nope found"]}}"#),
    (r#"{"PoolAddData":["p1",["/dev/c"]]}"#, r#"{"Ok":{"PoolAddData":[true,0,"OK"]}}"#),
    (r#"{"PoolAddData":["p1",["/dev/c"]]}"#, r#"{"Ok":{"PoolAddData":[false,0,"OK"]}}"#),
    (r#"{"PoolInitCache":["p1",["/dev/d"]]}"#, r#"{"Ok":{"PoolInitCache":[true,0,"OK"]}}"#),
    (r#"{"PoolAddCache":["p1",["/dev/e"]]}"#, r#"{"Ok":{"PoolAddCache":[true,0,"OK"]}}"#),
    (r#"{"PoolRename":["p1","p2"]}"#, r#"{"Ok":{"PoolRename":[true,0,"OK"]}}"#),
    (r#"{"PoolRename":["p2","p2"]}"#, r#"{"Ok":{"PoolRename":[false,0,"OK"]}}"#),
    (r#"{"PoolStart":[{"Name":"p2"},"None"]}"#, r#"{"Ok":{"PoolStart":[false,0,"OK"]}}"#),
    (r#"{"PoolStop":{"Name":"p2"}}"#, r#"{"Ok":{"PoolStop":[true,0,"OK"]}}"#),
    (r#"{"PoolStop":{"Name":"p2"}}"#, r#"{"Ok":{"PoolStop":[false,0,"OK"]}}"#),
    (r#"{"PoolIsStopped":{"Name":"p2"}}"#, r#"{"Ok":{"PoolIsStopped":[true,0,"OK"]}}"#),
    (r#"{"PoolIsEncrypted":{"Name":"p2"}}"#, r#"{"Ok":{"PoolIsEncrypted":[false,0,"OK"]}}"#),
    (r#"{"FsCreate":["p2","f1"]}"#, r#"{"Ok":{"FsCreate":[false,1,"pool p2 is not started; start it first"]}}"#),
    (r#"{"PoolStart":[{"Name":"p2"},"None"]}"#, r#"{"Ok":{"PoolStart":[true,0,"OK"]}}"#),
    (r#"{"PoolDestroy":"p2"}"#, r#"{"Ok":{"PoolDestroy":[true,0,"OK"]}}"#),
    (r#"{"PoolDestroy":"p2"}"#, r#"{"Ok":{"PoolDestroy":[false,1,"no pool named p2 found"]}}"#),
    (
        r#"{"PoolIsStopped":{"Uuid":"7f951e31059b48bdba8c4fd0405974e5"}}"#,
        r#"{"Ok":{"PoolIsStopped":[false,1,"pool with UUID 7f951e31-059b-48bd-ba8c-4fd0405974e5 not found"]}}"#,
    ),
];

/// Requests about an encrypted pool; the key `kd1` is set.
const ENCRYPTED: &[(&str, &str)] = &[
    (
        r#"{"PoolCreate":["e",["/dev/z"],{"encryption_infos":[[0,{"KeyDesc":"kd1"}]]}]}"#,
        r#"{"Ok":{"PoolCreate":[true,0,"OK"]}}"#,
    ),
    (r#""PoolList""#, r#"{"Ok":{"PoolList":[["e"],[[*,*]],[[false,true]],["*"]]}}"#),
    (r#"{"PoolHasPassphrase":{"Name":"e"}}"#, r#"{"Ok":{"PoolHasPassphrase":[true,0,"OK"]}}"#),
    (r#"{"PoolIsBound":{"Name":"e"}}"#, r#"{"Ok":{"PoolIsBound":[false,0,"OK"]}}"#),
    (r#"{"PoolBindClevis":[{"Name":"e"},{"Some":5},"tpm2",{}]}"#, r#"{"Ok":{"PoolBindClevis":[true,0,"OK"]}}"#),
    (r#"{"PoolIsBound":{"Name":"e"}}"#, r#"{"Ok":{"PoolIsBound":[true,0,"OK"]}}"#),
    (r#"{"PoolRebindClevis":[{"Name":"e"},null]}"#, r#"{"Ok":{"PoolRebindClevis":[true,0,"OK"]}}"#),
    (r#"{"PoolBindKeyring":[{"Name":"e"},"None","kd2"]}"#, r#"{"Ok":{"PoolBindKeyring":[true,0,"OK"]}}"#),
    (r#"{"PoolRebindKeyring":[{"Name":"e"},0,"kd1"]}"#, r#"{"Ok":{"PoolRebindKeyring":[false,0,"OK"]}}"#),
    (r#"{"PoolUnbindKeyring":[{"Name":"e"},0]}"#, r#"{"Ok":{"PoolUnbindKeyring":[true,0,"OK"]}}"#),
    (r#"{"PoolUnbindClevis":[{"Name":"e"},5]}"#, r#"{"Ok":{"PoolUnbindClevis":[true,0,"OK"]}}"#),
    (r#"{"PoolStop":{"Name":"e"}}"#, r#"{"Ok":{"PoolStop":[true,0,"OK"]}}"#),
    (r#"{"PoolIsEncrypted":{"Name":"e"}}"#, r#"{"Ok":{"PoolIsEncrypted":[true,0,"OK"]}}"#),
    (r#"{"PoolHasPassphrase":{"Name":"e"}}"#, r#"{"Ok":{"PoolHasPassphrase":[true,0,"OK"]}}"#),
    (r#"{"PoolIsBound":{"Name":"e"}}"#, r#"{"Ok":{"PoolIsBound":[false,0,"OK"]}}"#),
    (r#"{"PoolStart":[{"Name":"e"},"Any"]}"#, r#"{"Ok":{"PoolStart":[true,0,"OK"]}}"#),
];

/// Whether a text has the form of a pattern, in which `*` stands for hexadecimal digits and hyphens.
fn has_form(text: &str, pattern: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return text == pattern };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let most = rest.find(|c: char| !(c.is_ascii_hexdigit() || c == '-')).unwrap_or(rest.len());
    (1..=most).any(|length| has_form(&rest[length..], after))
}

#[track_caller]
fn answers(rig: &Rig, table: &[(&str, &str)]) {
    for (request, expected) in table {
        let answer = rig.ask(request);
        assert!(has_form(&answer, expected), "{request}: {answer}");
    }
}

#[test]
fn each_request_has_its_exact_answer() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    answers(&rig, TABLE);
}

#[test]
fn encrypted_pools_answer_as_others() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    let set = |key: &str| format!(r#"{{"Ok":{{"KeySet":[{key},0,"OK"]}}}}"#);
    assert_eq!(rig.ask_with_key(r#"{"KeySet":"kd1"}"#, b"one"), set("false"));
    assert_eq!(rig.ask_with_key(r#"{"KeySet":"kd1"}"#, b"one"), set("null"));
    assert_eq!(rig.ask_with_key(r#"{"KeySet":"kd1"}"#, b"two"), set("true"));
    assert_eq!(rig.ask_with_key(r#"{"KeySet":"kd2"}"#, b"other"), set("false"));
    answers(&rig, ENCRYPTED);
    answers(&rig, &[(r#"{"PoolStop":{"Name":"e"}}"#, r#"{"Ok":{"PoolStop":[true,0,"OK"]}}"#)]);
    let wrong = rig.ask_with_key(r#"{"PoolStart":[{"Name":"e"},"Any"]}"#, b"wrong");
    assert!(wrong.starts_with(r#"{"Ok":{"PoolStart":[false,1,""#), "{wrong}");
    let none = rig.ask(r#"{"PoolStart":[{"Name":"e"},"None"]}"#);
    assert!(none.starts_with(r#"{"Ok":{"PoolStart":[false,1,""#), "{none}");
    let started = rig.ask_with_key(r#"{"PoolStart":[{"Name":"e"},"Any"]}"#, b"other");
    assert_eq!(started, r#"{"Ok":{"PoolStart":[true,0,"OK"]}}"#);
}

#[test]
fn the_report_is_that_of_the_bus() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    rig.ask(r#"{"PoolCreate":["p1",["/dev/a"],null]}"#);
    let report: serde_json::Value = serde_json::from_str(&rig.ask(r#""Report""#)).unwrap();
    let report = &report["Ok"]["Report"];
    assert_eq!(report["pools"][0]["name"], "p1", "{report}");
    assert_eq!(report["stopped_pools"], serde_json::json!([]));
    assert_eq!(report["partially_constructed_pools"], serde_json::json!([]));
}

#[test]
fn descriptors_are_taken_where_they_belong() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(writer);
    assert_eq!(rig.ask(r#"{"KeySet":"k"}"#), r#"{"Err":"Method expected a file descriptor and did not receive one"}"#);
    assert_eq!(
        read_all(&rig.sent(r#""KeyList""#, &[reader.as_fd()])),
        r#"{"Err":"Method did not expect a file descriptor and received one anyway; file descriptor was closed"}"#
    );
    let many = read_all(&rig.sent(r#"{"KeySet":"k"}"#, &[reader.as_fd(); 8]));
    assert_eq!(many, r#"{"Err":"the request came with more than one file descriptor"}"#);
}

#[test]
fn keys_of_64_bytes_are_the_longest() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    let set = r#"{"Ok":{"KeySet":[false,0,"OK"]}}"#;
    assert_eq!(rig.ask_with_key(r#"{"KeySet":"a"}"#, &[7; 63]), set);
    // The writing end is open, or closed, or there is none.
    assert_eq!(rig.ask_with_key(r#"{"KeySet":"b"}"#, &[7; 64]), set);
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[7; 64]).unwrap();
    drop(writer);
    assert_eq!(read_all(&rig.sent(r#"{"KeySet":"c"}"#, &[reader.as_fd()])), set);
    let file = rig.path("key");
    for (name, length, accepted) in [("d", 64, true), ("e", 65, false)] {
        std::fs::write(&file, vec![7; length]).unwrap();
        let open = std::fs::File::open(&file).unwrap();
        let answer = read_all(&rig.sent(&format!(r#"{{"KeySet":"{name}"}}"#), &[open.as_fd()]));
        assert_eq!(answer == set, accepted, "{length} bytes: {answer}");
    }
    let long = rig.ask_with_key(r#"{"KeySet":"f"}"#, &[7; 65]);
    assert!(long.contains("longer than 64 bytes"), "{long}");
}

#[test]
fn a_key_may_come_after_the_request() {
    let rig = Rig::new();
    let _daemon = rig.ready();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let waits = rig.sent(r#"{"KeySet":"late"}"#, &[reader.as_fd()]);
    // Another client is served meanwhile.
    assert_eq!(rig.ask(r#""KeyList""#), r#"{"Ok":{"KeyList":[[],0,"OK"]}}"#);
    writer.write_all(b"key").unwrap();
    assert_eq!(read_all(&waits), r#"{"Ok":{"KeySet":[false,0,"OK"]}}"#);
}
