//! RMSNorm and LayerNorm against straight f64 formulas.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use candle_core::{DType, Device, Tensor};
use percept_kernels::{add_rms_norm, layer_norm, rms_norm};

fn values(count: usize, seed: usize, offset: f32) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 211) as f32 / 50.0 - 2.0 + offset).collect()
}

fn tensor(values: &[f32], shape: &[usize], dtype: DType) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn norms_match_the_formulas() {
    for (rows, width) in [(1, 1), (3, 5), (33, 64), (2, 1000), (9, 4096)] {
        // Far from zero the one-pass variance would lose everything.
        for offset in [0.0, 100.0] {
            for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 2e-2), (DType::F16, 3e-3)] {
                let x = tensor(&values(rows * width, 1, offset), &[rows, width], dtype);
                let weight = tensor(&values(width, 2, 0.0), &[width], dtype);
                let bias = tensor(&values(width, 3, 0.0), &[width], dtype);
                let (wx, ww, wb) = (wide(&x), wide(&weight), wide(&bias));
                let rms = wide(&rms_norm(&x, &weight, 1e-5).unwrap());
                let layer = wide(&layer_norm(&x, &weight, &bias, 1e-5).unwrap());
                for row in 0..rows {
                    let x = &wx[row * width..][..width];
                    let mean = x.iter().sum::<f64>() / width as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    let square = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let expected = [
                            x[i] / (square + 1e-5).sqrt() * ww[i],
                            (x[i] - mean) / (variance + 1e-5).sqrt() * ww[i] + wb[i],
                        ];
                        let found = [rms[row * width + i], layer[row * width + i]];
                        for (found, expected) in found.iter().zip(expected) {
                            // An offset of 100 costs f32 seven of its bits.
                            let room =
                                tolerance * (1.0 + expected.abs()) * if offset > 0.0 { 10.0 } else { 1.0 };
                            assert!(
                                (found - expected).abs() <= room,
                                "{rows}x{width} {dtype:?} {offset}: {found}, not {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rms_norm_rounds_before_the_weight_as_the_reference_does() {
    let x = tensor(&[1.0, 2.5, -3.125, 0.75], &[1, 4], DType::BF16);
    let weight = tensor(&[1.01, 0.99, 1.3, 0.7], &[4], DType::BF16);
    let found = wide(&rms_norm(&x, &weight, 1e-6).unwrap());
    let (wx, ww) = (wide(&x), wide(&weight));
    let scale = 1.0 / (wx.iter().map(|x| x * x).sum::<f64>() / 4.0 + 1e-6).sqrt();
    for i in 0..4 {
        let round = |x: f64| half::bf16::from_f32(x as f32).to_f64();
        assert_eq!(found[i], round(round(wx[i] * scale) * ww[i]));
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = tensor(&values(12, 1, 0.0), &[3, 4], DType::F32);
    let weight = |width: usize, dtype| tensor(&values(width, 1, 0.0), &[width], dtype);
    assert!(rms_norm(&x, &weight(3, DType::F32), 1e-5).is_err());
    assert!(rms_norm(&x, &weight(4, DType::BF16), 1e-5).is_err());
    assert!(layer_norm(&x, &weight(4, DType::F32), &weight(5, DType::F32), 1e-5).is_err());
    assert!(rms_norm(&x.t().unwrap(), &weight(3, DType::F32), 1e-5).is_err(), "rows that are not adjacent");
}

#[test]
fn a_sum_and_its_norm_are_those_of_two_operations() {
    for (rows, width) in [(1, 1), (0, 4), (3, 5), (33, 64), (2, 1000), (9, 4096)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = tensor(&values(rows * width, 1, 0.0), &[rows, width], dtype);
            let residual = tensor(&values(rows * width, 2, 1.3), &[rows, width], dtype);
            let weight = tensor(&values(width, 3, 0.0), &[width], dtype);
            let before = (wide(&x), wide(&residual));
            let (sum, normed) = add_rms_norm(&x, &residual, &weight, 1e-5).unwrap();
            let expected = (&x + &residual).unwrap();
            let what = format!("{rows}x{width} {dtype:?}");
            assert_eq!((sum.dims(), normed.dims()), (x.dims(), x.dims()), "{what}");
            assert!(sum.is_contiguous() && normed.is_contiguous(), "{what}");
            assert_eq!(wide(&sum), wide(&expected), "{what}");
            assert_eq!(wide(&normed), wide(&rms_norm(&expected, &weight, 1e-5).unwrap()), "{what}");
            assert_eq!((wide(&x), wide(&residual)), before, "{what}: the operands stay as they were");
        }
    }
    let x = tensor(&values(12, 1, 0.0), &[3, 4], DType::F32);
    let weight = tensor(&values(4, 1, 0.0), &[4], DType::F32);
    assert!(add_rms_norm(&x, &x.narrow(0, 0, 2).unwrap(), &weight, 1e-5).is_err());
    assert!(add_rms_norm(&x, &x.to_dtype(DType::BF16).unwrap(), &weight, 1e-5).is_err());
    assert!(add_rms_norm(&x, &x, &weight.narrow(0, 0, 3).unwrap(), 1e-5).is_err());
}
