//! A linear layer whose rows do not depend on each other, to the bit.
//!
//! candle's matrix product takes one routine for one row and another for several, whose sums come in another order: the
//! same request would have other logits in other company. Here every output is summed in one order, sixteen sums side by
//! side and then pairwise, whatever else is computed and however wide the processor's registers are.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::{cuda, launch};
use crate::{
    scalar::{Real, dtype, for_real},
    view::contiguous,
};

/// `x wᵀ + b`, summed in f32 and rounded once.
///
/// - `x`: `[rows, input]`, f32, f16 or bf16, contiguous
/// - `weight`: `[output, input]`, the same type, contiguous
/// - `bias`: `[output]`, the same type
/// - returns `[rows, output]`, contiguous
///
/// A row's result does not depend on the other rows, to the bit.
///
/// # Errors
/// When shapes or types do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, input) = x.dims2()?;
    let (output, weight_input) = weight.dims2()?;
    let bias_fits = bias.is_none_or(|bias| bias.dims() == [output] && bias.dtype() == x.dtype());
    if input != weight_input || weight.dtype() != x.dtype() || !bias_fits {
        bail!(
            "linear: weight {:?} {:?} and bias {:?} do not fit {:?} {:?}",
            weight.shape(),
            weight.dtype(),
            bias.map(Tensor::shape),
            x.shape(),
            x.dtype()
        )
    }
    match bias {
        Some(bias) => x.apply_op3_no_bwd(weight, bias, &Linear),
        None => x.apply_op2_no_bwd(weight, &Linear),
    }
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let storage = for_real!(dtype(x), "linear", T => {
            product::<T>((x, x_layout), (weight, weight_layout), &[])?
        });
        Ok((storage, (x_layout.dims()[0], weight_layout.dims()[0]).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        on_cuda((x, x_layout), (weight, weight_layout), None)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let storage = for_real!(dtype(x), "linear", T => {
            let bias = contiguous::<T>(bias, bias_layout, "bias")?;
            product::<T>((x, x_layout), (weight, weight_layout), bias)?
        });
        Ok((storage, (x_layout.dims()[0], weight_layout.dims()[0]).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        on_cuda((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }
}

/// The product on a CUDA device, with another order of sums than here.
#[cfg(feature = "cuda")]
fn on_cuda(
    (x, x_layout): (&CudaStorage, &Layout),
    (weight, weight_layout): (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
) -> Result<(CudaStorage, Shape)> {
    let (rows, input) = x_layout.shape().dims2()?;
    let output = weight_layout.dims()[0];
    let beside = [Some(("weight", weight, weight_layout)), bias.map(|(bias, layout)| ("bias", bias, layout))];
    let operands = cuda::Operands { x: (x, x_layout), beside };
    // SAFETY: `linear` has compared the shapes, and the kernel's blocks cover all rows and all outputs.
    unsafe {
        operands.run("linear", &cuda::LINEAR, (rows, output).into(), |element, [out, x], [weight, bias]| {
            launch::linear(element, [out, x, weight, bias], [rows, input, output])
        })
    }
}

/// Sums that are kept side by side for each output.
const LANES: usize = 16;
/// Weight rows of a task: together they fit a second-level cache.
const OUTPUTS: usize = 16;
/// Numbers of a row that are worked on at once when there are many rows, so that both operands stay in the first-level
/// cache.
const DEPTH: usize = 512;

fn product<T: Element>(
    (x, x_layout): (&CpuStorage, &Layout),
    (weight, weight_layout): (&CpuStorage, &Layout),
    bias: &[T],
) -> Result<CpuStorage> {
    let (rows, input) = x_layout.shape().dims2()?;
    let output = weight_layout.dims()[0];
    let x = contiguous::<T>(x, x_layout, "x")?;
    let weight = contiguous::<T>(weight, weight_layout, "weight")?;
    let mut y = vec![T::zero(); rows * output];
    if rows == 0 || output == 0 {
        return Ok(T::to_cpu_storage_owned(y));
    }
    // Rows end in zeros, so that sixteen numbers can be read everywhere. Zeros change no sum.
    let padded = input.next_multiple_of(LANES);
    let mut wide = vec![0f32; rows * padded];
    for (wide, x) in wide.chunks_exact_mut(padded.max(1)).zip(x.chunks_exact(input.max(1))) {
        wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.widen());
    }
    let task = Task { x: &wide, rows, padded, input };
    // Task after task, and in each row after row: outputs of a task are neighbours.
    let mut sums = vec![0f32; rows * output];
    let tasks = sums.par_chunks_mut(rows * OUTPUTS).zip(weight.par_chunks((OUTPUTS * input).max(1)));
    tasks.for_each(|(sums, weight)| task.run(weight, sums));
    y.par_chunks_mut(output).enumerate().with_min_len(8).for_each(|(row, y)| {
        for (index, y) in y.chunks_mut(OUTPUTS).enumerate() {
            let sums = &sums[index * rows * OUTPUTS + row * y.len()..][..y.len()];
            let bias = bias.get(index * OUTPUTS..).unwrap_or(&[]);
            for (column, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
                *y = T::narrow(bias.get(column).map_or(*sum, |bias| sum + bias.widen()));
            }
        }
    });
    Ok(T::to_cpu_storage_owned(y))
}

#[derive(Clone, Copy)]
struct Task<'a> {
    /// `[rows, padded]`
    x: &'a [f32],
    rows: usize,
    padded: usize,
    input: usize,
}

impl Task<'_> {
    /// `weight`: `[outputs, input]`; fills `sums` `[rows, outputs]`.
    fn run<T: Element>(self, weight: &[T], sums: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            use x86::{Avx2, Avx512};
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                // SAFETY: the processor has what the function needs.
                return unsafe { self.run_avx512::<Avx512, T>(weight, sums) };
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                // SAFETY: as above.
                return unsafe { self.run_avx2::<Avx2, T>(weight, sums) };
            }
        }
        self.run_tiles::<[f32; LANES], T>(weight, sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn run_avx512<V: Lanes, T: Element>(self, weight: &[T], sums: &mut [f32]) {
        self.run_tiles::<V, T>(weight, sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn run_avx2<V: Lanes, T: Element>(self, weight: &[T], sums: &mut [f32]) {
        self.run_tiles::<V, T>(weight, sums);
    }

    #[inline(always)]
    fn run_tiles<V: Lanes, T: Element>(self, weight: &[T], sums: &mut [f32]) {
        let outputs = sums.len() / self.rows;
        let depth = if self.rows <= V::ROWS { self.padded } else { DEPTH };
        let mut lanes: Sums = [[[0.0; LANES]; OUTPUTS]; MOST_ROWS];
        let mut row = 0;
        while row < self.rows {
            let rows = V::ROWS.min(self.rows - row);
            let x = &self.x[row * self.padded..];
            lanes[..rows].fill([[0.0; LANES]; OUTPUTS]);
            let mut from = 0;
            while from < self.padded {
                let to = (from + depth).min(self.padded);
                let part = Part { from, to, padded: self.padded, input: self.input };
                match rows {
                    1 => part.outputs::<V, T, 1, 4>(x, weight, outputs, &mut lanes),
                    2 => part.by_width::<V, T, 2>(x, weight, outputs, &mut lanes),
                    3 => part.by_width::<V, T, 3>(x, weight, outputs, &mut lanes),
                    4 => part.by_width::<V, T, 4>(x, weight, outputs, &mut lanes),
                    5 => part.by_width::<V, T, 5>(x, weight, outputs, &mut lanes),
                    _ => part.by_width::<V, T, 6>(x, weight, outputs, &mut lanes),
                }
                from = to;
            }
            for (lanes, sums) in lanes[..rows].iter().zip(sums[row * outputs..].chunks_mut(outputs)) {
                sums.iter_mut().zip(lanes).for_each(|(sum, lanes)| *sum = pairwise(*lanes));
            }
            row += rows;
        }
    }
}

/// Sums of the rows that one tile has at most, for every output of a task.
type Sums = [[[f32; LANES]; OUTPUTS]; MOST_ROWS];
const MOST_ROWS: usize = 6;

/// Some of the numbers of each row.
#[derive(Clone, Copy)]
struct Part {
    from: usize,
    to: usize,
    padded: usize,
    input: usize,
}

impl Part {
    #[inline(always)]
    fn by_width<V: Lanes, T: Element, const ROWS: usize>(
        self,
        x: &[f32],
        weight: &[T],
        outputs: usize,
        sums: &mut Sums,
    ) {
        if V::WIDE {
            self.outputs::<V, T, ROWS, 4>(x, weight, outputs, sums);
        } else {
            self.outputs::<V, T, ROWS, 2>(x, weight, outputs, sums);
        }
    }

    #[inline(always)]
    fn outputs<V: Lanes, T: Element, const ROWS: usize, const COLUMNS: usize>(
        self,
        x: &[f32],
        weight: &[T],
        outputs: usize,
        sums: &mut Sums,
    ) {
        let mut output = 0;
        while output + COLUMNS <= outputs {
            self.tile::<V, T, ROWS, COLUMNS>(x, &weight[output * self.input..], output, sums);
            output += COLUMNS;
        }
        while output < outputs {
            self.tile::<V, T, ROWS, 1>(x, &weight[output * self.input..], output, sums);
            output += 1;
        }
    }

    /// Adds the products of `ROWS` rows of `x` with `COLUMNS` rows of `weight`.
    #[inline(always)]
    fn tile<V: Lanes, T: Element, const ROWS: usize, const COLUMNS: usize>(
        self,
        x: &[f32],
        weight: &[T],
        output: usize,
        sums: &mut Sums,
    ) {
        let Self { from, to, padded, input } = self;
        // What is not a multiple of sixteen is only at the end of a row.
        let whole = to.min(input - input % LANES).max(from);
        let x: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row * padded..][from..to]);
        let weight: [&[T]; COLUMNS] =
            std::array::from_fn(|column| &weight[column * input..][from..to.min(input)]);
        let steps = (whole - from) / LANES;
        // Of one length that is known, so that no access is checked in the loop.
        let whole_x: [&[[f32; LANES]]; ROWS] = std::array::from_fn(|row| &x[row].as_chunks().0[..steps]);
        let whole_weight: [&[[T; LANES]]; COLUMNS] =
            std::array::from_fn(|column| &weight[column].as_chunks().0[..steps]);

        let mut all: [[V; COLUMNS]; ROWS] =
            std::array::from_fn(|row| std::array::from_fn(|column| V::load(&sums[row][output + column])));
        for step in 0..steps {
            let weights: [V; COLUMNS] = std::array::from_fn(|column| T::lanes(&whole_weight[column][step]));
            for row in 0..ROWS {
                let x = V::load(&whole_x[row][step]);
                for column in 0..COLUMNS {
                    all[row][column] = all[row][column].add_product(x, weights[column]);
                }
            }
        }
        if whole < to {
            for column in 0..COLUMNS {
                let mut last = [0f32; LANES];
                let rest = &weight[column][steps * LANES..];
                last.iter_mut().zip(rest).for_each(|(last, rest)| *last = rest.widen());
                for row in 0..ROWS {
                    let x = &x[row].as_chunks().0[steps];
                    all[row][column] = all[row][column].add_product(V::load(x), V::load(&last));
                }
            }
        }
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                all[row][column].store(&mut sums[row][output + column]);
            }
        }
    }
}

fn pairwise(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sixteen numbers of f32, in whatever registers there are.
trait Lanes: Copy {
    /// Rows of `x` in a tile.
    const ROWS: usize;
    /// Whether there are registers for four columns of so many rows, or for two.
    const WIDE: bool;
    fn load(numbers: &[f32; LANES]) -> Self;
    fn load_bf16(numbers: &[half::bf16; LANES]) -> Self;
    fn load_f16(numbers: &[half::f16; LANES]) -> Self;
    fn store(self, numbers: &mut [f32; LANES]);
    /// `self + x * weight`, rounded once.
    fn add_product(self, x: Self, weight: Self) -> Self;
}

/// An element type that [`Lanes`] can load.
trait Element: Real {
    fn lanes<V: Lanes>(numbers: &[Self; LANES]) -> V;
}

impl Element for f32 {
    #[inline(always)]
    fn lanes<V: Lanes>(numbers: &[Self; LANES]) -> V {
        V::load(numbers)
    }
}

impl Element for half::bf16 {
    #[inline(always)]
    fn lanes<V: Lanes>(numbers: &[Self; LANES]) -> V {
        V::load_bf16(numbers)
    }
}

impl Element for half::f16 {
    #[inline(always)]
    fn lanes<V: Lanes>(numbers: &[Self; LANES]) -> V {
        V::load_f16(numbers)
    }
}

/// The plain loop, which the others equal to the bit.
impl Lanes for [f32; LANES] {
    const ROWS: usize = 1;
    const WIDE: bool = false;

    fn load(numbers: &[f32; LANES]) -> Self {
        *numbers
    }

    fn load_bf16(numbers: &[half::bf16; LANES]) -> Self {
        numbers.map(half::bf16::to_f32)
    }

    fn load_f16(numbers: &[half::f16; LANES]) -> Self {
        numbers.map(half::f16::to_f32)
    }

    fn store(self, numbers: &mut [f32; LANES]) {
        *numbers = self;
    }

    fn add_product(self, x: Self, weight: Self) -> Self {
        std::array::from_fn(|lane| x[lane].mul_add(weight[lane], self[lane]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_slli_epi32, _mm256_storeu_ps,
        _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_slli_epi32, _mm512_storeu_ps,
    };

    use super::{LANES, Lanes};

    /// One register. Only [`super::Task::run_avx512`] makes any, after the processor was asked.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(__m512);

    impl Lanes for Avx512 {
        const ROWS: usize = 6;
        const WIDE: bool = true;

        #[inline(always)]
        fn load(numbers: &[f32; LANES]) -> Self {
            // SAFETY: 16 numbers are read, and AVX-512 is there; see the type.
            Self(unsafe { _mm512_loadu_ps(numbers.as_ptr()) })
        }

        #[inline(always)]
        fn load_bf16(numbers: &[half::bf16; LANES]) -> Self {
            // SAFETY: 16 numbers of 2 bytes are read, and AVX-512 is there.
            Self(unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(numbers.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            })
        }

        #[inline(always)]
        fn load_f16(numbers: &[half::f16; LANES]) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(numbers.as_ptr().cast())) })
        }

        #[inline(always)]
        fn store(self, numbers: &mut [f32; LANES]) {
            // SAFETY: 16 numbers are written, and AVX-512 is there.
            unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn add_product(self, x: Self, weight: Self) -> Self {
            // SAFETY: AVX-512 is there.
            Self(unsafe { _mm512_fmadd_ps(x.0, weight.0, self.0) })
        }
    }

    /// Two registers. Only [`super::Task::run_avx2`] makes any, after the processor was asked.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        const ROWS: usize = 3;
        const WIDE: bool = false;

        #[inline(always)]
        fn load(numbers: &[f32; LANES]) -> Self {
            let (low, high) = (numbers.as_ptr(), numbers[LANES / 2..].as_ptr());
            // SAFETY: 8 numbers are read from each half, and AVX2 is there; see the type.
            unsafe { Self(_mm256_loadu_ps(low), _mm256_loadu_ps(high)) }
        }

        #[inline(always)]
        fn load_bf16(numbers: &[half::bf16; LANES]) -> Self {
            let half = |numbers: &[half::bf16]| {
                debug_assert_eq!(numbers.len(), LANES / 2);
                // SAFETY: 8 numbers of 2 bytes are read, and AVX2 is there.
                unsafe {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(numbers.as_ptr().cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                }
            };
            let (low, high) = numbers.split_at(LANES / 2);
            Self(half(low), half(high))
        }

        #[inline(always)]
        fn load_f16(numbers: &[half::f16; LANES]) -> Self {
            let half = |numbers: &[half::f16]| {
                debug_assert_eq!(numbers.len(), LANES / 2);
                // SAFETY: 8 numbers of 2 bytes are read, and F16C is there.
                unsafe { _mm256_cvtph_ps(_mm_loadu_si128(numbers.as_ptr().cast())) }
            };
            let (low, high) = numbers.split_at(LANES / 2);
            Self(half(low), half(high))
        }

        #[inline(always)]
        fn store(self, numbers: &mut [f32; LANES]) {
            let (low, high) = numbers.split_at_mut(LANES / 2);
            // SAFETY: 8 numbers are written to each half, and AVX2 is there.
            unsafe {
                _mm256_storeu_ps(low.as_mut_ptr(), self.0);
                _mm256_storeu_ps(high.as_mut_ptr(), self.1);
            }
        }

        #[inline(always)]
        fn add_product(self, x: Self, weight: Self) -> Self {
            // SAFETY: FMA is there.
            unsafe { Self(_mm256_fmadd_ps(x.0, weight.0, self.0), _mm256_fmadd_ps(x.1, weight.1, self.1)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The processor's registers make no difference.
    fn check<T: Element>() {
        let mut state = 1u32;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for (rows, input, output) in
            [(1, 16, 4), (7, 100, 16), (13, 1040, 9), (8, 513, 5), (15, 1041, 16), (2, 3, 1)]
        {
            let padded = usize::next_multiple_of(input, LANES);
            let mut x = vec![0.0; rows * padded];
            x.chunks_exact_mut(padded).for_each(|row| row[..input].fill_with(&mut number));
            let weight: Vec<T> = (0..input * output).map(|_| T::narrow(number())).collect();
            let task = Task { x: &x, rows, padded, input };
            let (mut dispatched, mut plain) = (vec![0.0; rows * output], vec![0.0; rows * output]);
            task.run(&weight, &mut dispatched);
            task.run_tiles::<[f32; LANES], T>(&weight, &mut plain);
            assert_eq!(dispatched, plain);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                dispatched.fill(0.0);
                // SAFETY: the processor was asked.
                unsafe { task.run_avx2::<x86::Avx2, T>(&weight, &mut dispatched) };
                assert_eq!(dispatched, plain);
            }
        }
    }

    #[test]
    fn all_ways_give_the_same_bits() {
        check::<f32>();
        check::<half::bf16>();
        check::<half::f16>();
    }
}
