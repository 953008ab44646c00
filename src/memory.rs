//! How memory is shared out among models and their parts before anything is served.

mod gpus;

use std::{fmt, fs, path::Path, str::FromStr};

use percept_models::{MediaSize, Outline, Task};

pub use self::gpus::{GPUS, Gpu, GpuMemory};

use crate::engine::{EngineConfig, Largest, Limits};

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
    /// Most requests that wait.
    pub queue: usize,
    /// Rows of a page.
    pub page_size: usize,
}

/// What a model needs of the memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Of its network.
    pub weights: u64,
    /// Of a step's activations; see [`Candidate::workspace`].
    pub workspace: u64,
    /// Of the smallest caches that are useful.
    pub least: u64,
    /// Of the largest caches that are useful.
    pub useful: u64,
}

/// What a model needs, and what single things take of its caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// All of it.
    pub need: Need,
    /// Bytes of a token: its keys and values.
    pub token: u64,
    /// Rows of a picture of 1024x1024, or of a window of sound.
    pub medium: usize,
    /// Bytes of these rows: keys and values, and where they are text, encoded rows.
    pub medium_bytes: u64,
    /// Tokens of prompt and answer together, as wanted and as far as the model goes.
    pub context: usize,
}

/// What one model gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Of the network.
    pub weights: u64,
    /// Of a step's activations; see [`Candidate::workspace`].
    pub workspace: u64,
    /// Of encoded media.
    pub encoder_cache: u64,
    /// Of keys and values.
    pub kv_cache: u64,
    /// Its share of the budget: no less than all of these together.
    pub share: u64,
    /// How many ordinary requests find room at once: a picture of 1024x1024 and [`ORDINARY_TEXT`] tokens, or a window of
    /// sound and its text.
    pub at_once: usize,
    /// Sizes that follow.
    pub engine: EngineConfig,
}

/// Why models do not fit. The figures are of all models together.
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

/// Whether weights of these sizes may be read.
///
/// # Errors
/// When they exceed the budget together.
pub fn check_weights(budget: u64, weights: &[u64]) -> Result<(), TooLittle> {
    let weights = sum(weights.iter().copied());
    if weights > budget { Err(TooLittle::Weights { weights, budget }) } else { Ok(()) }
}

/// Shares out `budget` bytes. Everyone gets weights, workspace and what caches are useful. Where that is too much,
/// caches shrink in proportion to what would be useful, but none below the least.
///
/// # Errors
/// When not even the least fits.
pub fn share(budget: u64, needs: &[Need]) -> Result<Vec<u64>, TooLittle> {
    let of = |part: fn(&Need) -> u64| sum(needs.iter().map(part));
    let (weights, workspace) = (of(|need| need.weights), of(|need| need.workspace));
    let left = budget.saturating_sub(weights).saturating_sub(workspace);
    let cache = of(|need| need.least);
    if cache > left || sum([weights, workspace]) > budget {
        return Err(TooLittle::Cache { weights, workspace, cache, budget });
    }
    let caches = share_caches(left, needs);
    Ok(needs.iter().zip(caches).map(|(need, cache)| need.weights + need.workspace + cache).collect())
}

/// The caches' bytes out of `left`, which is enough for the least of each.
fn share_caches(left: u64, needs: &[Need]) -> Vec<u64> {
    let mut caches: Vec<Option<u64>> = vec![None; needs.len()];
    // Those whose part would be too small get the least, which makes the others' parts smaller, and so on.
    loop {
        let open = |index: &usize| caches[*index].is_none();
        let left = left - caches.iter().flatten().sum::<u64>();
        let useful = sum((0..needs.len()).filter(open).map(|index| needs[index].useful));
        let part = |need: &Need| match left >= useful {
            true => need.useful,
            // No more than `left`, as nobody's useful is more than all of them.
            false => (u128::from(left) * u128::from(need.useful) / u128::from(useful)) as u64,
        };
        let parts: Vec<(usize, u64)> =
            (0..needs.len()).filter(open).map(|index| (index, part(&needs[index]))).collect();
        let small = parts.iter().filter(|(index, part)| *part < needs[*index].least);
        let small: Vec<usize> = small.map(|(index, _)| *index).collect();
        for &index in &small {
            caches[index] = Some(needs[index].least);
        }
        if small.is_empty() {
            for (index, part) in parts {
                caches[index] = Some(part);
            }
            return caches.into_iter().flatten().collect();
        }
    }
}

/// Figures of broken files may be of any size.
fn sum(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}

/// The smallest context that is worth starting with.
const LEAST_CONTEXT: usize = 256;

/// Tokens of an ordinary question about a picture and its answer.
pub const ORDINARY_TEXT: usize = 500;

/// A model, what it should be able to do, and how many ids its tokenizer has.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// The model, loaded or not.
    pub loaded: &'a Outline,
    /// Ids of its tokenizer.
    pub vocabulary: usize,
    /// What it should be able to do at once.
    pub wanted: &'a Wanted,
    /// Most rows of a step, unless more are needed.
    pub rows: usize,
    /// Bytes of the activations of its largest step, where they were measured; else they are estimated.
    pub workspace: Option<u64>,
}

/// Shares out `budget` bytes among models.
///
/// # Errors
/// When there is not enough for one short request to each.
pub fn plan(budget: u64, models: &[Candidate<'_>]) -> Result<Vec<Plan>, TooLittle> {
    let sizes: Vec<Sizes> = models.iter().map(Sizes::of).collect();
    let shares = share(budget, &sizes.iter().map(Sizes::need).collect::<Vec<_>>())?;
    Ok(sizes.iter().zip(shares).map(|(sizes, share)| sizes.plan(share)).collect())
}

/// How large a model's steps may become, with pictures of so many pixels, in a memory of `budget` bytes: what attention keeps
/// of a step goes by the longest text that may be in the cache.
pub fn largest(model: &Candidate<'_>, pixels: usize, budget: u64) -> Largest {
    let Sizes { sequences, rows, context, page_size, weights, text_row, .. } = Sizes::of(model);
    let room = budget.saturating_sub(weights).checked_div(text_row);
    let context = room.map_or(context, |rows| context.min(rows.max(1) as usize));
    Largest { sequences, rows, context, page_size, pixels }
}

/// What a model needs, whatever there is.
pub fn demand(model: &Candidate<'_>) -> Demand {
    let sizes = Sizes::of(model);
    Demand {
        need: sizes.need(),
        token: sizes.text_row,
        medium: sizes.medium + sizes.memory,
        medium_bytes: sizes.medium_bytes() + (sizes.medium + sizes.memory) as u64 * sizes.text_row,
        context: sizes.context,
    }
}

/// What the parts of a model take.
struct Sizes {
    sequences: usize,
    /// Of a step.
    rows: usize,
    context: usize,
    page_size: usize,
    queue: usize,
    vocabulary: usize,
    /// Rows of a picture of ordinary size; a model may give larger ones more.
    medium: usize,
    /// Rows that a sequence attends to besides its text: a window's, or a picture's of ordinary size.
    memory: usize,
    /// Whether every sequence does.
    speech: bool,
    /// Whether sequences end with the step that computes them, so that nothing is kept of them.
    embeds: bool,
    /// Rows of text of an ordinary request.
    text: usize,
    weights: u64,
    workspace: u64,
    /// Bytes of a row of text, and of one of a medium.
    text_row: u64,
    media_row: u64,
}

impl Sizes {
    fn of(candidate: &Candidate<'_>) -> Self {
        let Candidate { loaded, vocabulary, wanted, rows, workspace } = *candidate;
        let element = loaded.dtype.size_in_bytes() as u64;
        let sequences = wanted.sequences.max(1);
        let most = loaded.task.context();
        let speech = matches!(loaded.task, Task::Transcribe(_));
        let (embeds, filled) = match &loaded.task {
            Task::Embed(info) => (true, info.filler.is_some()),
            Task::Chat(_) | Task::Transcribe(_) => (false, false),
        };
        // A window's text has a natural length; less than the model's context would cut it off. So do texts that are
        // filled up to it.
        let context = wanted.context.filter(|_| !speech && !filled).unwrap_or(most).min(most);
        let ordinary = if speech { MediaSize::Sound } else { MediaSize::Image { width: 1024, height: 1024 } };
        // No network refuses a square.
        let footprint = |size| loaded.preprocess.footprint(size).ok();
        let (medium, memory) = footprint(ordinary).map_or((0, 0), |needs| (needs.tokens.len(), needs.memory));
        // Networks that take pictures in their own resolution have a limit of their own.
        let huge = footprint(MediaSize::HUGE).filter(|_| !speech);
        let largest = huge.map_or(medium, |needs| needs.tokens.len()).clamp(medium, context.max(medium));
        // A transcript whose words are timed is computed, and has its logits, in one step; so is what becomes a vector,
        // without logits.
        let (whole, wanted_logits) = match (speech, embeds) {
            (true, _) => (context, sequences.max(context)),
            (_, true) => (context.max(medium), 0),
            _ => (0, sequences),
        };
        let rows = rows.max(sequences + whole);
        // A dozen intermediate tensors of a layer are alive at once at most, the widest four times the width;
        // logits are f32 and copied once. The encoder's are gone before the decoder's come.
        let decoder =
            24 * rows as u64 * loaded.width as u64 * element + 8 * (wanted_logits * vocabulary) as u64;
        let encoder = (rows + largest).max(memory) as u64 * loaded.encoder_row as u64 * element;
        Self {
            sequences,
            rows,
            context,
            page_size: wanted.page_size,
            queue: wanted.queue,
            vocabulary,
            medium,
            memory,
            speech,
            embeds,
            text: if embeds {
                context.max(medium)
            } else if speech {
                context
            } else {
                medium + ORDINARY_TEXT
            },
            weights: loaded.weight_bytes,
            workspace: workspace.unwrap_or(decoder.max(encoder)),
            text_row: loaded.cache_shape.row_bytes(loaded.dtype) as u64,
            // A memory's rows are in the cache itself.
            media_row: if memory > 0 || embeds && medium == 0 { 0 } else { loaded.width as u64 * element },
        }
    }

    fn least_context(&self) -> usize {
        // A model that sees must be able to see something.
        if self.speech || self.embeds {
            self.context
        } else {
            (LEAST_CONTEXT + self.medium).min(self.context)
        }
    }

    /// Every row may come from a picture; one in eight more is kept for pictures that come again, at least one
    /// picture's.
    fn page_bytes(&self) -> u64 {
        self.page_size as u64 * (self.text_row + self.media_row + self.media_row.div_ceil(8))
    }

    fn medium_bytes(&self) -> u64 {
        self.medium as u64 * self.media_row
    }

    /// Encoded rows that what becomes vectors can hold: a step's, and as many as one picture's of those that come again.
    fn embedded_rows(&self) -> (usize, usize) {
        (self.rows, self.medium.max(self.rows / 8))
    }

    fn need(&self) -> Need {
        if self.embeds {
            let (held, spare) = self.embedded_rows();
            let caches = (held + spare) as u64 * self.media_row;
            return Need { weights: self.weights, workspace: self.workspace, least: caches, useful: caches };
        }
        let cache = |pages: usize| self.medium_bytes() + pages as u64 * self.page_bytes();
        let memory = self.memory.div_ceil(self.page_size);
        // What follows a first attempt finds its memory where it was, though others came in between.
        let spare = memory * self.sequences.div_ceil(8);
        Need {
            weights: self.weights,
            workspace: self.workspace,
            least: cache(self.least_context().div_ceil(self.page_size) + memory),
            useful: cache(self.sequences * (self.context.div_ceil(self.page_size) + memory) + spare),
        }
    }

    /// The plan for a share that is at least the least.
    fn plan(&self, share: u64) -> Plan {
        if self.embeds {
            return self.embedding_plan(share);
        }
        let left = share.saturating_sub(self.weights + self.workspace + self.medium_bytes());
        let pages = (left / self.page_bytes()) as usize;
        let slots = pages * self.page_size;
        // A text without pictures may have it all; beside pictures there is less room.
        let taken = if self.speech { self.memory.next_multiple_of(self.page_size) } else { 0 };
        let spare = slots.div_ceil(8).max(self.medium);
        let context = self.context.min(slots - taken);
        let ordinary = self.text.div_ceil(self.page_size) + self.memory.div_ceil(self.page_size);
        let limits = Limits {
            sequences: self.sequences,
            rows: self.rows,
            chunk: self.rows,
            encoded: slots,
            spare,
            encode: self.rows,
        };
        Plan {
            weights: self.weights,
            workspace: self.workspace,
            encoder_cache: (slots + spare) as u64 * self.media_row,
            kv_cache: slots as u64 * self.text_row,
            share,
            at_once: if self.text > context { 0 } else { (pages / ordinary.max(1)).min(self.sequences) },
            engine: EngineConfig {
                limits,
                pages,
                page_size: self.page_size,
                queue: self.queue,
                context,
                vocabulary: self.vocabulary,
                look_ahead: false,
            },
        }
    }
}

impl Sizes {
    /// The plan of a model whose sequences leave nothing behind. Its pages have no bytes: they only count rows, and there
    /// are as many as all sequences can have.
    fn embedding_plan(&self, share: u64) -> Plan {
        let (held, spare) = self.embedded_rows();
        let each = (self.text + 1).div_ceil(self.page_size);
        // The scheduler keeps some free for those that run.
        let pages = self.sequences * (each + 1);
        let limits = Limits {
            sequences: self.sequences,
            rows: self.rows,
            chunk: self.rows,
            encoded: held,
            spare,
            encode: self.rows,
        };
        Plan {
            weights: self.weights,
            workspace: self.workspace,
            encoder_cache: (held + spare) as u64 * self.media_row,
            kv_cache: 0,
            share,
            at_once: self.sequences,
            engine: EngineConfig {
                limits,
                pages,
                page_size: self.page_size,
                queue: self.queue,
                context: self.context,
                vocabulary: self.vocabulary,
                look_ahead: false,
            },
        }
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
    use candle_core::DType;
    use percept_models::Checkpoint;
    use proptest::prelude::*;

    use super::*;

    fn need(weights: u64, workspace: u64, least: u64, useful: u64) -> Need {
        Need { weights, workspace, least, useful }
    }

    #[test]
    fn caches_shrink_in_proportion_and_none_below_the_least() {
        let (large, small) = (need(1000, 100, 50, 3000), need(200, 20, 50, 100));
        let check = |budget, expected: [u64; 2]| {
            let shares = share(budget, &[large, small]).unwrap();
            assert_eq!([shares[0] - 1100, shares[1] - 220], expected, "{budget}");
        };
        check(1 << 40, [3000, 100]);
        check(1320 + 3100, [3000, 100]);
        check(1320 + 2480, [2400, 80]);
        check(1320 + 1550, [1500, 50]);
        // From here on the small one has the least, and the large one what is left.
        check(1320 + 1000, [950, 50]);
        check(1320 + 100, [50, 50]);
        let too_little = TooLittle::Cache { weights: 1200, workspace: 120, cache: 100, budget: 1419 };
        assert_eq!(share(1419, &[large, small]), Err(too_little));
        assert_eq!(check_weights(1200, &[1000, 200]), Ok(()));
        assert_eq!(
            check_weights(1199, &[1000, 200]),
            Err(TooLittle::Weights { weights: 1200, budget: 1199 })
        );
        assert!(check_weights(u64::MAX - 1, &[u64::MAX, 1]).is_err());
        assert!(share(u64::MAX - 1, &[need(u64::MAX, 1, 0, 0)]).is_err());
        assert_eq!(share(0, &[]), Ok(Vec::new()));
    }

    #[test]
    fn what_was_measured_counts_and_no_text_is_longer_than_the_memory() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llava");
        let outline = percept_models::outline(&Checkpoint::new(folder), DType::F32, None).unwrap();
        let wanted = Wanted { context: None, sequences: 4, queue: 4, page_size: 16 };
        let candidate =
            |workspace| Candidate { loaded: &outline, vocabulary: 500, wanted: &wanted, rows: 64, workspace };
        let workspace = |measured| demand(&candidate(measured)).need.workspace;
        assert_eq!((workspace(Some(7)), workspace(None) > 7), (7, true));

        let context = |budget| largest(&candidate(None), 100, budget).context;
        let row = outline.cache_shape.row_bytes(DType::F32) as u64;
        assert_eq!(context(u64::MAX), outline.task.context());
        assert_eq!(context(outline.weight_bytes + 100 * row + row / 2), 100);
        assert_eq!(context(0), 1);
    }

    prop_compose! {
        fn any_need()(weights in 0..10_000_u64, workspace in 0..1000_u64, least in 0..500_u64, more in 0..9000_u64)
            -> Need {
            need(weights, workspace, least, least + more)
        }
    }

    proptest! {
        #[test]
        fn shares_are_fair(needs in proptest::collection::vec(any_need(), 1..7), part in 0.0..1.2_f64) {
            let fixed = |need: &Need| need.weights + need.workspace;
            let least: u64 = needs.iter().map(|need| fixed(need) + need.least).sum();
            let useful: u64 = needs.iter().map(|need| fixed(need) + need.useful).sum();
            let budget = least + ((useful - least) as f64 * part) as u64;
            let shares = share(budget, &needs).unwrap();

            let used: u64 = shares.iter().sum();
            prop_assert!(used <= budget);
            // Nothing is left over that would be useful, but for rounding.
            prop_assert!(used + needs.len() as u64 > budget.min(useful));
            let caches: Vec<u64> = needs.iter().zip(&shares).map(|(need, share)| share - fixed(need)).collect();
            for (need, &cache) in needs.iter().zip(&caches) {
                prop_assert!(need.least <= cache && cache <= need.useful);
            }
            for (a, &cache_a) in needs.iter().zip(&caches).filter(|(need, cache)| **cache > need.least) {
                for (b, &cache_b) in needs.iter().zip(&caches) {
                    // Nobody has a larger part than one who has more than the least; rounded down both.
                    prop_assert!(cache_a * b.useful < (cache_b + 1) * a.useful);
                }
            }
            let backwards: Vec<Need> = needs.iter().rev().copied().collect();
            let mut reversed = share(budget, &backwards).unwrap();
            reversed.reverse();
            prop_assert_eq!(reversed, shares);
            prop_assert!(least == 0 || share(least - 1, &needs).is_err());
        }

        #[test]
        fn one_model_has_everything_that_it_can_use(need in any_need(), more in 0..10_000_u64) {
            let fixed = need.weights + need.workspace;
            let budget = fixed + need.least + more;
            prop_assert_eq!(share(budget, &[need]), Ok(vec![budget.min(fixed + need.useful)]));
        }
    }

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
