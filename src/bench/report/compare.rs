//! Two runs beside each other.

use std::fmt;

use super::{Grid, Level, Measured, Offline, Report, SCHEMA, Served, table::number};
use crate::bench::{offline::Stage, statistics::Times};

/// Which of two figures is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

/// A figure of a level: its name, where it is, which one is better.
type Row = (&'static str, fn(&Level) -> Option<f64>, Better);

const ROWS: &[Row] = &[
    ("requests/s", |level| positive(level.throughput.requests), Better::More),
    ("output tokens/s", |level| positive(level.throughput.output_tokens), Better::More),
    ("pictures/s", |level| positive(level.throughput.pictures), Better::More),
    ("seconds of sound/s (RTFx)", |level| positive(level.throughput.sound_seconds), Better::More),
    (
        "first token (TTFT) p50 ms",
        |level| milliseconds(level.latency.first_token, |times| times.p50),
        Better::Less,
    ),
    (
        "first token (TTFT) p99 ms",
        |level| milliseconds(level.latency.first_token, |times| times.p99),
        Better::Less,
    ),
    (
        "between tokens (ITL) p50 ms",
        |level| milliseconds(level.latency.inter_token, |times| times.p50),
        Better::Less,
    ),
    (
        "between tokens (ITL) p99 ms",
        |level| milliseconds(level.latency.inter_token, |times| times.p99),
        Better::Less,
    ),
    (
        "per output token (TPOT) p50 ms",
        |level| milliseconds(level.latency.per_output_token, |times| times.p50),
        Better::Less,
    ),
    ("whole answer p50 ms", |level| milliseconds(level.latency.end_to_end, |times| times.p50), Better::Less),
    ("whole answer p99 ms", |level| milliseconds(level.latency.end_to_end, |times| times.p99), Better::Less),
    ("J per request", |level| level.energy.as_ref()?.per.request, Better::Less),
    ("J per 1,000 output tokens", |level| level.energy.as_ref()?.per.thousand_output_tokens, Better::Less),
    ("J per hour of sound", |level| level.energy.as_ref()?.per.audio_hour, Better::Less),
    ("cost per 1,000 requests", |level| level.cost?.per_1000_requests, Better::Less),
    ("cost per million output tokens", |level| level.cost?.per_million_output_tokens, Better::Less),
    ("tokens of an answer", |level| each(level.tokens.completion, level), Better::More),
    (
        "requests that failed",
        |level| positive((level.requests.failed + level.requests.busy) as f64),
        Better::Less,
    ),
];

fn positive(value: f64) -> Option<f64> {
    (value > 0.0).then_some(value)
}

fn milliseconds(times: Option<Times>, of: fn(&Times) -> f64) -> Option<f64> {
    times.map(|times| of(&times) * 1e3)
}

fn each(count: u64, level: &Level) -> Option<f64> {
    positive(count as f64 / level.requests.completed.max(1) as f64)
}

/// Why two files cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// One is none of ours.
    #[error("it is no report of percept bench: {0}")]
    Read(#[from] serde_json::Error),
    /// One is newer than this program.
    #[error("its schema is {found}; this program reads {SCHEMA}")]
    Schema {
        /// What it has.
        found: u64,
    },
    /// One is of a server, the other of a network.
    #[error("one is of a server and the other of percept bench --offline")]
    Kinds,
    /// They have nothing in common.
    #[error("they have no {0} in common")]
    Nothing(&'static str),
}

/// Reads a report.
///
/// # Errors
/// When it is none, or of a newer program.
pub fn read(json: &[u8]) -> Result<Report, CompareError> {
    let value: serde_json::Value = serde_json::from_slice(json)?;
    match value["schema"].as_u64() {
        Some(found) if found != u64::from(SCHEMA) => Err(CompareError::Schema { found }),
        _ => Ok(serde_json::from_value(value)?),
    }
}

/// Two runs, level by level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// What is compared, and how they differ in what should be the same.
    pub facts: Vec<String>,
    /// A table for each level, or one.
    pub tables: Vec<Grid>,
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fact in &self.facts {
            writeln!(formatter, "{fact}")?;
        }
        for table in &self.tables {
            write!(formatter, "\n{table}\n")?;
        }
        Ok(())
    }
}

/// Compares two runs, where they have something in common.
///
/// # Errors
/// When they have not.
pub fn compare(a: &Report, b: &Report) -> Result<Comparison, CompareError> {
    let mut facts: Vec<String> = [("a", a), ("b", b)]
        .map(|(name, report)| {
            let facts = report.facts();
            format!("{name}: {}; {}", facts.first().map_or("", String::as_str), report.build())
        })
        .into();
    if a.hardware() != b.hardware() {
        facts.push(format!("other hardware: a on {}, b on {}", a.hardware(), b.hardware()));
    }
    let tables = match (&a.measured, &b.measured) {
        (Measured::Served(a), Measured::Served(b)) => {
            if a.workload != b.workload {
                facts.push("other work: they were not asked the same".into());
            }
            levels(a, b)?
        }
        (Measured::Offline(a), Measured::Offline(b)) => {
            if (a.context, &a.dtype) != (b.context, &b.dtype) {
                facts.push("other work: type or context are not the same".into());
            }
            vec![stages(a, b)?]
        }
        _ => return Err(CompareError::Kinds),
    };
    Ok(Comparison { facts, tables })
}

fn levels(a: &Served, b: &Served) -> Result<Vec<Grid>, CompareError> {
    let pairs = a.levels.iter().filter_map(|level| {
        let other = b.levels.iter().find(|other| other.load == level.load)?;
        Some((level, other))
    });
    let tables: Vec<Grid> = pairs
        .map(|(a, b)| {
            let mut grid = Grid::new(headings(&a.load.to_string()));
            for (name, of, better) in ROWS {
                if let (Some(a), Some(b)) = (of(a), of(b)) {
                    grid.row(name, cells(a, b, *better));
                }
            }
            grid
        })
        .collect();
    if tables.is_empty() { Err(CompareError::Nothing("level of load")) } else { Ok(tables) }
}

fn stages(a: &Offline, b: &Offline) -> Result<Grid, CompareError> {
    let mut grid = Grid::new(headings("ms"));
    let mut any = false;
    for stage in &a.stages {
        if let Some(other) = b.stages.iter().find(|other| other.name == stage.name) {
            let time = |stage: &Stage| stage.median * 1e3;
            grid.row(&stage.name, cells(time(stage), time(other), Better::Less));
            any = true;
        }
    }
    if any { Ok(grid) } else { Err(CompareError::Nothing("stage")) }
}

fn headings(of: &str) -> [String; 4] {
    [format!("{of}: a"), "b".into(), "b / a".into(), String::new()]
}

fn cells(a: f64, b: f64, better: Better) -> [Option<String>; 4] {
    // Within what two runs of the same program differ by, neither is called better.
    const ALIKE: f64 = 0.02;
    let ratio = b / a;
    let word = match (ratio - 1.0, better) {
        (change, _) if change.abs() <= ALIKE || !change.is_finite() => "",
        (change, Better::More) if change > 0.0 => "better",
        (change, Better::Less) if change < 0.0 => "better",
        _ => "worse",
    };
    let ratio = if ratio.is_finite() { format!("{ratio:.2}") } else { "-".into() };
    [Some(number(a)), Some(number(b)), Some(ratio), Some(word.into())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_what_is_better() {
        let word = |a, b, better| {
            let [_, _, ratio, word] = cells(a, b, better).map(Option::unwrap);
            (ratio, word)
        };
        let check = |a, b, better, ratio: &str, expected: &str| {
            assert_eq!(word(a, b, better), (ratio.to_owned(), expected.to_owned()));
        };
        check(100.0, 150.0, Better::More, "1.50", "better");
        check(100.0, 150.0, Better::Less, "1.50", "worse");
        check(100.0, 50.0, Better::Less, "0.50", "better");
        check(100.0, 101.0, Better::Less, "1.01", "");
        check(0.0, 0.0, Better::Less, "-", "");
    }
}
