//! The command line: one file per command.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what a command line is for")]

mod audit;
mod bench;
mod chat;
mod client;
mod demo;
mod keys;
mod plan;
mod progress;
mod pull;
mod serve;
mod transcribe;
mod usage;

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{LogFormat, Settings},
    media::document,
};

/// Serves open-weight vision-language models and Whisper on your own machine, to the OpenAI clients that you already
/// use.
#[derive(Debug, Parser)]
#[command(
    name = "percept",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
#[command(after_help = "\
Try it:
  percept demo                                      see it work, with two small models that are part of the program
  percept serve llava-hf/llava-1.5-7b-hf            serve a model of the hub on http://127.0.0.1:8000
  percept chat 'What is this?' --image cat.jpg      ask it about a picture, from another shell
  percept serve ./my-checkpoint --port 9000         serve a checkpoint of your own
  percept plan llava-hf/llava-1.5-7b-hf --gpu a10g  will it fit, and how much at once?
  percept bench --pictures 1024x1024                how fast is the server that runs?")]
struct Cli {
    /// Configuration file [default: percept/config.toml in the user's configuration folder, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: two small models that are part of the program look at a picture and listen to a recording
    #[command(after_help = "\
Starts a server on this machine, asks it over HTTP as any client would, and goes on serving until Ctrl-C, so that
you can go on yourself: in a browser, or with a client. Without a terminal it ends after the answers.")]
    Demo(demo::Demo),
    /// Serve models to OpenAI clients
    ///
    /// Loads checkpoints, from folders or from the Hugging Face hub. Models that see answer /v1/chat/completions with
    /// text and pictures, models that hear answer /v1/audio/transcriptions and /v1/audio/translations. Clients need
    /// nothing but the base URL http://127.0.0.1:8000/v1.
    #[command(after_help = "\
Every option can also stand in the configuration file, as in max_sequences = 32, or in the environment, as in
PERCEPT_MAX_SEQUENCES=32. An option on the command line comes first, then the environment, then the file.
Models are model = [\"one\", \"another\"] in the file and PERCEPT_MODEL=one,another in the environment.
An unknown name in any of them is an error.

Several models share --memory: each gets its weights and what caches are useful to it; where that is too much,
caches shrink in proportion. All other options of models count for each of them.

The hub is used as by its other tools: HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE are
respected. Do not rewrite the files of a checkpoint while it is being loaded: they are mapped into memory.

Examples:
  percept serve llava-hf/llava-1.5-7b-hf --dtype bf16 --memory 20GiB
  percept serve llava-hf/llava-1.5-7b-hf openai/whisper-large-v3-turbo
  percept serve llava-hf/llava-1.5-7b-hf@main --alias gpt-4o --alias gpt-4-vision-preview
  percept serve large=llava-hf/llava-1.5-13b-hf small=llava-hf/llava-1.5-7b-hf --alias gpt-4o-mini=small
  percept serve ./my-checkpoint --image-fit pad --max-images 4")]
    Serve(Box<Settings>),
    /// Tell what models will take of a memory, and how much they can do at once in it
    ///
    /// Nothing but the small files of a checkpoint is needed, neither its weights nor the machine that is meant. It is
    /// the same arithmetic by which percept serve shares out memory, and the same table that it logs.
    #[command(after_help = "\
Models, and options that are not given, come from the configuration file and the environment, as for percept serve.
Small files of models of the hub are downloaded; weights are not.

The exit code is 0 where the models fit, with the context that is asked for, and 1 where they do not. Then it says
what would.

Examples:
  percept plan llava-hf/llava-1.5-7b-hf --gpu a10g
  percept plan llava-hf/llava-1.5-13b-hf openai/whisper-large-v3 --gpu 48GiB --context 2048
  percept plan ./my-checkpoint                       on this machine, as percept serve would
  percept plan ./my-checkpoint --gpu h100 --json     for programs; all sizes are in bytes")]
    Plan(plan::Plan),
    /// Download a checkpoint from the hub, or bring it up to date
    #[command(
        after_help = "Prints the folder of the checkpoint. An interrupted download goes on where it stopped."
    )]
    Pull(pull::Pull),
    /// Ask one question, with or without pictures
    #[command(after_help = "\
Asks a server that is running, or loads a model for this one question with --model.

Examples:
  percept chat 'What is in this picture?' --image cat.jpg
  percept chat 'Which one is older?' -i first.png -i second.png --temperature 0
  percept chat --model ./my-checkpoint 'What does the sign say?' -i sign.webp
  git diff | percept chat 'Summarise this change:' --stdin")]
    Chat(chat::Chat),
    /// Turn recordings into text or subtitles
    #[command(after_help = "\
Asks a server that is running, or loads a speech model for this with --model. A folder means the
recordings in it, but not those in its folders. Video files will do.

One text goes to standard output. With -o there is a file for each recording and format, named after
the recording. One that fails does not keep the others; the exit code is then 1.

Examples:
  percept transcribe talk.mp3
  percept transcribe talk.mp3 -f srt --max-line-width 42 --max-line-count 2 > talk.srt
  percept transcribe interviews/ -f txt,json --words -o transcripts/
  percept transcribe anruf.wav --speakers Agent,Caller --language german --translate
  ffmpeg -i stream.ts -f wav - | percept transcribe - --model openai/whisper-tiny")]
    Transcribe(Box<transcribe::Transcribe>),
    /// Say who may use a server and how much of it: tenants and their keys
    #[command(after_help = "\
Examples:
  percept keys add acme --keys keys.toml --requests-per-minute 60 --tokens-per-month 5000000
  percept keys add prometheus --keys keys.toml --endpoints metrics
  percept keys list --keys keys.toml
  percept keys revoke key_0123456789abcdef --keys keys.toml
  percept serve --keys keys.toml --host 0.0.0.0")]
    Keys(keys::Keys),
    /// Tell what was used, by day, tenant and model
    #[command(after_help = "\
Examples:
  percept usage                                       this month, from the server on this machine
  percept usage --audit audit/ --from 2026-01-01      from an audit log, as far as it goes back
  percept usage --tenant acme --json")]
    Usage(usage::Usage),
    /// Check and print the audit log of percept serve --audit
    #[command(after_help = "\
Examples:
  percept audit verify --audit audit/
  percept audit verify --audit audit/ --expect HASH_THAT_WAS_NOTED
  percept audit export --audit audit/ --from 2026-11-01 --tenant acme --format csv > november.csv")]
    Audit(audit::Audit),
    /// Measure how fast a server is, this one or another
    ///
    /// Sends questions, pictures or recordings to any server with OpenAI's API, so many at once or so many a second, and
    /// tells throughput, times, energy and money. With --offline it times a network in this process instead, beside
    /// what the device could do at most.
    #[command(after_help = bench::EXAMPLES, args_conflicts_with_subcommands = true)]
    Bench(Box<bench::Bench>),
    /// Read a document from standard input, as the server asks for it
    #[command(name = document::COMMAND, hide = true)]
    ReadDocument,
}

/// Runs the command that was typed.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Demo(demo) => demo.run(),
        Command::Serve(settings) => serve::run(*settings, cli.config.as_deref()),
        Command::Plan(plan) => plan.run(cli.config.as_deref()),
        Command::Pull(pull) => pull.run(cli.config.as_deref()),
        Command::Chat(chat) => chat.run(cli.config.as_deref()),
        Command::Transcribe(transcribe) => transcribe.run(cli.config.as_deref()),
        Command::Keys(keys) => keys.run(cli.config.as_deref()),
        Command::Usage(usage) => usage.run(cli.config.as_deref()),
        Command::Audit(audit) => audit.run(cli.config.as_deref()),
        Command::Bench(bench) => bench.run(cli.config.as_deref()),
        Command::ReadDocument => document::serve().map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("percept: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the log, on standard error.
fn log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let filter = if filter.trim().is_empty() { "info" } else { filter };
    let parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut plain = parts.filter(|part| !part.contains('=') && !part.contains("::"));
    if let Some(unknown) = plain.find(|part| !LEVELS.contains(&part.to_lowercase().as_str())) {
        anyhow::bail!("'{unknown}' is no level of the log; levels are {}", LEVELS.join(", "));
    }
    // Its parser logs each broken file as an error, which is the client's and is answered.
    let filter = format!("symphonia=off,{filter}");
    let filter: EnvFilter = filter.parse()?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Human => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
