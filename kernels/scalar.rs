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
real!(half::bf16, BF16, widened, rounded);
real!(half::f16, F16, half::f16::to_f32, half::f16::from_f32);

/// As `half` has it, without its branches: a compiler makes a loop over many numbers at once of this.
#[inline(always)]
fn widened(value: half::bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// As `half` has it, without its branches.
#[inline(always)]
fn rounded(value: f32) -> half::bf16 {
    let bits = value.to_bits();
    // To the nearest, and to the even one from the middle.
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    half::bf16::from_bits(if value.is_nan() { quiet } else { nearest } as u16)
}

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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::{rounded, widened};

    #[test]
    fn bf16_is_converted_as_half_does_it() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(rounded(value).to_bits(), bf16::from_f32(value).to_bits(), "{high:x} {low:x}");
            }
            let value = bf16::from_bits(high);
            // half makes signalling NaNs quiet ones.
            assert!(widened(value).to_bits() == value.to_f32().to_bits() || value.is_nan(), "{high:x}");
        }
    }
}
