//! The D-Bus policy file: who may own the name and who may call which methods, computed from the
//! table.
//!
//! Root may do everything; other users may read the state but change nothing
//! (`docs/spec/tools/system-integration.md` §8). The installed file `dbus/stratisd.conf` is this
//! text; a test compares them.

use std::fmt::Write;

use crate::bus::{
    NAME,
    schema::{ALL, Interface, InterfaceKind},
};

/// Methods of Manager that anybody may call, in every revision.
const OPEN_METHODS: [&str; 2] = ["EngineStateReport", "ListKeys"];

/// The text of the file.
pub fn text() -> String {
    let mut lines = Vec::new();
    let mut allow = |what: String| lines.push(format!("    <allow send_destination=\"{NAME}\"\n           {what}/>\n"));
    for interface in ["ObjectManager", "Introspectable"] {
        allow(format!("send_interface=\"org.freedesktop.DBus.{interface}\""));
    }
    for member in ["Get", "GetAll"] {
        allow(format!("send_interface=\"org.freedesktop.DBus.Properties\" send_member=\"{member}\""));
    }
    for revision in ALL {
        allow(format!("send_interface=\"{}\"", Interface { kind: InterfaceKind::Report, revision }.name()));
    }
    for revision in ALL {
        let interface = Interface { kind: InterfaceKind::Manager, revision }.name();
        for member in OPEN_METHODS {
            allow(format!("send_interface=\"{interface}\" send_member=\"{member}\""));
        }
    }
    let mut text = String::new();
    write!(
        text,
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<!-- Computed from the interface table (src/bus/policy.rs). Do not edit: change that and run
     UPDATE_EXPECTED=1 cargo test -p stratisd bus::policy -->
<busconfig>
  <policy user="root">
    <allow own="{NAME}"/>
    <allow send_destination="{NAME}"/>
  </policy>

  <policy context="default">
    <deny own="{NAME}"/>
    <deny send_destination="{NAME}"/>

{}  </policy>
</busconfig>
"#,
        lines.concat()
    )
    .expect("writing to a String does not fail");
    text
}

#[cfg(test)]
mod tests {
    use super::{OPEN_METHODS, text};
    use crate::bus::{
        schema::{ALL, Interface, InterfaceKind},
        table::find_method,
    };

    #[test]
    fn the_installed_file_is_this_text() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/dbus/stratisd.conf");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            std::fs::write(file, text()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), text());
    }

    #[test]
    fn every_open_method_is_in_the_table() {
        for revision in ALL {
            let interface = Interface { kind: InterfaceKind::Manager, revision };
            for name in OPEN_METHODS {
                assert!(find_method(interface, name).is_some(), "{interface:?} has no {name}");
            }
        }
    }
}
