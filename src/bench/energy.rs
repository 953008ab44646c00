//! Energy that a machine's GPUs and processors take: counters where there are any, else power, added up.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nvml_wrapper::{Nvml, error::NvmlError};
use serde::{Deserialize, Serialize};

/// How often power is asked for. Counters are read as often, since some begin again at 0 within minutes.
const EVERY: Duration = Duration::from_millis(100);

/// What a source of figures says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// Joules since some time before; begins again at 0 behind `wraps`.
    Joules {
        /// The counter.
        count: f64,
        /// The largest it can be, where that is known.
        wraps: Option<f64>,
    },
    /// Watts now.
    Watts(f64),
}

/// A source of figures.
pub trait Source: Send {
    /// What it measures, and by what.
    fn name(&self) -> String;

    /// What it says now.
    ///
    /// # Errors
    /// When it says nothing; the message says why.
    fn read(&mut self) -> Result<Reading, String>;
}

/// The energy that one source measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// What was measured, and by what.
    pub source: String,
    /// How much.
    pub joules: f64,
}

/// Adds up what a source says.
#[derive(Debug, Clone, Default, PartialEq)]
struct Sum {
    joules: f64,
    /// What it said last, and when.
    last: Option<(Reading, Duration)>,
}

impl Sum {
    fn add(&mut self, reading: Reading, at: Duration) {
        if let Some((before, then)) = self.last {
            self.joules += match (before, reading) {
                // The area under a line from one to the next.
                (Reading::Watts(before), Reading::Watts(now)) => {
                    (before + now) / 2.0 * at.saturating_sub(then).as_secs_f64()
                }
                (Reading::Joules { count: before, .. }, Reading::Joules { count, .. }) if count >= before => {
                    count - before
                }
                (Reading::Joules { count: before, .. }, Reading::Joules { count, wraps }) => {
                    wraps.map_or(0.0, |wraps| (wraps - before).max(0.0) + count)
                }
                _ => 0.0,
            };
        }
        self.last = Some((reading, at));
    }
}

/// Sources, read in the background.
pub struct Meter {
    channels: Arc<Mutex<Vec<Channel>>>,
    began: Instant,
    /// Dropped to end the thread.
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Channel {
    source: Box<dyn Source>,
    sum: Sum,
    failure: Option<String>,
}

impl Channel {
    fn read(&mut self, at: Duration) {
        match self.source.read() {
            Ok(reading) => self.sum.add(reading, at),
            Err(error) => self.failure = Some(format!("{}: {error}", self.source.name())),
        }
    }
}

impl Meter {
    /// Starts to read sources.
    pub fn new(sources: Vec<Box<dyn Source>>) -> Self {
        let channel = |source| Channel { source, sum: Sum::default(), failure: None };
        let channels = Arc::new(Mutex::new(sources.into_iter().map(channel).collect::<Vec<_>>()));
        let began = Instant::now();
        let (stop, stopped) = mpsc::sync_channel::<()>(0);
        let shared = Arc::clone(&channels);
        let thread = thread::Builder::new().name("energy".into()).spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                read_all(&shared, began);
            }
        });
        Self { channels, began, stop: Some(stop), thread: thread.ok() }
    }

    /// What each source has measured so far.
    ///
    /// # Errors
    /// When one has failed meanwhile; the message says which and why.
    pub fn read(&self) -> Result<Vec<Part>, String> {
        read_all(&self.channels, self.began);
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels
            .iter()
            .map(|channel| match &channel.failure {
                Some(failure) => Err(failure.clone()),
                None => Ok(Part { source: channel.source.name(), joules: channel.sum.joules }),
            })
            .collect()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panics if a source does, and then there is nothing to wait for.
            let _ = thread.join();
        }
    }
}

fn read_all(channels: &Mutex<Vec<Channel>>, began: Instant) {
    for channel in channels.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
        channel.read(began.elapsed());
    }
}

/// The energy of the time between two readings of a meter.
pub fn between(before: &[Part], after: &[Part]) -> Vec<Part> {
    let part = |(before, after): (&Part, &Part)| Part {
        source: after.source.clone(),
        joules: (after.joules - before.joules).max(0.0),
    };
    before.iter().zip(after).map(part).collect()
}

/// What NVML knows of a GPU's energy.
pub trait Gpu: Send {
    /// Its number and name.
    fn name(&self) -> String;

    /// Millijoules since its driver was loaded; not every GPU counts.
    ///
    /// # Errors
    /// When it does not.
    fn total_energy(&self) -> Result<u64, NvmlError>;

    /// Milliwatts now.
    ///
    /// # Errors
    /// When it does not say.
    fn power(&self) -> Result<u32, NvmlError>;
}

/// A GPU as a source: by its counter, where it has one.
struct GpuSource<G> {
    gpu: G,
    counts: bool,
}

impl<G: Gpu> GpuSource<G> {
    fn new(gpu: G) -> Result<Self, String> {
        let counts = gpu.total_energy().is_ok();
        if !counts {
            gpu.power().map_err(|error| format!("{} tells neither energy nor power: {error}", gpu.name()))?;
        }
        Ok(Self { gpu, counts })
    }
}

impl<G: Gpu> Source for GpuSource<G> {
    fn name(&self) -> String {
        let by = if self.counts { "NVML energy counter" } else { "NVML power, every 100 ms" };
        format!("{} ({by})", self.gpu.name())
    }

    fn read(&mut self) -> Result<Reading, String> {
        let milli = |number: f64| number / 1000.0;
        let reading = if self.counts {
            let count = self.gpu.total_energy().map(|count| milli(count as f64));
            count.map(|count| Reading::Joules { count, wraps: None })
        } else {
            self.gpu.power().map(|power| Reading::Watts(milli(power.into())))
        };
        reading.map_err(|error| error.to_string())
    }
}

/// A GPU of this machine.
struct Nvidia {
    nvml: Arc<Nvml>,
    index: u32,
    name: String,
}

impl Gpu for Nvidia {
    fn name(&self) -> String {
        format!("GPU {} {}", self.index, self.name)
    }

    fn total_energy(&self) -> Result<u64, NvmlError> {
        self.nvml.device_by_index(self.index)?.total_energy_consumption()
    }

    fn power(&self) -> Result<u32, NvmlError> {
        self.nvml.device_by_index(self.index)?.power_usage()
    }
}

/// NVIDIA's library, if this machine has it.
///
/// # Errors
/// When it has not, or the driver does not answer.
pub fn nvml() -> Result<Nvml, String> {
    // The name without a number comes with packages for developers only, and not in containers.
    let by_number = || Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init();
    by_number().or_else(|_| Nvml::init()).map_err(|error| format!("NVIDIA's library cannot be used: {error}"))
}

/// The GPUs of this machine: those in `wanted`, or all.
///
/// # Errors
/// When NVIDIA's library is not there, or a GPU is not or says nothing.
pub fn gpus(wanted: Option<&[u32]>) -> Result<Vec<Box<dyn Source>>, String> {
    let nvml = Arc::new(nvml()?);
    let count = nvml.device_count().map_err(|error| error.to_string())?;
    let all: Vec<u32> = (0..count).collect();
    let wanted = wanted.unwrap_or(&all);
    if let Some(unknown) = wanted.iter().find(|index| !all.contains(index)) {
        return Err(format!("there is no GPU {unknown}; this machine has {count}, counted from 0"));
    }
    let source = |&index: &u32| {
        let name = nvml.device_by_index(index).and_then(|device| device.name());
        let name = name.map_err(|error| format!("GPU {index}: {error}"))?;
        let source = GpuSource::new(Nvidia { nvml: Arc::clone(&nvml), index, name })?;
        Ok(Box::new(source) as Box<dyn Source>)
    };
    wanted.iter().map(source).collect()
}

/// A counter of a processor package: <https://docs.kernel.org/power/powercap/powercap.html>.
struct Package {
    name: String,
    file: PathBuf,
    wraps: Option<f64>,
}

impl Source for Package {
    fn name(&self) -> String {
        format!("{} (RAPL)", self.name)
    }

    fn read(&mut self) -> Result<Reading, String> {
        let count = microjoules(&self.file).ok_or_else(|| format!("cannot read {}", self.file.display()))?;
        Ok(Reading::Joules { count, wraps: self.wraps })
    }
}

fn microjoules(file: &Path) -> Option<f64> {
    fs::read_to_string(file).ok()?.trim().parse::<u64>().ok().map(|count| count as f64 * 1e-6)
}

/// The processor packages of this machine whose counters may be read; on most machines only root may.
pub fn packages() -> Vec<Box<dyn Source>> {
    packages_below(Path::new("/sys/class/powercap"))
}

fn packages_below(folder: &Path) -> Vec<Box<dyn Source>> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let package = |folder: PathBuf| {
        let name = fs::read_to_string(folder.join("name")).ok()?.trim().to_owned();
        // Cores and memory are parts of a package, or of the whole system; they would count twice.
        let file = folder.join("energy_uj");
        microjoules(&file).filter(|_| name.starts_with("package"))?;
        let wraps = microjoules(&folder.join("max_energy_range_uj"));
        Some(Box::new(Package { name: format!("CPU {name}"), file, wraps }) as Box<dyn Source>)
    };
    let mut found: Vec<Box<dyn Source>> = Vec::new();
    for source in folders.into_iter().filter_map(package) {
        // Newer kernels show a package by two interfaces.
        if !found.iter().any(|known| known.name() == source.name()) {
            found.push(source);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(readings: &[(Reading, u64)]) -> f64 {
        let mut sum = Sum::default();
        for &(reading, milliseconds) in readings {
            sum.add(reading, Duration::from_millis(milliseconds));
        }
        sum.joules
    }

    #[test]
    fn power_is_added_up_and_counters_are_subtracted() {
        let watts = Reading::Watts;
        // Half a second from 100 to 200 W, then two of 200 W.
        assert_eq!(sum(&[(watts(100.0), 0), (watts(200.0), 500), (watts(200.0), 2500)]), 75.0 + 400.0);
        assert_eq!(sum(&[(watts(100.0), 9000)]), 0.0);
        let joules = |count, wraps| Reading::Joules { count, wraps };
        assert_eq!(sum(&[(joules(5000.0, None), 0), (joules(5010.5, None), 100)]), 10.5);
        let wraps = Some(262_144.0);
        assert_eq!(
            sum(&[(joules(262_140.0, wraps), 0), (joules(6.0, wraps), 100), (joules(8.0, wraps), 200)]),
            12.0
        );
        // A driver that was loaded again has forgotten.
        assert_eq!(sum(&[(joules(500.0, None), 0), (joules(2.0, None), 100), (joules(3.0, None), 200)]), 1.0);
    }

    /// What a GPU said, call after call; the last is repeated.
    struct Recorded {
        energy: Mutex<Vec<Result<u64, NvmlError>>>,
        power: Mutex<Vec<Result<u32, NvmlError>>>,
    }

    impl Recorded {
        fn new(energy: Vec<Result<u64, NvmlError>>, power: Vec<Result<u32, NvmlError>>) -> Self {
            Self { energy: Mutex::new(energy), power: Mutex::new(power) }
        }
    }

    fn next<T>(list: &Mutex<Vec<T>>) -> T {
        list.lock().unwrap().remove(0)
    }

    impl Gpu for Recorded {
        fn name(&self) -> String {
            "GPU 0 NVIDIA A10G".into()
        }

        fn total_energy(&self) -> Result<u64, NvmlError> {
            next(&self.energy)
        }

        fn power(&self) -> Result<u32, NvmlError> {
            next(&self.power)
        }
    }

    #[test]
    fn a_gpu_is_measured_by_its_counter_or_else_by_its_power() {
        let gpu = Recorded::new(vec![Ok(81_000_000), Ok(81_000_500)], Vec::new());
        let mut source = GpuSource::new(gpu).unwrap();
        assert_eq!(source.name(), "GPU 0 NVIDIA A10G (NVML energy counter)");
        assert_eq!(source.read(), Ok(Reading::Joules { count: 81_000.5, wraps: None }));

        let gpu = Recorded::new(
            vec![Err(NvmlError::NotSupported)],
            vec![Ok(61_500), Ok(150_250), Err(NvmlError::GpuLost)],
        );
        let mut source = GpuSource::new(gpu).unwrap();
        assert_eq!(source.name(), "GPU 0 NVIDIA A10G (NVML power, every 100 ms)");
        assert_eq!(source.read(), Ok(Reading::Watts(150.25)));
        assert!(source.read().is_err());

        let gpu = Recorded::new(vec![Err(NvmlError::NotSupported)], vec![Err(NvmlError::NoPermission)]);
        assert!(GpuSource::new(gpu).err().unwrap().contains("neither energy nor power"));
    }

    struct Rising(f64);

    impl Source for Rising {
        fn name(&self) -> String {
            "rising".into()
        }

        fn read(&mut self) -> Result<Reading, String> {
            self.0 += 2.0;
            if self.0 > 1e6 { Err("gone".into()) } else { Ok(Reading::Joules { count: self.0, wraps: None }) }
        }
    }

    #[test]
    fn a_meter_tells_what_was_taken_in_between_and_what_has_failed() {
        let meter = Meter::new(vec![Box::new(Rising(100.0)), Box::new(Rising(0.0))]);
        let before = meter.read().unwrap();
        let after = meter.read().unwrap();
        let parts = between(&before, &after);
        assert_eq!(parts.len(), 2);
        assert!(parts.iter().all(|part| part.joules >= 2.0 && part.source == "rising"), "{parts:?}");
        drop(meter);
        let error = Meter::new(vec![Box::new(Rising(1e6))]).read().unwrap_err();
        assert_eq!(error, "rising: gone");
    }

    #[test]
    fn packages_are_found_once_and_parts_of_them_are_not() {
        let root = tempfile::TempDir::new().unwrap();
        for (folder, name, energy) in [
            ("intel-rapl:0", "package-0", Some("5000000")),
            ("intel-rapl:0:0", "core", Some("3000000")),
            ("intel-rapl:1", "package-1", None),
            ("intel-rapl-mmio:0", "package-0", Some("5000000")),
            ("intel-rapl:2", "psys", Some("9000000")),
        ] {
            let folder = root.path().join(folder);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("name"), format!("{name}\n")).unwrap();
            fs::write(folder.join("max_energy_range_uj"), "262143328850\n").unwrap();
            if let Some(energy) = energy {
                fs::write(folder.join("energy_uj"), energy).unwrap();
            }
        }
        let mut found = packages_below(root.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name(), "CPU package-0 (RAPL)");
        assert_eq!(found[0].read(), Ok(Reading::Joules { count: 5.0, wraps: Some(262_143.328_85) }));
        assert!(packages_below(&root.path().join("none")).is_empty());
    }
}
