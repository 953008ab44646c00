//! RMSNorm and LayerNorm over the last dimension, with f32 statistics.
//!
//! candle's own RMSNorm divides and multiplies in the stored type, which in bf16 is not what the reference does.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::{
    cuda,
    launch::{self, Norm},
};
use crate::{
    scalar::{Real, dtype, for_real},
    view::contiguous,
};

/// `x / sqrt(mean(x²) + eps)` in f32, rounded to x's type, times `weight`
/// (<https://arxiv.org/abs/1910.07467>; rounding as transformers' `LlamaRMSNorm`).
///
/// - `x`: `[…, width]`, contiguous; `weight`: `[width]`, same type
///
/// # Errors
/// When widths or types differ.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    check("rms_norm", x, &[weight])?;
    x.apply_op2_no_bwd(weight, &RmsNorm { eps })
}

/// The sum `x + residual`, rounded, and its [`rms_norm`]: to the bit what two operations give.
///
/// - `x`, `residual`: `[…, width]`, contiguous; `weight`: `[width]`; all of one type
/// - returns sum and norm, each contiguous and of x's shape; they share their memory, which nothing else has
///
/// # Errors
/// When shapes or types differ.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    check("add_rms_norm", x, &[weight])?;
    if (residual.shape(), residual.dtype()) != (x.shape(), x.dtype()) {
        bail!(
            "add_rms_norm: residual {:?} {:?} does not fit {:?} {:?}",
            residual.shape(),
            residual.dtype(),
            x.shape(),
            x.dtype()
        )
    }
    let both = x.apply_op3_no_bwd(residual, weight, &AddRmsNorm { eps })?;
    Ok((both.get(0)?, both.get(1)?))
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, in f32 to the end (<https://arxiv.org/abs/1607.06450>).
///
/// - `x`: `[…, width]`, contiguous; `weight`, `bias`: `[width]`, same type
///
/// # Errors
/// When widths or types differ.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    check("layer_norm", x, &[weight, bias])?;
    x.apply_op3_no_bwd(weight, bias, &LayerNorm { eps })
}

fn check(op: &str, x: &Tensor, weights: &[&Tensor]) -> Result<()> {
    let width = x.dims().last().copied().unwrap_or(0);
    for weight in weights {
        if width == 0 || weight.dims() != [width] || weight.dtype() != x.dtype() {
            bail!(
                "{op}: weight {:?} {:?} does not fit {:?} {:?}",
                weight.shape(),
                weight.dtype(),
                x.shape(),
                x.dtype()
            )
        }
    }
    Ok(())
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let storage = for_real!(dtype(x), self.name(), T => {
            let weight = contiguous::<T>(weight, weight_layout, "weight")?;
            by_row(x, x_layout, weight.len(), |x: &[T], out: &mut [T]| rms_norm_row(x, weight, self.eps, out))?
        });
        Ok((storage, x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        on_cuda(self.name(), self.eps, (x, x_layout), (weight, weight_layout), None)
    }
}

fn rms_norm_row<T: Real>(x: &[T], weight: &[T], eps: f32, out: &mut [T]) {
    let squares: f32 = x.iter().map(|x| x.widen() * x.widen()).sum();
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = T::narrow(T::narrow(x.widen() * scale).widen() * weight.widen());
    }
}

/// To sums and norms, `[2, …, width]`: an operation has one output.
struct AddRmsNorm {
    eps: f32,
}

impl AddRmsNorm {
    fn output(x: &Layout) -> Shape {
        Shape::from_dims(&[&[2], x.dims()].concat())
    }

    fn on_host<T: Real>(&self, x: &[T], residual: &[T], weight: &[T]) -> CpuStorage {
        let mut out = vec![T::zero(); 2 * x.len()];
        let (sums, norms) = out.split_at_mut(x.len());
        let width = weight.len();
        let operands = x.par_chunks(width).zip(residual.par_chunks(width));
        let outputs = sums.par_chunks_mut(width).zip(norms.par_chunks_mut(width));
        operands.zip(outputs).with_min_len(8).for_each(|((x, residual), (sum, norm))| {
            for ((sum, x), residual) in sum.iter_mut().zip(x).zip(residual) {
                *sum = T::narrow(x.widen() + residual.widen());
            }
            rms_norm_row(sum, weight, self.eps, norm);
        });
        T::to_cpu_storage_owned(out)
    }
}

impl CustomOp3 for AddRmsNorm {
    fn name(&self) -> &'static str {
        "add-rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let storage = for_real!(dtype(x), self.name(), T => {
            let x = contiguous::<T>(x, x_layout, "x")?;
            let residual = contiguous::<T>(residual, residual_layout, "residual")?;
            self.on_host(x, residual, contiguous::<T>(weight, weight_layout, "weight")?)
        });
        Ok((storage, Self::output(x_layout)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        residual: &CudaStorage,
        residual_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let width = weight_layout.shape().dims1()?;
        let count = x_layout.shape().elem_count();
        let beside = [Some(("residual", residual, residual_layout)), Some(("weight", weight, weight_layout))];
        let operands = cuda::Operands { x: (x, x_layout), beside };
        // SAFETY: `add_rms_norm` has found x and residual of one shape, the weight as wide as their rows, all of one type,
        // and a width above zero. The kernel has a block for each row, which writes a row of the first half of the output
        // and one of the second.
        unsafe {
            operands.run(
                self.name(),
                &cuda::NORM,
                Self::output(x_layout),
                |element, [sum, x], [residual, weight]| {
                    let out = sum + (count * element.size()) as u64;
                    let norm = Norm::AddRms { sum, residual };
                    launch::norm(norm, element, [out, x, weight], [count / width, width], self.eps)
                },
            )
        }
    }
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let storage = for_real!(dtype(x), self.name(), T => {
            let weight = contiguous::<T>(weight, weight_layout, "weight")?;
            let bias = contiguous::<T>(bias, bias_layout, "bias")?;
            by_row(x, x_layout, weight.len(), |x: &[T], out: &mut [T]| {
                let width = x.len() as f32;
                let mean = x.iter().map(|x| x.widen()).sum::<f32>() / width;
                // Two passes: the one-pass formula cancels where the mean is large beside the spread.
                let spread: f32 = x.iter().map(|x| (x.widen() - mean).powi(2)).sum();
                let scale = 1.0 / (spread / width + self.eps).sqrt();
                for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                    *out = T::narrow((x.widen() - mean) * scale * weight.widen() + bias.widen());
                }
            })?
        });
        Ok((storage, x_layout.shape().clone()))
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
        on_cuda(self.name(), self.eps, (x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }
}

fn by_row<T: Real>(
    x: &CpuStorage,
    layout: &Layout,
    width: usize,
    norm: impl Fn(&[T], &mut [T]) + Sync,
) -> Result<CpuStorage> {
    let x = contiguous::<T>(x, layout, "x")?;
    let mut out = vec![T::zero(); x.len()];
    x.par_chunks(width).zip(out.par_chunks_mut(width)).with_min_len(8).for_each(|(x, out)| norm(x, out));
    Ok(T::to_cpu_storage_owned(out))
}

/// RMSNorm, or with a bias LayerNorm.
#[cfg(feature = "cuda")]
fn on_cuda(
    op: &str,
    eps: f32,
    (x, x_layout): (&CudaStorage, &Layout),
    (weight, weight_layout): (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
) -> Result<(CudaStorage, Shape)> {
    let shape = x_layout.shape().clone();
    let width = weight_layout.shape().dims1()?;
    let rows = shape.elem_count() / width;
    let has_bias = bias.is_some();
    let beside = [Some(("weight", weight, weight_layout)), bias.map(|(bias, layout)| ("bias", bias, layout))];
    let operands = cuda::Operands { x: (x, x_layout), beside };
    // SAFETY: `check` has found weight and bias as wide as x's rows and of its type, and a width above zero. The kernel has a
    // block for each row.
    unsafe {
        operands.run(op, &cuda::NORM, shape, |element, [out, x], [weight, bias]| {
            let norm = if has_bias { Norm::Layer { bias } } else { Norm::Rms };
            launch::norm(norm, element, [out, x, weight], [rows, width], eps)
        })
    }
}
