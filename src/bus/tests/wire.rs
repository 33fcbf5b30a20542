//! The marshaller against libdbus's own parser.

use std::{os::fd::AsRawFd, sync::Arc};

use dbus::Message;
use proptest::prelude::*;

use super::{read_back, values};
use crate::bus::{
    answer::Answer,
    caller::Caller,
    message::{self, BadArguments, Envelope, Outgoing},
    rendering,
    wire::{Body, FromValue, Marshaller, PathArgument, Types, Value},
};

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::Byte),
        any::<bool>().prop_map(Value::Bool),
        any::<u16>().prop_map(Value::U16),
        any::<u32>().prop_map(Value::U32),
        any::<u64>().prop_map(Value::U64),
        "[^\0]{0,20}".prop_map(Value::Str),
        "(/[a-z0-9_]{1,5}){1,4}".prop_map(Value::Path),
    ]
}

/// Values of one type that can be elements of one array: the same value with some leaves changed.
fn alike(value: &Value, salt: u64) -> Value {
    match value {
        Value::Byte(v) => Value::Byte(v.wrapping_add(salt as u8)),
        Value::U64(v) => Value::U64(v.wrapping_mul(salt)),
        Value::Str(v) => Value::Str(format!("{v}{salt}")),
        Value::Struct(fields) => Value::Struct(fields.iter().map(|field| alike(field, salt)).collect()),
        Value::Array(element, values) if salt.is_multiple_of(3) => {
            Value::Array(element, values.iter().skip(1).cloned().collect())
        }
        other => other.clone(),
    }
}

fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            inner.clone().prop_map(Value::variant),
            prop::collection::vec(inner.clone(), 1..5).prop_map(Value::Struct),
            (inner.clone(), 0..5u64).prop_map(|(value, count)| {
                Value::Array(value.signature().leak(), (0..count).map(|salt| alike(&value, salt)).collect())
            }),
            (leaf(), inner, 0..4u64).prop_map(|(key, value, count)| {
                let entry = format!("{{{}{}}}", key.signature(), value.signature()).leak();
                Value::Dict(entry, (0..count).map(|salt| (alike(&key, salt), alike(&value, salt))).collect())
            }),
        ]
    })
}

fn caller() -> Caller {
    Caller { name: ":1.7".into(), serial: 42 }
}

fn reply(body: &Body) -> Message {
    read_back(&message::message(Envelope::Return(&caller()), &body.signature, &body.bytes).unwrap())
}

proptest! {
    /// libdbus accepts the marshalled bytes (it checks every byte, padding included) and decodes
    /// the same values.
    #[test]
    fn libdbus_reads_what_was_written(written in prop::collection::vec(value(), 0..5)) {
        let message = reply(&Body::of(&written));
        prop_assert_eq!(values(&message), written);
    }

    /// Bytes marshalled at 0 are valid at any multiple of 8.
    #[test]
    fn bytes_can_be_moved_by_multiples_of_8(first in value(), second in value()) {
        let mut direct = Marshaller::default();
        direct.value(&Value::Struct(vec![first.clone()]));
        direct.align(8);
        direct.value(&second);
        let mut moved = Marshaller::default();
        moved.value(&Value::Struct(vec![first]));
        let mut alone = Marshaller::default();
        alone.value(&second);
        moved.marshalled(&alone.finish());
        prop_assert_eq!(direct.finish(), moved.finish());
    }

    /// Decoding any body bytes with any of the daemon's signatures ends in values or an error.
    #[test]
    fn no_body_makes_decoding_panic(written in prop::collection::vec(value(), 0..4), row in 0..100usize) {
        let message = reply(&Body::of(&written));
        let rows = crate::bus::table::ROWS;
        let signature: &'static str = rows[row % rows.len()].signature().leak();
        let _ = message::arguments(&message, Types(signature));
        let _ = message::set_argument(&message, signature);
    }
}

#[test]
fn headers_are_decoded_as_they_were_meant() {
    let message = reply(&Body::of(&[Value::str("x")]));
    assert_eq!(message.msg_type(), dbus::MessageType::MethodReturn);
    assert_eq!(message.get_reply_serial(), Some(42));
    assert_eq!(message.destination().as_deref(), Some(":1.7"));
    assert!(message.get_no_reply());
    assert_ne!(message.get_serial(), Some(0));

    let envelope = Envelope::Signal { path: "/a/b", interface: "x.y.Z", member: "M" };
    let message = read_back(&message::message(envelope, "", &[]).unwrap());
    assert_eq!(message.msg_type(), dbus::MessageType::Signal);
    assert_eq!(message.path().as_deref(), Some("/a/b"));
    assert_eq!(message.interface().as_deref(), Some("x.y.Z"));
    assert_eq!(message.member().as_deref(), Some("M"));
    assert!(message.destination().is_none());

    let error = message::message(Envelope::Error(&caller(), "a.b.C"), "s", &Body::of(&[Value::str("why")]).bytes);
    let mut error = read_back(&error.unwrap());
    let error = error.as_result().unwrap_err();
    assert_eq!((error.name(), error.message()), (Some("a.b.C"), Some("why")));
}

/// libdbus does not check lists before they are sent, so this test makes it check them.
#[test]
fn libdbus_accepts_the_marshalled_lists() {
    let mut filesystem = 0;
    for filesystems in 0..20 {
        let mut pool = super::pool(1, &"p".repeat(1 + filesystems));
        for _ in 0..filesystems {
            filesystem += 1;
            pool = super::with_filesystem(pool, 10_u64.pow(filesystem % 10) + u64::from(filesystem));
        }
        let tree = if filesystems == 0 { super::tree(vec![]) } else { super::tree(vec![super::is(&pool)]) };
        let message = read_back(&message::list(
            &caller(),
            tree.objects().map(|object| Arc::clone(rendering::entry(object))).collect(),
        ));
        assert_eq!(message.get_reply_serial(), Some(42));
        assert_eq!(message.destination().as_deref(), Some(":1.7"));
        let listed = values(&message);
        let [Value::Dict(_, entries)] = &listed[..] else { panic!("{listed:?}") };
        let paths: Vec<_> = entries.iter().map(|(path, _)| path.clone()).collect();
        let wanted: Vec<_> = tree.objects().map(|object| Value::Path(object.path.to_string())).collect();
        assert_eq!(paths, wanted);
    }
}

/// The error that replaces an answer longer than the limit.
#[test]
fn too_long_answers_become_errors_signals_are_dropped() {
    let of = |length: usize| Answer::Return(Body::of(&[Value::Str("x".repeat(length))]));
    let made = |length| message::answer(&caller(), &of(length)).unwrap();
    let length = |outgoing: &Outgoing| outgoing.parts.iter().map(|part| part.bytes().len()).sum::<usize>();
    let limit = length(&made(5000));
    let sent = made(5000).within(limit).unwrap();
    assert_eq!(length(&sent), limit);

    let sent = made(5001).within(limit).unwrap();
    assert_eq!(sent.to.as_ref().map(|to| (to.name.clone(), to.serial)), Some((caller().name, caller().serial)));
    let mut error = read_back(&sent);
    assert_eq!(error.get_reply_serial(), Some(caller().serial));
    let error = error.as_result().unwrap_err();
    assert_eq!(error.name(), Some("org.freedesktop.DBus.Error.LimitsExceeded"));
    let said = error.message().unwrap();
    for part in [(limit + 1).to_string(), limit.to_string(), "max_message_size".to_owned()] {
        assert!(said.contains(&part), "{said} does not say {part}");
    }
    // Even the error does not fit.
    let refused = made(5001).within(100).unwrap_err().to_string();
    assert!(refused.starts_with("cannot send an answer to :1.7"), "{refused}");

    let envelope = Envelope::Signal { path: "/a/b", interface: "x.y.Z", member: "M" };
    let signal = || message::message(envelope, "s", &Body::of(&[Value::Str("x".repeat(5000))]).bytes).unwrap();
    let bytes = length(&signal());
    assert_eq!(length(&signal().within(bytes).unwrap()), bytes);
    let refused = signal().within(bytes - 1).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("cannot send the message M of /a/b: it has {bytes} bytes")), "{refused}");
}

/// A text with NUL would make libdbus refuse the whole message.
#[test]
fn text_is_cut_at_nul() {
    assert_eq!(values(&reply(&Body::of(&[Value::str("ab\0cd")]))), [Value::str("ab")]);
}

#[test]
fn arguments_have_wanted_types_and_surplus_is_ignored() {
    let message = reply(&Body::of(&[Value::str("x"), Value::U16(7)]));
    assert_eq!(message::arguments(&message, Types("s")), Ok(vec![Value::str("x")]));
    assert_eq!(message::arguments(&message, Types("")), Ok(vec![]));
    assert_eq!(
        message::arguments(&message, Types("su")),
        Err(BadArguments::Type { position: 2, found: "q".into(), wanted: "u" })
    );
    assert_eq!(message::arguments(&message, Types("sqb")), Err(BadArguments::Missing { position: 3, wanted: "b" }));
}

#[test]
fn a_new_value_must_be_in_a_variant() {
    let set = |mut values: Vec<Value>| {
        values.splice(0..0, [Value::str("org.storage.stratis3.pool.r9"), Value::str("FsLimit")]);
        message::set_argument(&reply(&Body::of(&values)), "t")
    };
    assert_eq!(set(vec![Value::variant(Value::U64(5))]), Ok(Value::U64(5)));
    let bare = BadArguments::NotAVariant { position: 3, found: "t".into() };
    assert_eq!(bare.to_string(), "argument 3 is of type `t`, not a variant; put the value into one");
    assert_eq!(set(vec![Value::U64(5)]), Err(bare));
    assert_eq!(set(vec![]), Err(BadArguments::Missing { position: 3, wanted: "v" }));
    assert_eq!(set(vec![Value::variant(Value::U32(5))]), Err(BadArguments::Variant { found: "u".into(), wanted: "t" }));
}

#[test]
fn number_of_values_is_limited() {
    let many = Value::Array("b", vec![Value::Bool(true); 100_001]);
    let message = reply(&Body::of(&[many]));
    assert_eq!(message::arguments(&message, Types("ab")), Err(BadArguments::TooMany));
}

/// A filler descriptor: clients send `(false, 0)` without a descriptor.
#[test]
fn a_missing_descriptor_is_none() {
    let absent = reply(&Body { signature: "(bh)".into(), bytes: vec![0; 8], shared: Vec::new() });
    let expected = Value::Struct(vec![Value::Bool(false), Value::Descriptor(None)]);
    assert_eq!(message::arguments(&absent, Types("(bh)")), Ok(vec![expected]));

    let (end, _other) = std::io::pipe().unwrap();
    let message = Message::new_method_call("a.b", "/", "a.b", "C")
        .unwrap()
        .append1(std::fs::File::from(std::os::fd::OwnedFd::from(end.try_clone().unwrap())));
    match &message::arguments(&message, Types("h")).unwrap()[..] {
        [Value::Descriptor(Some(copy))] => assert_ne!(copy.0.as_raw_fd(), end.as_raw_fd()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn signatures_are_split_into_complete_types() {
    let all = |signature| Types(signature).collect::<Vec<_>>();
    assert_eq!(all("s(bq)as(b(ss))"), ["s", "(bq)", "as", "(b(ss))"]);
    assert_eq!(all("a{oa{sa{sv}}}aa{ss}h"), ["a{oa{sa{sv}}}", "aa{ss}", "h"]);
    assert_eq!(all(""), [""; 0]);
}

#[test]
fn fillers_are_of_their_type() {
    for signature in
        ["(b(oao))", "(bs)", "s", "as", "(b(oaoao))", "(ba(os))", "b", "(bb)", "a{sa{sv}}", "(by)", "t", "v"]
    {
        assert_eq!(Value::filler(signature).signature(), signature);
    }
    assert_eq!(super::plain(&Value::filler("(b(oao))")), "(false (/ []))");
}

#[test]
fn values_come_apart() {
    let spec = Value::Struct(vec![Value::str("n"), Value::optional_str(Some("5".into())), Value::optional_str(None)]);
    let wanted = ("n".to_owned(), Some("5".to_owned()), None);
    assert_eq!(<(String, Option<String>, Option<String>)>::from_value(spec.clone()), Some(wanted));
    assert_eq!(<(String,)>::from_value(spec.clone()), None);
    assert_eq!(<(String, String, String)>::from_value(spec), None);
    assert_eq!(PathArgument::from_value(Value::Path("/x".into())), Some(PathArgument("/x".into())));
    assert_eq!(PathArgument::from_value(Value::str("/x")), None);
}
