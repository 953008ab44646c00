//! The element types of activations: f32, f16 and bf16, all computed in f32.

use candle_core::{CpuStorage, DType, WithDType};

/// A stored number that is widened to f32 for arithmetic.
pub(crate) trait Real: WithDType {
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
    /// The elements of a CPU storage of this type.
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! real {
    ($type:ty, $variant:ident, $widen:expr, $narrow:expr) => {
        impl Real for $type {
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }

            #[inline(always)]
            fn narrow(value: f32) -> Self {
                $narrow(value)
            }

            fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
        }
    };
}

real!(f32, F32, |value| value, |value| value);
real!(half::bf16, BF16, half::bf16::to_f32, half::bf16::from_f32);
real!(half::f16, F16, half::f16::to_f32, half::f16::from_f32);

/// Runs `$body` with `$real` bound to the Rust type of `$dtype`.
macro_rules! for_real {
    ($dtype:expr, $op:expr, $real:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $real = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $real = half::bf16;
                $body
            }
            candle_core::DType::F16 => {
                type $real = half::f16;
                $body
            }
            other => candle_core::bail!("{}: {other:?} is not f32, f16 or bf16", $op),
        }
    };
}
pub(crate) use for_real;

/// The element type of a CPU storage.
pub(crate) fn dtype(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}
