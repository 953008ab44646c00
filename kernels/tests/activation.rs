//! Activations against straight f64 formulas.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use candle_core::{DType, Device, Tensor, cpu::erf::erfc_f64};
use half::{bf16, f16};
use percept_kernels::{Activation, activate, gated};

mod support;

const ALL: [Activation; 4] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu];
const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The activation, and the exponent in its formula.
fn formula(activation: Activation, x: f64) -> (f64, f64) {
    let times_sigmoid = |y: f64| (x / (1.0 + (-y).exp()), y);
    match activation {
        Activation::Silu => (x / (1.0 + (-x).exp()), 0.0),
        Activation::Gelu => (x * 0.5 * erfc_f64(-x * std::f64::consts::FRAC_1_SQRT_2), 0.0),
        Activation::GeluTanh => {
            times_sigmoid(8f64.sqrt() / std::f64::consts::PI.sqrt() * (x + 0.044715 * x.powi(3)))
        }
        Activation::QuickGelu => times_sigmoid(1.702 * x),
    }
}

/// How far from the formula f32 may be: seven units in the last place, what a rounded exponent costs, and all of what
/// is nearly no number of f32.
fn room(value: f64, exponent: f64) -> f64 {
    let unit = 2f64.powf(value.abs().max(1e-300).log2().floor() - 23.0);
    unit * (7.0 + 4.0 * exponent.abs()) + 2e-36
}

fn round(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => bf16::from_f32(value as f32).to_f64(),
        DType::F16 => f16::from_f32(value as f32).to_f64(),
        _ => value,
    }
}

fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 0.0,
    }
}

fn tensor(values: &[f32], shape: &[usize], dtype: DType) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Small and large numbers of both signs.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let scales = [0.01, 0.3, 1.0, 3.0, 10.0, 100.0];
    let noise = support::noise(count, seed);
    noise.into_iter().enumerate().map(|(i, x)| x * scales[i % scales.len()]).collect()
}

#[test]
fn activations_match_the_formulas() {
    for activation in ALL {
        for dtype in TYPES {
            for shape in [&[1][..], &[0], &[7], &[3, 5], &[2, 3, 1000], &[50_000]] {
                let x = tensor(&values(shape.iter().product(), 1), shape, dtype);
                let found = activate(&x, activation).unwrap();
                assert_eq!((found.dims(), found.dtype()), (shape, dtype));
                for (found, x) in wide(&found).into_iter().zip(wide(&x)) {
                    let (expected, exponent) = formula(activation, x);
                    let room = room(expected, exponent) + unit(dtype) * expected.abs();
                    // Below the normal numbers of f16 lies a grid of 2^-24.
                    let room = room + if dtype == DType::F16 { 2f64.powi(-25) } else { 0.0 };
                    let error = (found - expected).abs();
                    assert!(error <= room, "{activation:?} {dtype:?} of {x}: {found}, not {expected}");
                }
            }
        }
    }
}

/// Every number of bf16, and as many of f32 beside each other around zero.
#[test]
fn no_number_is_worse() {
    let all: Vec<f32> = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect();
    let dense: Vec<f32> = (-200_000..200_000).map(|i| i as f32 / 14_983.0).collect();
    for activation in ALL {
        for x in [&all, &dense] {
            let found = wide(&activate(&tensor(x, &[x.len()], DType::F32), activation).unwrap());
            for (found, &x) in found.into_iter().zip(x) {
                let (expected, exponent) = formula(activation, f64::from(x));
                if expected.is_nan() || x.is_infinite() {
                    assert!(found.is_nan() == (x.is_nan() || x < 0.0), "{activation:?} of {x}: {found}");
                    continue;
                }
                let error = (found - expected).abs();
                assert!(error <= room(expected, exponent), "{activation:?} of {x}: {found}, not {expected}");
                assert_eq!(found.is_sign_negative(), x.is_sign_negative(), "{activation:?} of {x}: {found}");
            }
        }
    }
}

#[test]
fn gates_are_rounded_before_the_product() {
    for activation in ALL {
        for dtype in TYPES {
            for (rows, width) in [(1, 1), (0, 8), (4, 0), (3, 5), (33, 64), (2, 1001), (3, 20_000)] {
                let both = tensor(&values(rows * 2 * width, 2), &[rows, 2 * width], dtype);
                let found = gated(&both, activation).unwrap();
                assert_eq!((found.dims(), found.dtype()), (&[rows, width][..], dtype));
                // To the bit, what two operations give.
                let halves = [0, width].map(|at| both.narrow(1, at, width).unwrap().contiguous().unwrap());
                let product = (activate(&halves[0], activation).unwrap() * &halves[1]).unwrap();
                assert_eq!(wide(&found), wide(&product), "{activation:?} {dtype:?} {rows}x{width}");
            }
        }
    }
}

#[test]
fn bf16_is_rounded_once() {
    let x: Vec<f32> = (-1000..1000).map(|i| bf16::from_f32(i as f32 / 123.0).to_f32()).collect();
    for activation in ALL {
        let found = wide(&activate(&tensor(&x, &[x.len()], DType::BF16), activation).unwrap());
        for (found, &x) in found.into_iter().zip(&x) {
            let expected = formula(activation, f64::from(x)).0;
            assert_eq!(found, round(expected, DType::BF16), "{activation:?} of {x}");
        }
    }
}

/// A request has the same numbers in any company.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let (rows, width) = (37, 1003);
    for dtype in TYPES {
        let both = tensor(&values(rows * 2 * width, 3), &[rows, 2 * width], dtype);
        let together = wide(&gated(&both, Activation::Silu).unwrap());
        for (first, count) in [(0, 1), (5, 3), (36, 1)] {
            let some = gated(&both.narrow(0, first, count).unwrap(), Activation::Silu).unwrap();
            assert_eq!(wide(&some), together[first * width..][..count * width], "{dtype:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = tensor(&values(24, 1), &[4, 6], DType::F32);
    assert!(gated(&x.narrow(1, 0, 5).unwrap().contiguous().unwrap(), Activation::Silu).is_err());
    assert!(gated(&x.narrow(1, 0, 4).unwrap(), Activation::Silu).is_err(), "rows that are not adjacent");
    assert!(gated(&x.flatten_all().unwrap(), Activation::Silu).is_err());
    assert!(activate(&x.t().unwrap(), Activation::Gelu).is_err());
    assert!(activate(&x.to_dtype(DType::F64).unwrap(), Activation::Gelu).is_err());
}
