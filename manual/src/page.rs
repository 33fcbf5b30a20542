//! One manual page. `clap_mangen` makes name, synopsis, description and options. This module adds
//! the subcommands, which `clap_mangen` would put on separate pages, and the sections that it does
//! not know.

use std::io;

use clap::Command;
use clap_mangen::Man;
use roff::{Inline, Roff, bold, roman};
use stratis_core::cli::{Example, InstalledProgram};

/// Begins the lines that `roff` writes once for each piece of a page.
const PREAMBLE: [&str; 2] = [".ie \\n(.g .ds Aq", ".el .ds Aq"];

type Render = fn(&Man, &mut dyn io::Write) -> io::Result<()>;

/// The page of a program in the form of man(7).
pub fn render(program: &InstalledProgram, date: &str) -> io::Result<String> {
    let command = (program.command)().disable_help_subcommand(true).disable_version_flag(false);
    let man = Man::new(command.clone())
        .title(program.name.to_uppercase())
        .section("8")
        .date(date)
        .source(concat!("stratisd ", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    let mut text = String::new();
    for part in [
        Man::render_title as Render,
        Man::render_name_section,
        Man::render_synopsis_section,
        Man::render_description_section,
        Man::render_options_section,
    ] {
        text += &rendered(&man, part)?;
    }
    let mut built = command;
    // This gives the subcommands their whole names.
    built.build();
    if built.has_subcommands() {
        text += ".SH COMMANDS\n";
        text += &subcommands(&built)?;
    }
    text += &sections(program).render();
    // What clap_mangen puts between an option and its possible values.
    Ok(once(&text.replace("\n.br\n\n.br\n", "\n.sp\n")))
}

fn rendered(man: &Man, part: Render) -> io::Result<String> {
    let mut bytes = Vec::new();
    part(man, &mut bytes)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Each command that has no further subcommands, with its synopsis, description and options.
fn subcommands(command: &Command) -> io::Result<String> {
    let mut text = String::new();
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        if below.has_subcommands() {
            text += &subcommands(below)?;
            continue;
        }
        let name = below.get_bin_name().unwrap_or(below.get_name());
        text += &Roff::new().control("SS", [name]).to_roff();
        // Options that every command has are described once, above.
        let own = below.clone().mut_args(|argument| {
            let everywhere = ["help", "version"].contains(&argument.get_id().as_str());
            argument.hide(everywhere)
        });
        let man = Man::new(own);
        for part in
            [Man::render_synopsis_section as Render, Man::render_description_section, Man::render_options_section]
        {
            // A heading would end the section of the commands.
            let lines = rendered(&man, part)?;
            text.extend(
                lines
                    .lines()
                    .map(|line| if line.starts_with(".SH ") { ".PP" } else { line })
                    .flat_map(|line| [line, "\n"]),
            );
        }
    }
    Ok(text)
}

/// Examples, exit status, files, environment, other pages.
fn sections(program: &InstalledProgram) -> Roff {
    let mut roff = Roff::new();
    let page = program.page;
    if !page.examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        for Example { about, command } in page.examples {
            roff.control("TP", []).text([roman(*about)]);
            roff.control("nf", []);
            for line in command.lines() {
                roff.text([bold(line)]);
            }
            roff.control("fi", []);
        }
    }
    for (title, terms) in page.terms().into_iter().filter(|(_, terms)| !terms.is_empty()) {
        roff.control("SH", [title.to_uppercase().as_str()]);
        for (term, meaning) in terms {
            roff.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut others = Vec::new();
    for (index, other) in page.see_also.iter().enumerate() {
        let (name, section) = other.split_once('(').unwrap_or((other, ""));
        others.extend([(index > 0).then(|| roman(", ")), Some(bold(name)), Some(roman(format!("({section}")))]);
    }
    roff.text(others.into_iter().flatten().collect::<Vec<Inline>>());
    roff
}

/// The text with its preamble once, and without paragraphs that are empty.
fn once(text: &str) -> String {
    let is_preamble = |line: &str| PREAMBLE.iter().any(|begin| line.starts_with(begin));
    let mut kept: Vec<&str> = text.lines().filter(|line| is_preamble(line)).take(PREAMBLE.len()).collect();
    let mut rest = text.lines().filter(|line| !is_preamble(line)).peekable();
    let begins = |line: &str, macros: &[&str]| macros.iter().any(|name| line.starts_with(name));
    while let Some(line) = rest.next() {
        let follows_heading = kept.last().is_some_and(|last| begins(last, &[".SH", ".SS"]));
        let is_empty = rest.peek().is_none_or(|next| begins(next, &[".PP", ".TP", ".SH", ".SS"]));
        if line != ".PP" || !(follows_heading || is_empty) {
            kept.push(line);
        }
    }
    kept.join("\n") + "\n"
}
