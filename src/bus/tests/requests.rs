//! Calls and their answers, without a bus: refusals before the engine is asked, and the form of
//! replies.

use std::time::Duration;

use dbus::{Message, arg::AppendAll};

use super::{is, plain, pool, read_back, values, with_filesystem};
use crate::{
    bus::{
        answer::{Answer, error_name, readable},
        call_error::CallError,
        called_member::CalledMember,
        caller::Caller,
        lister::Deferred,
        message::{self, BadArguments},
        outcome::Outcome,
        reader::{EngineTask, Response, respond},
        schema::{Interface, InterfaceKind},
        table::{find_method, find_property},
        tree::{Id, Tree},
        wire::Value,
    },
    service::{
        Failure, Holder, Locks, ReportedProgram,
        report::{self, Composer, Report},
    },
    view::{FailedFilesystemView, PoolView, StoppedPoolView, View},
};

/// A pool `p` with a filesystem, and a pool `q`. Their paths are 0 to 2 and 3 to 4.
fn two_pools() -> Tree {
    super::tree(vec![is(&with_filesystem(pool(1, "p"), 5)), is(&pool(2, "q"))])
}

fn composed(report: Report, view: &View, held: &Locks) -> String {
    Composer::new(report).text(view, held)
}

fn at(n: u64) -> dbus::Path<'static> {
    format!("/org/storage/stratis3/{n}").into()
}

fn shown(answer: &Answer) -> String {
    let caller = Caller { name: ":1.1".into(), serial: 1 };
    let message = read_back(&message::answer(&caller, answer).unwrap());
    let arguments: Vec<_> = values(&message).iter().map(plain).collect();
    match answer {
        Answer::Return(_) => arguments.join(" "),
        Answer::Error(name, _) => format!("{name} {}", arguments.join(" ")),
    }
}

/// The answer to the call; `a job` if the engine is asked.
fn answer(path: &str, interface: &str, member: &str, arguments: impl AppendAll) -> String {
    let path = format!("/org/storage/stratis3{path}");
    let interface = format!("org.storage.stratis3.{interface}");
    let mut message = Message::new_method_call(":1.1", path, interface, member).unwrap();
    message.append_all(arguments);
    match respond(&message, &two_pools()).unwrap() {
        Response::Answer(answer) => shown(&answer),
        Response::Job(..) => "a job".into(),
        Response::Deferred(Deferred::Report(..)) => "a report".into(),
        Response::Deferred(Deferred::List) => "a list".into(),
        Response::Deferred(Deferred::Introspection) => "an introspection".into(),
    }
}

type Keys = Vec<((bool, u32), &'static str)>;
type Clevis = Vec<((bool, u32), &'static str, &'static str)>;

fn create_pool(name: &str, keys: Keys, clevis: Clevis, (journal, tag): (Option<u64>, Option<&str>)) -> String {
    let journal = (journal.is_some(), journal.unwrap_or(0));
    let tag = (tag.is_some(), tag.unwrap_or(""));
    let devices = vec!["/dev/a"];
    answer("", "Manager.r9", "CreatePool", (name, devices, keys, clevis, journal, tag, (false, false)))
}

#[test]
fn create_pool_reports_mistakes_in_the_known_order() {
    let filler = "(false (/ [])) 1 ";
    let bad_tag = (Some(4097), Some("64b"));
    let refused = |text: String, expected: &str| {
        assert!(text.starts_with(filler), "{text}");
        assert!(text.contains(expected), "{text} does not say {expected}");
    };
    // Each call contains the mistakes of all later calls too.
    let slots = |slot: bool| vec![((slot, 1), "a;b"), ((slot, 1), "k")];
    refused(create_pool("a b", slots(true), vec![((false, 0), "tang", "{bad")], bad_tag), "not valid JSON");
    refused(create_pool("a b", slots(true), vec![], bad_tag), "token slot 1 is named twice");
    refused(create_pool("a b", slots(false), vec![], bad_tag), "`64b`");
    refused(create_pool("a b", slots(false), vec![], (Some(4097), None)), "`;`");
    refused(create_pool("a b", vec![], vec![], (Some(4097), Some("0b"))), "the name `a b`");
    refused(
        create_pool("ab", vec![], vec![], (Some(4097), Some("0b"))),
        "4 KiB (4097 bytes) is not a multiple of 4 KiB;",
    );
    refused(create_pool("ab", vec![((false, 0), "k"); 16], vec![], (None, None)), "16 unlock methods");
    refused(create_pool("ab", vec![((true, 32), "k")], vec![], bad_tag), "no token slot 32");
    refused(create_pool("a b", vec![], vec![((false, 0), "tang", r#"{"url":"http://x"}"#)], bad_tag), "`64b`");
    let untrusted = || vec![((false, 0), "tang", r#"{"url":"http://x"}"#)];
    refused(create_pool("a b", vec![], untrusted(), (None, None)), "set `stratis:tang:trust_url` to true");
    assert_eq!(create_pool("ab", vec![((false, 0), "k"); 14], vec![((true, 3), "tpm2", "{}")], (None, None)), "a job");
    assert_eq!(create_pool("ab", vec![], vec![], (Some(8192), Some("512b"))), "a job");
}

#[test]
fn create_pool_is_accepted_in_older_forms() {
    let none = ((false, ""), (false, ("", "")));
    let devices = vec!["/dev/a"];
    type Bindings<'a> = ((bool, &'a str), (bool, (&'a str, &'a str)));
    let r0 = |code: (bool, u16), encryption: Bindings<'_>| {
        answer("", "Manager.r0", "CreatePool", ("n", code, devices.clone(), encryption.0, encryption.1))
    };
    assert_eq!(r0((false, 7), none), "a job");
    assert_eq!(r0((true, 0), none), "a job");
    assert!(r0((true, 1), none).starts_with("(false (/ [])) 1 '1 is not a kind of redundancy"));
    assert_eq!(r0((false, 0), ((true, "k"), (true, ("tpm2", "{}")))), "a job");
    assert!(r0((false, 0), ((true, "a;b"), none.1)).contains("`;`"));
    assert!(r0((false, 0), (none.0, (true, ("tang", "{}")))).contains("`url` must be the address"));
    assert!(r0((false, 0), (none.0, (true, ("tang", "{")))).contains("not valid JSON"));
    assert_eq!(answer("", "Manager.r7", "CreatePool", ("n", devices.clone(), none.0, none.1)), "a job");
}

type Spec = (&'static str, (bool, &'static str), (bool, &'static str));

#[test]
fn wrong_sizes_of_filesystems_are_refused() {
    const NO: (bool, &str) = (false, "");
    let create = |specs: Vec<Spec>| answer("/0", "pool.r6", "CreateFilesystems", (specs,));
    let refused = |specs: Vec<Spec>, expected: &str| {
        let text = create(specs);
        assert!(text.starts_with("(false []) 1 '") && text.contains(expected), "{text} does not say {expected}");
    };
    assert_eq!(create(vec![]), "(false []) 0 'Ok'");
    assert_eq!(create(vec![("f", NO, NO)]), "a job");
    assert_eq!(create(vec![("f", (true, "+536870912"), (true, "536870912"))]), "a job");
    assert_eq!(create(vec![("f", (true, "9444732965739290426880"), NO)]), "a job");
    for text in ["abc", "", "-1", "1GiB", "340282366920938463463374607431768211456"] {
        refused(vec![("f", (true, text), NO)], &format!("`{text}` is not a filesystem size;"));
    }
    refused(vec![("f", NO, (true, "x"))], "`x` is not a filesystem size limit");
    // An unreadable size is reported before anything else.
    refused(vec![("a b", NO, NO), ("c", (true, "x"), NO)], "`x` is not a filesystem size");
    refused(vec![("a b", NO, NO), ("c", NO, NO)], "this one names 2");
    refused(vec![("a b", (true, "1"), NO)], "the name `a b`");
    refused(
        vec![("f", (true, "1073741825"), NO)],
        "filesystem size 1 GiB (1073741825 bytes) of filesystem f is not a multiple of 512",
    );
    refused(
        vec![("f", (true, "536870400"), NO)],
        "511.99 MiB (536870400 bytes) of filesystem f is below the minimum of 512 MiB",
    );
    refused(
        vec![("f", (true, "9444732965739290426881"), NO)],
        "exceeds the maximum of 8191.99 EiB (9444732965739290426880 bytes)",
    );
    refused(vec![("f", (true, "9444732965739290427392"), NO)], "filesystem size 8192 EiB of filesystem f exceeds");
    refused(vec![("f", (true, "1073741824"), (true, "536870912"))], "less than its size");
    refused(vec![("f", NO, (true, "536870912"))], "512 MiB, is less than its size, 1 TiB;");
    let r0 = |specs: Vec<(&str, (bool, &str))>| answer("/0", "pool.r0", "CreateFilesystems", (specs,));
    assert_eq!(r0(vec![("f", NO)]), "a job");
    assert!(r0(vec![("f", (true, "x"))]).contains("`x`"));
}

#[test]
fn paths_of_other_objects_are_refused() {
    let destroy = |paths: Vec<dbus::Path<'static>>| answer("/0", "pool.r9", "DestroyFilesystems", (paths,));
    assert_eq!(destroy(vec![]), "(false []) 0 'Ok'");
    // Unknown paths, and paths of other objects.
    assert_eq!(destroy(vec![at(99), at(0), at(2)]), "(false []) 0 'Ok'");
    assert_eq!(destroy(vec![at(99), at(1)]), "a job");
    assert_eq!(answer("/3", "pool.r9", "DestroyFilesystems", (vec![at(1)],)), "(false []) 0 'Ok'");

    let snapshot = |pool: &str, path, name: &str| answer(pool, "pool.r9", "SnapshotFilesystem", (path, name));
    assert_eq!(snapshot("/0", at(1), "s"), "a job");
    assert!(snapshot("/0", at(99), "s").starts_with("(false /) 1 '/org/storage/stratis3/99 is not the object path"));
    assert!(snapshot("/0", at(0), "s").contains("is not the object path of a filesystem"));
    assert!(snapshot("/3", at(1), "s").contains("belongs to pool p;"));
    assert!(snapshot("/0", at(1), "a b").contains("the name `a b`"));

    let destroy = |path| answer("", "Manager.r9", "DestroyPool", (path,));
    assert_eq!(destroy(at(0)), "a job");
    assert!(destroy(at(99)).starts_with("(false '') 1 '"));
    assert!(destroy(at(1)).contains("is not the object path of a pool"));
}

#[test]
fn pools_are_named_by_uuid_or_name() {
    let uuid = "00000000000000000000000000000001";
    let hyphenated = "00000000-0000-0000-0000-000000000001";
    let stop = |id: &str, id_type: &str| answer("", "Manager.r6", "StopPool", (id, id_type));
    assert_eq!(stop(uuid, "uuid"), "a job");
    assert_eq!(stop(hyphenated, "uuid"), "a job");
    assert_eq!(stop("p", "name"), "a job");
    assert!(stop("p", "nick").starts_with("(false '') 1 '`nick` is not a kind of identifier"));
    assert!(stop("p", "uuid").starts_with("(false '') 1 '`p` is not a UUID"));
    assert!(stop("a b", "name").starts_with("(false '') 1 'the name `a b`"));
    assert_eq!(answer("", "Manager.r2", "StopPool", (at(0),)), "a job");
    for wrong in [99, 1] {
        assert!(answer("", "Manager.r5", "StopPool", (at(wrong),)).contains("is not the object path of a pool"));
    }
    let null = || std::fs::File::open("/dev/null").unwrap();
    let start = answer("", "Manager.r9", "StartPool", ("p", "nick", (false, (false, 0_u32)), (false, null()), false));
    assert!(start.starts_with("(false (/ [] [])) 1 '`nick` is not"), "{start}");
}

#[test]
fn unlock_methods_have_two_spellings_beside_the_flag() {
    let uuid = "00000000000000000000000000000001";
    let r2 = |id: &str, method: (bool, &str)| answer("", "Manager.r2", "StartPool", (id, method));
    let r4 = |method: (bool, &str)| answer("", "Manager.r7", "StartPool", ("p", "name", method));
    for good in ["keyring", "Keyring", "clevis", "Clevis", "any", "Any"] {
        assert_eq!(r2(uuid, (true, good)), "a job");
        assert_eq!(r4((true, good)), "a job");
        assert_eq!(answer("", "Manager.r0", "UnlockPool", (uuid, good)), "a job");
    }
    for whatever in ["", "bogus"] {
        assert_eq!(r2(uuid, (false, whatever)), "a job");
        assert_eq!(r4((false, whatever)), "a job");
    }
    let filler = "(false (/ [] [])) 1 'bogus is an invalid unlock method";
    assert!(r2(uuid, (true, "bogus")).starts_with(filler));
    assert!(r4((true, "bogus")).starts_with(filler));
    assert!(r2("p", (false, "")).starts_with("(false (/ [] [])) 1 '`p` is not a UUID"));
    assert!(answer("", "Manager.r1", "UnlockPool", ("x", "keyring")).starts_with("(false []) 1 '`x` is not a UUID"));
    assert!(answer("", "Manager.r1", "UnlockPool", (uuid, "bogus")).starts_with("(false []) 1 'bogus is an invalid"));
}

/// The engine gets the encryption members' arguments as the client gave them.
#[test]
fn unlock_methods_are_parsed_in_each_form() {
    use crate::{
        bus::arguments::{self, Mechanisms},
        engine::encryption::{BindRequest, Kind, SlotRequest, UnlockMethod},
    };
    let legacy = |text: &str| arguments::legacy_unlock_method(Some(text.to_owned())).unwrap();
    for (text, method) in [
        ("keyring", UnlockMethod::Kind(Kind::Keyring)),
        ("clevis", UnlockMethod::Kind(Kind::Clevis)),
        ("any", UnlockMethod::Any),
    ] {
        assert_eq!(legacy(text), Some(method));
        assert_eq!(legacy(&format!("{}{}", text[..1].to_uppercase(), &text[1..])), Some(method));
    }
    assert_eq!(arguments::legacy_unlock_method(None).unwrap(), None);
    assert_eq!(arguments::unlock_method(None), None);
    assert_eq!(arguments::unlock_method(Some(None)), Some(UnlockMethod::Any));
    assert_eq!(arguments::unlock_method(Some(Some(7))), Some(UnlockMethod::Token(7)));
    assert_eq!((arguments::slot(None), arguments::slot(Some(0))), (SlotRequest::Free, SlotRequest::Id(0)));

    let told = |mechanisms: Mechanisms| -> Vec<(Option<u32>, String)> {
        let bindings = mechanisms.bindings().unwrap();
        bindings.into_iter().map(|binding| (binding.token, binding.request.to_string())).collect()
    };
    let tang = || ("tang".to_owned(), r#"{"url":"u","stratis:tang:trust_url":true}"#.to_owned());
    let bound = r#"Clevis (tang, {"url":"u"})"#.to_owned();
    let legacy = Mechanisms::parse_legacy(Some("k".to_owned()), Some(tang())).unwrap();
    assert_eq!(told(legacy), [(Some(1), "key description k".to_owned()), (Some(2), bound.clone())]);
    assert_eq!(told(Mechanisms::parse_legacy(None, None).unwrap()), []);
    let (pin, json) = tang();
    let new = Mechanisms::parse(vec![(Some(5), "k".to_owned()), (None, "k".to_owned())], vec![(None, pin, json)]);
    let key = "key description k".to_owned();
    assert_eq!(told(new.unwrap()), [(Some(5), key.clone()), (None, key), (None, bound)]);
    let (pin, json) = tang();
    let BindRequest::Clevis(request) = arguments::clevis(&pin, &json).unwrap() else { panic!("no Clevis") };
    assert!(request.trust);
}

#[test]
fn bindings_are_accepted_in_both_forms() {
    type Slot = (bool, u32);
    const FREE: Slot = (false, 0);
    let filler = "false 1 '";
    let refused = |text: String, expected: &str| {
        assert!(text.starts_with(filler) && text.contains(expected), "{text} does not say {expected}");
    };
    let r0 = "pool.r0";
    assert_eq!(answer("/0", r0, "BindKeyring", ("k",)), "a job");
    assert_eq!(answer("/0", "pool.r9", "BindKeyring", ("k", FREE)), "a job");
    refused(answer("/0", r0, "BindKeyring", ("a;b",)), "`;`");
    refused(answer("/0", "pool.r8", "BindKeyring", ("a;b", FREE)), "`;`");
    assert_eq!(answer("/0", r0, "RebindKeyring", ("k",)), "a job");
    assert_eq!(answer("/0", "pool.r9", "RebindKeyring", ("k", (true, 7_u32))), "a job");
    refused(answer("/0", r0, "RebindKeyring", ("a;b",)), "`;`");
    refused(answer("/0", "pool.r9", "RebindKeyring", ("a;b", FREE)), "`;`");

    let trusted = r#"{"url":"u","thp":"t"}"#;
    assert_eq!(answer("/0", r0, "BindClevis", ("tang", trusted)), "a job");
    assert_eq!(answer("/0", "pool.r9", "BindClevis", ("tang", trusted, FREE)), "a job");
    refused(answer("/0", r0, "BindClevis", ("tang", "nope")), "not valid JSON");
    refused(answer("/0", "pool.r9", "BindClevis", ("nope", "nope", FREE)), "not valid JSON");
    refused(answer("/0", "pool.r9", "BindClevis", ("nope", "{}", FREE)), "choose tang, tpm2 or sss");
    refused(answer("/0", r0, "BindClevis", ("tang", r#"{"url":"u"}"#)), "trust_url");

    for member in ["RebindClevis", "UnbindClevis", "UnbindKeyring"] {
        assert_eq!(answer("/0", "pool.r7", member, ()), "a job");
        assert_eq!(answer("/0", "pool.r8", member, ((true, 3_u32),)), "a job");
    }

    let encrypt = |keys: Keys, clevis: Clevis| answer("/0", "pool.r9", "EncryptPool", (keys, clevis));
    refused(encrypt(vec![], vec![]), "no unlock method was given");
    refused(encrypt(vec![], vec![(FREE, "tang", "{")]), "not valid JSON");
    refused(encrypt(vec![((true, 0), "k")], vec![((true, 0), "tang", "{}")]), "token slot 0 is named twice");
    assert_eq!(encrypt(vec![(FREE, "k")], vec![(FREE, "tpm2", "{}")]), "a job");
    for member in ["ReencryptPool", "DecryptPool"] {
        assert_eq!(answer("/0", "pool.r9", member, ()), "a job");
    }
}

/// The passphrase of StartPool is read like that of SetKey: not on the reader's thread, and with
/// the same limits.
#[test]
fn a_start_with_a_passphrase_reads_it_first() {
    use std::{fs::File, io::Write, os::fd::OwnedFd, sync::Arc};

    use crate::{
        base::pool_ref::PoolRef,
        engine::{
            Engine,
            request::{Access, Mode, Step},
        },
        platform::sim::Sim,
    };
    let engine = Engine::new(Arc::new(Sim::builder().build()));
    let started = |revision: u8, key: Option<&[u8]>| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(key.unwrap_or_default()).unwrap();
        let interface = format!("org.storage.stratis3.Manager.r{revision}");
        let mut message = Message::new_method_call(":1.1", "/org/storage/stratis3", interface, "StartPool").unwrap();
        let key = (key.is_some(), File::from(OwnedFd::from(reader)));
        message.append_all(("p", "name", (true, (false, 0_u32)), key));
        if revision == 9 {
            message.append_all((false,));
        }
        let Response::Job(_, EngineTask { chain, .. }) = respond(&message, &two_pools()).unwrap() else {
            panic!("no job")
        };
        match chain {
            Step::Blocking(_, read) => (true, read(&engine)),
            next => (false, next),
        }
    };
    let asks_for_the_pool = |next: &Step<Outcome>| matches!(next, Step::Locked(Access::Pool(PoolRef::Name(name), Mode::Shared), _) if name.as_str() == "p");
    for revision in [8, 9] {
        let (read, next) = started(revision, None);
        assert!(!read && asks_for_the_pool(&next));
        let (read, next) = started(revision, Some(b"passphrase\n"));
        assert!(read && asks_for_the_pool(&next));
        let (read, next) = started(revision, Some(&[b'x'; 65]));
        assert!(read && matches!(next, Step::Done(Outcome::Refused(text)) if text.contains("longer than 64 bytes")));
    }
}

#[test]
fn first_revisions_refuse_caches_of_encrypted_pools() {
    use crate::{
        bus::reader::respond,
        view::{EncryptionView, PoolView},
    };
    let encryption =
        EncryptionView { keys: vec![(1, "k".into())], clevis: vec![], keys_agree: true, clevis_agree: true };
    let tree = super::tree(vec![is(&PoolView { encryption: Some(encryption), ..pool(1, "p") }), is(&pool(2, "q"))]);
    let init = |object: &str, revision: u8| {
        let interface = format!("org.storage.stratis3.pool.r{revision}");
        let path = format!("/org/storage/stratis3/{object}");
        let mut message = Message::new_method_call(":1.1", path, interface, "InitCache").unwrap();
        message.append_all((vec!["/dev/c"],));
        match respond(&message, &tree).unwrap() {
            Response::Answer(answer) => shown(&answer),
            _ => "a job".to_owned(),
        }
    };
    for revision in 0..=9 {
        match revision {
            0..=4 => assert!(init("0", revision).starts_with("(false []) 1 'cannot add a cache to encrypted pool p")),
            _ => assert_eq!(init("0", revision), "a job"),
        }
        assert_eq!(init("2", revision), "a job");
    }
}

#[test]
fn only_announced_descriptors_are_needed() {
    use crate::bus::{arguments, wire::DescriptorArgument};
    assert!(matches!(arguments::passphrase(None), Ok(None)));
    let open: std::os::fd::OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let descriptor = crate::bus::wire::Descriptor(std::sync::Arc::new(open));
    let given = arguments::passphrase(Some(DescriptorArgument(Some(descriptor.clone())))).unwrap();
    assert_eq!(given, Some(descriptor.clone()));
    drop(given);
    assert_eq!(std::sync::Arc::strong_count(&descriptor.0), 1, "a descriptor is not kept");
    let missing = arguments::passphrase(Some(DescriptorArgument(None))).unwrap_err();
    assert!(missing.to_string().contains("attach one"), "{missing}");
}

#[test]
fn wrong_names_and_user_info_are_refused() {
    assert_eq!(answer("/0", "pool.r0", "SetName", ("x",)), "a job");
    assert!(answer("/0", "pool.r0", "SetName", ("",)).starts_with("(false '') 1 'a name must not be empty"));
    assert_eq!(answer("/1", "filesystem.r0", "SetName", ("x",)), "a job");
    let zeros = "(false '00000000000000000000000000000000') 1 '";
    assert!(answer("/1", "filesystem.r0", "SetName", ("a/b",)).starts_with(zeros));
    assert_eq!(answer("/2", "blockdev.r2", "SetUserInfo", ((true, "here"),)), "a job");
    assert_eq!(answer("/2", "blockdev.r2", "SetUserInfo", ((false, "a b"),)), "a job");
    assert!(answer("/2", "blockdev.r2", "SetUserInfo", ((true, "a b"),)).starts_with(zeros));
    assert_eq!(answer("/0", "pool.r9", "AddDataDevs", (Vec::<&str>::new(),)), "(false []) 0 'Ok'");
    assert_eq!(answer("/0", "pool.r9", "AddDataDevs", (vec!["/dev/x"],)), "a job");
}

/// The links of a pool named `a,b` were in the directory of a pool named `a_b`.
#[test]
fn names_that_udev_changes_are_refused() {
    let refused = |answer: String| {
        assert!(answer.contains("contains the character ',', which udev would change in a link"), "{answer}");
    };
    refused(create_pool("a,b", vec![], vec![], (None, None)));
    refused(answer("/0", "pool.r0", "SetName", ("a,b",)));
    refused(answer("/1", "filesystem.r9", "SetName", ("a,b",)));
    refused(answer("/0", "pool.r9", "SnapshotFilesystem", (at(1), "a,b")));
    refused(answer("/0", "pool.r9", "CreateFilesystems", (vec![("a,b", (false, ""), (false, ""))],)));
    // Requests still find an existing pool with such a name.
    assert_eq!(answer("", "Manager.r9", "StopPool", ("a,b", "name")), "a job");
}

fn asked(kind: InterfaceKind, revision: u8, name: &str) -> CalledMember {
    let interface = Interface { kind, revision };
    let row = find_method(interface, name).or_else(|| find_property(interface, name)).unwrap();
    CalledMember { row, interface }
}

#[test]
fn outcomes_of_methods_are_result_code_and_text() {
    let tree = two_pools();
    let create = asked(InterfaceKind::Manager, 9, "CreatePool");
    let told = |asked: CalledMember, outcome| shown(&asked.answer(outcome, &tree));
    let later = Outcome::Done(Box::new(|tree| {
        let path = Value::Path(tree.path(Id::Pool(super::pool_id(2))));
        Value::Struct(vec![Value::Bool(true), Value::Struct(vec![path, Value::Array("o", vec![])])])
    }));
    assert_eq!(told(create, later), "(true (/org/storage/stratis3/3 [])) 0 'Ok'");
    assert_eq!(told(create, Outcome::NoChange), "(false (/ [])) 0 'Ok'");
    assert_eq!(told(create, Outcome::Refused("why".into())), "(false (/ [])) 1 'why'");
    assert!(told(create, create.failure(Failure::Panicked)).contains("bug in the daemon"));
    let rename = asked(InterfaceKind::Filesystem, 0, "SetName");
    assert_eq!(told(rename, Outcome::NoChange), "(false '00000000000000000000000000000000') 0 'Ok'");
    // This method has no result besides code and text.
    assert_eq!(told(asked(InterfaceKind::Manager, 2, "RefreshState"), Outcome::Refused("why".into())), "1 'why'");
    assert_eq!(told(asked(InterfaceKind::Manager, 2, "RefreshState"), Outcome::NoChange), "0 'Ok'");
}

#[test]
fn refused_set_has_the_error_clients_know() {
    let tree = two_pools();
    let error = |revision, outcome| match asked(InterfaceKind::Blockdev, revision, "UserInfo").answer(outcome, &tree) {
        Answer::Error(name, _) => name,
        Answer::Return(body) => panic!("{body:?}"),
    };
    assert_eq!(error(8, Outcome::Refused("why".into())), error_name::FAILED);
    assert_eq!(error(9, Outcome::Refused("why".into())), error_name::FAILED);
    let set = asked(InterfaceKind::Blockdev, 9, "UserInfo").answer(Outcome::NoChange, &tree);
    assert_eq!(set, Answer::Return(crate::bus::wire::Body::empty()));
}

/// Found in review: several texts said what was wrong but not what to do.
#[test]
fn each_refusal_says_what_to_do() {
    let text = || "x".to_owned();
    let refusals = [
        CallError::UnknownObject(text()),
        CallError::UnknownInterface { path: text(), interface: text() },
        CallError::NoInterface(text()),
        CallError::UnknownMethod { interface: text(), method: text() },
        CallError::UnknownProperty { interface: text(), property: text() },
        CallError::ReadOnly(text()),
        BadArguments::Missing { position: 1, wanted: "s" }.into(),
        BadArguments::Type { position: 1, found: text(), wanted: "s" }.into(),
        BadArguments::TooMany.into(),
        BadArguments::Variant { found: text(), wanted: "s" }.into(),
        BadArguments::NotAVariant { position: 1, found: text() }.into(),
        BadArguments::NoInterface.into(),
    ];
    for refusal in refusals {
        let said = refusal.to_string();
        let remedy = said.split_once("; ").unwrap_or_else(|| panic!("{said}")).1;
        let verbs = ["introspect", "list", "name", "give", "put", "ask", "split"];
        assert!(verbs.iter().any(|verb| remedy.starts_with(verb)), "{said}");
    }
}

#[test]
fn reports_are_json() {
    let failed =
        FailedFilesystemView { uuid: super::uuid(6), name: "lost".into(), reason: "no such thin device".into() };
    let with_failed = PoolView { failed_filesystems: [failed].into(), ..with_filesystem(pool(1, "p"), 5) };
    let mut view: View = super::tree(vec![is(&with_failed), is(&pool(2, "q"))]).view;
    let stopped = |n: u64| StoppedPoolView {
        uuid: super::uuid(n),
        name: Some(super::name("s")),
        devices: vec![(format!("/dev/s{n}").into(), super::uuid(n * 16))],
        metadata_version: Some(2),
        features: None,
        encryption: None,
        partial: n == 9,
        reason: (n == 9).then(|| "it was busy".into()),
    };
    let mut known = crate::view::StoppedPoolsView::new(1);
    [7, 8, 9].map(stopped).into_iter().for_each(|pool| known.insert(pool));
    view.stopped = std::sync::Arc::new(known);
    let holder = Holder { request: "pool.r9.SetName".into(), access: "Write(p)".into(), age: Duration::from_secs(2) };
    let program = ReportedProgram {
        label: "mkfs.xfs on /dev/mapper/x".to_owned(),
        process: 7,
        age: Duration::from_millis(9),
        is_stuck: true,
    };
    let held = Locks { holders: vec![], waiters: vec![holder], programs: vec![program], unanswered_udev_events: 3 };
    let report: serde_json::Value = serde_json::from_str(&composed(Report::EngineState, &view, &held)).unwrap();
    let of = |pointer: &str| report.pointer(pointer).unwrap_or_else(|| panic!("{report} has no {pointer}"));
    assert_eq!(of("/pools/0/name"), "p");
    assert_eq!(of("/pools/0/filesystems_left_out/0/name"), "lost");
    assert_eq!(of("/pools/0/filesystems_left_out/0/reason"), "no such thin device");
    assert!(of("/pools/1").get("filesystems_left_out").is_none());
    assert_eq!(of("/pools/0/filesystems/0/size"), "2097152 sectors");
    assert_eq!(of("/pools/0/filesystems/0/used"), "123 bytes");
    assert_eq!(of("/pools/0/filesystems/0/origin"), "Not set");
    assert_eq!(of("/pools/1/blockdevs/datadevs/0/path"), "/dev/d2000");
    assert_eq!(of("/stopped_pools").as_array().map(Vec::len), Some(2));
    assert_eq!(of("/partially_constructed_pools/0/pool_uuid"), "00000000-0000-0000-0000-000000000009");
    assert_eq!(of("/partially_constructed_pools/0/reason"), "it was busy");
    assert!(of("/stopped_pools/0").get("reason").is_none());
    assert_eq!(of("/name_to_pool_uuid_map/s").as_array().map(Vec::len), Some(3));
    assert_eq!(of("/path_to_ids_map/~1dev~1s7/1"), "00000000-0000-0000-0000-000000000070");
    assert_eq!(of("/pools/0/blockdevs/datadevs/0/in_use"), true);
    assert_eq!(of("/locks/waiters/0/request"), "pool.r9.SetName");
    assert_eq!(of("/locks/waiters/0/age_ms"), 2000);
    assert_eq!(of("/locks/programs/0/program"), "mkfs.xfs on /dev/mapper/x");
    assert!(of("/locks/programs/0/stuck").is_string());
    assert_eq!(of("/udev_events_unanswered"), 3);
    let by_name = |name| -> serde_json::Value {
        serde_json::from_str(&composed(report::by_name(name).unwrap(), &view, &held)).unwrap()
    };
    assert!(by_name("stopped_pools").get("pools").is_none());
    assert_eq!(by_name("locks").pointer("/holders"), Some(&serde_json::json!([])));
    assert!(report::by_name("engine_state_report").is_err());
}

#[test]
fn a_report_shows_the_reencryption_job() {
    use crate::{
        platform::{Timestamp, luks::ReencryptionMode},
        view::{PoolView, ReencryptionJob},
    };
    let at = |seconds| Timestamp { seconds, nanoseconds: 0 };
    let work = std::sync::Arc::new(ReencryptionJob::new(ReencryptionMode::Reencrypt, at(1_795_227_303)));
    let tree = super::tree(vec![is(&PoolView { reencryption: Some(work.clone()), ..pool(1, "p") }), is(&pool(2, "q"))]);
    let told = || -> serde_json::Value {
        let report = composed(Report::EngineState, &tree.view, &Locks::default());
        serde_json::from_str::<serde_json::Value>(&report).unwrap()["pools"].take()
    };
    let since = "2026-11-21T02:15:03Z";
    assert_eq!(told()[0]["work"], serde_json::json!({ "kind": "reencrypt", "since": since, "bytes_done": 0 }));
    assert!(told()[1].get("work").is_none());
    let note = |done, seconds| work.note(done, 1000, at(seconds));
    note(0, 1_795_227_310);
    note(400, 1_795_227_320);
    let expected = serde_json::json!({
        "kind": "reencrypt", "since": since, "bytes_done": 400, "bytes_total": 1000, "bytes_per_second": 40,
        "seconds_left": 15,
    });
    assert_eq!(told()[0]["work"], expected);
    let stopped = PoolView { reencryption: Some(work.stopped_by("its key is missing").into()), ..pool(1, "p") };
    let tree = super::tree(vec![is(&stopped)]);
    let report: serde_json::Value =
        serde_json::from_str(&composed(Report::EngineState, &tree.view, &Locks::default())).unwrap();
    let expected = serde_json::json!({
        "kind": "reencrypt", "since": since, "bytes_done": 400, "bytes_total": 1000, "error": "its key is missing",
    });
    assert_eq!(report["pools"][0]["work"], expected);
}

/// A refusal that listed twenty thousand paths was a reply of 150 kB. A refusal that quoted a name
/// of 16 MiB was as long as the name.
#[test]
fn long_texts_are_cut_in_the_middle() {
    let short = "the name `a b` contains a space".to_owned();
    assert_eq!(readable(short.clone()), short);
    for padding in 0..4 {
        let text =
            format!("the name `{}{}` is too long; choose a shorter one", "x".repeat(padding), "☺".repeat(100_000));
        let cut = readable(text);
        assert!((2000..=2048).contains(&cut.len()), "{}", cut.len());
        assert!(cut.starts_with("the name `") && cut.ends_with("☺` is too long; choose a shorter one"), "{cut}");
    }
}
