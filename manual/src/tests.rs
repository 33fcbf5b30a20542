//! The manual pages, `--help` and the documents agree, and mandoc finds no fault in the pages.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command as Process,
};

use clap::Command;
use stratis_core::cli::{self, InstalledProgram, PROGRAMS};

use super::*;

const DATE: &str = "2026-11-30";

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project").to_owned()
}

/// All options of a command and of those below it, as `--long` and `-s`.
fn options(command: &Command, found: &mut BTreeSet<String>) {
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        found.extend(argument.get_long().map(|long| format!("--{long}")));
        found.extend(argument.get_short().map(|short| format!("-{short}")));
    }
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        options(below, found);
    }
}

fn options_of(program: &InstalledProgram) -> BTreeSet<String> {
    let mut command = (program.command)();
    command.build();
    let mut found = BTreeSet::new();
    options(&command, &mut found);
    found
}

/// The options that a text names, each as it stands.
fn named_options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '-'));
    let is_option = |word: &&str| {
        let name = word.trim_start_matches('-');
        let dashes = word.len() - name.len();
        name.starts_with(|c: char| c.is_alphabetic()) && (dashes == 2 || dashes == 1 && name.len() == 1)
    };
    words.filter(is_option).map(str::to_owned).collect()
}

/// The names that a roff page shows, as plain text.
fn plain(page: &str) -> String {
    ["\\fB", "\\fI", "\\fR"].iter().fold(page.replace("\\-", "-"), |text, escape| text.replace(escape, ""))
}

#[test]
fn pages_name_the_options_of_help() {
    for program in PROGRAMS {
        let page = plain(&page::render(program, DATE).expect("a page"));
        let missing: Vec<String> = options_of(program).difference(&named_options(&page)).cloned().collect();
        assert!(missing.is_empty(), "{}(8) lacks {missing:?}", program.name);
        let help = cli::with_page((program.command)(), program.page).render_long_help().to_string();
        for example in program.page.examples {
            assert!(page.contains(example.about), "{}(8) lacks: {}", program.name, example.about);
            assert!(help.contains(example.about), "{} --help lacks: {}", program.name, example.about);
        }
        for (_, terms) in program.page.terms() {
            for (term, _) in terms {
                assert!(page.contains(term) && help.contains(term), "{}: {term} is missing", program.name);
            }
        }
    }
}

/// Commands of our programs in a text: lines that begin with one, and what stands between
/// backquotes. The program, and the words after it up to a pipe.
fn commands(text: &str) -> Vec<(&'static InstalledProgram, String)> {
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let typed =
        text.lines().filter_map(|line| line.trim_start().strip_prefix("# ").or(line.trim_start().strip_prefix("$ ")));
    let examples = quoted.chain(typed).flat_map(|line| line.split(['|', ';', '&']));
    let ours = examples.filter_map(|line| {
        let (first, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let name = first.rsplit('/').next().unwrap_or(first);
        PROGRAMS.iter().find(|program| program.name == name).map(|program| (program, rest.to_owned()))
    });
    ours.collect()
}

/// Options in a text that the program does not have.
fn unknown_options(text: &str) -> Vec<String> {
    let wrong = commands(text).into_iter().flat_map(|(program, rest)| {
        let known = options_of(program);
        let unknown: Vec<String> = named_options(&rest).difference(&known).cloned().collect();
        unknown.into_iter().map(move |option| format!("{} has no {option}", program.name))
    });
    wrong.collect()
}

#[test]
fn documents_and_examples_name_known_options() {
    assert_eq!(
        unknown_options("`stratisd --sim --slow`\n    $ stratisd -x | less -R"),
        ["stratisd has no --slow", "stratisd has no -x"]
    );
    let mut texts = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "CHANGELOG.md".to_owned()];
    texts.extend(fs::read_dir(project().join("docs")).expect("docs").filter_map(|entry| {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        name.ends_with(".md").then(|| format!("docs/{name}"))
    }));
    let mut seen = 0;
    let mut wrong = Vec::new();
    for path in texts {
        let text = fs::read_to_string(project().join(&path)).expect("readable");
        seen += commands(&text).len();
        wrong.extend(unknown_options(&text).into_iter().map(|what| format!("{path}: {what}")));
    }
    for program in PROGRAMS {
        let examples: Vec<String> = program.page.examples.iter().map(|e| format!("$ {}", e.command)).collect();
        wrong.extend(
            unknown_options(&examples.join("\n")).into_iter().map(|what| format!("{}(8): {what}", program.name)),
        );
    }
    assert!(seen > 5, "only {seen} commands were found");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_readme_names_every_program() {
    let readme = fs::read_to_string(project().join("README.md")).expect("readable");
    let missing: Vec<&str> =
        PROGRAMS.iter().map(|p| p.name).filter(|name| !readme.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "README.md does not name {missing:?}");
}

#[test]
// There is no other way to ask mandoc.
#[allow(clippy::disallowed_methods)]
fn mandoc_finds_nothing_wrong_with_the_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    write_all(folder.path()).expect("pages and completions");
    for program in PROGRAMS {
        let page = folder.path().join(format!("man/{}.8", program.name));
        // Below `warning` it complains of what a page of several sources cannot avoid: other pages
        // that are not installed here, and long lines.
        let said = Process::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page).output();
        let said = said.expect("mandoc: `scripts/setup build` installs it");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }
}

#[test]
fn completions_offer_the_options() {
    let program = PROGRAMS.iter().find(|program| program.name == "stratisd").expect("stratisd");
    for (path, text) in completions(program) {
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.contains("sim-disk-size"), "{path}");
    }
}
