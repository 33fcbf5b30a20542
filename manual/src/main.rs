//! `manual FOLDER`: writes the manual pages (FOLDER/man) and the shell completions
//! (FOLDER/completions) of all programs, from the definitions of their command lines.
//!
//! Knows nothing of what the programs do. The date of the pages is SOURCE_DATE_EPOCH, or today.

mod page;
#[cfg(test)]
mod tests;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use clap_complete::Shell;
use jiff::Timestamp;
use stratis_core::cli::{Folder, InstalledProgram, PROGRAMS};

/// Writes the manual pages and shell completions of all programs
#[derive(Parser)]
struct CommandLine {
    /// Folder to write to; it is made if it is missing
    folder: PathBuf,
}

/// The date of the pages, as `2026-11-30`.
fn date() -> String {
    let seconds = env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_else(Timestamp::now);
    time.strftime("%Y-%m-%d").to_string()
}

/// The completions of a program, with the file names that the shells expect. Programs that udev and
/// systemd run have no completions.
fn completions(program: &InstalledProgram) -> Vec<(String, Vec<u8>)> {
    if matches!(program.folder, Folder::Udev | Folder::Generators) {
        return Vec::new();
    }
    let name = program.name;
    let shells = [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ];
    let written = shells.map(|(shell, path)| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut (program.command)(), name, &mut text);
        (path, text)
    });
    written.into()
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let in_folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    in_folder
        .and_then(|()| fs::write(path, content))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display())))
}

fn write_all(folder: &Path) -> io::Result<()> {
    let date = date();
    for program in PROGRAMS {
        write(&folder.join("man").join(format!("{}.8", program.name)), page::render(program, &date)?.as_bytes())?;
        for (path, text) in completions(program) {
            write(&folder.join("completions").join(path), &text)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match write_all(&CommandLine::parse().folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {error}");
            ExitCode::FAILURE
        }
    }
}
