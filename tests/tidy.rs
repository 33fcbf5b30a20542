//! Project rules that the compiler does not check: which part may use which, where `unsafe` is
//! allowed, that each module begins with a description, the maximum length of a file, and names
//! that no file may contain.
//!
//! These tests read the sources as text. They know nothing of what the code does.

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/structure.rs"]
mod structure;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

// ---- dependencies between rooms ----

/// A room: the folder of its files, and the parts of this crate and the other crates that it may
/// name. Crates that no rule restricts (`serde`, `uuid`, …) are not listed. [`GUARDED_CRATES`] are
/// the restricted ones.
struct Room {
    folder: &'static str,
    may_use: &'static [&'static str],
    crates: &'static [&'static str],
}

/// Crates that only certain rooms may name: those for the machine, the bus and threads.
const GUARDED_CRATES: [&str; 11] = [
    "dbus",
    "devicemapper",
    "libblkid_rs",
    "udev",
    "nix",
    "rustix",
    "libc",
    "signal_hook",
    "threads",
    "crossbeam_channel",
    "parking_lot",
];

/// A file belongs to the first room whose folder contains it. All rooms may use `base`. `engine::x`
/// means that module and the modules below it.
const ROOMS: &[Room] = &[
    Room { folder: "threads/src", may_use: &[], crates: &["crossbeam_channel", "parking_lot", "rustix"] },
    Room { folder: "src/engine/metadata", may_use: &["engine", "platform::Timestamp"], crates: &[] },
    Room { folder: "src/engine/plan", may_use: &["engine"], crates: &[] },
    // A mutex inside the engine is a leaf: code that holds it waits for nothing.
    Room { folder: "src/engine", may_use: &["engine", "view", "platform"], crates: &["parking_lot"] },
    Room { folder: "src/view", may_use: &["view", "platform::Timestamp", "platform::luks"], crates: &[] },
    Room {
        folder: "src/platform/linux",
        may_use: &["platform"],
        crates: &["devicemapper", "libblkid_rs", "udev", "nix", "rustix", "libc", "parking_lot", "threads"],
    },
    Room {
        folder: "src/platform/sim",
        may_use: &["platform", "engine::metadata", "engine::plan"],
        crates: &["parking_lot", "rustix"],
    },
    Room { folder: "src/platform", may_use: &["platform", "engine::plan::sizes"], crates: &[] },
    Room {
        folder: "src/watch",
        may_use: &["watch", "engine", "platform", "view"],
        crates: &["threads", "crossbeam_channel", "rustix", "parking_lot"],
    },
    Room { folder: "src/service", may_use: &["service", "engine", "view"], crates: &["rustix", "threads"] },
    Room { folder: "src/cli", may_use: &["cli"], crates: &[] },
    Room { folder: "src/min_client", may_use: &["min_client", "cli", "rpc"], crates: &["rustix", "signal_hook"] },
    Room { folder: "src/rpc_front_end.rs", may_use: &["rpc", "daemon", "view"], crates: &[] },
    Room {
        folder: "src/rpc",
        may_use: &["rpc", "service", "view", "engine"],
        crates: &["threads", "crossbeam_channel", "parking_lot", "rustix"],
    },
    // Before the folders whose names it begins with.
    Room { folder: "src/bus_front_end.rs", may_use: &["bus", "daemon", "view"], crates: &[] },
    Room {
        folder: "src/bus",
        may_use: &["bus", "service", "view", "engine", "platform::linux::descriptors"],
        crates: &["dbus", "threads", "crossbeam_channel", "parking_lot", "rustix"],
    },
    Room {
        folder: "src/daemon",
        may_use: &["daemon", "rpc", "service", "watch", "engine", "view", "platform"],
        crates: &["threads", "crossbeam_channel", "parking_lot", "signal_hook", "rustix", "nix"],
    },
    // `bus` is for the name of the daemon and `cli` for the arguments.
    Room {
        folder: "src/tools",
        may_use: &["tools", "cli", "bus::NAME", "engine", "platform"],
        crates: &["dbus", "threads", "crossbeam_channel"],
    },
    // All rooms may use `base`.
    Room { folder: "src/base", may_use: &[], crates: &[] },
    Room {
        folder: "src/bin",
        may_use: &["cli", "daemon", "bus_front_end", "min_client", "rpc_front_end", "tools"],
        crates: &[],
    },
    Room { folder: "manual/src", may_use: &["cli"], crates: &[] },
    Room { folder: "src/lib.rs", may_use: PASSED_ON, crates: &[] },
    Room { folder: "src/core.rs", may_use: &[], crates: &[] },
];

/// The rooms of the library under the programs (`src/core.rs`), which know neither the bus nor
/// libdbus. The library `stratisd` passes them on.
const PASSED_ON: &[&str] =
    &["base", "cli", "daemon", "engine", "min_client", "platform", "rpc", "rpc_front_end", "service", "view", "watch"];

/// Exceptions from what a room may use: a file in the folder may not name the part, for the given
/// reason.
const NEVER: &[(&str, &str, &str)] = &[
    ("src/bus", "engine::metadata", "the bus knows no on-disk layout"),
    ("src/bus", "platform::Platform", "the bus knows no device-mapper"),
    ("src/engine/metadata", "engine::pool", "codecs know bytes and errors, not pools"),
    ("src/engine/plan", "engine::pool", "planning works on plain numbers"),
    ("src/engine/metadata", "platform::Platform", "codecs know no devices"),
    ("src/engine/plan", "platform", "planning knows no kernel"),
];

/// A source file. The path is relative to the project.
struct Source {
    path: String,
    text: String,
}

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut to_read: Vec<PathBuf> = folders.iter().map(|f| project().join(f)).filter(|f| f.exists()).collect();
    while let Some(path) = to_read.pop() {
        if path.is_dir() {
            to_read.extend(fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(project()).expect("below the project").to_string_lossy().into_owned();
            found.push(Source { path: relative, text: fs::read_to_string(&path).expect("UTF-8 text") });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The code without comments and without the contents of strings and character literals. Line
/// breaks are kept.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let skip_to = |rest: &str, end: usize, code: &mut String| {
        code.extend(rest[..end].chars().filter(|c| *c == '\n'));
    };
    while let Some(first) = rest.chars().next() {
        let raw_string = || {
            let hashes = rest.strip_prefix('r')?.chars().take_while(|c| *c == '#').count();
            rest[1 + hashes..].starts_with('"').then_some(hashes)
        };
        let starts_word = !code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(hashes) = raw_string().filter(|_| starts_word) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            rest[body..].find(&close).map_or(rest.len(), |at| body + at + close.len())
        } else if first == '"' {
            let mut escaped = false;
            let close = rest[1..].char_indices().find(|(_, c)| {
                let closes = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                closes
            });
            close.map_or(rest.len(), |(at, _)| at + 2)
        } else if first == '\'' {
            // A character literal, or a lifetime, which has no closing quote after one character.
            let mut characters = rest[1..].char_indices();
            match (characters.next(), characters.next()) {
                (Some((_, '\\')), _) => rest[2..].find('\'').map_or(1, |at| {
                    // In `'\''` the closing quote is the second one after the backslash.
                    if at == 0 { 4 } else { at + 3 }
                }),
                (Some(_), Some((at, '\''))) => at + 2,
                _ => {
                    code.push('\'');
                    rest = &rest[1..];
                    continue;
                }
            }
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        skip_to(rest, end, &mut code);
        rest = &rest[end..];
    }
    code
}

/// The code without its tests, which may name whatever they need. Line breaks are kept.
fn code_without_tests(source: &Source) -> String {
    const TEST_ONLY: &str = "#[cfg(test)]";
    if source.path.ends_with("tests.rs") || source.path.contains("/tests/") {
        return String::new();
    }
    let code = code_of(&source.text);
    let mut kept = String::with_capacity(code.len());
    let mut rest = code.as_str();
    while let Some(at) = rest.find(TEST_ONLY) {
        let end = at + TEST_ONLY.len() + item_length(&rest[at + TEST_ONLY.len()..]);
        kept.push_str(&rest[..at]);
        kept.extend(rest[at..end].chars().filter(|c| *c == '\n'));
        rest = &rest[end..];
    }
    kept + rest
}

/// The length in bytes of the item at the beginning of the code: up to its semicolon, or to its
/// closing brace.
fn item_length(code: &str) -> usize {
    let mut depth = 0;
    let end = code.char_indices().find(|(_, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(c, '}' | ';')
    });
    end.map_or(code.len(), |(at, _)| at + 1)
}

/// All paths in the code that begin at a crate: `crate::engine::ids::FsUuid`, `dbus::Message`. A
/// `use` tree with braces yields one path for each of its names.
fn named_paths(code: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut rest = code;
    while let Some(at) = rest.find("::") {
        let start = rest[..at]
            .rfind(|c: char| !is_word(c))
            .map_or(0, |i| i + rest[i..].chars().next().map_or(1, char::len_utf8));
        if start == at {
            rest = &rest[at + 2..];
            continue;
        }
        // Skips the whole tree: the names inside it are not paths of their own.
        let (tree, length) = read_tree(&rest[start..]);
        paths.extend(tree);
        rest = &rest[start + length..];
    }
    paths
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads a path that may end in a brace group. Returns all paths in it and its length in bytes.
fn read_tree(text: &str) -> (Vec<String>, usize) {
    let word = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let name = &text[..word];
    let Some(after) = text[word..].strip_prefix("::") else { return (vec![name.to_owned()], word) };
    let taken = word + 2;
    if let Some(group) = after.strip_prefix('{') {
        let mut paths = Vec::new();
        let mut at = 0;
        loop {
            at += group[at..].find(|c: char| is_word(c) || c == '}' || c == '*').unwrap_or(group.len() - at);
            match group[at..].chars().next() {
                Some('*') => {
                    paths.push(name.to_owned());
                    at += 1;
                }
                Some(c) if is_word(c) => {
                    let (below, length) = read_tree(&group[at..]);
                    paths.extend(below.into_iter().map(|path| format!("{name}::{path}")));
                    at += length;
                    // `as other_name`
                    if let Some(renamed) = group[at..].strip_prefix(" as ") {
                        at += 4 + renamed.find(|c| !is_word(c)).unwrap_or(renamed.len());
                    }
                }
                _ => return (paths, taken + 1 + (at + 1).min(group.len())),
            }
        }
    }
    let (below, length) = read_tree(after);
    (below.into_iter().map(|path| format!("{name}::{path}")).collect(), taken + length)
}

/// Whether `path` is `part` or lies below it.
fn is_below(path: &str, part: &str) -> bool {
    path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Error numbers of the kernel are plain values that any room may compare with: `nix::libc::EBUSY`,
/// `nix::errno::Errno`.
fn is_error_number(path: &str) -> bool {
    let path = path.strip_prefix("nix::").unwrap_or(path);
    let constant = path.strip_prefix("libc::").is_some_and(|name| name.starts_with('E'));
    constant || path == "libc" || is_below(path, "errno")
}

/// Whether the name is that of a module in the same file or folder and not of a crate: `use
/// super::{dm, udev};`, `mod udev;`.
fn is_local_module(name: &str, code: &str, paths: &BTreeSet<String>) -> bool {
    let imported = paths.iter().any(|path| {
        let mut parts = path.split("::");
        matches!(parts.next(), Some("super" | "self" | "crate")) && parts.last() == Some(name)
    });
    imported || code.contains(&format!("mod {name};"))
}

/// The paths in a file that its room may not name.
fn wrong_arrows(path: &str, code: &str) -> Vec<String> {
    let Some(room) = ROOMS.iter().find(|room| path.starts_with(room.folder)) else {
        return vec![format!("{path}: belongs to no room of tests/tidy.rs")];
    };
    let mut wrong = Vec::new();
    let paths = named_paths(code);
    for named in &paths {
        let first = named.split("::").next().unwrap_or_default();
        let inside = match first {
            "crate" => named.strip_prefix("crate::"),
            "stratisd" => named.strip_prefix("stratisd::"),
            "stratis_core" => named.strip_prefix("stratis_core::"),
            _ => None,
        };
        if let Some(inside) = inside {
            // In the threads crate, `crate` is that crate itself. A path that begins with a type
            // comes from `lib.rs`.
            let own = room.folder == "threads/src" || inside.starts_with(char::is_uppercase);
            let base = is_below(inside, "base") && room.folder != "threads/src";
            if !own && !base && !room.may_use.iter().any(|part| is_below(inside, part)) {
                wrong.push(format!("{path}: names {inside}, which its room may not know"));
            }
            for (folder, part, why) in NEVER {
                if path.starts_with(folder) && is_below(inside, part) {
                    wrong.push(format!("{path}: names {inside}; {why}"));
                }
            }
        } else if GUARDED_CRATES.contains(&first)
            && !room.crates.contains(&first)
            && !is_error_number(named)
            && !is_local_module(first, code, &paths)
        {
            wrong.push(format!("{path}: names the crate {first}, which belongs to other rooms"));
        }
    }
    wrong
}

#[test]
fn arrows_between_rooms_point_one_way() {
    let sources = rust_sources(&["src", "manual/src", "threads/src"]);
    assert!(sources.len() > 15, "only {} sources were found", sources.len());
    let wrong: Vec<String> = sources.iter().flat_map(|s| wrong_arrows(&s.path, &code_without_tests(s))).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_arrow_check_sees_planted_faults() {
    let planted = [
        ("src/engine/pool.rs", "use crate::bus::table;"),
        ("src/engine/pool.rs", "use crate::{engine::ids, bus::{table, wire}};"),
        ("src/engine/pool.rs", "use dbus::Message;"),
        ("src/engine/pool.rs", "fn f() { let x = threads::lock::Lock::new(); }"),
        ("src/engine/ops/mod.rs", "fn f() { nix::unistd::sync() }"),
        ("src/engine/ops/mod.rs", "fn f() { libc::sync() }"),
        ("src/engine/metadata/mda.rs", "use crate::platform::Platform;"),
        ("src/bus/methods.rs", "use crate::{engine::{ids::PoolUuid, metadata::header}, view::View};"),
        ("src/view/mod.rs", "use crate::engine::request::Request;"),
        ("src/base/name.rs", "use crate::engine::Engine;"),
        ("src/view/mod.rs", "use parking_lot::Mutex;"),
        ("src/platform/sim/mod.rs", "use devicemapper::DM;"),
        ("src/watch/mod.rs", "use crate::bus::reader;"),
        ("threads/src/lock.rs", "use dbus::Message;"),
        ("src/bin/stratisd.rs", "fn main() { stratisd::engine::run() }"),
        ("src/bin/stratisd.rs", "fn main() { stratis_core::engine::run() }"),
        ("src/daemon/run.rs", "use crate::bus::Bus;"),
        ("src/daemon/run.rs", "use stratisd::bus::Bus;"),
        ("src/service/mod.rs", "use crate::daemon::run;"),
        ("src/rpc/server.rs", "use crate::platform::Platform;"),
        ("src/min_client/mod.rs", "use crate::engine::ops;"),
        ("src/somewhere/else.rs", ""),
    ];
    for (path, code) in planted {
        assert!(!wrong_arrows(path, &code_of(code)).is_empty(), "not seen in {path}: {code}");
    }
    let good = [
        ("src/engine/pool.rs", "use crate::{base::ids::PoolUuid, platform::{Platform, dm}, view};"),
        ("src/engine/pool.rs", "// use dbus::Message;\nconst X: &str = \"dbus::Message\"; const Y: char = '\"';"),
        ("src/bus/mod.rs", "use dbus::{Message, channel::Channel as Line};"),
        ("src/engine/pool.rs", "use nix::libc; fn f(e: i32) -> bool { e == libc::EBUSY }"),
        ("src/platform/sim/dm.rs", "use super::{dm, udev}; fn f() { udev::node() }"),
        ("src/platform/mod.rs", "use crate::base::{ids::FsUuid, name::Name, units::{Bytes, Sectors}};"),
    ];
    for (path, code) in good {
        assert_eq!(wrong_arrows(path, &code_of(code)), Vec::<String>::new());
    }
}

// ---- modules ----

#[test]
fn each_module_begins_with_what_it_is() {
    for source in rust_sources(&["src", "manual", "threads/src", "threads/tests", "tests", "benches", "fuzz"]) {
        let head: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(head.len() > 20, "{}: begins without a comment that says what it is (`//!`)", source.path);
    }
}

#[test]
fn unsafe_has_its_home_and_its_reason() {
    for source in rust_sources(&["src", "threads/src", "tests", "threads/tests"]) {
        let code = code_of(&source.text);
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in code.lines().enumerate() {
            let is_unsafe = line.split(|c| !is_word(c)).any(|word| word == "unsafe");
            if !is_unsafe {
                continue;
            }
            let place = format!("{}:{}", source.path, number + 1);
            assert!(source.path.starts_with("src/platform/linux"), "{place}: unsafe outside platform/linux");
            let reason = lines[number.saturating_sub(8)..=number].iter().any(|l| l.contains("SAFETY:"));
            assert!(reason, "{place}: unsafe without a SAFETY comment");
        }
    }
}

#[test]
fn no_rooms_for_odds_and_ends() {
    for source in rust_sources(&["src", "threads/src"]) {
        for name in ["util", "utils", "common", "helper", "helpers", "misc"] {
            assert!(
                !Path::new(&source.path).iter().any(|part| part == name || part == format!("{name}.rs").as_str()),
                "{}: a module's name says what is in it",
                source.path
            );
        }
    }
}

// ---- every file ----

#[test]
#[allow(clippy::disallowed_methods)] // only git knows which files belong to the project
fn no_file_names_a_registry() {
    // Each name is written in two halves, so that this file does not contain it.
    let hosts = [
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("deb.debian", ".org"),
        ("security.debian", ".org"),
        ("npmjs", ".org"),
        ("crates", ".io"),
        ("static.rust-lang", ".org"),
    ]
    .map(|(a, b)| format!("{a}{b}"));
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(project()).output();
    // This is not a git checkout but a source archive. The rule was checked where the archive was
    // made.
    let Ok(listed) = listed else { return };
    let files = String::from_utf8(listed.stdout).expect("file names in UTF-8");
    for file in files.split('\0').filter(|f| !f.is_empty() && !f.ends_with("Cargo.lock")) {
        let Ok(text) = fs::read_to_string(project().join(file)) else { continue };
        for host in &hosts {
            assert!(!text.contains(host), "{file} names the package registry {host}");
        }
    }
}
