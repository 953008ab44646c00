//! `percept plan`: what models will take of a memory, and what would fit where they do not.

use std::path::Path;

use anyhow::bail;
use clap::Args;

use super::{log, progress};
use crate::{
    config::{Dtype, LogFormat, Settings, Text},
    device::{DeviceChoice, GPU_SHARE, ON_GPU, Place},
    memory::{Budget, Bytes, GPUS, GpuMemory},
    plan::{self, Memory, Table},
    server::{self, Outlined},
};

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// Checkpoint folders or hub ids, or NAME=PATH_OR_HUB_ID
    #[arg(value_name = "PATH_OR_HUB_ID")]
    model: Vec<String>,
    /// The GPU: a10g, l4, rtx4090, rtx3090, a100-40, l40s, h100, a100 (of 80 GB) or h200, or the size of its memory,
    /// such as 24GiB [default: what is free where percept serve would compute on this machine]
    #[arg(long, value_name = "NAME_OR_SIZE")]
    gpu: Option<GpuMemory>,
    /// How much of the memory may be used: a share, such as 0.8, or a size, such as 20GiB [default: 0.9 of a GPU, 0.5 of
    /// what is free on this machine]
    #[arg(long, value_name = "SHARE_OR_SIZE")]
    memory: Option<Text<Budget>>,
    /// The type of weights and activations [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Most tokens of prompt and answer together, of models for chat [default: the model's own limit]
    #[arg(long, visible_alias = "context", value_name = "TOKENS")]
    max_context: Option<u32>,
    /// Most requests that are computed at once [default: 64]
    #[arg(long, value_name = "COUNT")]
    max_sequences: Option<u32>,
    /// Most rows (tokens) of one step [default: 1024 on a GPU, 512 on the CPU]
    #[arg(long, value_name = "ROWS")]
    step_rows: Option<u32>,
    /// Take small files from the cache only, and never from the hub
    #[arg(long)]
    offline: bool,
    /// Write JSON, for programs
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(super) fn run(self, config: Option<&Path>) -> anyhow::Result<()> {
        let Self { model, gpu, memory, dtype, max_context, max_sequences, step_rows, offline, json } = self;
        let offline = offline.then_some(true);
        let typed = Settings {
            model,
            memory,
            dtype,
            max_context,
            max_sequences,
            step_rows,
            offline,
            ..Settings::default()
        };
        let settings = typed.complete(config)?;
        log(settings.log.as_deref().unwrap_or("warn"), LogFormat::Human)?;
        let found = Found::new(&settings, gpu)?;
        let (table, error) = found.table(None);
        if json {
            let advice = error.as_ref().map_or_else(Vec::new, |_| found.advice(&settings));
            let mut json = serde_json::to_value(&table)?;
            json["fits"] = error.is_none().into();
            json["advice"] = advice.into();
            println!("{json:#}");
        } else {
            println!("{table}");
        }
        let Some(error) = error else { return Ok(()) };
        if json {
            bail!(error);
        }
        let advice = found.advice(&settings);
        let advice = advice.iter().map(|line| format!("\n  {line}")).collect::<String>();
        bail!("{error}{advice}")
    }
}

/// Models without their weights, and the memory that is meant.
struct Found {
    models: Vec<Outlined>,
    gpu: Option<GpuMemory>,
    /// What may be used of it.
    budget: Option<Budget>,
    /// Where models would be computed here.
    place: Place,
    /// The context that was asked for.
    context: Option<u32>,
}

impl Found {
    fn new(settings: &Settings, gpu: Option<GpuMemory>) -> anyhow::Result<Self> {
        let config = settings.resolve()?;
        // A GPU that is meant need not be here.
        let place = Place::find(if gpu.is_some() { DeviceChoice::Cpu } else { config.device })?;
        let defaults = if gpu.is_some() { ON_GPU } else { place.defaults() };
        Ok(Self {
            models: server::outline(&config, defaults, progress::bar)?,
            gpu,
            budget: config.budget,
            place,
            context: settings.max_context,
        })
    }

    /// How the models share a GPU's memory, or the one that is meant, and why that is not what was asked for.
    fn table(&self, gpu: Option<&GpuMemory>) -> (Table, Option<String>) {
        let memory = match gpu.or(self.gpu.as_ref()) {
            Some(gpu) => Memory::of(gpu, self.budget.unwrap_or(Budget::Share(GPU_SHARE))),
            None => self.place.memory(self.budget),
        };
        let members: Vec<_> = self.models.iter().map(Outlined::member).collect();
        let (table, plans) = plan::table(memory, &members);
        let short = self.context.and_then(|_| {
            table.models.iter().find_map(|row| {
                let context = row.given.context.filter(|context| *context < row.wanted_context)?;
                Some(format!(
                    "there is room for a context of {context} tokens, and {} are asked for of {}",
                    row.wanted_context, row.name
                ))
            })
        });
        let error = plans.err().map(|error| error.to_string()).or(short);
        (table, error)
    }

    /// What would fit.
    fn advice(&self, settings: &Settings) -> Vec<String> {
        let mut advice = Vec::new();
        let mut tried = settings.clone();
        let mut options = Vec::new();
        if self.models.iter().all(|model| model.dtype() == ON_GPU.dtype) {
            // What they are anyway is no change.
            tried.dtype = Some(Dtype::Bf16);
        }
        for (option, change) in SMALLER {
            if !change(&mut tried) {
                continue;
            }
            options.push(*option);
            let fits = Found::new(&tried, self.gpu.clone()).is_ok_and(|found| found.table(None).1.is_none());
            if fits {
                advice.push(format!("it fits with {}", options.join(" ")));
                break;
            }
        }
        let (table, _) = self.table(None);
        let least = table.models.iter().filter_map(|row| row.given.context).min();
        if let Some(context) = least.filter(|_| self.context.is_some()) {
            advice.push(format!("it fits with --max-context {context}"));
        }
        let larger = GPUS.iter().filter(|gpu| gpu.bytes > table.memory.total);
        let larger = larger.map(|gpu| GpuMemory { name: gpu.name.to_owned(), bytes: gpu.bytes });
        let room = |gpu: &GpuMemory| self.table(Some(gpu)).1.is_none();
        if let Some(gpu) = larger.into_iter().find(room) {
            advice.push(format!("as it is, it fits on --gpu {} ({})", gpu.name, Bytes(gpu.bytes)));
        }
        if advice.is_empty() && !matches!(self.budget, Some(Budget::Bytes(_))) {
            advice.push("it fits on no GPU that is known: choose smaller models".into());
        }
        advice
    }
}

/// Changes settings; tells whether there was anything to change.
type Change = fn(&mut Settings) -> bool;

/// Options that make models smaller, and what they change.
const SMALLER: &[(&str, Change)] = &[
    ("--dtype bf16", |settings| settings.dtype.replace(Dtype::Bf16) != Some(Dtype::Bf16)),
    ("--max-sequences 8", |settings| {
        let fewer = settings.max_sequences.is_none_or(|sequences| sequences > 8);
        settings.max_sequences = if fewer { Some(8) } else { settings.max_sequences };
        fewer
    }),
    ("--step-rows 64", |settings| {
        let fewer = settings.step_rows.is_none_or(|rows| rows > 64);
        settings.step_rows = if fewer { Some(64) } else { settings.step_rows };
        fewer
    }),
];
