//! Figures of a server, in the text format that Prometheus reads.

use std::{sync::Arc, time::Duration};

use prometheus::{
    CounterVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
    core::Collector as _,
    exponential_buckets,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{Entry, Timing};
use crate::{bench::energy::Part, router::Served};

/// Whose names figures have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// percept's.
    Own,
    /// percept's, and vLLM's beside them, for dashboards that are there.
    OwnAndVllm,
}

/// What a server counts of requests. Engines count for themselves.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    errors: IntCounterVec,
    retries: IntCounter,
    tokens: IntCounterVec,
    images: IntCounterVec,
    audio_seconds: CounterVec,
    compute_seconds: CounterVec,
    cost: CounterVec,
    seconds: HistogramVec,
    first_token: HistogramVec,
    stages: HistogramVec,
    connections: IntGauge,
    connections_refused: IntCounter,
    sessions: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let seconds = || exponential_buckets(0.001, 2.0, 20).expect("they ascend");
        let counts = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("the names are good")
        };
        let sums = |name: &str, help: &str| {
            CounterVec::new(Opts::new(name, help), &["model"]).expect("the names are good")
        };
        let times = |name: &str, help: &str, labels: &[&str]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(seconds()), labels)
                .expect("the names are good")
        };
        let metrics = Self {
            requests: counts(
                "percept_requests_total",
                "Requests that have ended.",
                &["endpoint", "model", "status", "outcome"],
            ),
            errors: counts(
                "percept_errors_total",
                "Requests that ended with an error.",
                &["endpoint", "error"],
            ),
            retries: IntCounter::new("percept_retries_total", "Requests that a client's library sent again.")
                .expect("the name is good"),
            tokens: counts(
                "percept_tokens_total",
                "Tokens of prompts, cached prompts and answers.",
                &["model", "kind"],
            ),
            images: counts("percept_images_total", "Pictures and frames of requests.", &["model"]),
            audio_seconds: sums("percept_audio_seconds_total", "Seconds of recordings."),
            compute_seconds: sums("percept_compute_seconds_total", "Time of steps, as requests shared them."),
            cost: sums("percept_cost_total", "Money for that time, by --price-per-hour."),
            seconds: times(
                "percept_request_seconds",
                "Time of requests from the first byte to the last.",
                &["endpoint", "model"],
            ),
            first_token: times(
                "percept_first_token_seconds",
                "Time until the first token of an answer.",
                &["model"],
            ),
            stages: times("percept_stage_seconds", "Time of a stage of requests.", &["stage", "model"]),
            connections: IntGauge::new("percept_connections", "Connections that are open.")
                .expect("the name is good"),
            connections_refused: IntCounter::new(
                "percept_connections_refused_total",
                "Connections that were turned away because there were too many.",
            )
            .expect("the name is good"),
            sessions: IntGauge::new("percept_realtime_sessions", "Realtime sessions that are open.")
                .expect("the name is good"),
            registry,
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let Self { registry, requests, errors, retries, tokens, images, .. } = self;
        let Self { audio_seconds, compute_seconds, cost, seconds, first_token, stages, .. } = self;
        let all: [Box<dyn prometheus::core::Collector>; 15] = [
            Box::new(requests.clone()),
            Box::new(errors.clone()),
            Box::new(retries.clone()),
            Box::new(tokens.clone()),
            Box::new(images.clone()),
            Box::new(audio_seconds.clone()),
            Box::new(compute_seconds.clone()),
            Box::new(cost.clone()),
            Box::new(seconds.clone()),
            Box::new(first_token.clone()),
            Box::new(stages.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.connections_refused.clone()),
            Box::new(self.sessions.clone()),
            Box::new(information()),
        ];
        for collector in all {
            registry.register(collector).expect("no two have one name");
        }
    }

    /// Counts a request that has ended.
    pub fn observe(&self, entry: &Entry, timing: &Timing) {
        let (endpoint, model) = (entry.endpoint.as_str(), entry.model.as_deref().unwrap_or(""));
        let status = entry.status.to_string();
        self.requests.with_label_values(&[endpoint, model, status.as_str(), entry.outcome.name()]).inc();
        if let Some(error) = &entry.error {
            self.errors.with_label_values(&[endpoint, error.as_str()]).inc();
        }
        self.seconds.with_label_values(&[endpoint, model]).observe(timing.total.as_secs_f64());
        if entry.model.is_none() {
            return;
        }
        let used = &entry.used;
        for (kind, tokens) in [
            ("prompt", used.prompt_tokens),
            ("cached", used.cached_tokens),
            ("completion", used.completion_tokens),
        ] {
            self.tokens.with_label_values(&[model, kind]).inc_by(tokens);
        }
        self.images.with_label_values(&[model]).inc_by(used.images);
        self.audio_seconds.with_label_values(&[model]).inc_by(used.audio_seconds.max(0.0));
        self.compute_seconds.with_label_values(&[model]).inc_by(used.compute_seconds.max(0.0));
        self.cost.with_label_values(&[model]).inc_by(used.cost.max(0.0));
        if let Some(first) = timing.first_token {
            self.first_token.with_label_values(&[model]).observe(first.as_secs_f64());
        }
        for (stage, took) in timing.stages().into_iter().filter(|(_, took)| *took > Duration::ZERO) {
            self.stages.with_label_values(&[stage, model]).observe(took.as_secs_f64());
        }
    }

    /// A request that its client's library has sent before.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// A connection is open as long as this lives.
    pub fn connected(&self) -> Counted {
        Counted::of(&self.connections)
    }

    /// A realtime session is open as long as this lives.
    pub fn session(&self) -> Counted {
        Counted::of(&self.sessions)
    }

    /// A connection was turned away.
    pub fn turned_away(&self) {
        self.connections_refused.inc();
    }

    /// All figures as text, with those of engines and of energy.
    pub fn text(&self, models: &[Arc<Served>], energy: &[Part], names: Names) -> String {
        let mut families = self.registry.gather();
        families.extend(engines(models));
        if !energy.is_empty() {
            let joules = energy.iter().map(|part| (vec![("source", part.source.as_str())], part.joules));
            let help = "Energy that the machine took since the server began.";
            families.push(family("percept_energy_joules_total", help, Kind::Counter, joules));
        }
        if names == Names::OwnAndVllm {
            families.extend(vllm(models, &families));
        }
        families.retain(|family| !family.get_metric().is_empty());
        // A family that is broken was made here.
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("each family has a name and figures of its kind")
    }
}

/// Something that is open as long as this lives, among all that are.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    fn of(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn information() -> IntGauge {
    let opts = Opts::new("percept_info", "What serves.").const_label("version", env!("CARGO_PKG_VERSION"));
    let gauge = IntGauge::with_opts(opts).expect("the name is good");
    gauge.set(1);
    gauge
}

/// Kinds of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// A name with its help, and its figures with their labels.
type Family = MetricFamily;

fn family<'a>(
    name: &str,
    help: &str,
    kind: Kind,
    figures: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
) -> Family {
    let metrics = figures.into_iter().map(|(labels, figure)| {
        let mut metric =
            Metric::from_label(labels.into_iter().map(|(name, value)| label(name, value)).collect());
        match kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(figure);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(figure);
                metric.set_gauge(gauge);
            }
        }
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(if kind == Kind::Counter { MetricType::COUNTER } else { MetricType::GAUGE });
    family.set_metric(metrics.collect());
    family
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// What engines are doing, each with its model as a label.
fn engines(models: &[Arc<Served>]) -> Vec<Family> {
    type Figure = fn(&Served) -> f64;
    const FIGURES: &[(&str, &str, Kind, Figure)] = &[
        ("percept_engine_alive", "1 as long as the engine works.", Kind::Gauge, |of| {
            f64::from(of.handle.status().alive())
        }),
        ("percept_requests_running", "Requests that are computed.", Kind::Gauge, |of| {
            of.handle.status().running() as f64
        }),
        ("percept_requests_waiting", "Requests that have a place in the queue.", Kind::Gauge, |of| {
            of.handle.waiting() as f64
        }),
        ("percept_cache_pages_used", "Pages of the cache in use.", Kind::Gauge, |of| {
            of.handle.status().pages().0 as f64
        }),
        ("percept_cache_pages", "Pages of the cache.", Kind::Gauge, |of| of.handle.status().pages().1 as f64),
        ("percept_steps_total", "Steps.", Kind::Counter, |of| of.handle.status().steps() as f64),
        ("percept_steps_replayed_total", "Steps that were recorded before.", Kind::Counter, |of| {
            of.handle.status().replayed() as f64
        }),
        (
            "percept_encodings_replayed_total",
            "Media whose encoding was recorded before.",
            Kind::Counter,
            |of| of.handle.status().encodings_replayed() as f64,
        ),
        ("percept_steps_foreseen_total", "Steps that began before their turn.", Kind::Counter, |of| {
            of.handle.status().foreseen() as f64
        }),
        (
            "percept_preemptions_total",
            "How often a request gave up its pages for an older one.",
            Kind::Counter,
            |of| of.handle.status().preemptions() as f64,
        ),
        (
            "percept_engine_restarts_total",
            "How often an engine lost its requests and began anew.",
            Kind::Counter,
            |of| of.handle.status().restarts() as f64,
        ),
        (
            "percept_prefix_cache_queries_total",
            "Tokens of prompts that were looked up.",
            Kind::Counter,
            |of| of.handle.status().prompt_tokens().0 as f64,
        ),
        (
            "percept_prefix_cache_hits_total",
            "Tokens of prompts that were in the cache.",
            Kind::Counter,
            |of| of.handle.status().prompt_tokens().1 as f64,
        ),
        ("percept_encoder_cache_hits_total", "Media whose rows were in the cache.", Kind::Counter, |of| {
            of.handle.status().encoder().0 as f64
        }),
        ("percept_encoder_cache_misses_total", "Media that were encoded.", Kind::Counter, |of| {
            of.handle.status().encoder().1 as f64
        }),
    ];
    let mut families: Vec<Family> = FIGURES
        .iter()
        .map(|(name, help, kind, figure)| {
            let figures = models.iter().map(|served| (vec![("model", served.id.as_str())], figure(served)));
            family(name, help, *kind, figures)
        })
        .collect();
    let mut histograms: Vec<Family> = Vec::new();
    for served in models {
        for histogram in served.handle.status().histograms() {
            for mut found in histogram.collect() {
                for metric in found.mut_metric() {
                    metric.set_label(vec![label("model", &served.id)]);
                }
                match histograms.iter_mut().find(|family| family.name() == found.name()) {
                    Some(family) => {
                        let mut metrics = family.take_metric();
                        metrics.extend(found.take_metric());
                        family.set_metric(metrics);
                    }
                    None => histograms.push(found),
                }
            }
        }
    }
    families.extend(histograms);
    families
}

/// The same figures under the names that vLLM has for them, with its label.
fn vllm(models: &[Arc<Served>], own: &[Family]) -> Vec<Family> {
    let usage = |of: &Arc<Served>| {
        let (used, total) = of.handle.status().pages();
        used as f64 / total.max(1) as f64
    };
    let name = "model_name";
    let gauges = |title: &str, help: &str, figure: &dyn Fn(&Arc<Served>) -> f64| {
        let figures = models.iter().map(|served| (vec![(name, served.id.as_str())], figure(served)));
        family(title, help, Kind::Gauge, figures)
    };
    let mut families = vec![
        gauges("vllm:num_requests_running", "Requests that are computed.", &|of| {
            of.handle.status().running() as f64
        }),
        gauges("vllm:num_requests_waiting", "Requests that wait.", &|of| of.handle.waiting() as f64),
        gauges("vllm:gpu_cache_usage_perc", "Share of the cache's pages in use, 0 to 1.", &usage),
        gauges("vllm:kv_cache_usage_perc", "Share of the cache's pages in use, 0 to 1.", &usage),
    ];
    for (ours, theirs, only) in [
        ("percept_preemptions_total", "vllm:num_preemptions_total", None),
        ("percept_prefix_cache_queries_total", "vllm:prefix_cache_queries_total", None),
        ("percept_prefix_cache_hits_total", "vllm:prefix_cache_hits_total", None),
        ("percept_tokens_total", "vllm:prompt_tokens_total", Some("prompt")),
        ("percept_tokens_total", "vllm:generation_tokens_total", Some("completion")),
        ("percept_first_token_seconds", "vllm:time_to_first_token_seconds", None),
        ("percept_inter_token_seconds", "vllm:inter_token_latency_seconds", None),
        ("percept_stage_seconds", "vllm:request_queue_time_seconds", Some("queue")),
        ("percept_stage_seconds", "vllm:request_prefill_time_seconds", Some("prefill")),
        ("percept_stage_seconds", "vllm:request_decode_time_seconds", Some("decode")),
    ] {
        let Some(family) = own.iter().find(|family| family.name() == ours) else { continue };
        let mut family = family.clone();
        let mut metrics = family.take_metric();
        let kind = |pair: &LabelPair| ["kind", "stage"].contains(&pair.name());
        let value = |metric: &Metric, wanted: &str| {
            metric.get_label().iter().any(|pair| kind(pair) && pair.value() == wanted)
        };
        metrics.retain(|metric| only.is_none_or(|wanted| value(metric, wanted)));
        for metric in &mut metrics {
            let models = metric.take_label().into_iter().filter(|pair| pair.name() == "model");
            metric.set_label(models.map(|pair| label(name, pair.value())).collect());
        }
        family.set_metric(metrics);
        family.set_name(theirs.to_owned());
        families.push(family);
    }
    families
}
