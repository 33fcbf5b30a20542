//! The table: it is consistent in itself and has the same interfaces as the existing daemon.

use std::collections::BTreeSet;

use super::{filesystem_id, pool, with_filesystem};
use crate::bus::{
    introspect,
    methods::Call,
    schema::{ALL, Interface, InterfaceKind, LAST_REVISION, PropertySource},
    table::{self, Handler, MemberShape, ROWS, Row, STATUS},
    tree::{Id, Object, Tree},
    wire::{Types, Value},
};

/// The existing daemon's introspection of each kind of object.
const GOLDEN: [(&str, &str); 4] = [
    ("manager", include_str!("../../../tests/data/introspection/manager.xml")),
    ("pool", include_str!("../../../tests/data/introspection/pool.xml")),
    ("filesystem", include_str!("../../../tests/data/introspection/filesystem.xml")),
    ("blockdev", include_str!("../../../tests/data/introspection/blockdev.xml")),
];

fn attribute(tag: &str, name: &str) -> String {
    let start = format!(" {name}=\"");
    tag.split_once(&start).and_then(|(_, rest)| rest.split_once('"')).map_or(String::new(), |(value, _)| value.into())
}

/// Every member as one line: interface, kind of member, name, then its arguments or type, access
/// and annotation. The order of members does not count; the order of arguments does.
fn members(xml: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let (mut interface, mut current) = (String::new(), String::new());
    for tag in xml.split('<').map(|tag| tag.split('>').next().unwrap_or_default().trim()) {
        let word = tag.split([' ', '/']).next().unwrap_or_default();
        match word {
            "interface" => {
                interface = attribute(tag, "name");
                found.insert(interface.clone());
            }
            "method" | "signal" | "property" => {
                let parts = ["name", "type", "access"].map(|name| attribute(tag, name));
                current = format!("{interface} {word} {}", parts.join(" "));
                if tag.ends_with('/') {
                    found.insert(current.trim_end().to_owned());
                }
            }
            "arg" => {
                let parts = ["name", "type", "direction"].map(|name| attribute(tag, name));
                current += &format!(" [{}]", parts.join(" "));
            }
            "annotation" => current += &format!(" {}={}", attribute(tag, "name"), attribute(tag, "value")),
            "" if ["/method", "/signal", "/property"].contains(&tag) => {
                found.insert(current.trim_end().to_owned());
            }
            _ => {}
        }
    }
    found
}

#[test]
fn introspection_is_that_of_the_existing_daemon() {
    let ours = |what: &str| match what {
        "manager" => introspect::top([].into_iter()),
        "pool" => introspect::object(InterfaceKind::Pool).to_owned(),
        "filesystem" => introspect::object(InterfaceKind::Filesystem).to_owned(),
        _ => introspect::object(InterfaceKind::Blockdev).to_owned(),
    };
    for (what, golden) in GOLDEN {
        let (expected, found) = (members(golden), members(&ours(what)));
        assert!(expected.len() > 50, "{what}: the golden file was not understood");
        let missing: Vec<_> = expected.difference(&found).collect();
        let surplus: Vec<_> = found.difference(&expected).collect();
        assert!(missing.is_empty() && surplus.is_empty(), "{what}: missing {missing:#?}, surplus {surplus:#?}");
    }
}

/// The comparison finds a difference in each part that it covers.
#[test]
fn comparison_of_introspections_sees_differences() {
    let (_, golden) = GOLDEN[2];
    for (from, to) in [
        ("type=\"(bs)\" access", "type=\"s\" access"),
        ("readwrite", "read"),
        ("value=\"invalidates\"", "value=\"const\""),
        ("direction=\"in\"", "direction=\"out\""),
        ("name=\"return_code\"", "name=\"code\""),
        ("name=\"Used\"", "name=\"Usage\""),
        ("filesystem.r9", "filesystem.r10"),
    ] {
        assert!(golden.contains(from), "{from}");
        assert_ne!(members(golden), members(&golden.replacen(from, to, 1)), "{from} to {to}");
    }
}

#[test]
fn each_path_lists_its_children() {
    let xml = introspect::top(["/org/storage/stratis3/0", "/org/storage/stratis3/17"].into_iter());
    assert!(xml.contains("<node name=\"0\"/>") && xml.contains("<node name=\"17\"/>"));
    assert!(introspect::above("storage").contains("<node name=\"storage\"/>"));
}

#[test]
fn no_two_rows_overlap() {
    for (i, a) in ROWS.iter().enumerate() {
        assert!(a.first <= a.last && a.last <= LAST_REVISION, "{a:?}");
        for b in &ROWS[i + 1..] {
            let same = (a.kind, a.name) == (b.kind, b.name);
            assert!(!same || a.last < b.first || b.last < a.first, "{a:?} and {b:?} overlap");
        }
    }
}

/// No member returns a descriptor: the marshaller could not send one.
#[test]
fn no_sent_value_contains_a_descriptor() {
    for row in ROWS {
        match row.member {
            MemberShape::Method { result, .. } => assert!(result.is_none_or(|(_, s)| !s.contains('h')), "{row:?}"),
            MemberShape::Property { signature, .. } => assert!(!signature.contains('h'), "{row:?}"),
        }
    }
    assert_eq!(STATUS.map(|(_, signature)| signature), ["q", "s"]);
}

/// A tree with an object of each kind.
fn every_kind() -> Tree {
    super::tree(vec![super::is(&with_filesystem(pool(1, "p"), 5))])
}

#[test]
fn every_property_has_a_value_of_its_type() {
    let tree = every_kind();
    let pool_view = tree.view.pools.get(&super::pool_id(1)).unwrap();
    for row in ROWS {
        let MemberShape::Property { signature, .. } = row.member else { continue };
        let object = match row.kind {
            InterfaceKind::Manager | InterfaceKind::Report => None,
            InterfaceKind::Pool => tree.of(Id::Pool(pool_view.uuid)),
            InterfaceKind::Filesystem => tree.of(Id::Filesystem(pool_view.uuid, filesystem_id(5))),
            InterfaceKind::Blockdev => tree.of(Id::Device(pool_view.uuid, super::device_id(1000))),
        };
        let subject = object.map_or(PropertySource::Manager(&tree.stopped), |object| object.state.subject());
        let value = table::value(row, subject).unwrap_or_else(|| panic!("{row:?} has no value"));
        assert_eq!(value.signature(), signature, "{row:?}");
    }
}

/// The handler that carries out a method or sets a property; `None` for read-only properties.
fn handler(row: &Row) -> Option<Handler> {
    match row.member {
        MemberShape::Method { handler, .. } => Some(handler),
        MemberShape::Property { set, .. } => set,
    }
}

/// An object that has the row's member.
fn object<'a>(tree: &'a Tree, row: &Row) -> Option<&'a Object> {
    tree.objects().find(|object| object.state.kind() == row.kind).map(|object| &**object)
}

/// Each handler can decode filler values of its row's types. Handlers that would call the engine
/// refuse before they do: no object has the path `/`, no name is empty, and so on. The test ignores
/// their answers.
#[test]
fn every_handler_understands_its_arguments() {
    let tree = every_kind();
    for row in ROWS {
        let Some(handler) = handler(row) else { continue };
        let object = object(&tree, row);
        // Without a text, the user info would be passed to the engine; an empty text is refused
        // before that.
        let arguments: Vec<Value> = Types(row.signature().leak())
            .map(|signature| match (row.name, Value::filler(signature)) {
                ("SetUserInfo" | "UserInfo", _) => Value::optional_str(Some(String::new())),
                (_, value) => value,
            })
            .collect();
        let result = handler(Call { tree: &tree, object, arguments });
        assert!(result.is_ok(), "{} of {:?} r{}: {:?}", row.name, row.kind, row.first, result.err());
    }
}

#[test]
fn interfaces_have_exactly_their_names() {
    for kind in InterfaceKind::EVERY {
        for interface in ALL.map(|revision| Interface { kind, revision }) {
            assert_eq!(Interface::parse(&interface.name()), Some(interface));
        }
    }
    for wrong in [
        "org.storage.stratis3.pool.r10",
        "org.storage.stratis3.pool.r+1",
        "org.storage.stratis3.pool.r01",
        "org.storage.stratis3.pool.r",
        "org.storage.stratis3.Pool.r0",
        "org.storage.stratis3.pool",
        "pool.r0",
        "",
    ] {
        assert_eq!(Interface::parse(wrong), None, "{wrong}");
    }
}
