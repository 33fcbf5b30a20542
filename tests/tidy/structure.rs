//! The structure of the sources: which file uses which, drawn as text, and which files depend on
//! each other in a cycle.
//!
//! `make structure` writes the drawing to docs/structure.md; `scripts/test --only structure` fails
//! when it is out of date. An arrow is a path in the code, without tests, that leads to another
//! file. A name that a module re-exports (`pub use`) leads to the file that declares it, and is not
//! an arrow of the module that re-exports it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    fs,
};

use super::{ROOMS, Source, code_without_tests, is_below, named_paths, project, read_tree, rust_sources};

const PAGE: &str = "docs/structure.md";
const WIDTH: usize = 100;
const PASSED_ON_MAX: usize = 8;

/// The files that each file uses, by path.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// A source file as a module.
struct Module {
    file: String,
    code: String,
}

/// `src/engine/pool/record.rs` is `crate::engine::pool::record`; the other crate is `threads`.
fn module_path(file: &str) -> String {
    let (root, below) = match file.strip_prefix("threads/src/") {
        Some(below) => ("threads", below),
        None => ("crate", file.strip_prefix("src/").unwrap_or(file)),
    };
    let below = below.trim_end_matches(".rs").trim_end_matches("/mod");
    let parts = below.split('/').filter(|part| !matches!(*part, "lib" | "mod"));
    [root].into_iter().chain(parts).collect::<Vec<_>>().join("::")
}

fn room(file: &str) -> &'static str {
    ROOMS.iter().find(|room| file.starts_with(room.folder)).map_or("?", |room| room.folder)
}

/// The paths that the code re-exports: the trees behind `pub use`.
fn passed_on(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].trim_end();
        let line = before.rsplit([';', '}', '{']).next().unwrap_or_default();
        if line.trim_start().contains("pub") && !line.contains("fn ") {
            found.extend(read_tree(&code[at + "use ".len()..]).0);
        }
    }
    found
}

/// The code without its re-exports.
fn without_passed_on(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let before = &rest[..at];
        let start = before.trim_end().rfind([';', '}', '{']).map_or(0, |end| end + 1);
        let is_passed_on = before[start..].trim_start().starts_with("pub") && !before[start..].contains("fn ");
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end + 1);
        if is_passed_on {
            kept.push_str(&before[..start]);
            rest = &rest[end..];
        } else {
            kept.push_str(&rest[..at + "use ".len()]);
            rest = &rest[at + "use ".len()..];
        }
    }
    kept + rest
}

/// The code without the modules that a `pub(in ...)` names, since a visibility is not a use.
fn without_visibilities(code: &str) -> String {
    let mut pieces = code.split("pub(in ");
    let first = pieces.next().unwrap_or_default().to_owned();
    let after = |piece: &str| piece.split_once(')').map_or_else(String::new, |(_, rest)| format!("pub{rest}"));
    pieces.fold(first, |kept, piece| kept + &after(piece))
}

struct Modules {
    by_path: BTreeMap<String, Module>,
    /// Names that a module re-exports, as `module::Name`, and the paths that declare them.
    passed_on: BTreeMap<String, String>,
}

impl Modules {
    fn read(sources: &[Source]) -> Modules {
        let is_test = |file: &str| file.ends_with("tests.rs") || file.contains("/tests/");
        let by_path: BTreeMap<String, Module> = sources
            .iter()
            .filter(|source| !is_test(&source.path))
            .map(|source| {
                let module =
                    Module { file: source.path.clone(), code: without_visibilities(&code_without_tests(source)) };
                (module_path(&source.path), module)
            })
            .collect();
        let mut modules = Modules { by_path, passed_on: BTreeMap::new() };
        let mut passed_on_names = BTreeMap::new();
        for (path, module) in &modules.by_path {
            for tree in passed_on(&module.code) {
                let whole = modules.whole(path, &tree);
                if let Some((_, name)) = whole.rsplit_once("::") {
                    passed_on_names.insert(format!("{path}::{name}"), whole.clone());
                }
            }
        }
        modules.passed_on = passed_on_names;
        modules
    }

    /// Resolves a path in the module `from` to one from the root of its crate.
    fn whole(&self, from: &str, named: &str) -> String {
        let mut parts: Vec<&str> = named.split("::").collect();
        if parts.last() == Some(&"self") {
            parts.pop();
        }
        let mut base: Vec<&str> = from.split("::").collect();
        let root = base[0];
        match parts.first().copied() {
            Some("crate") => {
                parts.remove(0);
                base = vec![root];
            }
            Some("stratisd" | "stratis_core") => {
                parts.remove(0);
                base = vec!["crate"];
            }
            Some("threads") => base.clear(),
            _ => {
                while let Some("super" | "self") = parts.first().copied() {
                    if parts.remove(0) == "super" {
                        base.pop();
                    }
                }
            }
        }
        base.into_iter().chain(parts).collect::<Vec<_>>().join("::")
    }

    /// The module that an absolute path leads to.
    fn target(&self, whole: &str) -> Option<&Module> {
        let mut whole = whole.to_owned();
        // Several modules may re-export a name, one after the other.
        for _ in 0..PASSED_ON_MAX {
            let passed = self.passed_on.iter().find(|(name, origin)| is_below(&whole, name) && origin != name);
            match passed {
                Some((_, origin)) if !self.by_path.contains_key(&whole) => whole.clone_from(origin),
                _ => break,
            }
        }
        let mut path = whole.as_str();
        loop {
            if let Some(module) = self.by_path.get(path) {
                return Some(module);
            }
            path = path.rsplit_once("::")?.0;
        }
    }

    fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (path, module) in &self.by_path {
            let used = arrows.entry(module.file.clone()).or_default();
            for named in named_paths(&without_passed_on(&module.code)) {
                let first = named.split("::").next().unwrap_or_default();
                let is_child = self.by_path.contains_key(&format!("{path}::{first}"));
                let known =
                    matches!(first, "crate" | "stratisd" | "stratis_core" | "super" | "self" | "threads") || is_child;
                let target = known.then(|| self.target(&self.whole(path, &named))).flatten();
                // A path that leads to the root of the crate names a macro or the crate itself.
                used.extend(
                    target
                        .filter(|to| to.file != module.file && !to.file.ends_with("lib.rs"))
                        .map(|to| to.file.clone()),
                );
            }
        }
        arrows
    }
}

/// The cycles: sets of files that all depend on each other.
fn circles(arrows: &Arrows) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = arrows
        .keys()
        .map(|from| {
            let mut reached = BTreeSet::new();
            let mut next: Vec<&String> = arrows[from].iter().collect();
            while let Some(file) = next.pop() {
                if reached.insert(file) {
                    next.extend(arrows.get(file).into_iter().flatten());
                }
            }
            (from, reached)
        })
        .collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (from, there) in &reached {
        if there.contains(from) && !found.iter().any(|circle| circle.contains(*from)) {
            let circle = there.iter().filter(|to| reached.get(**to).is_some_and(|back| back.contains(from)));
            found.push(circle.map(|file| (*file).clone()).collect());
        }
    }
    found
}

/// The arrows between groups of files. `group` gives the group of a file.
fn grouped(arrows: &Arrows, group: impl Fn(&str) -> String) -> Arrows {
    let mut groups = Arrows::new();
    for (from, to) in arrows {
        let here = group(from);
        let there = to.iter().map(|file| group(file)).filter(|other| *other != here);
        groups.entry(here.clone()).or_default().extend(there.collect::<Vec<_>>());
    }
    groups
}

/// Writes words behind a beginning, wrapped, with the following lines indented.
fn line(page: &mut String, beginning: &str, indent: usize, words: impl IntoIterator<Item = String>) {
    let mut line = beginning.to_owned();
    for word in words {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(page, "{}", line.trim_end()).expect("memory");
            line = " ".repeat(indent);
        }
        line += if line.trim().is_empty() { "" } else { " " };
        line += &word;
    }
    writeln!(page, "{}", line.trim_end()).expect("memory");
}

fn short(file: &str) -> String {
    file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod").to_owned()
}

/// The rooms from top to bottom: each room stands above those that it uses, as far as cycles allow.
fn by_height(rooms: &Arrows) -> Vec<String> {
    let below = |room: &str| {
        let mut seen = BTreeSet::new();
        let mut next = vec![room.to_owned()];
        while let Some(room) = next.pop() {
            next.extend(rooms.get(&room).into_iter().flatten().filter(|to| seen.insert((*to).clone())).cloned());
        }
        seen.len()
    };
    let mut order: Vec<String> = rooms.keys().cloned().collect();
    order.sort_by_key(|room| (std::cmp::Reverse(below(room)), room.clone()));
    order
}

fn draw(sources: &[Source]) -> String {
    let arrows = Modules::read(sources).arrows();
    let rooms = grouped(&arrows, |file| room(file).to_owned());
    let all = circles(&arrows);
    let rooms_of = |circle: &BTreeSet<String>| circle.iter().map(|file| room(file)).collect::<BTreeSet<_>>();
    let between = all.iter().filter(|circle| rooms_of(circle).len() > 1).count();
    let order = by_height(&rooms);
    let files = |name: &str| arrows.keys().filter(|file| room(file) == name).collect::<Vec<_>>();
    let room_name =
        |folder: &str| folder.trim_start_matches("src/").trim_end_matches("/src").trim_end_matches(".rs").to_owned();

    let mut page = String::from(
        "# Structure\n\nMade by `make structure` from the `use` lines of the sources (`tests/tidy/structure.rs`); do not\n\
         edit. `scripts/test --only structure` fails when it is stale. What the rooms are:\n\
         [architecture.md](architecture.md).\n\n## Rooms\n\nEach room with the rooms that it uses; a room stands above those.\n\n",
    );
    let width = order.iter().map(|room| room_name(room).len()).max().unwrap_or(0);
    for name in &order {
        let used = rooms[name].iter().map(|room| room_name(room));
        line(&mut page, &format!("    {:width$} →", room_name(name)), width + 7, used);
    }
    writeln!(page, "\n## Circles\n\nBetween files of different rooms: {between}. Inside rooms:\n").expect("memory");
    page += "| Room | Files | Lines | Circles | Files in circles |\n|---|---|---|---|---|\n";
    for name in &order {
        let inside: Vec<_> = all.iter().filter(|circle| rooms_of(circle).contains(name.as_str())).collect();
        let caught: usize = inside.iter().map(|circle| circle.iter().filter(|file| room(file) == name).count()).sum();
        let lines: usize = sources
            .iter()
            .filter(|source| arrows.contains_key(&source.path) && room(&source.path) == name)
            .map(|source| source.text.lines().count())
            .sum();
        let count = files(name).len();
        writeln!(page, "| {} | {count} | {lines} | {} | {caught} |", room_name(name), inside.len()).expect("memory");
    }
    page.push('\n');
    for (number, circle) in all.iter().enumerate() {
        let members = circle.iter().map(|file| short(file));
        line(&mut page, &format!("{}.", number + 1), 3, members);
    }
    page += "\n## Files\n\nEach file with the files of its room that it uses, then the other rooms.\n";
    for name in &order {
        writeln!(page, "\n    {}", room_name(name)).expect("memory");
        let files = files(name);
        for (number, file) in files.iter().enumerate() {
            let last = number + 1 == files.len();
            let (own, others): (Vec<_>, Vec<_>) = arrows[*file].iter().partition(|to| room(to) == name);
            let others: BTreeSet<String> = others.into_iter().map(|to| format!("[{}]", room_name(room(to)))).collect();
            let inside = |file: &str| {
                let below = short(file);
                below.strip_prefix(&format!("{}/", room_name(name))).map(str::to_owned).unwrap_or(below)
            };
            let words: Vec<String> = own.into_iter().map(|to| inside(to)).chain(others).collect();
            let branch = if last { "└──" } else { "├──" };
            let arrow = if words.is_empty() { "" } else { " →" };
            line(&mut page, &format!("    {branch} {}{arrow}", inside(file)), 12, words);
        }
    }
    page
}

#[test]
#[ignore = "a step of its own: scripts/test --only structure"]
fn structure_page_is_current() {
    let drawn = draw(&rust_sources(&["src", "threads/src"]));
    let page = project().join(PAGE);
    if env::var_os("STRUCTURE").is_some_and(|wish| wish == "write") {
        fs::write(&page, &drawn).expect("a writable page");
    }
    let kept = fs::read_to_string(&page).unwrap_or_default();
    let differs = drawn.lines().zip(kept.lines()).find(|(drawn, kept)| drawn != kept);
    assert!(kept == drawn, "{PAGE} is stale ({differs:?}); run `make structure`");
}

#[test]
fn planted_circles_and_arrows_are_seen() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let sources = [
        source("src/engine/mod.rs", "mod a; mod b; mod c; pub use c::Deep; fn f() { c::g() }"),
        source("src/engine/a.rs", "use super::b::B; use crate::engine::Deep;"),
        source(
            "src/engine/b.rs",
            "use crate::engine::{a::A, c};\npub(in crate::engine) fn f() {}\n#[cfg(test)] mod tests { use crate::bus; }",
        ),
        source("src/engine/c.rs", "use threads::stop::Stop; // crate::bus::x"),
        source("threads/src/stop.rs", "pub struct Stop;"),
    ];
    let arrows = Modules::read(&sources).arrows();
    let of = |file: &str| arrows[file].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(of("src/engine/a.rs"), ["src/engine/b.rs", "src/engine/c.rs"]);
    assert_eq!(of("src/engine/b.rs"), ["src/engine/a.rs", "src/engine/c.rs"]);
    assert_eq!(of("src/engine/c.rs"), ["threads/src/stop.rs"]);
    assert_eq!(of("src/engine/mod.rs"), ["src/engine/c.rs"]);
    let found = circles(&arrows);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].iter().map(|file| short(file)).collect::<Vec<_>>(), ["engine/a", "engine/b"]);
    assert!(draw(&sources).contains("Between files of different rooms: 0."));
}
