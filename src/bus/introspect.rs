//! Introspection: the interfaces as XML, computed from the table.
//!
//! The D-Bus specification defines the form ("Introspection Data Format"). This module knows no
//! objects, only the paths that it is given.

use std::{fmt::Write, sync::LazyLock};

use crate::bus::{
    answer::Answer,
    schema::{ALL, Emits, Interface, InterfaceKind},
    table::{MemberShape, ROWS, Row, STATUS},
    tree::{TOP, Tree},
    wire::{Body, Value},
};

const DOCTYPE: &str = "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\" \
                       \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n";

/// Interfaces that every object has.
const STANDARD: &str = r#"  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect">
      <arg type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId">
      <arg type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg type="v" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg type="a{sv}" direction="out"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
"#;

/// Interfaces that only the top object has.
const OBJECT_MANAGER: &str = r#"  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object_path" type="o"/>
      <arg name="interfaces_and_properties" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
"#;

/// Whether an object has this interface of the D-Bus specification.
pub fn is_standard(interface: &str, is_top: bool) -> bool {
    match interface.strip_prefix("org.freedesktop.DBus.") {
        Some("Introspectable" | "Peer" | "Properties") => true,
        Some("ObjectManager") => is_top,
        _ => false,
    }
}

/// The XML of a path above the top object, with its child.
pub fn above(child: &str) -> String {
    node(&[STANDARD], [child])
}

/// The XML of the top object, with its child objects.
pub fn top<'a>(objects: impl Iterator<Item = &'a str>) -> String {
    static INTERFACES: LazyLock<String> =
        LazyLock::new(|| interfaces(InterfaceKind::Manager) + &interfaces(InterfaceKind::Report));
    let names = objects.filter_map(|path| path.strip_prefix(TOP)?.strip_prefix('/'));
    node(&[STANDARD, OBJECT_MANAGER, &INTERFACES], names)
}

/// The XML of an object below the top object.
pub fn object(kind: InterfaceKind) -> &'static str {
    static NODES: LazyLock<[String; InterfaceKind::EVERY.len()]> =
        LazyLock::new(|| InterfaceKind::EVERY.map(|kind| node(&[STANDARD, &interfaces(kind)], [])));
    &NODES[kind as usize]
}

fn node<'a>(interfaces: &[&str], children: impl IntoIterator<Item = &'a str>) -> String {
    let mut xml = format!("{DOCTYPE}<node>\n{}", interfaces.concat());
    for child in children {
        push(&mut xml, format_args!("  <node name=\"{child}\"/>\n"));
    }
    xml + "</node>\n"
}

/// All revisions of a kind of interface.
fn interfaces(kind: InterfaceKind) -> String {
    let mut xml = String::new();
    for interface in ALL.map(|revision| Interface { kind, revision }) {
        push(&mut xml, format_args!("  <interface name=\"{}\">\n", interface.name()));
        ROWS.iter().filter(|row| row.is_in(interface)).for_each(|row| member(&mut xml, row));
        xml.push_str("  </interface>\n");
    }
    xml
}

fn member(xml: &mut String, row: &Row) {
    match row.member {
        MemberShape::Method { arguments, result, .. } => {
            push(xml, format_args!("    <method name=\"{}\">\n", row.name));
            let outputs = result.iter().chain(&STATUS).map(|argument| (argument, "out"));
            for ((name, signature), direction) in arguments.iter().map(|argument| (argument, "in")).chain(outputs) {
                push(
                    xml,
                    format_args!("      <arg name=\"{name}\" type=\"{signature}\" direction=\"{direction}\"/>\n"),
                );
            }
            xml.push_str("    </method>\n");
        }
        MemberShape::Property { signature, emits, set, .. } => {
            let access = if set.is_some() { "readwrite" } else { "read" };
            let start = format_args!("    <property name=\"{}\" type=\"{signature}\" access=\"{access}\"", row.name);
            push(xml, start);
            match emits {
                Emits::Value => xml.push_str("/>\n"),
                Emits::Invalidation => annotated(xml, "invalidates"),
                Emits::Const => annotated(xml, "const"),
                Emits::Nothing => annotated(xml, "false"),
            }
        }
    }
}

fn annotated(xml: &mut String, emits: &str) {
    push(
        xml,
        format_args!(
            ">\n      <annotation name=\"org.freedesktop.DBus.Property.EmitsChangedSignal\" value=\"{emits}\"/>\n    \
             </property>\n"
        ),
    );
}

fn push(xml: &mut String, text: std::fmt::Arguments<'_>) {
    xml.write_fmt(text).expect("writing to a String does not fail");
}

/// The answer to introspection of the top object.
pub fn top_answer(tree: &Tree) -> Answer {
    Answer::Return(Body::of(&[Value::Str(top(tree.objects().map(|object| &*object.path)))]))
}
