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
            by_row(x, x_layout, weight.len(), |x: &[T], out: &mut [T]| {
                let squares: f32 = x.iter().map(|x| x.widen() * x.widen()).sum();
                let scale = 1.0 / (squares / x.len() as f32 + self.eps).sqrt();
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = T::narrow(T::narrow(x.widen() * scale).widen() * weight.widen());
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
    ) -> Result<(CudaStorage, Shape)> {
        on_cuda(self.name(), self.eps, (x, x_layout), (weight, weight_layout), None)
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
    let operands = cuda::Weighted { x: (x, x_layout), weight: (weight, weight_layout), bias };
    // SAFETY: `check` has found weight and bias as wide as x's rows and of its type, and a width above zero. The kernel has a
    // block for each row.
    unsafe {
        operands.run(op, &cuda::NORM, shape, |element, [out, x, weight, bias]| {
            let norm = if has_bias { Norm::Layer { bias } } else { Norm::Rms };
            launch::norm(norm, element, [out, x, weight], [rows, width], eps)
        })
    }
}
