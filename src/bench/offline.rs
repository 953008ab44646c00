//! A network's parts, timed in this process without HTTP, beside what the device could do at most.

mod limits;
mod steps;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use percept_models::{
    Features, Loaded, MediaSize, Medium, Task, WeightUses,
    nn::{
        device::{RecordedResult, records},
        mel::HOP,
    },
};
use serde::{Deserialize, Serialize};

use self::steps::Steps;
use super::{
    report::{Limits, Offline},
    workload::{Size, WorkloadError, jpeg},
};
use crate::media::{self, Header, sound::RATE};

/// What is timed of a network.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Tokens that a sequence has when it is decoded, and that are prefilled; no more than the network has.
    pub context: usize,
    /// Sequences of decode steps.
    pub batches: Vec<usize>,
    /// Sizes of pictures.
    pub sizes: Vec<Size>,
    /// How long each stage is repeated, at least.
    pub each: Duration,
    /// Bytes that caches may take.
    pub cache_bytes: u64,
}

/// A network to time.
pub struct Subject<'a> {
    /// The network.
    pub loaded: &'a Loaded,
    /// As it was named.
    pub name: String,
    /// Whether its weights are random ones.
    pub dummy_weights: bool,
    /// Numbers of its weights.
    pub uses: WeightUses,
    /// Pixels that a patch of its tower takes, in all channels and frames; where it is known.
    pub patch: Option<usize>,
}

/// A part of a network's work, and how long it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What it is.
    pub name: String,
    /// Half of the times are no longer, in seconds.
    pub median: f64,
    /// The shortest time, in seconds.
    pub least: f64,
    /// How often it was repeated.
    pub runs: usize,
    /// What it does once.
    pub items: f64,
    /// What these are.
    pub unit: String,
    /// What the device would need at least, where that can be told.
    pub limit: Option<Limit>,
}

/// What a device would need at least.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Seconds.
    pub seconds: f64,
    /// What it would need them for.
    pub by: LimitedBy,
}

/// What limits a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// Bytes to read.
    Memory,
    /// Products to compute.
    Compute,
}

impl std::fmt::Display for LimitedBy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
        })
    }
}

/// What a stage must do.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Need {
    bytes: f64,
    flops: f64,
}

impl Need {
    /// The larger one of the times that it takes.
    fn limit(self, limits: &Limits) -> Limit {
        let (memory, compute) = (self.bytes / limits.bytes_per_second, self.flops / limits.flops);
        if memory >= compute {
            Limit { seconds: memory, by: LimitedBy::Memory }
        } else {
            Limit { seconds: compute, by: LimitedBy::Compute }
        }
    }
}

/// Why nothing is timed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The network or the device fails.
    #[error(transparent)]
    Model(#[from] candle_core::Error),
    /// The network is one whose parts have no stages here.
    #[error("embedding models have no stages to time: the other bench asks a server")]
    Vectors,
    /// A picture cannot be made.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// One that was made cannot be read.
    #[error(transparent)]
    Picture(#[from] media::ImageError),
}

/// Times a network. `begin` is told of each stage before it begins. Besides the figures, what a reader must know.
///
/// # Errors
/// When it fails.
pub fn run(
    subject: &Subject<'_>,
    timing: &Timing,
    begin: &mut dyn FnMut(&str),
) -> Result<(Offline, Vec<String>), OfflineError> {
    let loaded = subject.loaded;
    if matches!(loaded.task, Task::Embed(_)) {
        return Err(OfflineError::Vectors);
    }
    begin("what the device can do");
    let limits = limits::measure(&loaded.device, loaded.dtype, timing.each)?;
    let mut bench = Stages { subject, timing, limits, begin, stages: Vec::new(), warnings: Vec::new() };
    match loaded.task {
        Task::Chat(_) => bench.pictures()?,
        Task::Transcribe(_) => bench.sound()?,
        // Refused above.
        Task::Embed(_) => {}
    }
    bench.text()?;
    let Stages { stages, warnings, .. } = bench;
    let WeightUses { layers, head, .. } = subject.uses;
    let offline = Offline {
        model: subject.name.clone(),
        dummy_weights: subject.dummy_weights,
        dtype: loaded.dtype.as_str().into(),
        device: device_name(&loaded.device).into(),
        weight_bytes: loaded.weight_bytes,
        text_weight_bytes: (layers + head) * loaded.dtype.size_in_bytes() as u64,
        context: context(loaded, timing),
        limits,
        stages,
    };
    Ok((offline, warnings))
}

fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "CPU",
        Device::Cuda(_) => "CUDA",
        Device::Metal(_) => "Metal",
    }
}

/// No longer than the network's own, which has room for a token behind it.
fn context(loaded: &Loaded, timing: &Timing) -> usize {
    timing.context.clamp(2, loaded.task.context().max(3) - 1)
}

struct Stages<'a, 'b> {
    subject: &'a Subject<'a>,
    timing: &'a Timing,
    limits: Limits,
    begin: &'b mut dyn FnMut(&str),
    stages: Vec<Stage>,
    warnings: Vec<String>,
}

/// What a stage does once.
#[derive(Debug, Clone, Copy)]
struct Items<'a> {
    count: f64,
    unit: &'a str,
}

impl Stages<'_, '_> {
    fn pictures(&mut self) -> Result<(), OfflineError> {
        let loaded = self.subject.loaded;
        for &size in &self.timing.sizes {
            let file = jpeg(size)?;
            let one = || Items { count: 1.0, unit: "pictures" };
            let header = Header::read(&file, usize::MAX, usize::MAX)?;
            self.time(&format!("decode a JPEG of {size}"), one(), None, || {
                black_box(media::decode(black_box(&file), header)?);
                Ok(())
            })?;
            let picture = media::decode(&file, header)?;
            let (width, height) = (picture.width, picture.height);
            let pixels = Tensor::from_vec(picture.rgb, (height, width, 3), &loaded.device)?;
            self.time(&format!("resize and normalise {size}"), one(), None, || {
                black_box(loaded.preprocess.run(Medium::Picture(&pixels))?);
                Ok(())
            })?;
            let tensor = loaded.preprocess.run(Medium::Picture(&pixels))?;
            let features = Features { tensor, size: MediaSize::Image { width, height } };
            let patches = self.subject.patch.map(|patch| features.tensor.elem_count() as f64 / patch as f64);
            self.encode(&format!("encode {size}"), &features, one(), patches)?;
        }
        Ok(())
    }

    fn sound(&mut self) -> Result<(), OfflineError> {
        let loaded = self.subject.loaded;
        let Task::Transcribe(info) = &loaded.task else { return Ok(()) };
        let seconds = (info.frames * HOP) as f64 / RATE as f64;
        let wave = |sample: usize| ((sample * sample / 977 % 2000) as f32 / 1000.0 - 1.0) * 0.3;
        let samples: Vec<f32> = (0..info.frames * HOP).map(wave).collect();
        let samples = Tensor::from_vec(samples, info.frames * HOP, &loaded.device)?;
        let medium = || Medium::Sound { samples: &samples, frames: 0..info.frames, peak: 0.0 };
        let items = || Items { count: seconds, unit: "s of sound" };
        self.time(&format!("log-mel spectrum of {seconds} s"), items(), None, || {
            black_box(loaded.preprocess.run(medium())?);
            Ok(())
        })?;
        let features = Features { tensor: loaded.preprocess.run(medium())?, size: MediaSize::Sound };
        // The second convolution halves frames.
        let rows = info.frames as f64 / 2.0;
        self.encode(&format!("encode {seconds} s"), &features, items(), Some(rows))
    }

    fn encode(
        &mut self,
        name: &str,
        features: &Features,
        items: Items<'_>,
        rows: Option<f64>,
    ) -> Result<(), OfflineError> {
        let loaded = self.subject.loaded;
        let weights = self.subject.uses.encoder as f64;
        let bytes = weights * loaded.dtype.size_in_bytes() as f64;
        let need = rows.map(|rows| Need { bytes, flops: 2.0 * weights * rows });
        let encode = || loaded.model.encode(std::slice::from_ref(features));
        let recorded = if loaded.preprocess.has_one_shape() { self.record(name, encode) } else { None };
        self.time(name, items, need, || again(recorded.as_ref(), encode))
    }

    /// Records work that an engine has recorded too, where the device can; what cannot be recorded is timed as it is.
    fn record(
        &mut self,
        name: &str,
        work: impl Fn() -> candle_core::Result<Tensor>,
    ) -> Option<RecordedResult> {
        let device = &self.subject.loaded.device;
        if !records(device) {
            return None;
        }
        (self.begin)(&format!("recording: {name}"));
        let recorded = RecordedResult::new(device, work);
        recorded
            .inspect_err(|error| self.warnings.push(format!("{name} could not be recorded: {error}")))
            .ok()
    }

    fn text(&mut self) -> Result<(), OfflineError> {
        let loaded = self.subject.loaded;
        let context = context(loaded, self.timing);
        let steps = Steps::new(loaded, context);
        let fits = |sequences: usize| steps.cache_bytes(sequences) <= self.timing.cache_bytes;
        let (batches, too_large): (Vec<usize>, Vec<usize>) =
            self.timing.batches.iter().partition(|&&sequences| fits(sequences));
        let Some(&most) = batches.iter().max() else {
            self.warnings
                .push("the memory has no room for a cache of one sequence; give more with --memory".into());
            return Ok(());
        };
        if !too_large.is_empty() {
            let list: Vec<_> = too_large.iter().map(ToString::to_string).collect();
            self.warnings.push(format!("the memory has no room for {} sequences at once", list.join(", ")));
        }
        let cache = steps.cache(most)?;
        let need = self.need(context as f64, 1.0, steps.memory as f64);
        let batch = steps.prefill()?;
        let items = Items { count: context as f64, unit: "tokens" };
        self.time(&format!("prefill {context} tokens"), items, Some(need), || {
            black_box(loaded.model.forward(&batch, &cache)?);
            Ok(())
        })?;
        for sequences in batches {
            let batch = steps.decode(sequences)?;
            let seen = sequences as f64 * (context + steps.memory) as f64;
            let need = self.need(sequences as f64, sequences as f64, seen);
            let items = Items { count: sequences as f64, unit: "tokens" };
            let name = format!("decode {sequences} sequence{}", if sequences == 1 { "" } else { "s" });
            let step = || loaded.model.forward(&batch, &cache);
            let recorded = self.record(&name, step);
            self.time(&name, items, Some(need), || again(recorded.as_ref(), step))?;
        }
        Ok(())
    }

    /// What a step of so many rows needs, of which so many have their logits wanted, and which see so many rows of the
    /// cache in all.
    fn need(&self, rows: f64, wanted: f64, seen: f64) -> Need {
        let (loaded, uses) = (self.subject.loaded, self.subject.uses);
        let element = loaded.dtype.size_in_bytes() as f64;
        let shape = loaded.model.cache_shape();
        let row = shape.row_bytes(loaded.dtype) as f64;
        // Scores and sums: each a product of as many numbers as a row is wide, in each layer.
        let attention = 4.0 * seen * (loaded.width * shape.layers) as f64;
        Need {
            bytes: (uses.layers + uses.head) as f64 * element + seen * row,
            flops: 2.0 * (uses.layers as f64 * rows + uses.head as f64 * wanted) + attention,
        }
    }

    fn time(
        &mut self,
        name: &str,
        items: Items<'_>,
        need: Option<Need>,
        mut work: impl FnMut() -> Result<(), OfflineError>,
    ) -> Result<(), OfflineError> {
        (self.begin)(name);
        let device = &self.subject.loaded.device;
        let times = repeated(self.timing.each, || {
            work()?;
            device.synchronize()?;
            Ok::<_, OfflineError>(())
        })?;
        self.stages.push(Stage {
            name: name.to_owned(),
            median: times[times.len() / 2],
            least: times[0],
            runs: times.len(),
            items: items.count,
            unit: items.unit.to_owned(),
            limit: need.map(|need| need.limit(&self.limits)),
        });
        Ok(())
    }
}

/// Does work as it was recorded, or else once more.
fn again(
    recorded: Option<&RecordedResult>,
    work: impl Fn() -> candle_core::Result<Tensor>,
) -> Result<(), OfflineError> {
    black_box(recorded.map_or_else(work, RecordedResult::replay)?);
    Ok(())
}

/// How long some work takes, in seconds, the shortest time first: again and again for some time, and no fewer than
/// three times behind a first one that does not count.
fn repeated<E>(time: Duration, mut work: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    const LEAST: usize = 3;
    const MOST: usize = 1000;
    work()?;
    let (began, mut times) = (Instant::now(), Vec::new());
    while times.len() < LEAST || (began.elapsed() < time && times.len() < MOST) {
        let start = Instant::now();
        work()?;
        // A clock may be coarser than the work.
        times.push(start.elapsed().as_secs_f64().max(1e-9));
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_need_is_the_limit() {
        let limits = Limits { bytes_per_second: 1e9, flops: 1e12, threads: 1 };
        let limit = Need { bytes: 5e9, flops: 1e12 }.limit(&limits);
        assert_eq!((limit.seconds, limit.by), (5.0, LimitedBy::Memory));
        let limit = Need { bytes: 5e9, flops: 9e12 }.limit(&limits);
        assert_eq!((limit.seconds, limit.by), (9.0, LimitedBy::Compute));
    }

    #[test]
    fn work_is_repeated_three_times_at_least_behind_a_first_one() {
        let mut count = 0;
        let times = repeated(Duration::ZERO, || {
            count += 1;
            Ok::<_, ()>(())
        });
        assert_eq!((times.unwrap().len(), count), (3, 4));
        assert_eq!(repeated(Duration::ZERO, || Err(7)), Err(7));
    }
}
