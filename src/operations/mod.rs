//! What is watched and kept of a server that works: figures for Prometheus, usage of tenants, the audit log. Knows no HTTP
//! and keeps no content.

pub mod audit;
mod content;
mod metrics;
mod traces;
mod usage;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use tracing::warn;

use self::audit::{Audit, AuditError, Event};
pub use self::{
    content::{Content, ContentConfig, ContentError, MOST_BYTES as MOST_CONTENT},
    metrics::{Counted, Metrics, Names},
    traces::Traces,
    usage::{Row, Totals, Usage},
};
use crate::{
    access::{Access, Caller, KeysError, Now, Rate, today},
    bench::energy::{self, Meter},
    engine::Figures,
};

/// What guards a server and watches it, as it is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OperationsConfig {
    /// The file of keys.
    pub keys: Option<PathBuf>,
    /// The folder of the audit log.
    pub audit: Option<PathBuf>,
    /// How many months of it are kept besides the present one; all, where it is not said.
    pub audit_months: Option<u32>,
    /// What the machine costs.
    pub price: Option<Price>,
    /// The address of a collector of traces.
    pub collector: Option<String>,
    /// Where content is written down.
    pub content: Option<ContentConfig>,
}

/// Why a server cannot be guarded or watched.
#[derive(Debug, thiserror::Error)]
pub enum OperationsError {
    /// The keys.
    #[error("keys: {0}")]
    Keys(#[from] KeysError),
    /// The audit log.
    #[error("audit log: {0}")]
    Audit(#[from] AuditError),
    /// The content log.
    #[error("content log: {0}")]
    Content(#[from] ContentError),
    /// Traces.
    #[error("traces: {0}")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// What guards a server and watches it.
#[derive(Default)]
pub struct Operations {
    /// Who may use it; everyone, where it is not said.
    pub access: Option<Access>,
    /// Where it is written down who did.
    pub audit: Option<Audit>,
    /// How much they did.
    pub usage: Usage,
    /// How it works.
    pub metrics: Metrics,
    /// What the machine takes of energy, where it tells.
    pub energy: Option<Meter>,
    /// What the machine costs.
    pub price: Option<Price>,
    /// Where content is written down, if it is.
    pub content: Option<Content>,
    /// Where it is told how long everything took.
    pub traces: Option<Traces>,
}

impl std::fmt::Debug for Operations {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Operations").field("access", &self.access).finish_non_exhaustive()
    }
}

/// What a machine costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    /// While it computes.
    pub per_hour: f64,
    /// In what.
    pub currency: String,
}

/// A request that has ended: all that is kept of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it came.
    pub time: Timestamp,
    /// As its answer has it in `x-request-id`.
    pub id: String,
    /// Who asked.
    pub tenant: Option<String>,
    /// By which key.
    pub key: Option<String>,
    /// From where.
    pub peer: Option<String>,
    /// What for: a method and a path of the API, or `other`.
    pub endpoint: String,
    /// The model's own name.
    pub model: Option<String>,
    /// Of the answer.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// The error's code or type, where there was one.
    pub error: Option<String>,
    /// Bytes of the body, as far as it was read.
    pub request_bytes: u64,
    /// Of these bytes.
    pub request_sha256: Option<String>,
    /// Bytes of the answer, as far as it was sent.
    pub response_bytes: u64,
    /// Of these bytes.
    pub response_sha256: Option<String>,
    /// What was used.
    #[serde(flatten)]
    pub used: Used,
    /// From the first byte to the last, in milliseconds.
    pub ms: u64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// With its answer.
    Ok,
    /// With an error that is the client's.
    Refused,
    /// With an error that is ours.
    Failed,
    /// The client left.
    Cancelled,
}

impl Outcome {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a request used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Used {
    /// Of prompts, media included.
    pub prompt_tokens: u64,
    /// Of prompts, those that were in the cache.
    pub cached_tokens: u64,
    /// Of answers.
    pub completion_tokens: u64,
    /// Pictures and frames.
    pub images: u64,
    /// Of recordings.
    pub audio_seconds: f64,
    /// Its share of the engine's steps.
    pub compute_seconds: f64,
    /// Of these seconds, by the machine's price.
    pub cost: f64,
}

/// What a tenant's meter has counted of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Charged {
    /// Tokens, of what is bounded by the minute.
    pub of_rate: u64,
    /// Tokens, of a budget.
    pub tokens: u64,
    /// Of recordings, of a budget.
    pub audio_seconds: f64,
    /// Money, of a budget.
    pub cost: f64,
}

/// How long the stages of a request took. What did not happen took no time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timing {
    /// To read and decode media.
    pub media: Duration,
    /// From the end of that until an engine began.
    pub queue: Duration,
    /// To resize and normalise.
    pub prepare: Duration,
    /// To encode.
    pub encode: Duration,
    /// From the beginning in the engine to the first token, without the above.
    pub prefill: Duration,
    /// From there to the last token.
    pub decode: Duration,
    /// From the first byte of the request to the first token, where there was one.
    pub first_token: Option<Duration>,
    /// From the first byte of the request until now.
    pub total: Duration,
}

impl Timing {
    /// The same as a whole, without stages: of what was no one answer.
    pub fn as_whole(&self) -> Self {
        Self { total: self.total, ..Self::default() }
    }

    /// Of a request that began at some time, whose media took `media` to decode, and what an engine says of it.
    pub fn new(began: Instant, media: Duration, figures: &Figures) -> Self {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        let Figures { queued, started, first, last, prepare, encode, .. } = *figures;
        Self {
            media,
            queue: between(queued, started),
            prepare,
            encode,
            prefill: between(started, first).saturating_sub(prepare + encode),
            decode: between(first, last),
            first_token: first.map(|first| first.saturating_duration_since(began)),
            total: began.elapsed(),
        }
    }

    /// The stages with their names, in order.
    pub fn stages(&self) -> [(&'static str, Duration); 6] {
        [
            ("media", self.media),
            ("queue", self.queue),
            ("prepare", self.prepare),
            ("encode", self.encode),
            ("prefill", self.prefill),
            ("decode", self.decode),
        ]
    }
}

impl Operations {
    /// What is set. The energy of the machine is watched where it tells any.
    ///
    /// # Errors
    /// When there are no keys where they should be, or the audit log cannot be gone on with.
    pub fn open(config: &OperationsConfig) -> Result<Self, OperationsError> {
        let OperationsConfig { keys, audit, audit_months, price, collector, content } = config;
        let sources: Vec<_> =
            energy::gpus(None).unwrap_or_default().into_iter().chain(energy::packages()).collect();
        let operations = Self {
            access: keys.clone().map(Access::open).transpose()?,
            audit: audit.clone().map(|folder| Audit::open(folder, *audit_months)).transpose()?,
            energy: (!sources.is_empty()).then(|| Meter::new(sources)),
            price: price.clone(),
            content: content.as_ref().map(Content::open).transpose()?,
            traces: collector.as_deref().map(Traces::open).transpose()?,
            ..Self::default()
        };
        operations.remember()?;
        Ok(operations)
    }

    /// The time, as meters want it.
    pub fn now(&self) -> Now {
        let elapsed = Duration::ZERO;
        self.access.as_ref().map_or(Now { elapsed, date: today() }, Access::now)
    }

    /// What was used, by an engine's figures and what the API knows of media.
    pub fn used(&self, figures: &Figures, images: u64, audio_seconds: f64) -> Used {
        let compute_seconds = figures.compute.as_secs_f64();
        Used {
            prompt_tokens: figures.prompt,
            cached_tokens: figures.reused,
            completion_tokens: figures.generated,
            images,
            audio_seconds,
            compute_seconds,
            cost: self.price.as_ref().map_or(0.0, |price| price.per_hour * compute_seconds / 3600.0),
        }
    }

    /// Adds what a request has used to what its tenant has, but for what was added before.
    pub fn charge(&self, caller: &Caller, used: &Used, charged: &mut Charged) {
        let (Caller { terms, meter, .. }, now) = (caller, self.now());
        let tokens = used.prompt_tokens + used.completion_tokens;
        meter.charge(terms, Rate::Tokens, tokens.saturating_sub(charged.of_rate) as f64, now);
        let more = |now: f64, before: f64| (now - before).max(0.0);
        meter.spend(
            tokens.saturating_sub(charged.tokens),
            more(used.audio_seconds, charged.audio_seconds),
            more(used.cost, charged.cost),
            now,
        );
        *charged = Charged {
            of_rate: charged.of_rate.max(tokens),
            tokens,
            audio_seconds: used.audio_seconds,
            cost: used.cost,
        };
    }

    /// Counts a request that has ended, and writes it down. `charged` is what its tenant's meter has counted already.
    pub fn ended(&self, caller: Option<&Caller>, entry: Entry, mut charged: Charged) {
        let used = entry.used;
        self.usage.add(
            date_of(entry.time),
            entry.tenant.as_deref(),
            entry.model.as_deref(),
            entry.outcome,
            &used,
        );
        if let Some(caller) = caller {
            self.charge(caller, &used, &mut charged);
        }
        if let Some(audit) = &self.audit {
            audit.write(Event::Request(Box::new(entry)));
        }
    }

    /// Goes on with the usage that an audit log tells of: budgets outlive a restart.
    fn remember(&self) -> Result<(), AuditError> {
        let today = today();
        let Some(audit) = &self.audit else {
            let bounded = self.access.as_ref().map(Access::with_budgets).unwrap_or_default();
            if !bounded.is_empty() {
                let tenants = bounded.join(", ");
                warn!(
                    tenants,
                    "without an audit log (--audit), what is used of a budget is forgotten at a restart"
                );
            }
            return Ok(());
        };
        audit::entries(audit.folder(), Some(today.first_of_month()), |entry| {
            let date = date_of(entry.time);
            let used = entry.used;
            self.usage.add(date, entry.tenant.as_deref(), entry.model.as_deref(), entry.outcome, &used);
            if let (Some(access), Some(tenant)) = (&self.access, &entry.tenant) {
                let audio = if date == today { used.audio_seconds } else { 0.0 };
                let now = Now { date: today, ..access.now() };
                access.meter(tenant).spend(
                    used.prompt_tokens + used.completion_tokens,
                    audio,
                    used.cost,
                    now,
                );
            }
        })
    }
}

/// The date in UTC.
fn date_of(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}
