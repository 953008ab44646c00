//! On what, and by what, figures were measured.

use std::{fs, num::NonZero, thread, time::Duration};

use serde::{Deserialize, Serialize};

use super::energy;

/// The program that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// `percept`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The commit that it was built from, where that is known.
    pub commit: Option<String>,
    /// Whether the compiler took its time; figures of other builds mean nothing.
    pub optimised: bool,
}

impl Program {
    /// This one.
    pub fn this() -> Self {
        Self {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("PERCEPT_BUILT_FROM").map(str::to_owned),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// The machine that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its processor.
    pub cpu: String,
    /// How many of them the program may use.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Its kernel.
    pub kernel: String,
    /// Its NVIDIA GPUs.
    pub gpus: Vec<GpuModel>,
    /// The version of their driver.
    pub driver: Option<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuModel {
    /// What it is sold as.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let kib = field(&memory, "MemTotal").and_then(|kib| kib.strip_suffix(" kB")?.parse::<u64>().ok());
        let (gpus, driver) = gpus().unwrap_or_default();
        Self {
            cpu: field(&cpu, "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cpus: thread::available_parallelism().map_or(1, NonZero::get),
            memory: kib.unwrap_or(0) * 1024,
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            gpus,
            driver,
        }
    }
}

/// NVIDIA's GPUs and driver, where there are any.
fn gpus() -> Option<(Vec<GpuModel>, Option<String>)> {
    let nvml = energy::nvml().ok()?;
    let gpu = |index| {
        let device = nvml.device_by_index(index).ok()?;
        Some(GpuModel {
            name: device.name().ok()?,
            memory: device.memory_info().map_or(0, |memory| memory.total),
        })
    };
    let gpus = (0..nvml.device_count().ok()?).filter_map(gpu).collect();
    Some((gpus, nvml.sys_driver_version().ok()))
}

/// Time that processors have spent on this process so far.
pub fn cpu_time() -> Duration {
    parse_cpu_time(&fs::read_to_string("/proc/self/stat").unwrap_or_default()).unwrap_or_default()
}

/// The sum of user and system time of `/proc/PID/stat`, which counts hundredths of a second on every kernel that
/// programs of this century see: <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>.
fn parse_cpu_time(stat: &str) -> Option<Duration> {
    // A name may have spaces and brackets in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (next()? + next()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 135 0 0 0 250 31 9 9 20 0 1 0 100 0 0";
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_millis(2810)));
        assert_eq!(parse_cpu_time("7 (a"), None);
        assert!(fs::read_to_string("/proc/self/stat").is_ok_and(|stat| parse_cpu_time(&stat).is_some()));
    }

    #[test]
    fn this_machine_and_program_are_known() {
        let machine = Machine::this();
        assert!(!machine.cpu.is_empty() && machine.cpus > 0 && machine.memory > 1 << 20, "{machine:?}");
        assert_eq!(Program::this().version, env!("CARGO_PKG_VERSION"));
    }
}
