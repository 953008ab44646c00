//! How models share a memory, as a table: for people as text, for programs as JSON, and in the log of a server.

use std::fmt;

use serde::Serialize;

use crate::{
    memory::{self, Budget, Bytes, Candidate, Demand, GpuMemory, ORDINARY_TEXT, TooLittle, check_weights},
    router::Kind,
};

/// One of the models that share a memory.
pub struct Member<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is for.
    pub kind: Kind,
    /// What it needs.
    pub candidate: Candidate<'a>,
}

/// A memory, and what of it may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// What it is of.
    pub name: String,
    /// Bytes of it.
    pub total: u64,
    /// Bytes that may be used.
    pub budget: u64,
}

impl Memory {
    /// What is free on this machine.
    pub fn here(budget: Budget, free: u64) -> Self {
        Self { name: "free on this machine".into(), total: free, budget: budget.bytes(free) }
    }

    /// A GPU's.
    pub fn of(gpu: &GpuMemory, budget: Budget) -> Self {
        Self { name: gpu.name.clone(), total: gpu.bytes, budget: budget.bytes(gpu.bytes) }
    }
}

/// How models share a memory. Its names in JSON stay what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// What there is.
    pub memory: Memory,
    /// Whether all models have what they need at least.
    pub fits: bool,
    /// Bytes that they take together; where they do not fit, those that they need at least.
    pub used: u64,
    /// All of them.
    pub models: Vec<Row>,
}

/// What one model takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// As in the list of models.
    pub task: &'static str,
    /// The type of weights, activations and cache.
    pub dtype: &'static str,
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes of a step's activations.
    pub workspace: u64,
    /// Whether a dry run has measured them; else they are estimated.
    pub workspace_measured: bool,
    /// Bytes of the smallest caches that are useful.
    pub least_cache: u64,
    /// Bytes of a token: its keys and values.
    pub token_bytes: u64,
    /// Rows of a picture of 1024x1024, or of a window of sound.
    pub medium_rows: usize,
    /// Bytes of them in all caches.
    pub medium_bytes: u64,
    /// Tokens of prompt and answer together, as wanted and as far as the model goes.
    pub wanted_context: usize,
    /// What it gets, where it gets anything.
    #[serde(flatten)]
    pub given: Given,
}

/// What one model gets; nothing where the models do not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Given {
    /// Bytes of encoded media.
    pub encoder_cache: Option<u64>,
    /// Bytes of keys and values.
    pub kv_cache: Option<u64>,
    /// Most tokens of prompt and answer together.
    pub context: Option<usize>,
    /// Most requests that are computed at once.
    pub sequences: Option<usize>,
    /// Requests of a picture of 1024x1024 and 500 tokens, or of a window of sound, that find room at once.
    pub at_once: Option<usize>,
}

/// The table of models that share a memory, and their plans, unless they do not fit.
pub fn table(memory: Memory, members: &[Member<'_>]) -> (Table, Result<Vec<memory::Plan>, TooLittle>) {
    let candidates: Vec<_> = members.iter().map(|member| member.candidate).collect();
    let weights: Vec<_> = candidates.iter().map(|candidate| candidate.loaded.weight_bytes).collect();
    let plans =
        check_weights(memory.budget, &weights).and_then(|()| memory::plan(memory.budget, &candidates));
    let given =
        |index: usize| plans.as_ref().map_or_else(|_| Given::default(), |plans| Given::new(&plans[index]));
    let models: Vec<Row> =
        members.iter().enumerate().map(|(index, member)| Row::new(member, given(index))).collect();
    let used = match &plans {
        Ok(plans) => plans.iter().map(|plan| plan.share).sum(),
        Err(_) => {
            let least = models.iter().map(|row| row.weights.saturating_add(row.workspace + row.least_cache));
            least.fold(0, u64::saturating_add)
        }
    };
    (Table { memory, fits: plans.is_ok(), used, models }, plans)
}

impl Given {
    fn new(plan: &memory::Plan) -> Self {
        Self {
            encoder_cache: Some(plan.encoder_cache),
            kv_cache: Some(plan.kv_cache),
            context: Some(plan.engine.context),
            sequences: Some(plan.engine.limits.sequences),
            at_once: Some(plan.at_once),
        }
    }
}

impl Row {
    fn new(member: &Member<'_>, given: Given) -> Self {
        let Demand { need, token, medium, medium_bytes, context } = memory::demand(&member.candidate);
        Self {
            name: member.name.to_owned(),
            task: member.kind.task(),
            dtype: member.candidate.loaded.dtype.as_str(),
            weights: need.weights,
            workspace: need.workspace,
            workspace_measured: member.candidate.workspace.is_some(),
            least_cache: need.least,
            token_bytes: token,
            medium_rows: medium,
            medium_bytes,
            wanted_context: context,
            given,
        }
    }

    fn hears(&self) -> bool {
        self.task == Kind::Speech.task()
    }

    /// What it says under the name of a line; nothing where the line is not for it.
    fn cells(&self) -> Vec<(String, Option<String>)> {
        let Given { encoder_cache, kv_cache, context, sequences, at_once } = self.given;
        let bytes = |bytes: u64| Some(Bytes(bytes).to_string());
        let medium = format!("{} rows, {}", self.medium_rows, Bytes(self.medium_bytes));
        let measured = if self.workspace_measured { "measured " } else { "" };
        let workspace = format!("{measured}{}", Bytes(self.workspace));
        let count = |count: Option<usize>| count.map(|count| count.to_string());
        let context = match context {
            Some(context) if context < self.wanted_context => {
                Some(format!("{context} of {}", self.wanted_context))
            }
            _ => Some(self.wanted_context.to_string()),
        };
        let embeds = self.task == Kind::Embedding.task();
        let kept = |cell: Option<String>| cell.filter(|_| !embeds);
        let seen = |cell: Option<String>| cell.filter(|_| !self.hears() && (!embeds || self.medium_rows > 0));
        let heard = |cell: Option<String>| cell.filter(|_| self.hears());
        [
            ("type", Some(self.dtype.to_owned())),
            ("weights", bytes(self.weights)),
            ("workspace of a step", Some(workspace)),
            ("smallest caches", if kv_cache.is_none() { bytes(self.least_cache) } else { None }),
            ("encoder cache", encoder_cache.and_then(bytes)),
            ("KV cache", kept(kv_cache.and_then(bytes))),
            ("a token", kept(bytes(self.token_bytes))),
            ("a picture of 1024x1024", seen(Some(medium.clone()))),
            ("a window of sound", heard(Some(medium))),
            ("context", context),
            ("sequences at once", count(sequences)),
            (&format!("  with a picture and {ORDINARY_TEXT} tokens"), kept(seen(count(at_once)))),
            ("  with a window of sound", heard(count(at_once))),
        ]
        .map(|(name, cell)| (name.to_owned(), cell))
        .into()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.models.iter().map(Row::cells).collect();
        let lines = columns.first().map_or(0, Vec::len);
        let wide = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
        let names = wide(&mut columns.iter().flatten().map(|(name, _)| name.len()));
        let widths: Vec<usize> = columns
            .iter()
            .zip(&self.models)
            .map(|(cells, row)| {
                let cells = cells.iter().map(|(_, cell)| cell.as_ref().map_or(1, String::len));
                wide(&mut cells.chain([row.name.chars().count()]))
            })
            .collect();
        let mut line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
            write!(formatter, "{name:names$}")?;
            for (cell, width) in cells.zip(&widths) {
                write!(formatter, "  {cell:>width$}")?;
            }
            writeln!(formatter)
        };
        line("", &mut self.models.iter().map(|row| row.name.as_str()))?;
        for index in 0..lines {
            let cells = || columns.iter().map(|column| column[index].1.as_deref());
            if cells().any(|cell| cell.is_some()) {
                line(&columns[0][index].0, &mut cells().map(|cell| cell.unwrap_or("-")))?;
            }
        }
        let Memory { name, total, budget } = &self.memory;
        let verdict = if self.fits { "taken" } else { "needed" };
        write!(
            formatter,
            "{verdict}: {} of {} that may be used ({name}: {})",
            Bytes(self.used),
            Bytes(*budget),
            Bytes(*total)
        )
    }
}
