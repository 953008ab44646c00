//! attention.cu against the formula in f64, on shapes that are multiples of nothing.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use percept_kernels::launch::{Attention, Paged, Rows};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, Real, compare, ldmatrix_passes, noise};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask {
    Full,
    Causal,
    Window(usize),
}

/// One sequence: queries `[rows, heads, width]` and all keys and values that it sees, `[visible, kv_heads, width]`.
#[derive(Clone)]
struct Sequence<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
}

/// Rows with NaN between them.
fn spread<'a, T: Real + 'a>(rows: impl Iterator<Item = &'a [T]>, apart: usize) -> Vec<T> {
    rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(T::narrow(f64::NAN), apart))).collect()
}

#[derive(Clone)]
struct Case<T> {
    heads: usize,
    kv_heads: usize,
    width: usize,
    mask: Mask,
    /// Slots of a page; none for fresh rows.
    page_size: Option<usize>,
    sequences: Vec<Sequence<T>>,
}

impl<T: Real> Case<T> {
    /// `lengths`: new and visible rows of each sequence.
    fn new(shape: [usize; 3], mask: Mask, page_size: Option<usize>, lengths: &[(usize, usize)]) -> Self {
        let [heads, kv_heads, width] = shape;
        let sequence = |(index, &(rows, visible)): (usize, &(usize, usize))| {
            let seed = index as u64 * 3 + 1;
            Sequence {
                q: noise(rows * heads * width, seed),
                k: noise(visible * kv_heads * width, seed + 1),
                v: noise(visible * kv_heads * width, seed + 2),
            }
        };
        let sequences = lengths.iter().enumerate().map(sequence).collect();
        Self { heads, kv_heads, width, mask, page_size, sequences }
    }

    fn scale(&self) -> f32 {
        3.0 / (self.width as f32).sqrt()
    }

    fn rows(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().map(|sequence| sequence.q.len() / (self.heads * self.width))
    }

    fn visible(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().map(|sequence| sequence.k.len() / (self.kv_heads * self.width))
    }

    /// Keys or values: end to end, or in pages in no order, with NaN in every slot that nobody has.
    fn placed(
        &self,
        data: impl Fn(&Sequence<T>) -> &[T],
        table: &[Vec<u32>],
        [pages, apart]: [usize; 2],
    ) -> Vec<T> {
        let slot_width = self.kv_heads * self.width;
        let Some(page_size) = self.page_size else {
            return spread(
                self.sequences.iter().flat_map(|sequence| data(sequence).chunks(slot_width)),
                apart,
            );
        };
        let mut cache = vec![T::narrow(f64::NAN); pages * page_size * slot_width];
        for (sequence, table) in self.sequences.iter().zip(table) {
            for (position, row) in data(sequence).chunks(slot_width).enumerate() {
                let slot = table[position / page_size] as usize * page_size + position % page_size;
                cache[slot * slot_width..][..slot_width].copy_from_slice(row);
            }
        }
        cache
    }

    /// The output of all sequences, end to end. `apart`: elements between one fresh row's end and the next one's start.
    fn run(&self, emulator: Emulator, apart: usize) -> Result<Vec<T>, String> {
        let row_width = self.heads * self.width;
        let mut offsets = vec![0u32];
        offsets.extend(self.rows().scan(0, |end, rows| {
            *end += rows as u32;
            Some(*end)
        }));
        let rows = offsets[self.sequences.len()] as usize;
        let q = spread(self.sequences.iter().flat_map(|sequence| sequence.q.chunks(row_width)), apart);
        let needs = |visible: usize| self.page_size.map_or(0, |page_size| visible.div_ceil(page_size));
        let count: usize = self.visible().map(needs).sum::<usize>() + 2;
        let mut unused: Vec<usize> = (0..count).rev().collect();
        let mut table: Vec<Vec<u32>> = Vec::new();
        for visible in self.visible() {
            table.push((0..needs(visible)).map(|i| unused.remove(i * 5 % unused.len()) as u32).collect());
        }
        let most_pages = table.iter().map(Vec::len).max().unwrap_or(0).max(1);
        // An entry behind the end of a sequence must never be used.
        let columns = |row: &Vec<u32>| [row.clone(), vec![u32::MAX; most_pages - row.len()]].concat();
        let flat: Vec<u32> = table.iter().flat_map(columns).collect();
        let lengths: Vec<u32> = self.visible().map(|visible| visible as u32).collect();

        let out = Buffer::<T>::new(rows * row_width, "out");
        let q = Buffer::of(&q, "q");
        let k = Buffer::of(&self.placed(|sequence| &sequence.k, &table, [count, apart]), "keys");
        let v = Buffer::of(&self.placed(|sequence| &sequence.v, &table, [count, apart]), "values");
        let (offsets, table) = (Buffer::of(&offsets, "offsets"), Buffer::of(&flat, "table"));
        let lengths = Buffer::of(&lengths, "lengths");
        let stride = self.kv_heads * self.width + if self.page_size.is_none() { apart } else { 0 };
        let slot = |buffer: &Buffer<T>| Rows { address: buffer.address(), stride };
        let attention = Attention {
            element: T::ELEMENT,
            out: out.address(),
            q: Rows { address: q.address(), stride: row_width + apart },
            keys: slot(&k),
            values: slot(&v),
            offsets: offsets.address(),
            sequences: self.sequences.len(),
            rows,
            longest: self.rows().max().unwrap_or(0),
            heads: self.heads,
            kv_heads: self.kv_heads,
            width: self.width,
            pages: self.page_size.map(|page_size| Paged {
                table: table.address(),
                lengths: lengths.address(),
                most_pages,
                page_size,
                pages: count,
            }),
            causal: self.mask != Mask::Full,
            window: if let Mask::Window(window) = self.mask { Some(window) } else { None },
            scale: self.scale(),
        };
        let [parts, stats] = attention.workspace();
        let (parts, stats) = (Buffer::<f32>::new(parts, "parts"), Buffer::<f32>::new(stats, "stats"));
        for launch in attention.launches([parts.address(), stats.address()]).unwrap() {
            emulator.run(&launch)?;
            if launch.kernel.contains("tiles") && ldmatrix_passes() > 1.0 {
                return Err(format!("{}: bank conflicts", launch.kernel));
            }
        }
        out.read()
    }

    fn expected(&self) -> Vec<f64> {
        self.sequences.iter().flat_map(|sequence| self.formula(sequence)).collect()
    }

    fn formula(&self, sequence: &Sequence<T>) -> Vec<f64> {
        let [heads, kv_heads, width] = [self.heads, self.kv_heads, self.width];
        let (rows, seen) = (sequence.q.len() / (heads * width), sequence.k.len() / (kv_heads * width));
        let mut out = vec![0.0; sequence.q.len()];
        for (index, out) in out.chunks_mut(width).enumerate() {
            let (row, head) = (index / heads, index % heads);
            let visible = if self.mask == Mask::Full { seen } else { seen - rows + row + 1 };
            let first = if let Mask::Window(window) = self.mask { visible.saturating_sub(window) } else { 0 };
            let at = |key: usize| (key * kv_heads + head / (heads / kv_heads)) * width;
            let query = &sequence.q[index * width..][..width];
            let score = |key: usize| {
                let key = &sequence.k[at(key)..][..width];
                f64::from(self.scale()) * query.iter().zip(key).map(|(a, b)| a.wide() * b.wide()).sum::<f64>()
            };
            let scores: Vec<f64> = (first..visible).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (key, weight) in (first..).zip(&weights) {
                for (out, value) in out.iter_mut().zip(&sequence.v[at(key)..][..width]) {
                    *out += weight / total * value.wide();
                }
            }
        }
        out
    }

    fn check(&self, emulator: Emulator, apart: usize) -> Result<(), String> {
        let lengths: Vec<_> = self.rows().zip(self.visible()).collect();
        let shape = [self.heads, self.kv_heads, self.width];
        let what = format!("{shape:?} {:?} {:?} {:?} {lengths:?}", T::ELEMENT, self.mask, self.page_size);
        // Values are averages of numbers below one: what remains is rounding, of weights too where tiles are.
        let out = self.run(emulator, apart).map_err(|error| format!("{what}: {error}"))?;
        compare(&what, &out, &self.expected(), T::EPSILON + 4e-6)
    }
}

const MASKS: [Mask; 5] = [Mask::Full, Mask::Causal, Mask::Window(1), Mask::Window(20), Mask::Window(64)];

fn check<T: Real>(
    shape: [usize; 3],
    mask: Mask,
    page_size: Option<usize>,
    lengths: &[(usize, usize)],
    seed: u64,
) {
    Case::<T>::new(shape, mask, page_size, lengths).check(Emulator { seed, fault: None }, 0).unwrap();
}

/// One new row each: lengths around a page's and a split's end, none, and one.
fn decode<T: Real>(shapes: &[[usize; 3]]) {
    for (seed, &shape) in shapes.iter().enumerate() {
        for mask in [Mask::Causal, Mask::Window(20)] {
            let lengths = [1, 15, 16, 17, 75].map(|visible| (1, visible));
            check::<T>(shape, mask, Some(16), &lengths, seed as u64);
        }
        check::<T>(shape, Mask::Full, Some(7), &[(1, 0), (0, 5), (1, 6), (1, 7), (1, 8)], 1);
    }
}

#[test]
fn decode_matches_the_formula() {
    decode::<bf16>(&[
        [4, 4, 64],
        [8, 2, 80],
        [6, 1, 96],
        [7, 1, 128],
        [8, 1, 128],
        [3, 3, 5],
        [2, 1, 33],
        [1, 1, 256],
    ]);
}

#[test]
fn decode_matches_the_formula_in_other_types() {
    decode::<f16>(&[[8, 2, 64], [4, 2, 128], [9, 1, 40]]);
    decode::<f32>(&[[8, 2, 64], [8, 1, 96], [2, 2, 33]]);
}

#[test]
fn long_sequences_are_split_and_joined() {
    let lengths = [(1, 255), (1, 256), (1, 257), (1, 600), (1, 3)];
    for mask in [Mask::Causal, Mask::Window(100), Mask::Window(300)] {
        check::<bf16>([4, 1, 64], mask, Some(16), &lengths, 1);
    }
    check::<f32>([1, 1, 80], Mask::Causal, Some(32), &lengths, 2);
}

fn tiles<T: Real>(seed: u64) {
    for (width, heads, kv_heads) in [(64, 2, 2), (80, 4, 1), (96, 2, 1), (128, 4, 2)] {
        for mask in MASKS {
            check::<T>([heads, kv_heads, width], mask, None, &[1, 0, 33, 65].map(|rows| (rows, rows)), seed);
        }
        // New rows behind others that are in the cache, and a sequence that decodes beside them.
        let lengths = [(3, 70), (1, 40), (0, 9), (65, 66)];
        for mask in [Mask::Causal, Mask::Window(20)] {
            check::<T>([heads, kv_heads, width], mask, Some(16), &lengths, seed + 1);
        }
        check::<T>([heads, kv_heads, width], Mask::Full, Some(15), &[(7, 0), (5, 3), (2, 130)], seed);
    }
}

#[test]
fn tiles_match_the_formula_in_bf16() {
    tiles::<bf16>(0);
}

#[test]
fn tiles_match_the_formula_in_f16() {
    tiles::<f16>(1);
}

#[test]
fn rows_match_the_formula() {
    for (seed, shape) in [[2, 1, 5], [4, 2, 33], [2, 2, 64], [1, 1, 200]].into_iter().enumerate() {
        for mask in MASKS {
            check::<f32>(shape, mask, None, &[1, 17, 0, 34].map(|rows| (rows, rows)), seed as u64);
            check::<f32>(shape, mask, Some(16), &[(3, 20), (1, 40), (9, 9)], 1);
        }
    }
    check::<bf16>([2, 1, 72], Mask::Causal, None, &[(5, 5), (20, 20)], 1);
    check::<f16>([2, 1, 33], Mask::Full, None, &[(5, 5), (20, 20)], 1);
}

#[test]
fn fresh_rows_may_lie_apart() {
    let emulator = Emulator { seed: 1, fault: None };
    for apart in [8, 2, 1] {
        Case::<bf16>::new([2, 1, 64], Mask::Causal, None, &[(33, 33)]).check(emulator, apart).unwrap();
        Case::<bf16>::new([2, 1, 64], Mask::Causal, Some(16), &[(1, 33), (1, 2)])
            .check(emulator, apart)
            .unwrap();
    }
}

#[test]
fn a_sequence_does_not_depend_on_the_others() {
    for (width, page_size) in [(64, Some(16)), (33, Some(16)), (64, None), (80, Some(7))] {
        let lengths: &[(usize, usize)] = if page_size.is_some() {
            &[(1, 300), (5, 70), (1, 3), (66, 80)]
        } else {
            &[(70, 70), (1, 1), (9, 9)]
        };
        let all = Case::<bf16>::new([4, 2, width], Mask::Causal, page_size, lengths);
        // No seed: it would add errors of the size that a GPU's approximations have, at random.
        let emulator = Emulator { seed: 0, fault: None };
        let together = all.run(emulator, 0).unwrap();
        let mut start = 0;
        for sequence in &all.sequences {
            let alone = Case { sequences: vec![sequence.clone()], ..all.clone() }.run(emulator, 0).unwrap();
            assert_eq!(alone, together[start..start + alone.len()], "{width} {page_size:?}");
            start += alone.len();
        }
    }
}

#[test]
fn a_row_of_many_does_not_depend_on_how_the_prompt_was_cut() {
    let whole = Case::<bf16>::new([2, 1, 64], Mask::Causal, Some(16), &[(100, 100)]);
    let emulator = Emulator { seed: 0, fault: None };
    let together = whole.run(emulator, 0).unwrap();
    let mut rest = whole.clone();
    rest.sequences[0].q.drain(..37 * 128);
    assert_eq!(rest.run(emulator, 0).unwrap(), together[37 * 128..]);
}

#[test]
fn what_is_not_a_number_reaches_the_output() {
    for (page_size, rows) in [(Some(16), 1), (Some(16), 3), (None, 40)] {
        for width in [64, 33] {
            let mut case = Case::<bf16>::new([2, 1, width], Mask::Causal, page_size, &[(rows, 40)]);
            for value in &mut case.sequences[0].k[2 * width..3 * width] {
                *value = bf16::NAN;
            }
            let out = case.run(Emulator { seed: 1, fault: None }, 0).unwrap();
            assert!(
                out.iter().skip(2 * 2 * width).all(|value| value.is_nan()),
                "{page_size:?} {rows} {width}"
            );
        }
    }
}

#[test]
fn a_page_outside_the_cache_ends_the_launch() {
    for (rows, width) in [(1, 64), (3, 64), (3, 33)] {
        let error = outside(Emulator { seed: 1, fault: None }, rows, width).unwrap_err();
        assert!(error.contains("trap"), "{error}");
    }
}

/// One page in the table, and none in the cache that it could be.
fn outside(emulator: Emulator, rows: usize, width: usize) -> Result<(), String> {
    let data = Buffer::of(&noise::<bf16>(16 * width, 1), "data");
    let out = Buffer::<bf16>::new(rows * width, "out");
    let (offsets, table, lengths) = (
        Buffer::of(&[0, rows as u32], "offsets"),
        Buffer::of(&[1u32], "table"),
        Buffer::of(&[rows as u32], "lengths"),
    );
    let operand = Rows { address: data.address(), stride: width };
    let pages =
        Paged { table: table.address(), lengths: lengths.address(), most_pages: 1, page_size: 16, pages: 1 };
    let attention = Attention {
        element: bf16::ELEMENT,
        out: out.address(),
        q: operand,
        keys: operand,
        values: operand,
        offsets: offsets.address(),
        sequences: 1,
        rows,
        longest: rows,
        heads: 1,
        kv_heads: 1,
        width,
        pages: Some(pages),
        causal: true,
        window: None,
        scale: 1.0,
    };
    let [parts, stats] = attention.workspace().map(|count| Buffer::<f32>::new(count, "workspace"));
    for launch in attention.launches([parts.address(), stats.address()]).unwrap() {
        // A faulty copy has only the kernels of its own form.
        if emulator.fault.is_none() || launch.kernel.contains("rows") {
            emulator.run(&launch)?;
        }
    }
    Ok(())
}

#[test]
fn what_no_kernel_takes_is_an_error() {
    let attention = |width, sequences| {
        let rows = Rows { address: 0, stride: width };
        Attention {
            element: bf16::ELEMENT,
            out: 0,
            q: rows,
            keys: rows,
            values: rows,
            offsets: 0,
            sequences,
            rows: 1,
            longest: 1,
            heads: 1,
            kv_heads: 1,
            width,
            pages: None,
            causal: true,
            window: None,
            scale: 1.0,
        }
        .launches([0, 0])
    };
    assert_eq!(attention(256, 1).unwrap().len(), 1);
    assert!(attention(257, 1).unwrap_err().to_string().contains("257"));
    assert!(attention(64, 65536).unwrap_err().to_string().contains("larger grid"));
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "attention") {
        faults += 1;
        let (shape, page_size, lengths): ([usize; 3], _, &[_]) = match fault.name.split('_').next().unwrap() {
            "decode" => ([4, 1, 64], Some(16), &[(1, 256), (1, 75)]),
            "rows" => ([2, 1, 33], None, &[(20, 20), (5, 5)]),
            _ => ([2, 1, 64], None, &[(150, 150), (5, 5)]),
        };
        let caught = (0..4).any(|seed| {
            let emulator = Emulator { seed, fault: Some(fault.name) };
            let check = |mask| Case::<bf16>::new(shape, mask, page_size, lengths).check(emulator, 0);
            let untrapped = || match fault.name {
                "rows_trust_pages" => !outside(emulator, 3, 33).is_err_and(|error| error.contains("trap")),
                _ => false,
            };
            check(Mask::Causal).is_err() || check(Mask::Window(70)).is_err() || untrapped()
        });
        assert!(caught, "{} was not noticed", fault.name);
    }
    assert!(faults >= 6);
}
