//! `percept audit`: what is written down of requests.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use jiff::{civil::Date, tz::TimeZone};
use serde_json::Value;

use crate::{
    config::Settings,
    operations::audit::{self, Event},
};

#[derive(Debug, Args)]
pub(super) struct Audit {
    /// The folder of the log [default: that of the configuration file or of PERCEPT_AUDIT]
    #[arg(long, global = true, value_name = "FOLDER")]
    audit: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check that no line was changed, taken out or put in
    ///
    /// Prints the hash of the last line: note it elsewhere, and --expect tells later whether the log was cut off or
    /// replaced behind it. The exit code is 1 where something is wrong.
    Verify {
        /// A hash that was noted: a line must have it
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Print requests
    Export(Export),
}

#[derive(Debug, Args)]
struct Export {
    /// The first day (UTC), such as 2026-11-01
    #[arg(long, value_name = "DAY")]
    from: Option<Date>,
    /// The last day (UTC)
    #[arg(long, value_name = "DAY")]
    to: Option<Date>,
    /// Of this tenant only
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Lines of JSON as they are in the log, with their hashes, or a table
    #[arg(long, value_name = "FORMAT", default_value = "jsonl")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
}

/// The folder of the audit log: the one that is given, or that of the configuration.
pub(super) fn folder(given: Option<PathBuf>, config: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    match given {
        Some(folder) => Ok(Some(folder)),
        None => Ok(Settings::default().complete(config)?.audit),
    }
}

impl Audit {
    pub(super) fn run(self, config: Option<&Path>) -> anyhow::Result<()> {
        let folder = folder(self.audit, config)?;
        let folder = folder.context("which folder? Say it with --audit FOLDER, as percept serve has it")?;
        match self.command {
            Command::Verify { expect, json } => {
                let report = audit::verify(&folder, expect.as_deref())?;
                if json {
                    println!("{:#}", serde_json::to_value(&report)?);
                    return Ok(());
                }
                let time =
                    |time: Option<jiff::Timestamp>| time.map_or("-".to_owned(), |time| format!("{time:.0}"));
                println!(
                    "{} lines in {} files, {} requests, from {} to {}: nothing was changed",
                    report.lines,
                    report.files,
                    report.requests,
                    time(report.from),
                    time(report.to)
                );
                println!("head {}", report.head);
                Ok(())
            }
            Command::Export(export) => export.run(&folder),
        }
    }
}

impl Export {
    fn run(self, folder: &Path) -> anyhow::Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut written = Ok(());
        let mut header = self.format == Format::Csv;
        audit::lines(folder, self.from, |line, text| {
            let Event::Request(entry) = &line.event else { return };
            let day = entry.time.to_zoned(TimeZone::UTC).date();
            let wanted = self.from.is_none_or(|from| day >= from)
                && self.to.is_none_or(|to| day <= to)
                && self.tenant.as_ref().is_none_or(|tenant| entry.tenant.as_ref() == Some(tenant));
            if !wanted || written.is_err() {
                return;
            }
            written = match self.format {
                Format::Jsonl => writeln!(out, "{text}"),
                Format::Csv => match serde_json::to_value(entry) {
                    Ok(Value::Object(fields)) => {
                        let names = fields.keys().map(String::as_str).collect::<Vec<_>>().join(",");
                        let values = fields.values().map(cell).collect::<Vec<_>>().join(",");
                        let begun = if header { writeln!(out, "{names}") } else { Ok(()) };
                        header = false;
                        begun.and_then(|()| writeln!(out, "{values}"))
                    }
                    _ => Ok(()),
                },
            };
        })?;
        Ok(written.and_then(|()| out.flush())?)
    }
}

/// A value as RFC 4180 has it; one that a spreadsheet would compute is text.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => {
            let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.clone() };
            if text.contains(['"', ',', '\n', '\r']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text
            }
        }
        other => other.to_string(),
    }
}
