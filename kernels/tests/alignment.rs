//! Alignment against a straight f64 formula, on shapes that are multiples of nothing.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/alignment.rs"]
mod formula;
mod support;

use candle_core::{DType, Device, Tensor};
use percept_kernels::alignment;
use support::noise;

const CPU: &Device = &Device::Cpu;

fn tensor<S: Into<candle_core::Shape>>(shape: S, seed: u64, dtype: DType) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(noise(shape.elem_count(), seed), shape, CPU).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

struct Case {
    rows: usize,
    heads: usize,
    width: usize,
    page_size: usize,
    frames: usize,
    head_set: Vec<usize>,
}

impl Case {
    fn new(
        (rows, frames): (usize, usize),
        (heads, width): (usize, usize),
        page_size: usize,
        head_set: &[usize],
    ) -> Self {
        Self { rows, heads, width, page_size, frames, head_set: head_set.to_vec() }
    }

    /// Pages in an order of their own, with a hole.
    fn pages(&self) -> Vec<u32> {
        formula::pages(self.frames, self.page_size)
    }

    fn keys(&self, dtype: DType) -> Tensor {
        let pages = 2 * self.frames.div_ceil(self.page_size) + 1;
        tensor((pages, self.page_size, self.heads, self.width), 2, dtype)
    }

    fn run(&self, q: &Tensor, k: &Tensor, scale: f32) -> candle_core::Result<Tensor> {
        let pages = self.pages();
        let pages = Tensor::from_vec(pages.clone(), pages.len(), CPU)?;
        alignment(q, k, &pages, &self.head_set, self.frames, scale)
    }

    fn expected(&self, q: &Tensor, k: &Tensor, scale: f64) -> Vec<f64> {
        let sizes = [self.rows, self.heads, self.width, self.page_size, self.frames];
        formula::alignment(&wide(q), &wide(k), &self.pages(), &self.head_set, sizes, scale)
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new((2, 1), (1, 8), 1, &[0]),
        Case::new((3, 3), (2, 5), 2, &[1]),
        Case::new((2, 4), (3, 7), 3, &[2, 0]),
        Case::new((5, 15), (4, 16), 16, &[3]),
        Case::new((7, 16), (2, 33), 5, &[0, 1]),
        Case::new((4, 17), (6, 64), 16, &[5, 1, 3]),
        Case::new((18, 150), (4, 12), 16, &[1, 0, 3, 2]),
        Case::new((229, 750), (3, 64), 16, &[2, 0]),
        Case::new((33, 1500), (2, 80), 7, &[1]),
    ]
}

#[test]
fn alignment_equals_its_formula() {
    for case in cases() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let scale = 2.0 / (case.width as f32).sqrt();
            let q = tensor((case.rows, case.heads, case.width), 1, dtype);
            let k = case.keys(dtype);
            let found = wide(&case.run(&q, &k, scale).unwrap());
            let expected = case.expected(&q, &k, f64::from(scale));
            assert_eq!(found.len(), expected.len());
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (found - expected).abs() < 3e-4,
                    "{} rows, {} frames, {dtype:?}, at {index}: {found}, not {expected}",
                    case.rows,
                    case.frames
                );
            }
        }
    }
}

#[test]
fn rows_may_lie_apart() {
    let case = Case::new((9, 40), (3, 20), 8, &[0, 2]);
    let fused = tensor((9, 9, 20), 1, DType::F32);
    let k = case.keys(DType::F32);
    let apart = fused.narrow(1, 3, 3).unwrap();
    let together = apart.contiguous().unwrap();
    assert_eq!(wide(&case.run(&apart, &k, 0.3).unwrap()), wide(&case.run(&together, &k, 0.3).unwrap()));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let case = Case::new((21, 100), (8, 16), 16, &[7, 1, 4, 0, 3]);
    let (q, k) = (tensor((21, 8, 16), 1, DType::F32), case.keys(DType::F32));
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| wide(&case.run(&q, &k, 0.5).unwrap()))
    };
    let alone = with(1);
    for threads in [2, 3, 8] {
        assert_eq!(alone, with(threads), "{threads} threads");
    }
}

#[test]
fn frames_at_which_all_rows_look_alike_are_zero() {
    let case = Case::new((7, 30), (2, 16), 4, &[0, 1]);
    let k = case.keys(DType::F32);
    let row = tensor((1, 2, 16), 1, DType::F32);
    let same = Tensor::cat(&[&row; 7], 0).unwrap();
    assert_eq!(wide(&case.run(&same, &k, 1.0).unwrap()), vec![0.0; 7 * 30]);
    // Some frames are so improbable for every row that their probability is zero.
    let steep = wide(&case.run(&tensor((7, 2, 16), 5, DType::F32), &k, 300.0).unwrap());
    assert!(steep.iter().all(|value| value.is_finite()));
    assert!(steep.iter().any(|value| *value != 0.0));
}

#[test]
fn nothing_to_align_is_empty() {
    let case = Case::new((3, 0), (2, 8), 4, &[0]);
    let k = tensor((1, 4, 2, 8), 2, DType::F32);
    assert_eq!(case.run(&tensor((3, 2, 8), 1, DType::F32), &k, 1.0).unwrap().dims(), [3, 0]);
    let case = Case::new((0, 4), (2, 8), 4, &[0]);
    let none = Tensor::zeros((0, 2, 8), DType::F32, CPU).unwrap();
    assert_eq!(case.run(&none, &case.keys(DType::F32), 1.0).unwrap().dims(), [0, 4]);
    let case = Case::new((2, 4), (2, 8), 4, &[]);
    let found = case.run(&tensor((2, 2, 8), 1, DType::F32), &case.keys(DType::F32), 1.0).unwrap();
    assert_eq!(wide(&found), vec![0.0; 8]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let q = tensor((3, 2, 8), 1, DType::F32);
    let k = tensor((4, 4, 2, 8), 2, DType::F32);
    let pages = |pages: &[u32]| Tensor::new(pages, CPU).unwrap();
    let check = |q: &Tensor, k: &Tensor, pages: &Tensor, head: usize, frames: usize, expected: &str| {
        let error = alignment(q, k, pages, &[head], frames, 1.0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&q, &k, &pages(&[0, 1]), 2, 8, "no head 2 among 2");
    check(&q, &k, &pages(&[0, 1]), 0, 9, "do not hold 9 frames");
    check(&q, &k, &pages(&[0, 4]), 0, 5, "no page 4 among 4");
    check(&q, &k.to_dtype(DType::F16).unwrap(), &pages(&[0]), 0, 4, "do not fit");
    check(&tensor((3, 3, 8), 1, DType::F32), &k, &pages(&[0]), 0, 4, "do not fit");
    check(&q, &k, &Tensor::new(&[0i64], CPU).unwrap(), 0, 4, "");
    check(&q, &k.transpose(0, 1).unwrap(), &pages(&[0]), 0, 4, "contiguous");
    check(&q.to_dtype(DType::F64).unwrap(), &k.to_dtype(DType::F64).unwrap(), &pages(&[0]), 0, 4, "F64");
}
