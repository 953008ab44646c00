//! How memory is shared out before anything is served.

use std::{fmt, fs, path::Path, str::FromStr};

use percept_models::{Loaded, MediaSize};

use crate::engine::{EngineConfig, Limits};

/// How much memory percept may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// A share of what is free at the start.
    Share(f64),
    /// So many bytes.
    Bytes(u64),
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(Self::Share(share)),
            _ => parse_bytes(text).map(Self::Bytes).map_err(|_| {
                format!(
                    "{text} is neither a share above 0 and up to 1, such as 0.8, nor a size such as 20GiB"
                )
            }),
        }
    }
}

/// Reads a number of bytes, such as `20000000`, `20MB` (powers of 1000) or `20MiB` (powers of 1024).
///
/// # Errors
/// When it is none.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000_u64.pow(2),
        "g" | "gb" => 1000_u64.pow(3),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("{text} is not a size such as 20MB or 4GiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text} is not a size such as 20MB or 4GiB"))?;
    Ok((number * factor as f64) as u64)
}

/// What an engine should be able to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Most tokens of prompt and answer together; the model's own limit where it is absent.
    pub context: Option<usize>,
    /// Most sequences at once.
    pub sequences: usize,
    /// Most rows of a step.
    pub rows: usize,
    /// Most requests that wait.
    pub queue: usize,
    /// Rows of a page.
    pub page_size: usize,
}

/// The shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Of the network.
    pub weights: u64,
    /// Of a step's activations; an estimate.
    pub workspace: u64,
    /// Of encoded media.
    pub encoder_cache: u64,
    /// Of keys and values.
    pub kv_cache: u64,
    /// All there is.
    pub budget: u64,
    /// Sizes that follow.
    pub engine: EngineConfig,
}

/// Why a model does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLittle {
    /// The weights alone are too much. They were not read.
    #[error(
        "the memory does not suffice: the weights take {}, and {} may be used; give more with --memory, or halve f32 \
         with --dtype bf16",
        Bytes(*weights), Bytes(*budget)
    )]
    Weights {
        /// Bytes of the weights.
        weights: u64,
        /// Bytes there are.
        budget: u64,
    },
    /// There is no room to work.
    #[error(
        "the memory does not suffice: weights {}, workspace {} and the smallest useful cache {} make {}, and {} may \
         be used; give more with --memory, or lower --step-rows or --max-sequences",
        Bytes(*weights), Bytes(*workspace), Bytes(*cache), Bytes(weights + workspace + cache), Bytes(*budget)
    )]
    Cache {
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of a step's activations.
        workspace: u64,
        /// Bytes of the smallest useful cache.
        cache: u64,
        /// Bytes there are.
        budget: u64,
    },
}

/// The smallest context that is worth starting with.
const LEAST_CONTEXT: usize = 256;

impl Plan {
    /// Shares out `budget` bytes for a loaded model whose tokenizer has `vocabulary` ids.
    ///
    /// # Errors
    /// When there is not enough for even one short conversation.
    pub fn new(loaded: &Loaded, vocabulary: usize, budget: u64, wanted: &Wanted) -> Result<Self, TooLittle> {
        let element = loaded.dtype.size_in_bytes() as u64;
        let sequences = wanted.sequences.max(1);
        let rows = wanted.rows.max(sequences);
        // Of a picture of ordinary size; a model may give larger ones more rows.
        let medium = loaded.preprocess.footprint(MediaSize::Image { width: 1024, height: 1024 }).tokens.len();
        // A dozen intermediate tensors of a layer are alive at once at most, the widest four times the width;
        // logits are f32 and copied once. The encoder's are gone before the decoder's come.
        let decoder = 24 * rows as u64 * loaded.width as u64 * element + 8 * (sequences * vocabulary) as u64;
        let encoder = (rows + medium) as u64 * loaded.encoder_row as u64 * element;
        let workspace = decoder.max(encoder);
        let text_row = loaded.model.cache_shape().row_bytes(loaded.dtype) as u64;
        let media_row = loaded.width as u64 * element;
        let page = wanted.page_size as u64;
        // Every row may come from a picture; one in eight more is kept for pictures that come again, at least one
        // picture's.
        let page_bytes = page * (text_row + media_row + media_row.div_ceil(8));
        let context = wanted.context.unwrap_or(loaded.task.context()).min(loaded.task.context());
        let medium_bytes = medium as u64 * media_row;
        let left = budget.saturating_sub(loaded.weight_bytes + workspace + medium_bytes);
        let useful = (sequences * context.div_ceil(wanted.page_size)) as u64;
        let pages = (left / page_bytes).min(useful) as usize;
        if pages * wanted.page_size < LEAST_CONTEXT.min(context) {
            return Err(TooLittle::Cache {
                weights: loaded.weight_bytes,
                workspace,
                cache: LEAST_CONTEXT.min(context).div_ceil(wanted.page_size) as u64 * page_bytes
                    + medium_bytes,
                budget,
            });
        }
        let slots = pages * wanted.page_size;
        let spare = slots.div_ceil(8).max(medium);
        let limits = Limits { sequences, rows, chunk: rows, encoded: slots, spare, encode: rows };
        Ok(Self {
            weights: loaded.weight_bytes,
            workspace,
            encoder_cache: (slots + spare) as u64 * media_row,
            kv_cache: slots as u64 * text_row,
            budget,
            engine: EngineConfig {
                limits,
                pages,
                page_size: wanted.page_size,
                queue: wanted.queue,
                context: context.min(slots),
                vocabulary,
            },
        })
    }
}

impl Budget {
    /// The budget in bytes, of `free` bytes.
    pub fn bytes(self, free: u64) -> u64 {
        match self {
            Self::Share(share) => (free as f64 * share) as u64,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Memory that can be taken without swapping, in bytes: of the machine, and of the container if it has less.
pub fn free_memory() -> u64 {
    const OTHERWISE: u64 = 4 << 30;
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let machine = kib.map_or(OTHERWISE, |kib| kib * 1024);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_memory(&groups, Path::new("/sys/fs/cgroup")).map_or(machine, |group| group.min(machine))
}

/// What the control groups of a process leave it, where they limit it: version 2, and version 1's memory controller
/// (<https://docs.kernel.org/admin-guide/cgroup-v2.html>). `groups` is `/proc/self/cgroup`.
fn group_memory(groups: &str, root: &Path) -> Option<u64> {
    let number =
        |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    // Files that are cached count as used, and are given up when memory is short.
    let cached = |folder: &Path, key: &str| {
        let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
        stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
    };
    let room = |folder: &Path, limit: &str, used: &str, inactive: &str| {
        let used = number(folder, used)?.saturating_sub(cached(folder, inactive).unwrap_or(0));
        Some(number(folder, limit)?.saturating_sub(used))
    };
    let line = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let version_1 = controllers.split(',').any(|controller| controller == "memory");
        let base = match (controllers, version_1) {
            ("", _) => root.to_owned(),
            (_, true) => root.join("memory"),
            _ => return None,
        };
        let own = base.join(path.trim_start_matches('/'));
        // A limit anywhere above counts as well; inside a container the path may be the host's, which is not there.
        let above = own.ancestors().take_while(|folder| folder.starts_with(&base));
        let rooms = above.filter_map(|folder| match version_1 {
            true => room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
            false => room(folder, "memory.max", "memory.current", "inactive_file "),
        });
        rooms.min()
    };
    groups.lines().filter_map(line).min()
}

/// A number of bytes for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        let mut size = self.0 as f64;
        let mut unit = "B";
        for next in UNITS {
            if size < 1024.0 {
                break;
            }
            size /= 1024.0;
            unit = next;
        }
        if unit == "B" { write!(formatter, "{size} B") } else { write!(formatter, "{size:.1} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_have_less_than_its_machine() {
        let root = tempfile::TempDir::new().unwrap();
        let write = |file: &str, text: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let room = |groups: &str| group_memory(groups, root.path());
        assert_eq!(room("0::/\n"), None, "no limit");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "500\n");
        assert_eq!(room("0::/a/b\n"), None, "no limit");
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 400\nactive_file 50\ninactive_file 250\n");
        assert_eq!(
            room("0::/a/b\n"),
            Some(550),
            "the limit of the group above, less what is not only cached"
        );
        write("memory/c/memory.limit_in_bytes", "900\n");
        write("memory/c/memory.usage_in_bytes", "1000\n");
        assert_eq!(room("5:cpu:/c\n4:memory,hugetlb:/c\n0::/a\n"), Some(0), "the stricter of two");
        write("memory.max", "2000\n");
        write("memory.current", "100\n");
        assert_eq!(room("0::/not/there\n"), Some(1900), "a container sees its own group as the root");
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in
            [("20", 20), ("20MB", 20_000_000), ("1.5 GiB", 3 << 29), ("4kib", 4096), ("7g", 7_000_000_000)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "1TB2", "-1", "ten"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!("0.5".parse(), Ok(Budget::Share(0.5)));
        assert_eq!("1".parse(), Ok(Budget::Share(1.0)));
        assert_eq!("2GiB".parse(), Ok(Budget::Bytes(2 << 30)));
        assert!("0".parse::<Budget>().is_ok_and(|budget| budget == Budget::Bytes(0)));
        assert!("1.5x".parse::<Budget>().is_err());
        assert_eq!(Bytes(13_300_000_000).to_string(), "12.4 GiB");
        assert_eq!(Bytes(12).to_string(), "12 B");
    }
}
