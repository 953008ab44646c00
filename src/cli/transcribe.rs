//! `percept transcribe`: recordings to text and subtitles, by a server that runs or by one of its own.

mod files;
mod request;

use std::{
    collections::HashSet,
    fs,
    io::{self, IsTerminal, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use indicatif::MultiProgress;
use serde_json::Value;

use self::files::Input;
use super::client::{ApiKey, Client, Own, OwnModel};
use crate::router::Kind;
use crate::speech::{
    Segment, Word,
    subtitles::{self, Style},
};

#[derive(Debug, Args)]
pub(super) struct Transcribe {
    /// Recordings, folders whose recordings are meant, or - for standard input
    #[arg(required = true, value_name = "FILE|FOLDER|-")]
    input: Vec<PathBuf>,
    /// What to write; several with commas in between
    #[arg(long, short, value_enum, value_delimiter = ',', default_value = "txt")]
    format: Vec<Format>,
    /// Folder to write to, a file per recording and format; otherwise it is written to standard output
    #[arg(long, short, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// What is spoken, such as en or german; otherwise it is detected
    #[arg(long, short, value_name = "LANGUAGE", help_heading = "What is heard")]
    language: Option<String>,
    /// Write it in English, whatever is spoken
    #[arg(long, help_heading = "What is heard")]
    translate: bool,
    /// Times of words, in json, and subtitles that follow them
    #[arg(long, help_heading = "What is heard")]
    words: bool,
    /// Text that could stand in front: names, spelling and style follow it
    #[arg(long, value_name = "TEXT", help_heading = "What is heard")]
    prompt: Option<String>,
    /// Words that are likely, such as names
    #[arg(long, value_name = "TEXT", help_heading = "What is heard")]
    hotwords: Option<String>,
    /// Who speaks on each channel of a recording, such as Agent,Caller
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        conflicts_with = "words",
        help_heading = "What is heard"
    )]
    speakers: Vec<String>,
    /// Parts to transcribe, in seconds: start,end,start,end and so on
    #[arg(long, value_name = "TIMES", help_heading = "What is heard")]
    clips: Option<String>,
    /// sequential follows the text, parallel cuts long recordings at silences and is faster
    #[arg(long, value_enum, default_value = "auto", help_heading = "How")]
    mode: Order,
    /// 0 goes up where a text looks wrong; higher is taken as it is
    #[arg(long, value_name = "0..1", help_heading = "How")]
    temperature: Option<f64>,
    /// Beams of a search, instead of always the most probable word
    #[arg(long, value_name = "COUNT", help_heading = "How")]
    beam_size: Option<u32>,
    /// Attempts above temperature 0, of which the best is taken
    #[arg(long, value_name = "COUNT", help_heading = "How")]
    best_of: Option<u32>,
    /// The same seed gives the same text
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, help_heading = "How")]
    seed: Option<i64>,
    /// Recordings that are transcribed at once
    #[arg(long, short, value_name = "COUNT", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=64), help_heading = "How")]
    jobs: u8,
    /// Most characters of a line of subtitles
    #[arg(long, value_name = "COUNT", help_heading = "Subtitles")]
    max_line_width: Option<usize>,
    /// Most lines at once
    #[arg(long, value_name = "COUNT", requires = "max_line_width", help_heading = "Subtitles")]
    max_line_count: Option<usize>,
    /// Most words at once
    #[arg(long, value_name = "COUNT", conflicts_with = "max_line_width", help_heading = "Subtitles")]
    max_words_per_line: Option<usize>,
    /// Underline each word while it is spoken
    #[arg(long, help_heading = "Subtitles")]
    highlight_words: bool,
    /// A server that is running
    #[arg(
        long,
        short,
        value_name = "URL",
        default_value = "http://127.0.0.1:8000",
        conflicts_with = "model",
        help_heading = "Who"
    )]
    url: String,
    #[command(flatten)]
    key: ApiKey,
    /// A checkpoint folder or hub id to load for this, instead of asking a server
    #[arg(long, short, value_name = "PATH_OR_HUB_ID", help_heading = "Who")]
    model: Option<String>,
    /// Random weights for --model instead of the checkpoint's, to measure a machine; answers mean nothing
    #[arg(long, requires = "model", help_heading = "Who")]
    dummy_weights: bool,
    /// The name of the model to ask, where a server has several
    #[arg(long, short, value_name = "NAME", help_heading = "Who")]
    name: Option<String>,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line per segment
    Txt,
    /// SubRip subtitles
    Srt,
    /// WebVTT subtitles
    Vtt,
    /// Start and end in milliseconds, and text
    Tsv,
    /// Everything that is known
    Json,
    /// All of these
    All,
}

impl Format {
    const EACH: [Self; 5] = [Self::Txt, Self::Srt, Self::Vtt, Self::Tsv, Self::Json];

    fn ending(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
            Self::Tsv => "tsv",
            Self::Json | Self::All => "json",
        }
    }
}

/// How windows follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Parallel where a recording is long
    Auto,
    /// One after another
    Sequential,
    /// All at once
    Parallel,
}

impl Transcribe {
    pub(super) fn run(self, config: Option<&Path>) -> anyhow::Result<()> {
        let inputs = files::expand(&self.input)?;
        let formats: Vec<Format> = Format::EACH
            .into_iter()
            .filter(|format| self.format.iter().any(|asked| asked == format || *asked == Format::All))
            .collect();
        if self.output.is_none() && inputs.len() * formats.len() > 1 {
            bail!("several files would be written: say where with -o FOLDER; -o . is here");
        }
        if let Some(folder) = &self.output {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        match self.model.clone() {
            None => self.ask(&self.url, &inputs, &formats),
            Some(model) => {
                let (name, dummy_weights) = (self.name.clone(), self.dummy_weights);
                let own = Own::start(OwnModel { model, name, dummy_weights }, config)?;
                let result = self.ask(&own.url, &inputs, &formats);
                own.stop();
                result
            }
        }
    }

    /// Transcribes some recordings at once, in the order in which they were named. One that fails does not keep the
    /// others.
    fn ask(&self, url: &str, inputs: &[Input], formats: &[Format]) -> anyhow::Result<()> {
        let client = Client::new(url, &self.key);
        let model = match &self.name {
            Some(name) => name.clone(),
            None => client.first_model(Kind::Speech)?,
        };
        let bars = MultiProgress::new();
        let names = output_names(inputs);
        let one = |index: usize| {
            let input = &inputs[index];
            self.one(&client, &model, input, &names[index], formats, &bars).with_context(|| input.to_string())
        };
        if inputs.len() == 1 {
            return one(0);
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..usize::from(self.jobs).min(inputs.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Relaxed);
                        if index >= inputs.len() {
                            return;
                        }
                        if let Err(error) = one(index) {
                            failed.fetch_add(1, Relaxed);
                            bars.suspend(|| eprintln!("percept: {error:#}"));
                        }
                    }
                });
            }
        });
        match failed.into_inner() {
            0 => Ok(()),
            failed => bail!("{failed} of {} recordings have no transcript", inputs.len()),
        }
    }

    fn one(
        &self,
        client: &Client,
        model: &str,
        input: &Input,
        name: &str,
        formats: &[Format],
        bars: &MultiProgress,
    ) -> anyhow::Result<()> {
        let bar = request::Bar::new(bars, input);
        let started = Instant::now();
        let transcript = request::send(client, self.path(), &self.fields(model), input, &bar)?;
        let took = started.elapsed().as_secs_f64().max(1e-9);
        drop(bar);
        let mut written = Vec::new();
        for format in formats {
            let text = self.text(&transcript, *format)?;
            match &self.output {
                None => io::stdout().lock().write_all(text.as_bytes())?,
                Some(folder) => {
                    let file = folder.join(format!("{name}.{}", format.ending()));
                    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
                    written.push(file.display().to_string());
                }
            }
        }
        if self.output.is_some() || io::stderr().is_terminal() {
            let speed = transcript["duration"].as_f64().map_or_else(String::new, |seconds| {
                format!("{seconds:.1} s in {took:.1} s, {:.1} x real time", seconds / took)
            });
            let arrow = if written.is_empty() { "" } else { " -> " };
            bars.suspend(|| eprintln!("{input}: {speed}{arrow}{}", written.join(", ")));
        }
        Ok(())
    }

    fn path(&self) -> &'static str {
        if self.translate { "/v1/audio/translations" } else { "/v1/audio/transcriptions" }
    }

    /// What is asked of a server. One that is not percept ignores what it does not know.
    fn fields(&self, model: &str) -> Vec<(&'static str, String)> {
        let verbose = self.speakers.is_empty();
        let mut fields = vec![("model", model.to_owned())];
        let format = if verbose { "verbose_json" } else { "diarized_json" };
        fields.push(("response_format", format.into()));
        if verbose {
            fields.push(("stream", "true".into()));
        }
        let subtitles =
            self.max_line_width.is_some() || self.max_words_per_line.is_some() || self.highlight_words;
        if verbose && (self.words || subtitles) {
            fields.push(("timestamp_granularities[]", "segment".into()));
            fields.push(("timestamp_granularities[]", "word".into()));
            fields.push(("word_timestamps", "true".into()));
        }
        let mut push = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
        push("language", self.language.clone());
        push("prompt", self.prompt.clone());
        push("hotwords", self.hotwords.clone());
        push("clip_timestamps", self.clips.clone());
        push(
            "mode",
            match self.mode {
                Order::Auto => None,
                Order::Sequential => Some("sequential".into()),
                Order::Parallel => Some("parallel".into()),
            },
        );
        push("temperature", self.temperature.map(|number| number.to_string()));
        push("beam_size", self.beam_size.map(|number| number.to_string()));
        push("best_of", self.best_of.map(|number| number.to_string()));
        push("seed", self.seed.map(|number| number.to_string()));
        fields
    }

    fn text(&self, transcript: &Value, format: Format) -> anyhow::Result<String> {
        if matches!(format, Format::Json | Format::All) {
            return Ok(serde_json::to_string_pretty(transcript)? + "\n");
        }
        let Some(segments) = segments(transcript) else {
            let text = transcript["text"].as_str().context("the server sent no transcript")?;
            if format == Format::Txt {
                return Ok(format!("{}\n", text.trim()));
            }
            bail!("the server sent no times, so there is no {}; -f txt has the text", format.ending());
        };
        let style = Style {
            max_line_width: self.max_line_width,
            max_line_count: self.max_line_count,
            max_words_per_line: self.max_words_per_line,
            highlight_words: self.highlight_words,
            speakers: self.speakers.clone(),
        };
        Ok(match format {
            Format::Srt => subtitles::srt(&segments, &style),
            Format::Vtt => subtitles::vtt(&segments, &style),
            Format::Tsv => subtitles::tsv(&segments, &style),
            Format::Txt | Format::Json | Format::All => subtitles::txt(&segments, &style),
        })
    }
}

/// The transcript of one recording, with times.
pub(super) fn transcript(client: &Client, model: &str, file: &Path) -> anyhow::Result<Value> {
    let input = Input::File(file.to_owned());
    let bar = request::Bar::new(&MultiProgress::new(), &input);
    let format = "verbose_json".to_owned();
    let fields = [("model", model.to_owned()), ("response_format", format), ("stream", "true".into())];
    request::send(client, "/v1/audio/transcriptions", &fields, &input, &bar)
}

/// The names of what is written, without their ends: those of the recordings, in full where they would be the same.
fn output_names(inputs: &[Input]) -> Vec<String> {
    let mut taken = HashSet::new();
    let name = |input: &Input| {
        let (stem, full) = input.names();
        let mut name = if taken.contains(&stem) { full } else { stem };
        while taken.contains(&name) {
            name.push('_');
        }
        taken.insert(name.clone());
        name
    };
    inputs.iter().map(name).collect()
}

/// The segments of a transcript; `None` where it has none to tell.
fn segments(transcript: &Value) -> Option<Vec<Segment>> {
    let number = |value: &Value, name: &str| value[name].as_f64().unwrap_or(0.0);
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or("").to_owned();
    let word = |value: &Value| Word {
        word: text(value, "word"),
        start: number(value, "start"),
        end: number(value, "end"),
        probability: number(value, "probability"),
    };
    let segment = |(id, value): (usize, &Value)| Segment {
        id,
        seek: 0,
        start: number(value, "start"),
        end: number(value, "end"),
        text: text(value, "text"),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        temperature: 0.0,
        avg_logprob: 0.0,
        compression_ratio: 0.0,
        no_speech_prob: 0.0,
        words: value["words"].as_array().map_or_else(Vec::new, |words| words.iter().map(word).collect()),
        channel: value["speaker"]
            .as_str()
            .and_then(|name| name.bytes().next())
            .map_or(0, |letter| usize::from(letter.saturating_sub(b'A'))),
    };
    Some(transcript["segments"].as_array()?.iter().enumerate().map(segment).collect())
}
