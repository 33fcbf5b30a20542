//! References to and from documents. Each document and each section that a source or another
//! document names must exist. Each source file that a document names must exist, and each `cargo
//! test` command in a document must run a test.
//!
//! A reference is a file name that ends in `.md`, with the section numbers that follow it:
//! `docs/spec/dbus/dbus-api.md` §7.1 and 7.3. A name without a folder means the file of that name
//! below docs/.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{is_word, project, rust_sources};

/// A document that a text names, and the sections of it that the text names.
#[derive(Debug, PartialEq)]
struct Reference {
    file: String,
    sections: Vec<String>,
}

/// Joins the lines of a text, so that a sentence may continue on the next line. Removes the comment
/// signs at the beginning of each line.
fn one_line(text: &str) -> String {
    let lines =
        text.lines().map(|line| line.trim_start().trim_start_matches("//").trim_start_matches(['/', '!', '#']).trim());
    lines.collect::<Vec<_>>().join(" ")
}

fn references(text: &str) -> Vec<Reference> {
    let text = one_line(text);
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find(".md").map(|at| from + at) {
        let end = at + ".md".len();
        from = end;
        let start = text[..at]
            .rfind(|c: char| !(is_word(c) || matches!(c, '/' | '-' | '.')))
            .map_or(0, |i| i + text[i..].chars().next().map_or(1, char::len_utf8));
        let after = &text[end..];
        if start == at || after.starts_with(|c: char| is_word(c) || c == '/') {
            continue;
        }
        let after = after.trim_start_matches(['`', ' ', ')', '\'']);
        let sections = after.strip_prefix('§').map(numbers).unwrap_or_default();
        found.push(Reference { file: text[start..end].to_owned(), sections });
    }
    found
}

/// The section numbers at the beginning of a text: `1–3, 6, 10.3`. A range yields its two ends.
fn numbers(text: &str) -> Vec<String> {
    let mut numbers = Vec::new();
    let mut rest = text.trim_start();
    loop {
        let length = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let number = rest[..length].trim_end_matches('.');
        if number.is_empty() {
            return numbers;
        }
        numbers.push(number.to_owned());
        rest = &rest[number.len()..];
        let joined = [", §", ", ", "–", " to ", " and §", " and "].iter().find_map(|by| rest.strip_prefix(by));
        let Some(next) = joined else { return numbers };
        rest = next;
    }
}

/// The section numbers of a document's headings: `### 6.10 Worked example`.
fn headings(document: &str) -> BTreeSet<String> {
    let titles = document.lines().filter_map(|line| line.strip_prefix('#')).map(|l| l.trim_start_matches('#').trim());
    titles.filter_map(|title| numbers(title).into_iter().next()).collect()
}

#[allow(clippy::disallowed_methods)] // only git knows which files belong to the project
pub(super) fn files() -> Vec<String> {
    let Ok(listed) = Command::new("git").args(["ls-files", "-z"]).current_dir(project()).output() else {
        return Vec::new(); // a source archive: the rule was checked where the archive was made
    };
    let listed = String::from_utf8(listed.stdout).expect("file names in UTF-8");
    listed.split('\0').filter(|file| !file.is_empty()).map(str::to_owned).collect()
}

/// The file that a reference in `from` means: a path from the project, a path from the folder of
/// `from`, or a file name below docs/.
fn resolve(named: &str, from: &str, documents: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let beside = Path::new(from).parent().map(|folder| folder.join(named)).unwrap_or_default();
    let exists = [PathBuf::from(named), beside].into_iter().find(|path| project().join(path).is_file());
    if let Some(path) = exists {
        return Some(path.to_string_lossy().into_owned());
    }
    match documents.get(named).map(Vec::as_slice) {
        Some([only]) => Some(only.clone()),
        _ => documents.values().flatten().find(|path| path.ends_with(&format!("/{named}"))).cloned(),
    }
}

fn wrong_references(from: &str, text: &str, documents: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for Reference { file, sections } in references(text) {
        let Some(path) = resolve(&file, from, documents) else {
            wrong.push(format!("{from} names {file}, which does not exist"));
            continue;
        };
        if sections.is_empty() {
            continue;
        }
        let there = headings(&fs::read_to_string(project().join(&path)).expect("a readable document"));
        let missing = sections.iter().filter(|section| !there.contains(*section));
        wrong.extend(missing.map(|section| format!("{from} names {file} §{section}; {path} has no such section")));
    }
    wrong
}

fn documents() -> BTreeMap<String, Vec<String>> {
    let mut documents: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files().into_iter().filter(|file| file.starts_with("docs/") && file.ends_with(".md")) {
        let name = file.rsplit('/').next().unwrap_or_default().to_owned();
        documents.entry(name).or_default().push(file);
    }
    documents
}

#[test]
fn each_document_and_section_named_exists() {
    let documents = documents();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files() {
        // The planted errors below name documents that do not exist.
        if file == "tests/tidy/documents.rs" || !project().join(&file).is_file() {
            continue;
        }
        let Ok(text) = fs::read_to_string(project().join(&file)) else { continue };
        seen += references(&text).len();
        wrong.extend(wrong_references(&file, &text, &documents));
    }
    assert!(files().is_empty() || seen > 100, "only {seen} references were found");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The files and folders of the project that a document names as code: `src/bus/table.rs`,
/// `ops/check.rs`, `tests/bus`.
fn named_files(document: &str) -> Vec<String> {
    const FOLDERS: [&str; 9] =
        ["src/", "tests/", "threads/", "docs/", "scripts/", "benches/", "fuzz/", "systemd/", "udev/"];
    let code = document.split('`').skip(1).step_by(2);
    let is_path = |text: &&str| text.chars().all(|c| is_word(c) || matches!(c, '/' | '.' | '-'));
    let is_ours = |text: &&str| text.ends_with(".rs") || FOLDERS.iter().any(|folder| text.starts_with(folder));
    code.filter(is_path).filter(is_ours).map(|text| text.trim_end_matches('/').to_owned()).collect()
}

fn is_nowhere(named: &str, files: &[String]) -> bool {
    !files.iter().any(|file| {
        let (whole, below, inside) = (file == named, format!("/{named}"), format!("{named}/"));
        whole || file.ends_with(&below) || file.starts_with(&inside) || file.contains(&format!("{below}/"))
    })
}

#[test]
fn each_source_named_in_a_document_exists() {
    let files = files();
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".md") && project().join(file).is_file()) {
        let text = fs::read_to_string(project().join(file)).expect("a readable document");
        let dead = named_files(&text).into_iter().filter(|named| is_nowhere(named, &files));
        wrong.extend(dead.map(|named| format!("{file} names {named}, which does not exist")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let planted = named_files("see `src/no/such.rs`, `such.rs`, `tests/nowhere/`, `a word`, `x.py`");
    assert_eq!(planted, ["src/no/such.rs", "such.rs", "tests/nowhere"]);
    assert!(files.is_empty() || planted.iter().all(|named| is_nowhere(named, &files)));
}

/// The test filters in the `cargo test` commands of a document: `starved::` in `cargo test --test
/// life starved::`.
fn test_filters(document: &str) -> Vec<String> {
    let document = document.split_whitespace().collect::<Vec<_>>().join(" ");
    let commands = document.split('`').skip(1).step_by(2).filter_map(|code| {
        let (_, words) = code.split_once("cargo test ")?;
        let mut words = words.split(' ').take_while(|word| *word != "--");
        let mut filter = None;
        while let Some(word) = words.next() {
            match word {
                "--test" | "--bench" | "--features" | "-p" => drop(words.next()),
                option if option.starts_with('-') => {}
                // `NAME` is a placeholder.
                name if name.chars().any(char::is_lowercase) => filter = Some(name.to_owned()),
                _ => {}
            }
        }
        filter
    });
    commands.collect()
}

/// The names that a filter can match: those of functions and modules.
fn names_in_sources() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in rust_sources(&["src", "threads", "tests"]) {
        names.extend(source.path.split('/').map(|part| part.trim_end_matches(".rs").to_owned()));
        for keyword in ["fn ", "mod "] {
            let after = source.text.match_indices(keyword).map(|(at, _)| &source.text[at + keyword.len()..]);
            names.extend(after.map(|text| text.chars().take_while(|c| is_word(*c)).collect()));
        }
    }
    names
}

fn selects_nothing(filter: &str, names: &BTreeSet<String>) -> bool {
    let mut parts = filter.split("::").filter(|part| !part.is_empty());
    !parts.all(|part| names.iter().any(|name| name.contains(part)))
}

#[test]
fn each_documented_test_command_runs_a_test() {
    let names = names_in_sources();
    let documents = files().into_iter().filter(|file| file.ends_with(".md"));
    let mut wrong = Vec::new();
    for file in documents.filter(|file| project().join(file).is_file()) {
        let text = fs::read_to_string(project().join(&file)).expect("a readable document");
        let dead = test_filters(&text).into_iter().filter(|filter| selects_nothing(filter, &names));
        wrong.extend(dead.map(|filter| format!("{file}: no test is named {filter}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(
        test_filters("`cargo test -p stratisd --test life a::b -- --nocapture`, `cargo test --lib\nc`"),
        ["a::b", "c"]
    );
    let planted = ["life::no_such_promise", "nowhere::"];
    let some = ["life", "a_promise_is_kept"].map(str::to_owned).into();
    assert!(planted.iter().all(|filter| selects_nothing(filter, &some)) && !selects_nothing("life::a_promise", &some));
}

#[test]
fn planted_dead_references_are_found() {
    let documents = documents();
    if documents.is_empty() {
        return;
    }
    let planted = [
        "//! (`docs/spec/engine/no-such.md` §1)",
        "//! (`docs/spec/engine/encryption.md` §99)",
        "//! (`docs/spec/engine/encryption.md` §2.1, 99)",
        "//! (`docs/spec/engine/encryption.md`\n//! §2.1 to 2.99)",
        "see `dbus-api.md` §77",
    ];
    for text in planted {
        assert_eq!(wrong_references("src/lib.rs", text, &documents).len(), 1, "not found: {text}");
    }
    let good = [
        "//! (`docs/spec/engine/encryption.md` §2.1 to 2.3, 6).",
        "[the units](docs/spec/tools/system-integration.md) and dbus-api.md §12 row 3",
    ];
    for text in good {
        assert_eq!(wrong_references("docs/bus.md", text, &documents), Vec::<String>::new());
    }
}
