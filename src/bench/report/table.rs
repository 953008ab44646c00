//! A report for people.

use std::fmt;

use super::{CountedBy, Grid, Level, Measured, Offline, Report, Served, Server};
use crate::{
    bench::{
        schedule::{Arrivals, Load},
        statistics::Times,
        workload::Subject,
    },
    memory::Bytes,
};

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.facts() {
            writeln!(formatter, "{line}")?;
        }
        writeln!(formatter)?;
        writeln!(formatter, "{}", self.grid())?;
        for note in self.notes() {
            write!(formatter, "\n{note}")?;
        }
        for warning in &self.warnings {
            write!(formatter, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

impl Report {
    /// What was measured, where and by what, a line each.
    pub fn facts(&self) -> Vec<String> {
        let mut facts = match &self.measured {
            Measured::Served(served) => vec![served.server.to_string(), served.asked()],
            Measured::Offline(offline) => offline.facts(),
        };
        facts.push(self.hardware());
        facts.push(self.build());
        facts
    }

    /// The machine that measured.
    pub fn hardware(&self) -> String {
        let machine = &self.machine;
        let mut hardware =
            format!("{} x {}, {}, {}", machine.cpus, machine.cpu, Bytes(machine.memory), machine.kernel);
        for gpu in &machine.gpus {
            hardware += &format!(", {} {}", gpu.name, Bytes(gpu.memory));
        }
        if let Some(driver) = &machine.driver {
            hardware += &format!(", driver {driver}");
        }
        let here = match &self.measured {
            Measured::Served(served) => served.server.here,
            Measured::Offline(_) => true,
        };
        if here { hardware } else { format!("measured from {hardware}; the server is on another machine") }
    }

    /// The program that measured, and when.
    pub fn build(&self) -> String {
        let commit = self.program.commit.as_ref().map_or_else(String::new, |commit| format!(" ({commit})"));
        format!("{} {}{commit}, {}", self.program.name, self.program.version, self.began)
    }

    /// The figures.
    pub fn grid(&self) -> Grid {
        match &self.measured {
            Measured::Served(served) => served.grid(),
            Measured::Offline(offline) => offline.grid(),
        }
    }

    /// What explains figures.
    pub fn notes(&self) -> Vec<String> {
        match &self.measured {
            Measured::Served(served) => served.notes(),
            Measured::Offline(offline) => offline.notes(),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} at {}", self.model, self.url)?;
        let facts = [("of", &self.owned_by), ("version", &self.version), ("fingerprint", &self.fingerprint)];
        for (name, value) in facts {
            if let Some(value) = value {
                write!(formatter, ", {name} {value}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(formatter, "{concurrency} at once"),
            Self::Open { rate, arrivals: Arrivals::Even } => write!(formatter, "{rate}/s"),
            Self::Open { rate, arrivals: Arrivals::Poisson } => write!(formatter, "{rate}/s Poisson"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several =
            |count: usize| if count == 1 { String::new() } else { format!("{count} of each request, ") };
        match self {
            Self::Text => formatter.write_str("text"),
            Self::Pictures { sizes, per_request } => {
                let sizes: Vec<_> = sizes.iter().map(ToString::to_string).collect();
                write!(formatter, "pictures, {}{}", several(*per_request), sizes.join(", "))
            }
            Self::PictureFiles { files, per_request } => {
                write!(formatter, "pictures, {}of {} files", several(*per_request), files.len())
            }
            Self::Sound { seconds } => {
                let seconds: Vec<_> = seconds.iter().map(ToString::to_string).collect();
                write!(formatter, "sound of {} s", seconds.join(", "))
            }
            Self::SoundFiles { files } => write!(formatter, "sound of {} files", files.len()),
        }
    }
}

/// Digits enough to compare, and no more.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 100.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        0.0 => "0".into(),
        tiny if tiny >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// A row of times: its name, and where they are.
type TimesRow = (&'static str, fn(&Level) -> Option<Times>);
/// A figure of them.
type Figure = (&'static str, fn(&Times) -> f64);

const FIGURES: [Figure; 5] = [
    ("p50", |times| times.p50),
    ("p95", |times| times.p95),
    ("p99", |times| times.p99),
    ("mean", |times| times.mean),
    ("max", |times| times.max),
];

/// What something costs, and what that is.
type Money = (&'static str, fn(&Level) -> Option<f64>);

/// A row of a table: its name, and what it says of a level.
pub(super) type LevelRow = (String, fn(&Level) -> Option<f64>);

impl Served {
    fn asked(&self) -> String {
        let workload = &self.workload;
        let mut asked = workload.subject.to_string();
        if let Some(tokens) = workload.prompt_tokens {
            asked += &format!(", words of {tokens} tokens");
        }
        match workload.repeat {
            Some(repeat) => asked += &format!(", {repeat} different requests"),
            None => asked += ", all requests different",
        }
        for (name, value) in &workload.sent {
            asked += &format!(", {name} {value}");
        }
        format!("{asked}, seed {}", workload.seed)
    }

    fn grid(&self) -> Grid {
        let levels = &self.levels;
        let mut grid = Grid::new(levels.iter().map(|level| level.load.to_string()));
        let mut row = |name: &str, cell: &dyn Fn(&Level) -> Option<String>| {
            grid.row(name, levels.iter().map(cell));
        };
        let some = |count: u64| (count > 0).then(|| count.to_string());
        let figure = |value: f64| (value > 0.0).then(|| number(value));
        row("requests answered", &|level| Some(level.requests.completed.to_string()));
        row("  told to come again (429)", &|level| some(level.requests.busy));
        let mut classes: Vec<&String> = levels.iter().flat_map(|level| level.errors.keys()).collect();
        classes.sort();
        classes.dedup();
        for class in classes {
            row(&format!("  {class}"), &|level| some(level.errors.get(class).copied().unwrap_or(0)));
        }
        row("  given up", &|level| some(level.requests.cut_off));
        row("seconds", &|level| Some(number(level.duration)));
        row("requests/s", &|level| figure(level.throughput.requests));
        row("output tokens/s", &|level| figure(level.throughput.output_tokens));
        row("all tokens/s", &|level| {
            figure(level.throughput.total_tokens).filter(|_| level.tokens.prompt > 0)
        });
        row("pictures/s", &|level| figure(level.throughput.pictures));
        row("seconds of sound/s (RTFx)", &|level| figure(level.throughput.sound_seconds));
        let mean = |count: u64, level: &Level| figure(count as f64 / level.requests.completed.max(1) as f64);
        row("tokens of a prompt", &|level| mean(level.tokens.prompt, level));
        row("  computed before", &|level| mean(level.tokens.cached, level));
        row("tokens of an answer", &|level| mean(level.tokens.completion, level));
        let times: [TimesRow; 4] = [
            ("first token (TTFT)", |level| level.latency.first_token),
            ("between tokens (ITL)", |level| level.latency.inter_token),
            ("per output token (TPOT)", |level| level.latency.per_output_token),
            ("whole answer", |level| level.latency.end_to_end),
        ];
        for (name, times) in times {
            for (index, (percentile, of)) in FIGURES.iter().enumerate() {
                let name = if index == 0 { name } else { "" };
                row(&format!("{name:24} {percentile:>4} ms"), &|level| {
                    times(level).map(|times| number(of(&times) * 1e3))
                });
            }
        }
        for (name, value) in self.economy() {
            row(&name, &|level| value(level).map(number));
        }
        row("client: processors busy", &|level| Some(format!("{:.2}", level.client.cpus)));
        row("client: sent late p99 ms", &|level| {
            let open = matches!(level.load, Load::Open { .. });
            level.latency.sent_late.filter(|_| open).map(|late| number(late.p99 * 1e3))
        });
        grid
    }

    /// Rows of energy and money.
    pub(super) fn economy(&self) -> Vec<LevelRow> {
        let currency = self.currency.as_deref().unwrap_or_default();
        let mut rows: Vec<LevelRow> = vec![
            ("W on average".into(), |level| Some(level.energy.as_ref()?.watts)),
            ("J per request".into(), |level| level.energy.as_ref()?.per.request),
            ("J per 1,000 output tokens".into(), |level| level.energy.as_ref()?.per.thousand_output_tokens),
            ("J per picture".into(), |level| level.energy.as_ref()?.per.picture),
            ("J per hour of sound".into(), |level| level.energy.as_ref()?.per.audio_hour),
        ];
        let money: [Money; 5] = [
            ("1,000 requests", |level| level.cost?.per_1000_requests),
            ("1,000 pictures", |level| level.cost?.per_1000_pictures),
            ("million output tokens", |level| level.cost?.per_million_output_tokens),
            ("million tokens", |level| level.cost?.per_million_tokens),
            ("hour of sound", |level| level.cost?.per_audio_hour),
        ];
        rows.extend(money.map(|(name, value)| (format!("{currency} per {name}"), value)));
        rows
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let energy = self.levels.iter().find_map(|level| level.energy.as_ref());
        match (&self.energy_not_measured, energy) {
            (Some(why), _) => notes.push(format!("energy: not measured: {why}")),
            (None, Some(energy)) => {
                let sources: Vec<_> = energy.parts.iter().map(|part| part.source.as_str()).collect();
                notes.push(format!("energy: {}", sources.join(", ")));
            }
            (None, None) => {}
        }
        if let Some(price) = self.price_per_hour {
            notes.push(format!("price: {price} {} an hour", self.currency.as_deref().unwrap_or_default()));
        }
        if self.levels.iter().any(|level| level.tokens.counted_by == CountedBy::Usage) {
            notes.push("tokens: as the server counts them".into());
        }
        for level in &self.levels {
            for (class, example) in &level.error_examples {
                notes.push(format!("{}: {class}: {example}", level.load));
            }
        }
        notes
    }
}

impl Offline {
    fn facts(&self) -> Vec<String> {
        let random = if self.dummy_weights { ", random weights" } else { "" };
        vec![
            format!(
                "{} in {} on {}{random}: weights of {}, of which a step of the text reads {}",
                self.model,
                self.dtype,
                self.device,
                Bytes(self.weight_bytes),
                Bytes(self.text_weight_bytes)
            ),
            format!(
                "limits as measured, {} threads: {:.1} GB/s read, {:.1} GFLOP/s",
                self.limits.threads,
                self.limits.bytes_per_second / 1e9,
                self.limits.flops / 1e9
            ),
        ]
    }

    fn grid(&self) -> Grid {
        let headings = ["ms", "least ms", "per s", "limit ms", "by", "of the limit"];
        let mut grid = Grid::new(headings.map(str::to_owned));
        for stage in &self.stages {
            let limit = stage.limit.as_ref();
            grid.row(
                &stage.name,
                [
                    Some(number(stage.median * 1e3)),
                    Some(number(stage.least * 1e3)),
                    Some(format!("{} {}", number(stage.items / stage.median), stage.unit)),
                    limit.map(|limit| number(limit.seconds * 1e3)),
                    limit.map(|limit| limit.by.to_string()),
                    limit.map(|limit| format!("{:.0} %", 100.0 * limit.seconds / stage.median)),
                ],
            );
        }
        grid
    }

    fn notes(&self) -> Vec<String> {
        vec![
            format!("prefill and decode with {} tokens of context; times are medians", self.context),
            "limit: bytes of weights and cache that a step must read by what the device reads, or its products by \
             what the device multiplies, whichever is more; above 100 % the weights fit into caches"
                .into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_digits_enough_to_compare() {
        for (value, text) in [
            (0.0, "0"),
            (12345.6, "12346"),
            (123.45, "123.5"),
            (1.234, "1.23"),
            (0.01234, "0.0123"),
            (1.2e-7, "1.20e-7"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
