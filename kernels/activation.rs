//! Activations of feed-forward layers, alone or with the product of a gate, computed in f32 and rounded once.
//!
//! candle's own round every step of the formula in bf16 and f16, which PyTorch does not, and need a pass and a tensor for
//! each step of a gate.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::{cuda, launch};
use crate::{
    scalar::{Real, dtype, for_real},
    view::contiguous,
};

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)` (<https://arxiv.org/abs/1702.03118>).
    Silu,
    /// `x · Φ(x)`, exact (<https://arxiv.org/abs/1606.08415>).
    Gelu,
    /// `x · Φ(x)` by the usual tanh approximation.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
}

/// The activation of every number.
///
/// - `x`: f32, f16 or bf16 of any shape, contiguous
/// - returns the same shape, contiguous
///
/// Off by at most 7 units in the last place of f32 before it is rounded, and by what a rounded exponent costs: that of
/// GELU is not rounded. Minus infinity gives NaN, as in PyTorch.
///
/// # Errors
/// When `x` is not contiguous, or of another type.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Activate { activation })
}

/// `act(gate) · up`, where the activation is rounded to the type before the product, as two operations would.
///
/// - `both`: `[rows, 2 * width]`, the gate first; f32, f16 or bf16, contiguous
/// - returns `[rows, width]`, contiguous
///
/// # Errors
/// When `both` has another number of dimensions or an odd width, is not contiguous, or of another type.
pub fn gated(both: &Tensor, activation: Activation) -> Result<Tensor> {
    let (_, width) = both.dims2()?;
    if !width.is_multiple_of(2) {
        bail!("gated: {:?} has no two halves", both.shape())
    }
    both.apply_op1_no_bwd(&Gated { activation })
}

/// Outputs that are worth a task of their own.
const PIECE: usize = 1 << 14;

struct Activate {
    activation: Activation,
}

impl Activate {
    fn on_host<T: Real>(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let x = contiguous::<T>(x, layout, "x")?;
        let mut out = vec![T::zero(); x.len()];
        let pieces = x.par_chunks(PIECE).zip(out.par_chunks_mut(PIECE));
        pieces.for_each(|(x, out)| Piece { x, up: None, out }.run(self.activation));
        Ok(T::to_cpu_storage_owned(out))
    }
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = for_real!(dtype(x), self.name(), T => self.on_host::<T>(x, layout)?);
        Ok((storage, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = layout.shape().clone();
        let count = shape.elem_count();
        // SAFETY: the kernel reads and writes as many elements as x has.
        unsafe {
            cuda::Operands { x: (x, layout), beside: [] }.run(
                self.name(),
                &cuda::ACTIVATION,
                shape,
                |element, addresses, []| launch::activate(self.activation, element, addresses, count),
            )
        }
    }
}

struct Gated {
    activation: Activation,
}

impl Gated {
    fn on_host<T: Real>(&self, both: &CpuStorage, layout: &Layout, width: usize) -> Result<CpuStorage> {
        let both = contiguous::<T>(both, layout, "both")?;
        let mut out = vec![T::zero(); both.len() / 2];
        // Chunks have a size even where there is nothing to divide.
        let step = width.max(1);
        let rows = both.par_chunks(2 * step).zip(out.par_chunks_mut(step));
        rows.with_min_len(PIECE.div_ceil(step)).for_each(|(both, out)| {
            let (gate, up) = both.split_at(width);
            Piece { x: gate, up: Some(up), out }.run(self.activation);
        });
        Ok(T::to_cpu_storage_owned(out))
    }
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, both: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, both_width) = layout.shape().dims2()?;
        let width = both_width / 2;
        let storage = for_real!(dtype(both), self.name(), T => self.on_host::<T>(both, layout, width)?);
        Ok((storage, (rows, width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, both: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, both_width) = layout.shape().dims2()?;
        let width = both_width / 2;
        // SAFETY: `gated` has found two halves in each row; the kernel reads both of every row and writes one output of
        // that width.
        unsafe {
            cuda::Operands { x: (both, layout), beside: [] }.run(
                self.name(),
                &cuda::ACTIVATION,
                (rows, width).into(),
                |element, addresses, []| launch::gated(self.activation, element, addresses, [rows, width]),
            )
        }
    }
}

/// What one task computes: `act(x)`, times `up` where there is one.
struct Piece<'a, T> {
    x: &'a [T],
    up: Option<&'a [T]>,
    out: &'a mut [T],
}

impl<T: Real> Piece<'_, T> {
    fn run(self, activation: Activation) {
        match activation {
            Activation::Silu => self.along::<Silu>(),
            Activation::Gelu => self.along::<Gelu>(),
            Activation::GeluTanh => self.along::<GeluTanh>(),
            Activation::QuickGelu => self.along::<QuickGelu>(),
        }
    }

    fn along<C: Curve>(self) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { self.along_avx2::<C>() };
        }
        self.along_plain::<C>();
    }

    /// The same loops, compiled for wider registers: the same numbers, to the bit.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn along_avx2<C: Curve>(self) {
        self.along_plain::<C>();
    }

    #[inline(always)]
    fn along_plain<C: Curve>(self) {
        let Some(up) = self.up else {
            for (out, x) in self.out.iter_mut().zip(self.x) {
                *out = T::narrow(C::at(x.widen()));
            }
            return;
        };
        for ((out, x), up) in self.out.iter_mut().zip(self.x).zip(up) {
            *out = T::narrow(T::narrow(C::at(x.widen())).widen() * up.widen());
        }
    }
}

/// A function without branches, of which a compiler makes one of many numbers at once.
trait Curve {
    fn at(x: f32) -> f32;
}

struct Silu;
struct Gelu;
struct GeluTanh;
struct QuickGelu;

impl Curve for Silu {
    #[inline(always)]
    fn at(x: f32) -> f32 {
        times_sigmoid(x, x)
    }
}

impl Curve for QuickGelu {
    #[inline(always)]
    fn at(x: f32) -> f32 {
        times_sigmoid(x, 1.702 * x)
    }
}

impl Curve for GeluTanh {
    /// `(1 + tanh(u)) / 2` is `sigmoid(2 u)`, which keeps its digits where the sum loses them.
    #[inline(always)]
    fn at(x: f32) -> f32 {
        // 2 sqrt(2 / pi), and the same times 0.044715.
        times_sigmoid(x, x * (1.595_769_2 + 0.071_354_814 * x * x))
    }
}

impl Curve for Gelu {
    /// `Φ(-t) = exp(-t² / 2) R(t)` for t from 0 on; `(t + 2) R(t)` is nearly a polynomial of `2 t / (t + 2)`.
    #[inline(always)]
    fn at(x: f32) -> f32 {
        /// Of the smallest relative error for t up to 13.5: 2e-8. Behind that Φ(-t) is no number of f32.
        const TERMS: [f32; 11] = [
            1.0,
            -0.297_882,
            -0.047_936_81,
            0.011_043_818,
            0.004_921_083,
            0.005_357_588_7,
            -0.005_938_535,
            0.004_964_554_5,
            -0.002_791_728_6,
            0.000_740_055_2,
            -6.999_711e-5,
        ];
        let t = if x.abs() > 15.0 { 15.0 } else { x.abs() };
        // t² in two parts, of which the first is exact: what is lost of an exponent is multiplied by it.
        let high = f32::from_bits(t.to_bits() & 0xffff_f000);
        let low = t - high;
        let bell = exp(-0.5 * high * high, -0.5 * low * (t + high));
        let scale = 1.0 / (t + 2.0);
        let at = 2.0 * t * scale;
        let tail = bell * (polynomial(&TERMS, at) * scale);
        x * if x < 0.0 { tail } else { 1.0 - tail }
    }
}

/// `x · sigmoid(y)`, for a y that has x's sign.
#[inline(always)]
fn times_sigmoid(x: f32, y: f32) -> f32 {
    let power = exp(-y.abs(), 0.0);
    (if y < 0.0 { x * power } else { x }) / (1.0 + power)
}

/// `e^(a + b)` for a not above zero and a b that is small beside it: to one unit, and 0 below e^-87.
///
/// The library's is a call for each number. This is Cephes' expf (<https://www.netlib.org/cephes/>).
#[inline(always)]
fn exp(a: f32, b: f32) -> f32 {
    // Adding this rounds to a whole number, which is then in the lowest bits.
    const WHOLE: f32 = 12_582_912.0;
    // The natural logarithm of 2; the first part times any exponent is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const TERMS: [f32; 6] = [0.5, 0.166_666_65, 0.041_665_796, 0.008_333_452, 0.001_398_2, 0.000_198_756_91];
    let vanishes = a + b < -87.0;
    let (a, b) = if vanishes { (0.0, 0.0) } else { (a, b) };
    let shifted = (a + b) * std::f32::consts::LOG2_E + WHOLE;
    let exponent = shifted - WHOLE;
    let rest = a - exponent * LN_2[0] - exponent * LN_2[1] + b;
    let power = polynomial(&TERMS, rest) * rest * rest + rest + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if vanishes { 0.0 } else { power * scale }
}

#[inline(always)]
fn polynomial<const N: usize>(terms: &[f32; N], x: f32) -> f32 {
    let mut sum = terms[N - 1];
    for term in terms[..N - 1].iter().rev() {
        sum = sum * x + term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a processor has wider registers, both loops are there to compare.
    #[test]
    fn wider_registers_give_the_same_bits() {
        fn both<C: Curve>() {
            let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 / 997.0).collect();
            let (mut plain, mut dispatched) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            Piece { x: &x, up: Some(&x), out: &mut plain }.along_plain::<C>();
            Piece { x: &x, up: Some(&x), out: &mut dispatched }.along::<C>();
            let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&plain), bits(&dispatched));
        }
        both::<Silu>();
        both::<Gelu>();
        both::<GeluTanh>();
        both::<QuickGelu>();
    }
}
