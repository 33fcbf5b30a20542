//! Converts recorded values to the arguments of a message, and the values of a reply to the
//! recorded form: a structure or array is an array, a variant is `{"type": …, "value": …}`, a
//! descriptor is `{"descriptor": bytes that can be read from it}`.

use std::{fs::File, io::Write};

use dbus::{
    Message, Path, Signature,
    arg::{
        ArgType, Iter, OwnedFd,
        messageitem::{MessageItem, MessageItemArray},
    },
};
use serde_json::{Map, Value as Json, json};

/// The full name of an interface from its short form.
pub fn interface(short: &str) -> String {
    match short {
        "Properties" | "ObjectManager" | "Introspectable" | "Peer" => format!("org.freedesktop.DBus.{short}"),
        _ => format!("org.storage.stratis3.{short}"),
    }
}

/// Splits a signature into complete types.
fn types(signature: &str) -> Vec<&str> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in signature.char_indices() {
        match letter {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && letter != 'a' {
            found.push(&signature[start..=at]);
            start = at + 1;
        }
    }
    found
}

/// The arguments of a call. The first argument of a call to the properties interface is the short
/// form of an interface name.
pub fn items(signature: &str, values: &[Json], is_property: bool) -> Vec<MessageItem> {
    let mut items: Vec<MessageItem> =
        types(signature).into_iter().zip(values).map(|(of, value)| item(of, value)).collect();
    if is_property {
        if let Some(MessageItem::Str(name)) = items.first_mut() {
            if !name.is_empty() {
                *name = interface(name);
            }
        }
    }
    items
}

fn item(of: &str, value: &Json) -> MessageItem {
    let list = || value.as_array().unwrap();
    match of.as_bytes()[0] {
        b'b' => value.as_bool().unwrap().into(),
        b'y' => (value.as_u64().unwrap() as u8).into(),
        b'q' => (value.as_u64().unwrap() as u16).into(),
        b'u' => (value.as_u64().unwrap() as u32).into(),
        b't' => value.as_u64().unwrap().into(),
        b's' => value.as_str().unwrap().to_owned().into(),
        b'o' => MessageItem::ObjectPath(Path::new(value.as_str().unwrap()).unwrap().into_static()),
        b'h' => MessageItem::UnixFd(descriptor(value)),
        b'v' => MessageItem::Variant(Box::new(item(value["type"].as_str().unwrap(), &value["value"]))),
        b'(' => {
            let fields = types(&of[1..of.len() - 1]);
            MessageItem::Struct(fields.into_iter().zip(list()).map(|(of, value)| item(of, value)).collect())
        }
        b'a' => {
            let elements = list().iter().map(|value| item(&of[1..], value)).collect();
            let signature = Signature::new(of).unwrap().into_static();
            MessageItem::Array(MessageItemArray::new(elements, signature).unwrap())
        }
        _ => panic!("no recorded argument is of type {of}"),
    }
}

/// The read end of a pipe that contains the bytes, with the write end closed. If the recording has
/// a number instead of bytes, the contents do not matter.
fn descriptor(value: &Json) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(value["descriptor"].as_str().unwrap_or_default().as_bytes()).unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    // The crate's own descriptor type can only be obtained by reading it from a message.
    let carrier = Message::new_signal("/", "a.b", "C").unwrap().append1(file);
    carrier.get1::<OwnedFd>().unwrap()
}

/// Signature and values of a message.
pub fn decode(message: &Message) -> (String, Vec<Json>) {
    let (mut iter, mut signature, mut values) = (message.iter_init(), String::new(), Vec::new());
    while iter.arg_type() != ArgType::Invalid {
        signature.push_str(&iter.signature());
        values.push(value(&mut iter));
        iter.next();
    }
    (signature, values)
}

fn value(iter: &mut Iter<'_>) -> Json {
    let elements = |mut inner: Iter<'_>| {
        let mut found = Vec::new();
        while inner.arg_type() != ArgType::Invalid {
            found.push(value(&mut inner));
            inner.next();
        }
        found
    };
    match iter.arg_type() {
        ArgType::Boolean => iter.get::<bool>().unwrap().into(),
        ArgType::Byte => iter.get::<u8>().unwrap().into(),
        ArgType::UInt16 => iter.get::<u16>().unwrap().into(),
        ArgType::UInt32 => iter.get::<u32>().unwrap().into(),
        ArgType::UInt64 => iter.get::<u64>().unwrap().into(),
        ArgType::String => iter.get::<&str>().unwrap().into(),
        ArgType::ObjectPath => iter.get::<Path<'_>>().unwrap().to_string().into(),
        ArgType::Variant => {
            let mut inner = iter.recurse(ArgType::Variant).unwrap();
            json!({ "type": inner.signature().to_string(), "value": value(&mut inner) })
        }
        ArgType::Struct => elements(iter.recurse(ArgType::Struct).unwrap()).into(),
        ArgType::DictEntry => elements(iter.recurse(ArgType::DictEntry).unwrap()).into(),
        ArgType::Array if iter.signature().starts_with("a{") => {
            let entries = elements(iter.recurse(ArgType::Array).unwrap()).into_iter().map(|entry| {
                let key = entry[0].as_str().expect("keys are texts or paths").to_owned();
                (key, entry[1].clone())
            });
            Json::Object(entries.collect::<Map<_, _>>())
        }
        ArgType::Array => elements(iter.recurse(ArgType::Array).unwrap()).into(),
        other => panic!("no member has a value of type {other:?}"),
    }
}
