//! The sections of a manual page beside the options. `--help` shows them as text.

use std::fmt::Write;

/// The sections of a program's page beside its description and options. Paths and names are plain
/// text.
pub struct ManualPage {
    /// Commands with what they are for.
    pub examples: &'static [Example],
    /// Status and meaning.
    pub exit_status: &'static [(&'static str, &'static str)],
    /// Path and meaning.
    pub files: &'static [(&'static str, &'static str)],
    /// Variable and meaning.
    pub environment: &'static [(&'static str, &'static str)],
    /// Other pages, as `stratis(8)`.
    pub see_also: &'static [&'static str],
}

/// A command that can be typed as it stands.
pub struct Example {
    /// What it is for, as a sentence.
    pub about: &'static str,
    /// The command, without a prompt. A second line is another command.
    pub command: &'static str,
}

impl ManualPage {
    /// The sections that consist of a term and its meaning, with their titles.
    pub fn terms(&self) -> [(&'static str, &'static [(&'static str, &'static str)]); 3] {
        [("Exit status", self.exit_status), ("Files", self.files), ("Environment", self.environment)]
    }

    /// The sections as text below the options of `--help`. clap breaks long lines.
    pub(super) fn help(&self) -> String {
        let mut sections = Vec::new();
        if !self.examples.is_empty() {
            let mut text = String::from("Examples:");
            for Example { about, command } in self.examples {
                let _ = write!(text, "\n  {about}");
                for line in command.lines() {
                    let _ = write!(text, "\n      {line}");
                }
            }
            sections.push(text);
        }
        for (title, terms) in self.terms().into_iter().filter(|(_, terms)| !terms.is_empty()) {
            let width = terms.iter().map(|(term, _)| term.len()).max().unwrap_or(0);
            let mut text = format!("{title}:");
            for (term, meaning) in terms {
                let _ = write!(text, "\n  {term:width$}  {meaning}");
            }
            sections.push(text);
        }
        sections.push(format!("See also: {}", self.see_also.join(", ")));
        sections.join("\n\n")
    }
}
