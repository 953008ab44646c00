//! What a run has measured. Its names in JSON stay what they are; what is added later may be absent.

pub mod compare;
mod grid;
mod html;
mod svg;
mod table;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{grid::Grid, html::html, svg::svg};

use super::{
    energy::Part,
    machine::{Machine, Program},
    offline::Stage,
    schedule::{Load, Ran},
    statistics::{Tally, Times},
    workload::Subject,
};

/// The form of this file. Changes where a name changes its meaning.
pub const SCHEMA: u32 = 1;

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What measured.
    pub program: Program,
    /// Where.
    pub machine: Machine,
    /// How it was called.
    pub command: String,
    /// When it began, as RFC 3339 has it.
    pub began: String,
    /// What was measured: a server, or a network in this process.
    #[serde(flatten)]
    pub measured: Measured,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// A server.
    Served(Box<Served>),
    /// A network in this process.
    Offline(Box<Offline>),
}

/// A server's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// Whose they are.
    pub server: Server,
    /// What it was asked.
    pub workload: WorkloadReport,
    /// Of each level of load.
    pub levels: Vec<Level>,
    /// Where energy was not measured, why.
    pub energy_not_measured: Option<String>,
    /// Price of an hour.
    pub price_per_hour: Option<f64>,
    /// Of the price.
    pub currency: Option<String>,
}

/// A server, as far as it tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Where it is, without `/v1`.
    pub url: String,
    /// Whether that is the machine that measured.
    pub here: bool,
    /// The model that was asked.
    pub model: String,
    /// What its list of models says of whose it is, such as `vllm`.
    pub owned_by: Option<String>,
    /// What it says at `/version`.
    pub version: Option<String>,
    /// What it says changes when its answers may.
    pub fingerprint: Option<String>,
}

/// What a server was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// What questions were about.
    pub subject: Subject,
    /// Tokens that a question's words were meant to have; absent where there are no words.
    pub prompt_tokens: Option<usize>,
    /// Words that were taken for them.
    pub words: Option<usize>,
    /// How many different requests there were; all of them differed where it is absent.
    pub repeat: Option<u64>,
    /// What requests had besides.
    pub sent: Map<String, Value>,
    /// Of all that is random.
    pub seed: u64,
}

/// A level of load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// How requests followed each other.
    pub load: Load,
    /// From the first request to the end of the last, in seconds.
    pub duration: f64,
    /// How many there were.
    pub requests: Requests,
    /// Requests without an answer, by class; those that were told to come again are not among them.
    pub errors: BTreeMap<String, u64>,
    /// What the first of each class said.
    pub error_examples: BTreeMap<String, String>,
    /// What was taken in and given out.
    pub tokens: Tokens,
    /// What was done per second.
    pub throughput: Throughput,
    /// How long it took, in seconds.
    pub latency: Latency,
    /// What measuring took.
    pub client: ClientShare,
    /// Absent where it was not measured.
    pub energy: Option<Energy>,
    /// Absent without a price.
    pub cost: Option<Cost>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
}

/// Requests of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Sent.
    pub sent: u64,
    /// Answered.
    pub completed: u64,
    /// Told to come again: 429.
    pub busy: u64,
    /// Failed in another way.
    pub failed: u64,
    /// Given up because somebody stopped it.
    pub cut_off: u64,
}

/// Tokens of requests that were answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of prompts, where the server counts.
    pub prompt: u64,
    /// Those of them that it had computed before.
    pub cached: u64,
    /// Of answers.
    pub completion: u64,
    /// Who counted those of answers.
    pub counted_by: CountedBy,
}

/// Who counted tokens of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountedBy {
    /// The server.
    Usage,
    /// Pieces of answers were counted; a piece can be several tokens.
    Pieces,
    /// Some so, some so.
    Both,
    /// There was nothing to count.
    Nobody,
}

/// What was done per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Requests that were answered.
    pub requests: f64,
    /// Tokens of answers.
    pub output_tokens: f64,
    /// Tokens of prompts and answers.
    pub total_tokens: f64,
    /// Pictures.
    pub pictures: f64,
    /// Seconds of sound (RTFx).
    pub sound_seconds: f64,
}

/// How long requests took, in seconds; absent where there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// To the first text (TTFT).
    pub first_token: Option<Times>,
    /// Between pieces of text (ITL).
    pub inter_token: Option<Times>,
    /// Per token behind the first, of each request (TPOT).
    pub per_output_token: Option<Times>,
    /// To the end.
    pub end_to_end: Option<Times>,
    /// How much later than meant requests were sent.
    pub sent_late: Option<Times>,
}

/// What measuring took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClientShare {
    /// Seconds of processors.
    pub cpu_seconds: f64,
    /// Processors that it kept busy on average.
    pub cpus: f64,
    /// Threads that it has.
    pub threads: usize,
    /// How late its timers were, in seconds.
    pub timer_late: Option<Times>,
}

impl ClientShare {
    /// Share of its threads' time above which figures are its own rather than the server's.
    const MOST_BUSY: f64 = 0.7;
    /// Lateness of timers, at 99 of 100, above which times are not to be trusted.
    const MOST_LATE: f64 = 0.02;

    /// How it may have been the limit itself.
    fn limit(&self) -> Option<String> {
        let busy = self.cpus / self.threads.max(1) as f64;
        if busy > Self::MOST_BUSY {
            let percent = (busy * 100.0).round();
            return Some(format!(
                "percept bench itself was busy for {percent} % of the time of its {} threads: it may have been the \
                 limit; run it on a machine of its own",
                self.threads
            ));
        }
        let late = self.timer_late.filter(|late| late.p99 > Self::MOST_LATE)?;
        Some(format!(
            "timers of percept bench were up to {:.0} ms late (p99): times may be too long; its processors are busy \
             with something else, such as the server",
            late.p99 * 1e3
        ))
    }
}

/// Energy of a level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// By source.
    pub parts: Vec<Part>,
    /// Of all.
    pub joules: f64,
    /// Watts on average.
    pub watts: f64,
    /// Joules by what was done.
    pub per: Per,
}

/// Money of a level.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Of the level.
    pub total: f64,
    /// Per thousand requests.
    pub per_1000_requests: Option<f64>,
    /// Per thousand pictures.
    pub per_1000_pictures: Option<f64>,
    /// Per million tokens of answers.
    pub per_million_output_tokens: Option<f64>,
    /// Per million tokens of prompts and answers.
    pub per_million_tokens: Option<f64>,
    /// Per hour of sound.
    pub per_audio_hour: Option<f64>,
}

/// Joules by what was done; absent where nothing of it was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Per {
    /// Per request that was answered.
    pub request: Option<f64>,
    /// Per thousand tokens of answers.
    pub thousand_output_tokens: Option<f64>,
    /// Per picture.
    pub picture: Option<f64>,
    /// Per hour of sound.
    pub audio_hour: Option<f64>,
}

/// What a level needs besides its requests.
#[derive(Debug, Clone)]
pub struct Beside {
    /// Time of processors.
    pub cpu: Duration,
    /// Threads of the client.
    pub threads: usize,
    /// How late timers were.
    pub timer_late: Option<Times>,
    /// Energy by source; absent where it was not measured.
    pub energy: Option<Vec<Part>>,
    /// Price of an hour.
    pub price: Option<f64>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
}

/// So much for each of `count`; nothing where there are none.
fn each(amount: f64, count: f64) -> Option<f64> {
    (count > 0.0).then(|| amount / count)
}

impl Level {
    /// The figures of a level.
    pub fn new(load: Load, ran: &Ran, tally: &Tally, beside: Beside) -> Self {
        let duration = ran.ended.saturating_duration_since(ran.started).as_secs_f64();
        // Nothing takes no time; a level of no requests has no rates.
        let rate = |amount: f64| if duration > 0.0 { amount / duration } else { 0.0 };
        let output = tally.completion_tokens as f64;
        let Beside { cpu, threads, timer_late, energy, price, interrupted } = beside;
        Self {
            load,
            duration,
            requests: Requests {
                sent: ran.begun,
                completed: tally.completed,
                busy: tally.busy,
                failed: tally.failed(),
                cut_off: ran.cut_off,
            },
            errors: tally.errors.clone(),
            error_examples: tally.examples.clone(),
            tokens: Tokens {
                prompt: tally.prompt_tokens,
                cached: tally.cached_tokens,
                completion: tally.completion_tokens,
                counted_by: match (tally.by_usage, tally.by_pieces) {
                    (0, 0) => CountedBy::Nobody,
                    (_, 0) => CountedBy::Usage,
                    (0, _) => CountedBy::Pieces,
                    _ => CountedBy::Both,
                },
            },
            throughput: Throughput {
                requests: rate(tally.completed as f64),
                output_tokens: rate(output),
                total_tokens: rate(output + tally.prompt_tokens as f64),
                pictures: rate(tally.pictures as f64),
                sound_seconds: rate(tally.sound),
            },
            latency: Latency {
                first_token: tally.first.summary(),
                inter_token: tally.gaps.summary(),
                per_output_token: tally.per_token.summary(),
                end_to_end: tally.whole.summary(),
                sent_late: tally.late.summary(),
            },
            client: ClientShare {
                cpu_seconds: cpu.as_secs_f64(),
                cpus: rate(cpu.as_secs_f64()),
                threads,
                timer_late,
            },
            energy: energy.map(|parts| Energy::new(parts, duration, tally)),
            cost: price.map(|price| Cost::new(price, duration, tally)),
            interrupted,
        }
    }

    /// What a reader must know of it.
    pub fn cautions(&self) -> Vec<String> {
        let name = self.load.to_string();
        let mut cautions: Vec<String> = self.client.limit().into_iter().collect();
        let requests = self.requests;
        if requests.busy > 0 {
            cautions.push(format!(
                "{} of {} requests were told to come again (429)",
                requests.busy, requests.sent
            ));
        }
        if requests.failed > 0 {
            cautions.push(format!("{} of {} requests failed", requests.failed, requests.sent));
        }
        if matches!(self.tokens.counted_by, CountedBy::Pieces | CountedBy::Both) {
            let caution = "the server does not count tokens: pieces of answers were counted, which can be several tokens";
            cautions.push(caution.into());
        }
        if let Load::Open { rate, .. } = self.load {
            let (completed, offered) = (self.throughput.requests, rate);
            if requests.completed > 0 && completed < 0.9 * offered && requests.sent > 20 {
                cautions
                    .push(format!("{completed:.2} requests a second were answered of {rate} that were sent"));
            }
        }
        if self.interrupted {
            cautions.push(format!("stopped: {} requests were given up", requests.cut_off));
        }
        cautions.into_iter().map(|caution| format!("{name}: {caution}")).collect()
    }
}

impl Energy {
    fn new(parts: Vec<Part>, duration: f64, tally: &Tally) -> Self {
        let joules = parts.iter().map(|part| part.joules).sum();
        Self {
            watts: if duration > 0.0 { joules / duration } else { 0.0 },
            per: Per {
                request: each(joules, tally.completed as f64),
                thousand_output_tokens: each(joules, tally.completion_tokens as f64 / 1e3),
                picture: each(joules, tally.pictures as f64),
                audio_hour: each(joules, tally.sound / 3600.0),
            },
            joules,
            parts,
        }
    }
}

impl Cost {
    fn new(price_per_hour: f64, duration: f64, tally: &Tally) -> Self {
        let total = price_per_hour * duration / 3600.0;
        let output = tally.completion_tokens as f64;
        Self {
            total,
            per_1000_requests: each(total, tally.completed as f64 / 1e3),
            per_1000_pictures: each(total, tally.pictures as f64 / 1e3),
            per_million_output_tokens: each(total, output / 1e6),
            per_million_tokens: each(total, (output + tally.prompt_tokens as f64) / 1e6),
            per_audio_hour: each(total, tally.sound / 3600.0),
        }
    }
}

/// The figures of a network in this process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offline {
    /// Its checkpoint, as it was named.
    pub model: String,
    /// Whether its weights are random ones.
    pub dummy_weights: bool,
    /// Of weights, activations and cache.
    pub dtype: String,
    /// Where it ran.
    pub device: String,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Bytes of those that a step of the text reads.
    pub text_weight_bytes: u64,
    /// Tokens that a sequence has when it is decoded, and that are prefilled.
    pub context: usize,
    /// What the device can do.
    pub limits: Limits,
    /// What was timed.
    pub stages: Vec<Stage>,
}

/// What a device can do at most, as measured in the same run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes read per second, of buffers larger than caches.
    pub bytes_per_second: f64,
    /// Multiplications and additions of a matrix product per second, in the type of the weights.
    pub flops: f64,
    /// Threads that were used.
    pub threads: usize,
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn level(price: Option<f64>, energy: Option<Vec<Part>>) -> Level {
        let started = Instant::now();
        let ran = Ran { started, ended: started + Duration::from_secs(90), begun: 510, cut_off: 0 };
        let tally = Tally {
            completed: 500,
            prompt_tokens: 1_500_000,
            completion_tokens: 100_000,
            by_usage: 500,
            pictures: 2000,
            sound: 1800.0,
            ..Tally::default()
        };
        let cpu = Duration::from_secs(9);
        let beside = Beside { cpu, threads: 2, timer_late: None, energy, price, interrupted: false };
        Level::new(Load::Closed { concurrency: 8 }, &ran, &tally, beside)
    }

    fn near(found: impl Into<Option<f64>>, expected: f64) {
        let found = found.into().unwrap();
        assert!((found - expected).abs() <= expected.abs() * 1e-12, "{found} {expected}");
    }

    #[test]
    fn rates_are_amounts_by_time() {
        let throughput = level(None, None).throughput;
        near(throughput.requests, 500.0 / 90.0);
        near(throughput.output_tokens, 100_000.0 / 90.0);
        near(throughput.total_tokens, 1_600_000.0 / 90.0);
        near(throughput.pictures, 2000.0 / 90.0);
        near(throughput.sound_seconds, 20.0);
        near(level(None, None).client.cpus, 0.1);
    }

    #[test]
    fn money_is_the_price_of_the_time_by_what_was_done() {
        assert_eq!(level(None, None).cost, None);
        // 90 seconds of 1.20 an hour are 3 hundredths.
        let cost = level(Some(1.2), None).cost.unwrap();
        near(cost.total, 0.03);
        near(cost.per_1000_requests, 0.06);
        near(cost.per_1000_pictures, 0.015);
        near(cost.per_million_output_tokens, 0.3);
        near(cost.per_million_tokens, 0.03 / 1.6);
        near(cost.per_audio_hour, 0.06);
    }

    #[test]
    fn energy_is_that_of_all_sources_by_what_was_done() {
        let part = |joules| Part { source: "GPU".into(), joules };
        let energy = level(None, Some(vec![part(10_000.0), part(8_000.0)])).energy.unwrap();
        near(energy.joules, 18_000.0);
        near(energy.watts, 200.0);
        near(energy.per.request, 36.0);
        near(energy.per.thousand_output_tokens, 180.0);
        near(energy.per.picture, 9.0);
        near(energy.per.audio_hour, 36_000.0);
    }

    #[test]
    fn nothing_done_is_no_division_by_zero() {
        let started = Instant::now();
        let ran = Ran { started, ended: started, begun: 3, cut_off: 3 };
        let beside = Beside {
            cpu: Duration::ZERO,
            threads: 1,
            timer_late: None,
            energy: Some(Vec::new()),
            price: Some(1.0),
            interrupted: true,
        };
        let level = Level::new(Load::Closed { concurrency: 1 }, &ran, &Tally::default(), beside);
        assert_eq!(level.throughput.requests, 0.0);
        assert_eq!(level.cost.unwrap().per_1000_requests, None);
        assert_eq!(level.energy.as_ref().unwrap().per.picture, None);
        assert!(serde_json::to_string(&level).is_ok());
        assert!(level.cautions()[0].contains("3 requests were given up"));
    }

    #[test]
    fn a_client_that_was_the_limit_says_so() {
        let share = ClientShare { cpu_seconds: 10.0, cpus: 1.5, threads: 2, timer_late: None };
        assert!(share.limit().unwrap().contains("75 %"));
        let share = ClientShare { cpus: 0.5, ..share };
        assert_eq!(share.limit(), None);
        let late = Times { count: 9, mean: 0.01, p50: 0.0, p95: 0.0, p99: 0.05, max: 0.2 };
        assert!(ClientShare { timer_late: Some(late), ..share }.limit().unwrap().contains("50 ms late"));
    }
}
