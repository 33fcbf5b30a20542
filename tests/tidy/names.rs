//! Rules for names and sizes: no two types share a name, the name of a test is short, no `Pool` has
//! too many fields, and no file is too long to read in one go.
//!
//! These tests read declarations, not uses. Test code may name its types freely, because each test
//! is read on its own.

use std::{collections::BTreeMap, fs};

use super::{Source, code_of, code_without_tests, documents::files, is_word, project, rust_sources};

/// Each area has its own error and result type. Other areas write them with the area's name in
/// front (`engine::Error`).
const ONE_PER_AREA: [&str; 2] = ["Error", "Result"];

/// The maximum number of words in the name of a test.
const TEST_NAME_WORDS_MAX: usize = 8;

const POOL_FIELDS_MAX: usize = 10;

const LINES_MAX: usize = 700;

/// The types that the code declares, with their line numbers. An indented `type` does not count: it
/// is an associated type, which its trait names, or a short name inside one function.
fn types(code: &str) -> Vec<(String, usize)> {
    let declared = code.lines().enumerate().filter_map(|(number, line)| {
        let public = line.trim_start().strip_prefix("pub").map(|rest| match rest.strip_prefix('(') {
            Some(within) => within.split_once(')').map_or("", |(_, rest)| rest),
            None => rest,
        });
        let mut words = public.unwrap_or(line).split_whitespace().skip_while(|word| *word == "unsafe");
        let is_declared = match words.next()? {
            "struct" | "enum" | "trait" | "union" => true,
            "type" => !line.starts_with(' '),
            _ => false,
        };
        let name: String = words.next()?.chars().take_while(|c| is_word(*c)).collect();
        (is_declared && name.starts_with(char::is_uppercase)).then_some((name, number + 1))
    });
    declared.collect()
}

/// The names that several types share, each with the places of the types.
fn doubles(sources: &[Source]) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources {
        for (name, line) in types(&code_without_tests(source)) {
            places.entry(name).or_default().push(format!("{}:{line}", source.path));
        }
    }
    let doubles = places.into_iter().filter(|(name, at)| at.len() > 1 && !ONE_PER_AREA.contains(&name.as_str()));
    doubles.map(|(name, at)| format!("{name}: {}", at.join(", "))).collect()
}

#[test]
fn each_type_name_has_one_meaning() {
    let doubles = doubles(&rust_sources(&["src", "threads/src"]));
    assert!(doubles.is_empty(), "{} names have two meanings:\n{}", doubles.len(), doubles.join("\n"));
}

/// Tests whose names are too long, in Rust and in the Python code of the guest.
fn long_test_names(source: &Source) -> Vec<String> {
    let mut after_attribute = false;
    let tests = source.text.lines().filter_map(|line| {
        let line = line.trim_start();
        let function = line.strip_prefix("fn ").filter(|_| after_attribute);
        after_attribute = line == "#[test]" || after_attribute && line.starts_with("#[");
        let name = function.or_else(|| line.strip_prefix("def test_"))?;
        Some(name.chars().take_while(|c| is_word(*c)).collect::<String>())
    });
    let long = tests.filter(|name| name.split('_').count() > TEST_NAME_WORDS_MAX);
    long.map(|name| format!("{}: {name}", source.path)).collect()
}

#[test]
fn test_names_are_short() {
    let guest = files().into_iter().filter(|file| file.starts_with("tests/machine/guest/") && file.ends_with(".py"));
    let guest = guest.map(|path| Source { text: fs::read_to_string(project().join(&path)).expect("readable"), path });
    let sources = rust_sources(&["src", "threads", "tests"]).into_iter().chain(guest);
    let long: Vec<String> = sources.flat_map(|source| long_test_names(&source)).collect();
    assert!(long.is_empty(), "more than {TEST_NAME_WORDS_MAX} words:\n{}", long.join("\n"));
    let planted =
        "#[test]\n#[ignore]\nfn a_b_c_d_e_f_g_h_i() {}\n#[test]\nfn a_b_c_d_e_f_g_h() {}\nfn a_b_c_d_e_f_g_h_i() {}";
    let planted = Source { path: "x".to_owned(), text: format!("{planted}\ndef test_a_b_c_d_e_f_g_h_j():") };
    assert_eq!(long_test_names(&planted), ["x: a_b_c_d_e_f_g_h_i", "x: a_b_c_d_e_f_g_h_j"]);
}

/// The fields of each struct of this name.
fn fields_of(code: &str, name: &str) -> Vec<Vec<String>> {
    let heads = code.match_indices("struct ").filter_map(|(at, keyword)| {
        let after = code[at + keyword.len()..].strip_prefix(name)?;
        if after.starts_with(is_word) {
            return None;
        }
        let body = &after[after.find(['{', ';', '('])?..];
        body.starts_with('{').then_some(body)
    });
    let fields = heads.map(|body| {
        let (mut depth, mut fields, mut last) = (0, Vec::new(), ' ');
        let mut word = String::new();
        let mut characters = body.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '{' | '(' | '<' | '[' => depth += 1,
                // The arrow of a function type does not close a bracket.
                '>' if last == '-' => {}
                '}' | ')' | '>' | ']' => depth -= 1,
                // One colon ends the name of a field. Two colons are part of a path.
                ':' if depth == 1 && last != ':' && characters.peek() != Some(&':') && !word.is_empty() => {
                    fields.push(std::mem::take(&mut word));
                }
                ',' => word.clear(),
                c if depth == 1 && is_word(c) => word.push(c),
                c if c.is_whitespace() && depth == 1 => word.clear(),
                _ => {}
            }
            if depth == 0 {
                break;
            }
            last = c;
        }
        fields
    });
    fields.collect()
}

#[test]
fn a_pool_has_few_fields() {
    for source in rust_sources(&["src"]) {
        for fields in fields_of(&code_of(&source.text), "Pool") {
            let count = fields.len();
            assert!(count <= POOL_FIELDS_MAX, "{}: {count} fields of one type: {fields:?}; divide it", source.path);
        }
    }
}

fn too_long(sources: &[Source]) -> Vec<String> {
    let lengths = sources.iter().map(|source| (&source.path, source.text.lines().count()));
    lengths.filter(|(_, lines)| *lines > LINES_MAX).map(|(path, lines)| format!("{path}: {lines} lines")).collect()
}

#[test]
fn no_file_is_too_long_to_read() {
    let long = too_long(&rust_sources(&["src", "threads", "tests", "benches", "fuzz"]));
    assert!(long.is_empty(), "more than {LINES_MAX} lines; divide by meaning:\n{}", long.join("\n"));
}

#[test]
fn planted_doubles_and_sizes_are_seen() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let sources = [
        source("src/bus/a.rs", "pub struct Row;\nenum Error {}\nfn f() {\n    struct Inside;\n}\n// struct Comment;"),
        source("src/bus/b.rs", "impl X for Y {\n    type Row = u8;\n}\ntype Error = u8;\npub(super) trait Inside {}"),
        source(
            "src/bus/c.rs",
            "#[cfg(test)]\nmod tests {\n    struct Row;\n}\npub(in crate::bus) struct Row<'a>(&'a u8);",
        ),
        source("src/bus/tests.rs", "struct Row;"),
        source("src/bus/d.rs", "const TEXT: &str = \"struct Row;\"; struct RowOfRows; struct Comment;"),
    ];
    assert_eq!(doubles(&sources), ["Inside: src/bus/a.rs:4, src/bus/b.rs:5", "Row: src/bus/a.rs:1, src/bus/c.rs:5"]);
    let pool = "pub struct PoolEntry { x: u8 }\npub struct Pool<T> {\n    #[allow(x)]\n    pub a: BTreeMap<u8, (u8, u8)>,\n    \
                b: Box<dyn Fn(u8) -> u8>,\n    pub(super) c: a::B,\n}\nstruct Pool(u8, u8);\nstruct Pool;";
    assert_eq!(fields_of(pool, "Pool"), [["a", "b", "c"]]);
    let lines = |count| source("src/long.rs", &"\n".repeat(count));
    assert_eq!(too_long(&[lines(LINES_MAX), lines(LINES_MAX + 1)]).len(), 1);
}
