//! The linear layer beside its formula in f64.
#![allow(clippy::unwrap_used, reason = "tests")]

use candle_core::{DType, Device, Tensor};
use percept_kernels::linear;

/// Numbers between -1 and 1, the same every time.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn tensor(numbers: &[f32], shape: impl Into<candle_core::Shape>, dtype: DType) -> Tensor {
    Tensor::from_slice(numbers, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn equals_the_formula() {
    let shapes = [
        (1, 1, 1),
        (1, 64, 17),
        (2, 15, 16),
        (3, 16, 33),
        (5, 1000, 7),
        (6, 513, 16),
        (7, 1025, 18),
        (40, 96, 100),
    ];
    for (rows, input, output) in shapes {
        for (dtype, unit) in
            [(DType::F32, 2f64.powi(-23)), (DType::BF16, 2f64.powi(-8)), (DType::F16, 2f64.powi(-11))]
        {
            for with_bias in [false, true] {
                let x = tensor(&numbers(rows * input, 1), (rows, input), dtype);
                let weight = tensor(&numbers(output * input, 2), (output, input), dtype);
                let bias = tensor(&numbers(output, 3), output, dtype);
                let y = linear(&x, &weight, with_bias.then_some(&bias)).unwrap();
                assert_eq!((y.dims(), y.dtype()), ([rows, output].as_slice(), dtype));
                let (y, x, weight, bias) = (values(&y), values(&x), values(&weight), values(&bias));
                for row in 0..rows {
                    for column in 0..output {
                        let terms = (0..input)
                            .map(|k| f64::from(x[row * input + k]) * f64::from(weight[column * input + k]));
                        let terms: Vec<f64> = terms.collect();
                        let bias = if with_bias { f64::from(bias[column]) } else { 0.0 };
                        let expected = terms.iter().sum::<f64>() + bias;
                        // The result is rounded once; the sum in f32 on the way, as often as it has terms in a lane.
                        let size: f64 = terms.iter().map(|term| term.abs()).sum::<f64>() + bias.abs();
                        let most =
                            unit * expected.abs() + 2f64.powi(-23) * size * (input as f64 / 16.0 + 6.0);
                        let found = f64::from(y[row * output + column]);
                        assert!(
                            (found - expected).abs() <= most,
                            "{dtype:?} {rows}x{input}x{output} at {row}, {column}: {found} is not {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// A request has the same logits in any company.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let (rows, input, output) = (37, 1100, 50);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let x = tensor(&numbers(rows * input, 4), (rows, input), dtype);
        let weight = tensor(&numbers(output * input, 5), (output, input), dtype);
        let together = values(&linear(&x, &weight, None).unwrap());
        for count in [1, 2, 3, 5, 6, 7, 13, 36] {
            for first in [0, rows - count] {
                let some = x.narrow(0, first, count).unwrap();
                let some = values(&linear(&some, &weight, None).unwrap());
                assert!(
                    some == together[first * output..][..count * output],
                    "{dtype:?}: {count} from {first}"
                );
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = Tensor::zeros((3, 8), DType::F32, &Device::Cpu).unwrap();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    for (weight, bias) in [
        (zeros(&[4, 7], DType::F32), None),
        (zeros(&[4, 8], DType::BF16), None),
        (zeros(&[4, 8, 1], DType::F32), None),
        (zeros(&[4, 8], DType::F32), Some(zeros(&[3], DType::F32))),
        (zeros(&[4, 8], DType::F32), Some(zeros(&[4], DType::F16))),
    ] {
        assert!(linear(&x, &weight, bias.as_ref()).is_err());
    }
    let apart = zeros(&[8, 3], DType::F32).t().unwrap();
    assert!(linear(&apart, &zeros(&[4, 8], DType::F32), None).is_err());
    let none = linear(&x.narrow(0, 0, 0).unwrap(), &zeros(&[4, 8], DType::F32), None).unwrap();
    assert_eq!(none.dims(), [0, 4]);
    let bias = tensor(&[1.0, 2.0], 2, DType::F32);
    let empty = linear(&zeros(&[2, 0], DType::F32), &zeros(&[2, 0], DType::F32), Some(&bias)).unwrap();
    assert_eq!(values(&empty), [1.0, 2.0, 1.0, 2.0]);
}
