//! alignment.cu against its formula in f64.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "../../tests/support/alignment.rs"]
mod formula;

use half::{bf16, f16};
use percept_kernels::launch::{Alignment, Rows};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, Real, noise};

const EMULATOR: Emulator = Emulator { seed: 1, fault: None };

struct Case {
    rows: usize,
    frames: usize,
    heads: usize,
    width: usize,
    page_size: usize,
    head_set: Vec<u32>,
    /// Elements between the rows of the queries.
    apart: usize,
    scale: f32,
}

impl Case {
    fn new(
        (rows, frames): (usize, usize),
        (heads, width): (usize, usize),
        page_size: usize,
        head_set: &[u32],
    ) -> Self {
        let scale = 2.0 / (width as f32).sqrt();
        Self { rows, frames, heads, width, page_size, head_set: head_set.to_vec(), apart: 0, scale }
    }

    fn sizes(&self) -> Alignment {
        Alignment {
            rows: self.rows,
            heads: self.heads,
            width: self.width,
            chosen: self.head_set.len(),
            frames: self.frames,
            page_size: self.page_size,
            pages: 2 * self.frames.div_ceil(self.page_size) + 1,
        }
    }

    /// In an order of their own, with holes.
    fn pages(&self) -> Vec<u32> {
        formula::pages(self.frames, self.page_size)
    }

    fn stride(&self) -> usize {
        self.heads * self.width + self.apart
    }

    fn queries<T: Real>(&self) -> Vec<T> {
        noise(self.rows * self.stride(), 1)
    }

    fn keys<T: Real>(&self) -> Vec<T> {
        noise(self.sizes().pages * self.page_size * self.heads * self.width, 2)
    }

    fn run<T: Real>(&self, emulator: Emulator, q: &[T], k: &[T], pages: &[u32]) -> Result<Vec<f32>, String> {
        let sizes = self.sizes();
        let [pages, head_set] = [pages, &self.head_set].map(|list| Buffer::of(list, "list"));
        let (q, k) = (Buffer::of(q, "queries"), Buffer::of(k, "keys"));
        let maps = Buffer::<f32>::new(sizes.workspace(), "maps");
        let out = Buffer::<f32>::new(self.rows * self.frames, "out");
        let addresses =
            [&out.address(), &maps.address(), &k.address(), &pages.address(), &head_set.address()];
        let from = Rows { address: q.address(), stride: self.stride() };
        for launch in sizes.launches(T::ELEMENT, from, self.scale, addresses.map(|address| *address)).unwrap()
        {
            emulator.run(&launch)?;
        }
        out.read()
    }

    fn check<T: Real>(&self, emulator: Emulator) -> Result<(), String> {
        let (q, k, pages) = (self.queries::<T>(), self.keys::<T>(), self.pages());
        let found = self.run(emulator, &q, &k, &pages)?;
        let row = self.heads * self.width;
        let wide = |numbers: &[T]| numbers.iter().map(|x| x.wide()).collect::<Vec<f64>>();
        let q: Vec<f64> = q.chunks(self.stride()).flat_map(|all| wide(&all[..row])).collect();
        let heads: Vec<usize> = self.head_set.iter().map(|&head| head as usize).collect();
        let sizes = [self.rows, self.heads, self.width, self.page_size, self.frames];
        let expected = formula::alignment(&q, &wide(&k), &pages, &heads, sizes, f64::from(self.scale));
        for (index, (&found, expected)) in found.iter().zip(expected).enumerate() {
            // Columns whose numbers lie close together are spread, and what was rounded with them.
            if (f64::from(found) - expected).abs() > 1e-3 {
                let what = format!("{} rows, {} frames, {:?}", self.rows, self.frames, T::ELEMENT);
                return Err(format!("{what}, at {index}: {found}, not {expected}"));
            }
        }
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new((2, 1), (1, 8), 1, &[0]),
        Case::new((3, 3), (2, 5), 2, &[1]),
        Case::new((2, 4), (3, 7), 3, &[2, 0]),
        Case::new((8, 15), (4, 16), 16, &[3]),
        Case::new((9, 33), (2, 33), 5, &[0, 1]),
        Case { apart: 11, ..Case::new((4, 17), (6, 64), 16, &[5, 1, 3]) },
        Case { apart: 96, ..Case::new((18, 300), (4, 12), 16, &[1, 0, 3, 2]) },
        Case::new((33, 600), (2, 80), 7, &[1]),
    ]
}

#[test]
fn alignments_equal_the_formula() {
    for seed in 0..2 {
        let emulator = Emulator { seed, fault: None };
        for case in cases() {
            case.check::<f32>(emulator).unwrap();
            case.check::<bf16>(emulator).unwrap();
            case.check::<f16>(emulator).unwrap();
        }
    }
}

#[test]
fn frames_at_which_all_rows_look_alike_are_zero() {
    let case = Case::new((11, 40), (2, 16), 4, &[0, 1]);
    let row = noise::<f32>(case.stride(), 1);
    let same: Vec<f32> = (0..case.rows).flat_map(|_| row.iter().copied()).collect();
    let found = case.run(EMULATOR, &same, &case.keys::<f32>(), &case.pages()).unwrap();
    assert_eq!(found, vec![0.0; 11 * 40]);
    // Some frames are so improbable for every row that their probability is zero.
    let steep = Case { scale: 300.0, ..case };
    let found = steep.run(EMULATOR, &steep.queries::<f32>(), &steep.keys::<f32>(), &steep.pages()).unwrap();
    assert!(found.iter().all(|value| value.is_finite()) && found.iter().any(|&value| value != 0.0));
}

#[test]
fn a_page_outside_the_cache_ends_the_launch() {
    let case = Case::new((3, 10), (2, 8), 4, &[1]);
    let outside = case.run(EMULATOR, &case.queries::<f16>(), &case.keys::<f16>(), &[0, 7, 1]);
    let error = outside.unwrap_err();
    assert!(error.contains("trap"), "{error}");
}

#[test]
fn what_is_empty_needs_no_launch() {
    let launches = |rows, frames, heads: &[u32], width| {
        let rows_at = Rows { address: 0, stride: 16 };
        Case::new((rows, frames), (2, width), 4, heads).sizes().launches(f32::ELEMENT, rows_at, 1.0, [0; 5])
    };
    for (rows, frames, heads) in [(0, 5, &[0][..]), (5, 0, &[0]), (5, 5, &[])] {
        assert!(launches(rows, frames, heads, 8).unwrap().is_empty());
    }
    assert!(launches(5, 5, &[0], 1536).is_ok());
    assert!(launches(5, 5, &[0], 1537).is_err(), "more than a block's memory");
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "alignment") {
        faults += 1;
        let caught = (1..4).any(|seed| {
            let emulator = Emulator { seed, fault: Some(fault.name) };
            let outside = || {
                let case = Case::new((3, 10), (2, 8), 4, &[1]);
                let found = case.run(emulator, &case.queries::<bf16>(), &case.keys::<bf16>(), &[0, 7, 1]);
                !found.is_err_and(|error| error.contains("trap"))
            };
            cases().iter().any(|case| case.check::<bf16>(emulator).is_err()) || outside()
        });
        assert!(caught, "{} was not noticed", fault.name);
    }
    assert!(faults >= 5);
}
