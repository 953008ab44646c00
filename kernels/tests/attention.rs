//! Attention and the cache against straight f64 formulas, on shapes that are multiples of nothing.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod support;

use candle_core::{DType, Device, Tensor};
use percept_kernels::{Kv, Mask, Pages, Ragged, attention, kv_write};
use support::noise;

const CPU: &Device = &Device::Cpu;

fn tensor(shape: (usize, usize, usize), seed: u64, dtype: DType) -> Tensor {
    Tensor::from_vec(noise(shape.0 * shape.1 * shape.2, seed), shape, CPU).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// One sequence: `q` is the last `rows` of `seen` rows.
fn reference(
    q: &[f64],
    (k, v): (&[f64], &[f64]),
    (heads, kv_heads, width): (usize, usize, usize),
    mask: Mask,
    scale: f64,
) -> Vec<f64> {
    let (rows, seen) = (q.len() / (heads * width), k.len() / (kv_heads * width));
    let mut out = vec![0.0; q.len()];
    for row in 0..rows {
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let visible = if mask == Mask::Full { seen } else { seen - rows + row + 1 };
            let first = if let Mask::Window(window) = mask { visible.saturating_sub(window) } else { 0 };
            let at = |data: usize, count: usize, head: usize| (data * count + head) * width;
            let query = &q[at(row, heads, head)..][..width];
            let scores: Vec<f64> = (first..visible)
                .map(|key| {
                    let key = &k[at(key, kv_heads, kv_head)..][..width];
                    scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (key, weight) in (first..).zip(&weights) {
                for i in 0..width {
                    out[at(row, heads, head) + i] += weight / total * v[at(key, kv_heads, kv_head) + i];
                }
            }
        }
    }
    out
}

fn check(found: &[f64], expected: &[f64], dtype: DType, what: &str) {
    // Values are averages of numbers below one, so the error is that of rounding inputs and output.
    let tolerance = match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 1e-3,
        _ => 8e-3,
    };
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{what} at {index}: {found}, not {expected}");
    }
}

const SHAPES: [(usize, usize, usize); 7] =
    [(4, 4, 64), (8, 2, 80), (6, 1, 96), (2, 2, 128), (3, 3, 5), (4, 2, 8), (1, 1, 33)];
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn fresh_rows_match_the_formula() {
    for (heads, kv_heads, width) in SHAPES {
        for dtype in DTYPES {
            for mask in [Mask::Full, Mask::Causal, Mask::Window(1), Mask::Window(20), Mask::Window(64)] {
                let lengths = [1, 17, 0, 33, 64, 3];
                let rows: usize = lengths.iter().sum();
                let q = tensor((rows, heads, width), 1, dtype);
                let k = tensor((rows, kv_heads, width), 2, dtype);
                let v = tensor((rows, kv_heads, width), 3, dtype);
                let scale = 1.0 / (width as f32).sqrt() * 3.0;
                let ragged = Ragged::new(&lengths, CPU).unwrap();
                assert_eq!(ragged.longest, 64);
                let out = attention(&q, Kv::Fresh { k: &k, v: &v }, &ragged, mask, scale).unwrap();
                assert_eq!(out.dtype(), dtype);
                let mut first = 0;
                for length in lengths {
                    let part = |tensor: &Tensor| {
                        wide(&tensor.narrow(0, first, length).unwrap().contiguous().unwrap())
                    };
                    let shape = (heads, kv_heads, width);
                    let expected =
                        reference(&part(&q), (&part(&k), &part(&v)), shape, mask, f64::from(scale));
                    check(&part(&out), &expected, dtype, &format!("{shape:?} {dtype:?} {mask:?} {length}"));
                    first += length;
                }
            }
        }
    }
}

/// A cache whose sequences lie in pages in no order, with NaN in every slot that nobody wrote.
struct Paged {
    k: Tensor,
    v: Tensor,
    pages: Pages,
    table: Vec<Vec<u32>>,
    size: usize,
}

impl Paged {
    fn new(seen: &[usize], (kv_heads, width): (usize, usize), size: usize, dtype: DType) -> Self {
        let needed: usize = seen.iter().map(|seen| seen.div_ceil(size)).sum();
        let count = needed + 2;
        // A step that shares no factor with the count visits every page once.
        let step = (1..count)
            .rev()
            .find(|step| (2..=*step).all(|d| step % d != 0 || !count.is_multiple_of(d)))
            .unwrap_or(1);
        let mut order = (0..count).map(|index| ((index * step + 1) % count) as u32);
        let table: Vec<Vec<u32>> =
            seen.iter().map(|seen| order.by_ref().take(seen.div_ceil(size)).collect()).collect();
        let widest = table.iter().map(Vec::len).max().unwrap();
        let mut flat = Vec::new();
        for row in &table {
            flat.extend(row);
            flat.extend(std::iter::repeat_n(u32::MAX, widest - row.len()));
        }
        let nan =
            || Tensor::full(f32::NAN, (count, size, kv_heads, width), CPU).unwrap().to_dtype(dtype).unwrap();
        let lengths: Vec<u32> = seen.iter().map(|&seen| seen as u32).collect();
        let pages = Pages {
            table: Tensor::from_vec(flat, (seen.len(), widest), CPU).unwrap(),
            lengths: Tensor::from_vec(lengths, seen.len(), CPU).unwrap(),
        };
        Self { k: nan(), v: nan(), pages, table, size }
    }

    fn write(&self, sequence: usize, k: &Tensor, v: &Tensor) {
        let rows = k.dim(0).unwrap();
        let slot =
            |row: usize| self.table[sequence][row / self.size] * self.size as u32 + (row % self.size) as u32;
        let slots = Tensor::from_vec((0..rows).map(slot).collect::<Vec<_>>(), rows, CPU).unwrap();
        kv_write(&self.k, k, &slots).unwrap();
        kv_write(&self.v, v, &slots).unwrap();
    }
}

#[test]
fn pages_match_the_formula() {
    for (heads, kv_heads, width) in SHAPES {
        for dtype in DTYPES {
            for size in [1, 4, 16] {
                for mask in [Mask::Causal, Mask::Full, Mask::Window(1), Mask::Window(17), Mask::Window(500)] {
                    // New rows and rows that are seen: decoding, a whole prompt, chunks, a page more or less.
                    let cases = [(1, 1), (1, 15), (1, 16), (1, 17), (40, 40), (3, 33), (7, 64), (1, 100)];
                    let rows: Vec<usize> = cases.iter().map(|case| case.0).collect();
                    let seen: Vec<usize> = cases.iter().map(|case| case.1).collect();
                    let paged = Paged::new(&seen, (kv_heads, width), size, dtype);
                    let q = tensor((rows.iter().sum(), heads, width), 4, dtype);
                    let kv: Vec<(Tensor, Tensor)> = (0..seen.len())
                        .map(|sequence| {
                            let shape = (seen[sequence], kv_heads, width);
                            let seed = 10 + 2 * sequence as u64;
                            (tensor(shape, seed, dtype), tensor(shape, seed + 1, dtype))
                        })
                        .collect();
                    for (sequence, (k, v)) in kv.iter().enumerate() {
                        paged.write(sequence, k, v);
                    }
                    let ragged = Ragged::new(&rows, CPU).unwrap();
                    let from = Kv::Paged { k: &paged.k, v: &paged.v, pages: &paged.pages };
                    let out = attention(&q, from, &ragged, mask, 0.7).unwrap();
                    let mut first = 0;
                    for (sequence, (k, v)) in kv.iter().enumerate() {
                        let count = rows[sequence];
                        let part = |tensor: &Tensor| {
                            wide(&tensor.narrow(0, first, count).unwrap().contiguous().unwrap())
                        };
                        let shape = (heads, kv_heads, width);
                        let expected =
                            reference(&part(&q), (&wide(k), &wide(v)), shape, mask, f64::from(0.7f32));
                        let what =
                            format!("{shape:?} {dtype:?} pages of {size} {mask:?} {:?}", cases[sequence]);
                        check(&part(&out), &expected, dtype, &what);
                        first += count;
                    }
                }
            }
        }
    }
}

#[test]
fn rows_that_see_nothing_are_zero_and_pages_may_be_shared() {
    let (heads, kv_heads, width) = (4, 2, 8);
    let paged = Paged::new(&[20], (kv_heads, width), 4, DType::F32);
    let (k, v) = (tensor((20, kv_heads, width), 1, DType::F32), tensor((20, kv_heads, width), 2, DType::F32));
    paged.write(0, &k, &v);
    let rows = [(3, 0), (2, 20), (1, 7), (0, 4), (2, 0)];
    let table = paged.pages.table.repeat((rows.len(), 1)).unwrap();
    let lengths = Tensor::from_vec(rows.map(|(_, seen)| seen as u32).to_vec(), rows.len(), CPU).unwrap();
    let pages = Pages { table, lengths };
    let q = tensor((8, heads, width), 3, DType::F32);
    let from = Kv::Paged { k: &paged.k, v: &paged.v, pages: &pages };
    let ragged = Ragged::new(&rows.map(|(rows, _)| rows), CPU).unwrap();
    let out = attention(&q, from, &ragged, Mask::Full, 0.5).unwrap();
    let mut first = 0;
    for (rows, seen) in rows {
        let part = |tensor: &Tensor, first, rows| wide(&tensor.narrow(0, first, rows).unwrap());
        let kv = (part(&k, 0, seen), part(&v, 0, seen));
        let shape = (heads, kv_heads, width);
        let expected = reference(&part(&q, first, rows), (&kv.0, &kv.1), shape, Mask::Full, 0.5);
        check(&part(&out, first, rows), &expected, DType::F32, &format!("{rows} rows see {seen}"));
        first += rows;
    }
}

/// What a row gives does not depend on the rows that are computed with it, to the bit.
#[test]
fn a_row_is_the_same_in_any_company() {
    for mask in [Mask::Causal, Mask::Window(45)] {
        same_in_any_company(mask);
    }
}

fn same_in_any_company(mask: Mask) {
    let (heads, kv_heads, width, seen) = (8, 2, 64, 75);
    let (k, v) =
        (tensor((seen, kv_heads, width), 5, DType::F32), tensor((seen, kv_heads, width), 6, DType::F32));
    let q = tensor((seen, heads, width), 7, DType::F32);
    let run = |size: usize, first: usize, rows: usize, strangers: usize| {
        let mut lengths = vec![first + rows];
        lengths.extend(vec![40; strangers]);
        let paged = Paged::new(&lengths, (kv_heads, width), size, DType::F32);
        paged.write(0, &k.narrow(0, 0, first + rows).unwrap(), &v.narrow(0, 0, first + rows).unwrap());
        let mut q = vec![q.narrow(0, first, rows).unwrap()];
        for stranger in 0..strangers {
            let noise = tensor((40, kv_heads, width), 90 + stranger as u64, DType::F32);
            paged.write(stranger + 1, &noise, &noise);
            q.push(tensor((40, heads, width), 50, DType::F32));
        }
        let mut rows = vec![rows];
        rows.extend(vec![40; strangers]);
        let ragged = Ragged::new(&rows, CPU).unwrap();
        let from = Kv::Paged { k: &paged.k, v: &paged.v, pages: &paged.pages };
        let out = attention(&Tensor::cat(&q, 0).unwrap(), from, &ragged, mask, 0.125).unwrap();
        out.narrow(0, 0, rows[0]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let whole = run(16, 0, seen, 0);
    for (size, chunk, strangers) in [(16, 75, 3), (4, 7, 0), (1, 1, 1), (16, 32, 2)] {
        let mut pieces = Vec::new();
        for first in (0..seen).step_by(chunk) {
            pieces.extend(run(size, first, chunk.min(seen - first), strangers));
        }
        assert!(pieces == whole, "pages of {size}, chunks of {chunk}, {strangers} others");
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let q = tensor((4, 4, 8), 1, DType::F32);
    let rows = Ragged::new(&[4], CPU).unwrap();
    let fresh = |k: Tensor, v: Tensor, rows: &Ragged| {
        attention(&q, Kv::Fresh { k: &k, v: &v }, rows, Mask::Causal, 1.0).unwrap_err().to_string()
    };
    let kv = |shape| tensor(shape, 2, DType::F32);
    fresh(kv((4, 3, 8)), kv((4, 3, 8)), &rows);
    fresh(kv((4, 4, 9)), kv((4, 4, 9)), &rows);
    fresh(kv((3, 4, 8)), kv((3, 4, 8)), &rows);
    fresh(kv((4, 4, 8)), kv((4, 2, 8)), &rows);
    fresh(kv((4, 4, 8)).to_dtype(DType::BF16).unwrap(), kv((4, 4, 8)).to_dtype(DType::BF16).unwrap(), &rows);
    fresh(kv((4, 4, 8)), kv((4, 4, 8)), &Ragged::new(&[3], CPU).unwrap());

    let cache = Tensor::zeros((2, 4, 4, 8), DType::F32, CPU).unwrap();
    let paged = |table: &[u32], lengths: &[u32], rows: &[usize]| {
        let pages = Pages {
            table: Tensor::from_slice(table, (lengths.len(), table.len() / lengths.len()), CPU).unwrap(),
            lengths: Tensor::from_slice(lengths, lengths.len(), CPU).unwrap(),
        };
        let rows = Ragged::new(rows, CPU).unwrap();
        attention(&q, Kv::Paged { k: &cache, v: &cache, pages: &pages }, &rows, Mask::Causal, 1.0)
    };
    paged(&[1, 0], &[8], &[4]).unwrap();
    assert!(paged(&[1, 2], &[8], &[4]).is_err(), "a page outside the cache");
    assert!(paged(&[1], &[8], &[4]).is_err(), "fewer pages than rows");
    assert!(paged(&[1, 0], &[3], &[4]).is_err(), "fewer rows seen than new");
    assert!(paged(&[1, 0], &[4, 4], &[4]).is_err(), "more sequences than rows say");
}

/// Numbers that are broken come out broken, where they are found, and touch nobody else.
#[test]
fn broken_numbers_are_not_hidden() {
    let mut keys = noise(6 * 8, 2);
    keys[4 * 8] = f32::NAN;
    let k = Tensor::from_vec(keys, (6, 1, 8), CPU).unwrap();
    let q = tensor((6, 1, 8), 1, DType::F32);
    let rows = Ragged::new(&[4, 2], CPU).unwrap();
    let out = attention(&q, Kv::Fresh { k: &k, v: &q }, &rows, Mask::Causal, 1.0).unwrap();
    let finite: Vec<bool> =
        out.to_vec3::<f32>().unwrap().iter().map(|row| row[0].iter().all(|x| x.is_finite())).collect();
    assert_eq!(finite, [true, true, true, true, false, false]);
}

#[test]
fn writing_touches_only_its_slots() {
    let cache = Tensor::zeros((3, 4, 2, 5), DType::F32, CPU).unwrap();
    let rows = tensor((4, 2, 5), 1, DType::F32);
    let slots = Tensor::new(&[11u32, 0, 6, 5], CPU).unwrap();
    kv_write(&cache, &rows, &slots).unwrap();
    let cache_rows = cache.reshape((12, 10)).unwrap().to_vec2::<f32>().unwrap();
    let rows = rows.reshape((4, 10)).unwrap().to_vec2::<f32>().unwrap();
    for (slot, found) in cache_rows.iter().enumerate() {
        let expected = [11, 0, 6, 5].iter().position(|&written| written == slot).map(|row| rows[row].clone());
        assert_eq!(*found, expected.unwrap_or_else(|| vec![0.0; 10]), "slot {slot}");
    }
    // Parts of a fused projection lie apart.
    let fused = tensor((4, 6, 5), 2, DType::F32);
    kv_write(&cache, &fused.narrow(1, 2, 2).unwrap(), &slots).unwrap();
    let written = cache.reshape((12, 2, 5)).unwrap().narrow(0, 6, 1).unwrap().flatten_all().unwrap();
    let expected = fused.narrow(0, 2, 1).unwrap().narrow(1, 2, 2).unwrap().flatten_all().unwrap();
    assert_eq!(written.to_vec1::<f32>().unwrap(), expected.to_vec1::<f32>().unwrap());

    let row = fused.narrow(0, 0, 1).unwrap().narrow(1, 0, 2).unwrap();
    assert!(
        kv_write(&cache, &row, &Tensor::new(&[12u32], CPU).unwrap()).is_err(),
        "a slot outside the cache"
    );
    assert!(kv_write(&cache, &row, &Tensor::new(&[1u32, 2], CPU).unwrap()).is_err(), "more slots than rows");
    assert!(kv_write(&cache, &fused, &slots).is_err(), "another number of heads");
}
