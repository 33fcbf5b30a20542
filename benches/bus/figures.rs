//! Samples, and their report as Markdown tables and lines, as in docs/performance.md.
//!
//! This module knows nothing of what was measured.

use std::{fmt::Display, time::Duration};

/// Durations of one kind of call.
#[derive(Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    pub const fn new() -> Samples {
        Samples(Vec::new())
    }

    pub fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub fn append(&mut self, mut others: Samples) {
        self.0.append(&mut others.0);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    fn at(&self, permille: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * permille / 1000).copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.at(500)
    }

    pub fn p99(&self) -> Duration {
        self.at(990)
    }

    pub fn max(&self) -> Duration {
        self.at(1000)
    }
}

/// A duration in a suitable unit.
pub fn time(duration: Duration) -> String {
    let us = duration.as_nanos() as f64 / 1e3;
    match us {
        _ if us < 1e3 => format!("{us:.0} µs"),
        _ if us < 1e5 => format!("{:.1} ms", us / 1e3),
        _ => format!("{:.0} ms", us / 1e3),
    }
}

pub fn ratio(of: Duration, to: Duration) -> f64 {
    of.as_secs_f64() / to.as_secs_f64()
}

/// A chapter of the report.
pub fn chapter(title: &str) {
    println!("\n### {title}\n");
}

/// The head of a table.
pub fn head(columns: &[&str]) {
    row(columns);
    println!("|{}", "---|".repeat(columns.len()));
}

/// A row of a table.
pub fn row(cells: &[impl Display]) {
    let cells: Vec<String> = cells.iter().map(ToString::to_string).collect();
    println!("| {} |", cells.join(" | "));
}

/// The required limits and the measured values.
#[derive(Debug, Default)]
pub struct Musts {
    lines: Vec<(bool, String)>,
}

impl Musts {
    /// Requires that `what` is at most `most`.
    pub fn at_most(&mut self, what: &str, found: f64, most: f64, unit: &str) {
        // Compares the value as it is shown: 1.204 is shown as 1.20 and counts as 1.20.
        let shown = format!("{found:.2}");
        let reached = shown.parse().is_ok_and(|found: f64| found <= most);
        self.note(what, &format!("{shown}{unit}, at most {most}{unit}"), reached);
    }

    pub fn note(&mut self, what: &str, found: &str, reached: bool) {
        self.lines.push((reached, format!("{what} | {found}")));
    }

    /// Prints the table of all limits.
    pub fn tell(&self) {
        chapter("Limits");
        head(&["what", "found", ""]);
        for (reached, line) in &self.lines {
            row(&[line.as_str(), if *reached { "ok" } else { "**NOT REACHED**" }]);
        }
    }
}
