//! `percept bench`: how fast a server is, or a network without one.

mod offline;
mod watch;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use self::watch::Bar;
use super::client::is_here;
use crate::bench::{
    self,
    energy::{self, Meter},
    machine::{Machine, Program},
    report::{self, Measured, Report, SCHEMA},
    schedule::{Arrivals, Load, Until},
    workload::{Asked, Size, Subject},
};

pub(super) const EXAMPLES: &str = "\
Times count from when a request was sent; with --rate, from when it was meant to be sent, so that a server that falls
behind is not flattered. Requests all differ unless --repeat is given, so that no cache helps. Tokens are those that the
server counts (stream_options.include_usage). Ctrl-C ends it, and what there is by then is told.

The same command measures other servers: vLLM, SGLang, llama.cpp, faster-whisper-server and whatever else has OpenAI's
API. For a fair comparison give both the same --seed, --max-tokens and --temperature, and --ignore-eos if both know it,
so that answers are as long; run one after the other on the same machine; then let percept bench compare tell the ratios.
What a run was asked, on which hardware and by which commit is in its files.

Examples:
  percept bench                                            text, 1, 8 and 32 questions at once
  percept bench --pictures 336x336,1920x1080 --concurrency 1,4,16 --max-tokens 64
  percept bench --sound 30 --concurrency 8 --seconds 60    recordings of 30 s
  percept bench --rate 2,5,10 --poisson --html report.html as if people asked, more and more of them
  percept bench --price 1.20 --gpu 0 --json percept.json   energy and money
  percept bench --url http://127.0.0.1:8001 --api-key KEY --json vllm.json
  percept bench compare vllm.json percept.json             ratios of two runs
  percept bench --offline ./my-checkpoint --dtype bf16     parts of a network, beside what the device can do";

/// What a group of options is called.
const WHO: &str = "Who is asked";
const WHAT: &str = "What is asked";
const HOW: &str = "How requests follow each other";
const BESIDES: &str = "Energy and money";
const OUTPUT: &str = "Output";
const OFFLINE: &str = "Without a server";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("subject").args(["pictures", "image", "sound", "audio"]))]
pub(super) struct Bench {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    /// The server, with or without /v1
    #[arg(long, short, value_name = "URL", default_value = "http://127.0.0.1:8000", help_heading = WHO)]
    url: String,
    /// The name of the model to ask [default: the first one that is for it]
    #[arg(long, short, visible_alias = "name", value_name = "NAME", help_heading = WHO)]
    model: Option<String>,
    /// Goes with each request; better given in the environment, where others do not see it
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY", help_heading = WHO)]
    api_key: Option<String>,
    /// Tokens of a question's words
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = WHAT)]
    prompt_tokens: u32,
    /// Pictures that are made for it, of these sizes by turns, such as 336x336,1920x1080
    #[arg(long, value_name = "SIZES", value_delimiter = ',', help_heading = WHAT)]
    pictures: Vec<Size>,
    /// Pictures of files, by turns; may be repeated
    #[arg(long, short, value_name = "FILE", help_heading = WHAT)]
    image: Vec<PathBuf>,
    /// Pictures of each request
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = WHAT)]
    per_request: u16,
    /// Recordings that are made for it (noise), of these lengths in seconds by turns, such as 5,30
    #[arg(long, value_name = "SECONDS", value_delimiter = ',', value_parser = sound_seconds, help_heading = WHAT)]
    sound: Vec<f64>,
    /// Recordings of files, by turns; may be repeated. Speech says more than noise does
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    audio: Vec<PathBuf>,
    /// Only so many different requests, again and again, for servers that cache [default without a number: 1]
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u64).range(1..), help_heading = WHAT)]
    repeat: Option<u64>,
    /// Most tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..), help_heading = WHAT)]
    max_tokens: u32,
    /// 0 always takes the most probable word [default: the server's]
    #[arg(long, value_name = "0..2", help_heading = WHAT)]
    temperature: Option<f64>,
    /// [default: the server's]
    #[arg(long, value_name = "0..1", help_heading = WHAT)]
    top_p: Option<f64>,
    /// Send "ignore_eos": true, so that all answers are as long, to servers that know it (percept, vLLM, SGLang)
    #[arg(long, help_heading = WHAT)]
    ignore_eos: bool,
    /// What goes into each request besides: fields of a question, or of a form for recordings
    #[arg(long, value_name = "JSON_OBJECT", value_parser = json_object, help_heading = WHAT)]
    extra_body: Option<Fields>,
    /// The same seed asks the same
    #[arg(long, value_name = "NUMBER", default_value_t = 0, help_heading = WHAT)]
    seed: u64,
    /// So many at once, one level after the other [default: 1,8,32]
    #[arg(long, short, value_name = "COUNTS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "rate", help_heading = HOW)]
    concurrency: Vec<u32>,
    /// So many a second, whether earlier ones are answered or not, one level after the other
    #[arg(long, value_name = "RATES", value_delimiter = ',', value_parser = rate, help_heading = HOW)]
    rate: Vec<f64>,
    /// Random times between requests, as if from many people, instead of even ones
    #[arg(long, requires = "rate", help_heading = HOW)]
    poisson: bool,
    /// Requests of each level
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "seconds", help_heading = HOW)]
    requests: Option<u64>,
    /// For how long requests of each level are sent; those that run are finished [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = HOW)]
    seconds: Option<f64>,
    /// Requests before each level that do not count
    #[arg(long, value_name = "COUNT", default_value_t = 2, help_heading = HOW)]
    warm_up: u64,
    /// Longest time of a request
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds, help_heading = HOW)]
    timeout: f64,
    /// GPUs of this machine whose energy counts, such as 0,1 [default: all, where the server is on this machine]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', conflicts_with = "no_energy", help_heading = BESIDES)]
    gpu: Vec<u32>,
    /// Do not measure energy
    #[arg(long, help_heading = BESIDES)]
    no_energy: bool,
    /// What the machine costs an hour, to tell what requests cost
    #[arg(long, value_name = "PRICE", value_parser = price, help_heading = BESIDES)]
    price: Option<f64>,
    /// Of the price
    #[arg(long, value_name = "NAME", default_value = "USD", requires = "price", help_heading = BESIDES)]
    currency: String,
    /// Write all figures, for programs and for percept bench compare
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    json: Option<PathBuf>,
    /// Write a page with charts that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    html: Option<PathBuf>,
    /// Write the charts alone
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    svg: Option<PathBuf>,
    #[command(flatten)]
    offline: offline::Offline,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Tell the ratios of two runs, from their JSON files
    Compare {
        /// The one to compare with
        #[arg(value_name = "FILE")]
        a: PathBuf,
        /// The other one
        #[arg(value_name = "FILE")]
        b: PathBuf,
    },
}

/// Fields that go into each request.
#[derive(Debug, Clone, Default)]
struct Fields(Map<String, Value>);

fn json_object(text: &str) -> Result<Fields, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(Fields(fields)),
        Ok(_) => Err("it is JSON, but no object such as {\"top_k\": 1}".into()),
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

/// A number within limits, or what is wrong with it.
fn number(text: &str, what: &str, limits: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    let (least, most) = (limits.start(), limits.end());
    text.trim()
        .parse()
        .ok()
        .filter(|number| limits.contains(number))
        .ok_or_else(|| format!("{text} is no {what} from {least} to {most}"))
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, "number of seconds", 0.001..=1e6)
}

fn sound_seconds(text: &str) -> Result<f64, String> {
    number(text, "length in seconds", 0.1..=14_400.0)
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, "number of requests a second", 1e-4..=1e5)
}

fn price(text: &str) -> Result<f64, String> {
    number(text, "price", 0.0..=1e9)
}

impl Bench {
    pub(super) fn run(self, config: Option<&Path>) -> anyhow::Result<()> {
        if let Some(BenchCommand::Compare { a, b }) = &self.command {
            let (a, b) = (read(a)?, read(b)?);
            println!("{}", report::compare::compare(&a, &b)?.to_string().trim_end());
            return Ok(());
        }
        self.check_output()?;
        let began = jiff::Timestamp::now().strftime("%FT%TZ").to_string();
        let (measured, mut warnings, interrupted) = match self.offline.run(config, &self.pictures)? {
            Some((measured, warnings)) => (measured, warnings, false),
            None => self.measure()?,
        };
        let program = Program::this();
        if !program.optimised {
            warnings.push("this is a debug build of percept: figures mean nothing".into());
        }
        let report = Report {
            schema: SCHEMA,
            program,
            machine: Machine::this(),
            command: command_line(env::args().collect()),
            began,
            measured,
            warnings,
        };
        println!("{report}");
        self.write(&report)?;
        if interrupted {
            bail!("stopped: these are the figures of what was done by then");
        }
        nothing_answered(&report)
    }

    /// Measures a server; whether somebody stopped it.
    fn measure(&self) -> anyhow::Result<(Measured, Vec<String>, bool)> {
        let meter = self.meter()?;
        let bench = self.bench();
        let runtime = Runtime::new()?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        runtime.spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                // Nobody listens once it has ended.
                let _ = stop.send(true);
                // A second time means now.
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(130);
                }
            }
            // Somebody may still ask whether it was stopped.
            std::future::pending::<()>().await;
        });
        let mut bar = Bar::default();
        let measured = runtime.block_on(bench::run(bench, meter, stopped.clone(), &mut bar));
        drop(bar);
        let interrupted = *stopped.borrow();
        runtime.shutdown_background();
        let (served, warnings) = measured?;
        Ok((Measured::Served(Box::new(served)), warnings, interrupted))
    }

    fn bench(&self) -> bench::Bench {
        let arrivals = if self.poisson { Arrivals::Poisson } else { Arrivals::Even };
        let concurrency = match &self.concurrency[..] {
            [] => vec![1, 8, 32],
            given => given.to_vec(),
        };
        let loads = if self.rate.is_empty() {
            let closed = |concurrency: u32| Load::Closed { concurrency: concurrency as usize };
            concurrency.into_iter().map(closed).collect()
        } else {
            self.rate.iter().map(|&rate| Load::Open { rate, arrivals }).collect()
        };
        let until = match self.requests {
            Some(requests) => Until::Requests(requests),
            None => Until::Elapsed(Duration::from_secs_f64(self.seconds.unwrap_or(30.0))),
        };
        bench::Bench {
            url: self.url.clone(),
            here: is_here(&with_scheme(&self.url)) || !self.gpu.is_empty(),
            model: self.model.clone(),
            key: self.api_key.clone().filter(|key| !key.is_empty()),
            asked: self.asked(),
            loads,
            until,
            warm_up: self.warm_up,
            timeout: Duration::from_secs_f64(self.timeout),
            price: self.price.map(|price| (price, self.currency.clone())),
        }
    }

    fn asked(&self) -> Asked {
        let per_request = self.per_request.into();
        let subject = if !self.pictures.is_empty() {
            Subject::Pictures { sizes: self.pictures.clone(), per_request }
        } else if !self.image.is_empty() {
            Subject::PictureFiles { files: self.image.clone(), per_request }
        } else if !self.sound.is_empty() {
            Subject::Sound { seconds: self.sound.clone() }
        } else if !self.audio.is_empty() {
            Subject::SoundFiles { files: self.audio.clone() }
        } else {
            Subject::Text
        };
        Asked {
            subject,
            prompt_tokens: self.prompt_tokens as usize,
            repeat: self.repeat,
            max_tokens: Some(self.max_tokens.into()),
            temperature: self.temperature,
            top_p: self.top_p,
            ignore_eos: self.ignore_eos,
            extra: self.extra_body.clone().unwrap_or_default().0,
            seed: self.seed,
        }
    }

    /// What measures energy, or why nothing does. Who names GPUs wants them.
    fn meter(&self) -> anyhow::Result<Result<Meter, String>> {
        if self.no_energy {
            return Ok(Err("--no-energy".into()));
        }
        if !self.gpu.is_empty() {
            let gpus = energy::gpus(Some(&self.gpu)).map_err(anyhow::Error::msg).context("--gpu")?;
            return Ok(Ok(Meter::new(gpus)));
        }
        if !is_here(&with_scheme(&self.url)) {
            return Ok(Err(
                "the server is on another machine; if it is on this one, name its GPUs with --gpu".into(),
            ));
        }
        let gpus = energy::gpus(None);
        let mut sources = energy::packages();
        match gpus {
            Ok(gpus) => sources.extend(gpus),
            Err(why) if sources.is_empty() => {
                return Ok(Err(format!("{why}; and counters of processors (RAPL) cannot be read")));
            }
            Err(_) => {}
        }
        Ok(Ok(Meter::new(sources)))
    }

    /// Finds out now, rather than behind an hour of measuring, whether files can be written.
    fn check_output(&self) -> anyhow::Result<()> {
        for file in [&self.json, &self.html, &self.svg].into_iter().flatten() {
            let open = fs::OpenOptions::new().append(true).create(true).open(file);
            open.with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        let write = |file: &Path, text: String| {
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        if let Some(file) = &self.json {
            write(file, serde_json::to_string_pretty(report)? + "\n")?;
        }
        if let Some(file) = &self.html {
            write(file, report::html(report)?)?;
        }
        if let Some(file) = &self.svg {
            let picture = report::svg(report).context("there is nothing to draw: no request was answered")?;
            write(file, picture)?;
        }
        Ok(())
    }
}

fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let name = || file.display().to_string();
    let json = fs::read(file).with_context(|| format!("cannot read {}", name()))?;
    report::compare::read(&json).with_context(name)
}

/// A run in which nothing was answered has measured nothing.
fn nothing_answered(report: &Report) -> anyhow::Result<()> {
    let Measured::Served(served) = &report.measured else { return Ok(()) };
    if served.levels.iter().any(|level| level.requests.completed > 0) {
        return Ok(());
    }
    bail!("no request was answered")
}

/// How the program was called, without what is secret.
fn command_line(arguments: Vec<String>) -> String {
    let mut words: Vec<String> = Vec::with_capacity(arguments.len());
    let mut secret = false;
    for (index, argument) in arguments.into_iter().enumerate() {
        let word = match (index, secret, argument.strip_prefix("--api-key=")) {
            (0, _, _) => "percept".into(),
            (_, true, _) => "…".into(),
            (_, _, Some(_)) => "--api-key=…".into(),
            _ => argument.clone(),
        };
        secret = argument == "--api-key" && !secret;
        let plain = |char: char| char.is_alphanumeric() || "-_=.,/:@+…".contains(char);
        words.push(if word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_told() {
        let line = |words: &[&str]| command_line(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(
            line(&["/opt/x/percept", "bench", "--api-key", "sk-1", "-u", "a:1"]),
            "percept bench --api-key … -u a:1"
        );
        assert_eq!(line(&["percept", "bench", "--api-key=sk-1"]), "percept bench --api-key=…");
        assert_eq!(
            line(&["percept", "--extra-body", "{\"a\": 'b'}"]),
            "percept --extra-body '{\"a\": '\\''b'\\''}'"
        );
    }

    #[test]
    fn numbers_have_limits() {
        assert_eq!(rate("2.5"), Ok(2.5));
        for text in ["0", "-1", "NaN", "inf", "many", "1e9"] {
            assert!(rate(text).unwrap_err().contains(text), "{text}");
        }
        assert!(json_object("[1]").unwrap_err().contains("no object"));
        assert!(json_object("{").unwrap_err().contains("no JSON"));
    }
}
