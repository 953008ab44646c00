//! How the CUDA versions are launched: kernel, grid, shared memory and arguments, worked out without a device.
//!
//! What a GPU gets and what the emulation in the tests gets are the same values. Addresses are plain numbers here;
//! whoever launches answers for them.

use candle_core::{Result, bail};

use crate::{
    activation::Activation,
    log_mel::MelBank,
    resize::{Axis, Resize},
};

mod alignment;
mod sample;

pub use alignment::Alignment;
pub use sample::{MOST_IDS, Sampling, probabilities, wanted_probabilities};

/// An element type, as the names of kernels spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32 bits.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// Of device memory; null is 0.
    Address(u64),
    /// `unsigned`.
    U32(u32),
    /// `int`.
    I32(i32),
    /// `float`.
    F32(f32),
}

impl Argument {
    /// Bytes of the kernel's parameter.
    #[must_use]
    pub fn size(self) -> usize {
        if matches!(self, Self::Address(_)) { 8 } else { 4 }
    }

    /// The value, in the first [`Self::size`] bytes of a little-endian word.
    #[must_use]
    pub fn word(self) -> u64 {
        match self {
            Self::Address(address) => address,
            Self::U32(value) => u64::from(value),
            Self::I32(value) => u64::from(value.cast_unsigned()),
            Self::F32(value) => u64::from(value.to_bits()),
        }
    }
}

/// One launch, as `cuLaunchKernel` takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// In the order of the kernel's parameters.
    pub arguments: Vec<Argument>,
}

/// Rows that may lie apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Of the first element.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
}

use Argument::{Address, F32, I32, U32};

/// A size as a kernel takes it, which is an `int` there.
fn int(value: usize, what: &str) -> Result<Argument> {
    match i32::try_from(value) {
        Ok(value) => Ok(I32(value)),
        Err(_) => bail!("{what} {value} is more than a CUDA kernel takes"),
    }
}

/// A grid, checked against what the hardware takes.
fn grid(sizes: [usize; 3]) -> Result<[u32; 3]> {
    let most = [i32::MAX.cast_unsigned(), 65535, 65535];
    let mut grid = [0; 3];
    for axis in 0..3 {
        grid[axis] = u32::try_from(sizes[axis]).unwrap_or(u32::MAX);
        if grid[axis] > most[axis] {
            bail!("{sizes:?} is a larger grid than CUDA takes")
        }
    }
    Ok(grid)
}

fn aligned(bytes: u64, addresses: &[u64]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(bytes))
}

impl Activation {
    fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::QuickGelu => "quick_gelu",
        }
    }
}

/// Threads of a block of activation.cu, as `__launch_bounds__` says there.
const ACTIVATION_THREADS: usize = 128;

/// An activation of `count` elements; none for no elements.
///
/// # Errors
/// When there are more elements than a kernel takes.
pub fn activate(
    activation: Activation,
    element: Element,
    [out, x]: [u64; 2],
    count: usize,
) -> Result<Option<Launch>> {
    if count == 0 {
        return Ok(None);
    }
    let per_thread = per_load(element, count, &[out, x]);
    let blocks = count.div_ceil(per_thread * ACTIVATION_THREADS);
    let name = format!("activate_{}", activation.name());
    activation_launch(&name, element, [out, x], [blocks, 1, 1], (count, per_thread))
}

/// An activation of the first half of rows `[rows, 2 * width]`, times the second, to `[rows, width]`; none for no elements.
///
/// # Errors
/// When there are more rows or columns than a kernel takes.
pub fn gated(
    activation: Activation,
    element: Element,
    [out, both]: [u64; 2],
    [rows, width]: [usize; 2],
) -> Result<Option<Launch>> {
    if rows == 0 || width == 0 {
        return Ok(None);
    }
    let per_thread = per_load(element, width, &[out, both]);
    let blocks = width.div_ceil(per_thread * ACTIVATION_THREADS);
    let name = format!("gated_{}", activation.name());
    activation_launch(&name, element, [out, both], [rows, blocks, 1], (width, per_thread))
}

fn activation_launch(
    name: &str,
    element: Element,
    [out, x]: [u64; 2],
    sizes: [usize; 3],
    (count, per_thread): (usize, usize),
) -> Result<Option<Launch>> {
    let Ok(count) = u32::try_from(count) else { bail!("{count} elements are more than a CUDA kernel takes") };
    Ok(Some(Launch {
        kernel: format!("{name}_{}", element.name()),
        grid: grid(sizes)?,
        block: [ACTIVATION_THREADS as u32, 1, 1],
        shared: 0,
        arguments: vec![Address(out), Address(x), U32(count), I32(i32::from(per_thread > 1))],
    }))
}

/// Which norm, and its operands besides x: addresses of rows `[rows, width]` or of `[width]`.
#[derive(Debug, Clone, Copy)]
pub enum Norm {
    /// RMSNorm.
    Rms,
    /// RMSNorm of the rounded sum `x + residual`, which is kept.
    AddRms {
        /// `[rows, width]`, written; may be where x or residual is.
        sum: u64,
        /// `[rows, width]`.
        residual: u64,
    },
    /// LayerNorm.
    Layer {
        /// `[width]`.
        bias: u64,
    },
}

/// A norm over contiguous rows; none for no rows.
///
/// # Errors
/// When there are more rows or columns than a kernel takes.
pub fn norm(
    norm: Norm,
    element: Element,
    [out, x, weight]: [u64; 3],
    [rows, width]: [usize; 2],
    eps: f32,
) -> Result<Option<Launch>> {
    if rows == 0 {
        return Ok(None);
    }
    let (name, addresses) = match norm {
        Norm::Rms => ("rms_norm", vec![out, x, weight]),
        Norm::AddRms { sum, residual } => ("add_rms_norm", vec![out, sum, x, residual, weight]),
        Norm::Layer { bias } => ("layer_norm", vec![out, x, weight, bias]),
    };
    let per_load = per_load(element, width, &addresses);
    let loads = width / per_load;
    // A multiple of a warp, and at most what `__launch_bounds__` in norm.cu says.
    let threads = loads.next_multiple_of(32).clamp(32, 512) as u32;
    let mut arguments: Vec<_> = addresses.into_iter().map(Address).collect();
    arguments.extend([int(width, "width")?, F32(eps), I32(i32::from(per_load > 1))]);
    Ok(Some(Launch {
        kernel: format!("{name}_{}", element.name()),
        grid: grid([rows, 1, 1])?,
        block: [threads, 1, 1],
        shared: 0,
        arguments,
    }))
}

/// Copies `count` rows of `width` elements to their slots of a cache that has `cache_slots`; none for no rows.
///
/// # Errors
/// When something is larger than a kernel takes.
pub fn kv_write(
    element: Element,
    cache: u64,
    rows: Rows,
    slots: u64,
    [count, width, cache_slots]: [usize; 3],
) -> Result<Option<Launch>> {
    if count == 0 || width == 0 {
        return Ok(None);
    }
    let (row, stride) = (width * element.size(), rows.stride * element.size());
    let fits = |unit: usize| {
        row.is_multiple_of(unit)
            && stride.is_multiple_of(unit)
            && aligned(unit as u64, &[cache, rows.address])
    };
    let unit = [16, 4].into_iter().find(|&unit| fits(unit)).unwrap_or(element.size());
    let units = row / unit;
    Ok(Some(Launch {
        kernel: format!("kv_write_{unit}"),
        grid: grid([count, 1, 1])?,
        block: [units.next_multiple_of(32).clamp(32, 256) as u32, 1, 1],
        shared: 0,
        arguments: vec![
            Address(cache),
            Address(rows.address),
            Address(slots),
            int(units, "row of")?,
            int(stride / unit, "stride")?,
            int(cache_slots, "cache of")?,
        ],
    }))
}

/// Elements of a row that a thread reads at once: 16 bytes of them where width and addresses allow it, else one.
fn per_load(element: Element, width: usize, addresses: &[u64]) -> usize {
    let most = 16 / element.size();
    if width.is_multiple_of(most) && aligned(16, addresses) { most } else { 1 }
}

/// What the passes of a resize read, as [`crate::resize()`] works it out on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resampling {
    /// From left to right, every row.
    pub across: Weights,
    /// From top to bottom, every column.
    pub down: Weights,
    /// Rows of the picture that the second pass reads: the first pass makes these and no others.
    pub rows: std::ops::Range<usize>,
    /// Red, green and blue around the picture, red in the lowest byte.
    fill: i32,
}

/// What one pass reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    /// Of each output: the first input, where its weight is, how many there are, and the weight of what is around.
    pub taps: Vec<i32>,
    /// With 22 bits behind the point.
    pub weights: Vec<i32>,
}

impl Weights {
    /// Pixels that the pass makes of a line.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.taps.len() / 4
    }

    fn of(axis: &Axis) -> Result<Self> {
        let mut taps = Vec::new();
        for (numbers, outside) in axis.taps() {
            for number in numbers {
                taps.push(i32::try_from(number).map_err(candle_core::Error::wrap)?);
            }
            taps.push(outside);
        }
        Ok(Self { taps, weights: axis.all_weights().to_vec() })
    }
}

impl Resampling {
    /// Of a picture of `height` rows and `width` columns.
    ///
    /// # Errors
    /// When something is larger than a kernel takes.
    pub fn new(resize: &Resize, [height, width]: [usize; 2]) -> Result<Self> {
        let [columns, rows] = resize.axes([height, width]);
        let (first, end) = rows.reads();
        let [red, green, blue] = resize.canvas.fill.map(i32::from);
        let fill = red | green << 8 | blue << 16;
        Ok(Self { across: Weights::of(&columns)?, down: Weights::of(&rows)?, rows: first..end, fill })
    }

    /// The first pass: `image`, whose first row is `rows.start` of the picture, `[rows, width, 3]` to `out`
    /// `[rows, outputs, 3]`; none for nothing to compute. `tables`: taps and weights of [`Self::across`].
    ///
    /// # Errors
    /// When something is larger than a kernel takes.
    pub fn first(&self, [out, image]: [u64; 2], tables: [u64; 2], width: usize) -> Result<Option<Launch>> {
        let outputs = self.across.outputs();
        let arguments = vec![int(width, "width")?, int(outputs, "width")?, I32(self.fill)];
        resize_pass("across", [out, image], tables, [outputs, self.rows.len()], arguments)
    }

    /// The second pass: what the first one made to `[outputs, width, 3]`; none for nothing to compute. `tables`: taps and
    /// weights of [`Self::down`].
    ///
    /// # Errors
    /// When something is larger than a kernel takes.
    pub fn second(&self, [out, image]: [u64; 2], tables: [u64; 2]) -> Result<Option<Launch>> {
        let width = self.across.outputs();
        let arguments = vec![int(width, "width")?, int(self.rows.start, "row")?, I32(self.fill)];
        resize_pass("down", [out, image], tables, [width, self.down.outputs()], arguments)
    }
}

fn resize_pass(
    pass: &str,
    images: [u64; 2],
    tables: [u64; 2],
    [columns, rows]: [usize; 2],
    sizes: Vec<Argument>,
) -> Result<Option<Launch>> {
    const THREADS: usize = 128;
    if columns == 0 || rows == 0 {
        return Ok(None);
    }
    let mut arguments: Vec<_> = images.into_iter().chain(tables).map(Address).collect();
    arguments.extend(sizes);
    Ok(Some(Launch {
        kernel: format!("resize_{pass}"),
        grid: grid([columns.div_ceil(THREADS), rows, 1])?,
        block: [THREADS as u32, 1, 1],
        shared: 0,
        arguments,
    }))
}

/// u8 `[pixels, 3]` to f32 `[3, pixels]` by a table f32 `[3, 256]`; none for no pixels.
///
/// # Errors
/// When there are more pixels than a kernel takes.
pub fn normalise([out, image, table]: [u64; 3], pixels: usize) -> Result<Option<Launch>> {
    const THREADS: usize = 256;
    if pixels == 0 {
        return Ok(None);
    }
    Ok(Some(Launch {
        kernel: "normalise".into(),
        grid: grid([pixels.div_ceil(THREADS), 1, 1])?,
        block: [THREADS as u32, 1, 1],
        shared: 0,
        arguments: vec![Address(out), Address(image), Address(table), int(pixels, "picture of")?],
    }))
}

/// What the log-mel kernel reads besides samples.
#[derive(Debug, Clone, PartialEq)]
pub struct MelTables {
    /// The window: 400 numbers.
    pub window: Vec<f32>,
    /// `cos(2 pi j / 400)`.
    pub cosine: Vec<f32>,
    /// Of each filter: its first bin, where its weight is, and how many there are.
    pub filters: Vec<i32>,
    /// Of all filters, one after another.
    pub weights: Vec<f32>,
}

impl MelTables {
    /// Of a bank.
    #[must_use]
    pub fn new(bank: &MelBank) -> Self {
        let window = bank.window().to_vec();
        let turn = |j: usize| (2.0 * std::f64::consts::PI * j as f64 / window.len() as f64).cos() as f32;
        let cosine = (0..window.len()).map(turn).collect();
        let (mut filters, mut weights) = (Vec::new(), Vec::new());
        for (first, of_filter) in bank.filters() {
            // A bank has some hundred numbers.
            filters.extend([first as i32, weights.len() as i32, of_filter.len() as i32]);
            weights.extend_from_slice(of_filter);
        }
        Self { window, cosine, filters, weights }
    }

    /// Frames `first..first + frames` of `count` samples to f32 `[frames, mels]`; none for no frames. `tables`: addresses of
    /// window, cosine, filters and weights.
    ///
    /// # Errors
    /// When there are more than a kernel takes.
    pub fn launch(
        &self,
        [out, samples]: [u64; 2],
        tables: [u64; 4],
        [count, first, frames]: [usize; 3],
    ) -> Result<Option<Launch>> {
        // As in log_mel.cu.
        const FRAMES: usize = 4;
        let mels = self.filters.len() / 3;
        if frames == 0 || mels == 0 {
            return Ok(None);
        }
        let mut arguments: Vec<_> = [out, samples].into_iter().chain(tables).map(Address).collect();
        arguments.extend([
            int(count, "recording of")?,
            int(first, "frame")?,
            int(frames, "frames")?,
            int(mels, "filters")?,
        ]);
        Ok(Some(Launch {
            kernel: "log_mel".into(),
            grid: grid([frames.div_ceil(FRAMES), 1, 1])?,
            block: [224, 1, 1],
            shared: 0,
            arguments,
        }))
    }
}

/// A form of the linear layer, as in linear.cu. All sum in the same order, so that any will do for any number of rows.
struct LinearForm {
    name: &'static str,
    /// Rows and outputs of a block.
    tile: [usize; 2],
    warps: u32,
    /// Stages of the input in shared memory.
    stages: usize,
}

const LINEAR_FEW: LinearForm = LinearForm { name: "few", tile: [16, 32], warps: 2, stages: 8 };
const LINEAR_SOME: LinearForm = LinearForm { name: "some", tile: [64, 64], warps: 4, stages: 4 };
const LINEAR_MANY: LinearForm = LinearForm { name: "many", tile: [128, 128], warps: 8, stages: 3 };
/// Elements of the input in a stage.
const LINEAR_DEPTH: usize = 64;
/// With fewer blocks than this a GPU is not filled: about as many as it has multiprocessors.
const ENOUGH_BLOCKS: usize = 96;

impl LinearForm {
    fn of(rows: usize, output: usize) -> &'static Self {
        if rows <= LINEAR_FEW.tile[0] {
            &LINEAR_FEW
        } else if LINEAR_MANY.blocks(rows, output).iter().product::<usize>() < ENOUGH_BLOCKS {
            &LINEAR_SOME
        } else {
            &LINEAR_MANY
        }
    }

    fn blocks(&self, rows: usize, output: usize) -> [usize; 2] {
        [rows.div_ceil(self.tile[0]), output.div_ceil(self.tile[1])]
    }
}

/// Rows `x` `[rows, input]` times a weight `[output, input]` to `[rows, output]`; none for nothing to compute. `bias` is
/// `[output]`, or null.
///
/// # Errors
/// When something is larger than a kernel takes.
pub fn linear(
    element: Element,
    [y, x, weight, bias]: [u64; 4],
    [rows, input, output]: [usize; 3],
) -> Result<Option<Launch>> {
    if rows == 0 || output == 0 {
        return Ok(None);
    }
    let mut arguments = vec![
        Address(y),
        Address(x),
        Address(weight),
        Address(bias),
        int(rows, "rows")?,
        int(input, "input of")?,
        int(output, "output of")?,
    ];
    let name = element.name();
    if element == Element::F32 || !input.is_multiple_of(8) || !aligned(16, &[x, weight]) {
        let kernel = format!("linear_plain_{name}");
        let grid = grid([rows.div_ceil(64), output.div_ceil(64), 1])?;
        return Ok(Some(Launch { kernel, grid, block: [256, 1, 1], shared: 0, arguments }));
    }
    let form = LinearForm::of(rows, output);
    let [row_tiles, output_tiles] = form.blocks(rows, output);
    arguments.push(I32(i32::from(output.is_multiple_of(2) && aligned(4, &[y]))));
    Ok(Some(Launch {
        kernel: format!("linear_{}_{name}", form.name),
        grid: grid([row_tiles, output_tiles, 1])?,
        block: [32 * form.warps, 1, 1],
        shared: (form.stages * (form.tile[0] + form.tile[1]) * LINEAR_DEPTH * element.size()) as u32,
        arguments,
    }))
}

/// Positions that one block of the decode form reads.
const SPLIT: usize = 256;
/// Warps of a block, in attention.cu.
const WARPS: usize = 4;
/// Queries of a tile, and keys of one.
const TILE: usize = 64;
/// Head sizes that the tensor cores' form is compiled for.
const TILE_WIDTHS: [usize; 4] = [64, 80, 96, 128];

/// What attention reads and writes. Shapes as in [`crate::attention()`].
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Of queries, keys, values and output.
    pub element: Element,
    /// `[rows, heads, width]`, contiguous, zero before the launch.
    pub out: u64,
    /// Queries.
    pub q: Rows,
    /// Keys: fresh rows, or the slots of the whole cache, one after another.
    pub keys: Rows,
    /// Values, as keys.
    pub values: Rows,
    /// u32 `[sequences + 1]`.
    pub offsets: u64,
    /// Sequences.
    pub sequences: usize,
    /// Of all sequences.
    pub rows: usize,
    /// Rows of the longest sequence.
    pub longest: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Head size.
    pub width: usize,
    /// Where keys lie in pages.
    pub pages: Option<Paged>,
    /// A row sees none behind it.
    pub causal: bool,
    /// A row sees no more than so many.
    pub window: Option<usize>,
    /// Of scores.
    pub scale: f32,
}

/// The page table, as [`crate::Pages`].
#[derive(Debug, Clone, Copy)]
pub struct Paged {
    /// u32 `[sequences, most_pages]`.
    pub table: u64,
    /// u32 `[sequences]`.
    pub lengths: u64,
    /// Columns of the table.
    pub most_pages: usize,
    /// Slots of a page.
    pub page_size: usize,
    /// Pages of the cache.
    pub pages: usize,
}

impl Attention {
    /// The f32 elements that the decode form keeps between its two launches: parts, and statistics.
    #[must_use]
    pub fn workspace(&self) -> [usize; 2] {
        let Some(paged) = self.pages else { return [0, 0] };
        let parts = self.sequences * self.heads * paged.splits();
        [parts * self.width, parts * 2]
    }

    /// The launches, in order. `workspace` has the addresses of what [`Self::workspace`] asks for.
    ///
    /// # Errors
    /// When the head size is above 256, or something is larger than a kernel takes.
    pub fn launches(&self, workspace: [u64; 2]) -> Result<Vec<Launch>> {
        if self.width == 0 || self.width > 256 {
            bail!("attention: a head size of {} has no CUDA version, the largest is 256", self.width)
        }
        let mut launches = Vec::new();
        if [self.rows, self.longest, self.sequences, self.heads].contains(&0) {
            return Ok(launches);
        }
        if let Some(paged) = self.pages {
            // A sequence with one row is always computed so, whatever the step has beside it.
            launches.extend(self.decode(paged, workspace)?);
        }
        if self.pages.is_none() || self.longest > 1 {
            launches.push(self.many()?);
        }
        Ok(launches)
    }

    fn decode(&self, paged: Paged, [parts, stats]: [u64; 2]) -> Result<[Launch; 2]> {
        let (pairs, group) = (self.pairs(), self.heads / self.kv_heads);
        let together = [1, 4, 8].into_iter().find(|&most| group <= most).unwrap_or(8);
        let splits = paged.splits();
        let name = self.element.name();
        let decode = Launch {
            kernel: format!("attention_decode_{name}_n{pairs}_g{together}"),
            grid: grid([splits, self.kv_heads * group.div_ceil(together), self.sequences])?,
            block: [32 * WARPS as u32, 1, 1],
            shared: joined(pairs, together),
            arguments: vec![
                Address(parts),
                Address(stats),
                Address(self.q.address),
                Address(self.keys.address),
                Address(self.values.address),
                Address(self.offsets),
                Address(paged.lengths),
                Address(paged.table),
                int(self.rows, "rows")?,
                int(self.q.stride, "stride")?,
                int(self.kv_heads, "heads")?,
                int(group, "heads")?,
                int(self.width, "head size")?,
                int(paged.most_pages, "page table of")?,
                int(paged.page_size, "page of")?,
                int(paged.pages, "cache of")?,
                int(SPLIT, "split of")?,
                self.window(),
                self.paired(),
                self.scale(),
            ],
        };
        let merge = Launch {
            kernel: format!("attention_merge_{name}"),
            grid: grid([self.heads, self.sequences, 1])?,
            block: [128, 1, 1],
            shared: 0,
            arguments: vec![
                Address(self.out),
                Address(parts),
                Address(stats),
                Address(self.offsets),
                Address(paged.lengths),
                int(self.width, "head size")?,
                int(splits, "splits")?,
                int(SPLIT, "split of")?,
                self.window(),
            ],
        };
        Ok([decode, merge])
    }

    fn many(&self) -> Result<Launch> {
        let name = self.element.name();
        let operands = [self.q, self.keys, self.values];
        let tiled = self.element != Element::F32
            && TILE_WIDTHS.contains(&self.width)
            && aligned(16, &[self.out])
            && operands.iter().all(|rows| aligned(16, &[rows.address]) && rows.stride.is_multiple_of(8));
        let (kernel, blocks, shared) = if tiled {
            let elements = 5 * TILE * (self.width + 8);
            let kernel = format!("attention_tiles_{name}_d{}", self.width);
            (kernel, self.longest.div_ceil(TILE), (elements * self.element.size()) as u32)
        } else {
            let pairs = self.pairs();
            (format!("attention_rows_{name}_n{pairs}"), self.longest, joined(pairs, 1))
        };
        let paged =
            self.pages.unwrap_or(Paged { table: 0, lengths: 0, most_pages: 0, page_size: 1, pages: 0 });
        Ok(Launch {
            kernel,
            grid: grid([blocks, self.heads, self.sequences])?,
            block: [32 * WARPS as u32, 1, 1],
            shared,
            arguments: vec![
                Address(self.out),
                Address(self.q.address),
                Address(self.keys.address),
                Address(self.values.address),
                Address(self.offsets),
                Address(paged.lengths),
                Address(paged.table),
                int(self.rows, "rows")?,
                int(self.q.stride, "stride")?,
                int(self.keys.stride, "stride")?,
                int(self.values.stride, "stride")?,
                int(self.kv_heads, "heads")?,
                int(self.width, "head size")?,
                int(paged.most_pages, "page table of")?,
                int(paged.page_size, "page of")?,
                int(paged.pages, "cache of")?,
                I32(i32::from(self.causal)),
                self.window(),
                self.paired(),
                self.scale(),
            ],
        })
    }

    /// Pairs of elements that a lane holds.
    fn pairs(&self) -> usize {
        self.width.div_ceil(64).next_power_of_two()
    }

    fn window(&self) -> Argument {
        I32(self.window.and_then(|window| i32::try_from(window).ok()).unwrap_or(i32::MAX))
    }

    /// Whether two elements can be read at once.
    fn paired(&self) -> Argument {
        let fits = |rows: &Rows| {
            rows.stride.is_multiple_of(2) && aligned(2 * self.element.size() as u64, &[rows.address])
        };
        let fits = self.width.is_multiple_of(2) && [self.q, self.keys, self.values].iter().all(fits);
        I32(i32::from(fits))
    }

    /// Softmax to base 2.
    fn scale(&self) -> Argument {
        F32((f64::from(self.scale) * std::f64::consts::LOG2_E) as f32)
    }
}

impl Paged {
    /// By the width of the table; a sequence that has fewer leaves the rest alone.
    fn splits(&self) -> usize {
        (self.most_pages * self.page_size).div_ceil(SPLIT).max(1)
    }
}

/// Bytes in which the warps of a block join what they have.
fn joined(pairs: usize, heads: usize) -> u32 {
    (WARPS * heads * (64 * pairs + 2) * 4) as u32
}
