//! norm.cu against the formulas in f64.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use percept_kernels::launch::{self, Norm};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, Real, compare, noise};

const EPS: f32 = 1e-5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Rms,
    AddRms,
    Layer,
}

struct Case<T> {
    which: Which,
    width: usize,
    x: Vec<T>,
    residual: Vec<T>,
    weight: Vec<T>,
    bias: Vec<T>,
}

impl<T: Real> Case<T> {
    fn new(which: Which, rows: usize, width: usize) -> Self {
        let [x, residual] = [1, 2].map(|seed| noise(rows * width, seed));
        let [weight, bias] = [3, 4].map(|seed| noise(width, seed));
        Self { which, width, x, residual, weight, bias }
    }

    /// The output, and the sum where there is one. Operands start `skip` elements behind an aligned address.
    fn run(&self, emulator: Emulator, skip: usize) -> Result<(Vec<T>, Vec<T>), String> {
        let shifted = |values: &[T], name| {
            let padded: Vec<T> =
                std::iter::repeat_n(T::narrow(f64::NAN), skip).chain(values.iter().copied()).collect();
            Buffer::of(&padded, name)
        };
        let (x, residual) = (shifted(&self.x, "x"), shifted(&self.residual, "residual"));
        let (weight, bias) = (shifted(&self.weight, "weight"), shifted(&self.bias, "bias"));
        let (out, sum) = (Buffer::<T>::new(self.x.len(), "out"), Buffer::<T>::new(self.x.len(), "sum"));
        let norm = match self.which {
            Which::Rms => Norm::Rms,
            Which::AddRms => Norm::AddRms { sum: sum.address(), residual: residual.at(skip) },
            Which::Layer => Norm::Layer { bias: bias.at(skip) },
        };
        let addresses = [out.address(), x.at(skip), weight.at(skip)];
        let shape = [self.x.len() / self.width, self.width];
        let launch = launch::norm(norm, T::ELEMENT, addresses, shape, EPS).unwrap().unwrap();
        emulator.run(&launch)?;
        Ok((out.read()?, if self.which == Which::AddRms { sum.read()? } else { Vec::new() }))
    }

    fn expected(&self) -> (Vec<f64>, Vec<f64>) {
        let wide = |values: &[T]| values.iter().map(|value| value.wide()).collect::<Vec<_>>();
        let mut x = wide(&self.x);
        let mut sum = Vec::new();
        if self.which == Which::AddRms {
            x = x
                .iter()
                .zip(&self.residual)
                .map(|(x, residual)| T::narrow(x + residual.wide()).wide())
                .collect();
            sum.clone_from(&x);
        }
        let (weight, bias) = (wide(&self.weight), wide(&self.bias));
        let mut out = Vec::new();
        for row in x.chunks(self.width) {
            let count = self.width as f64;
            let mean = if self.which == Which::Layer { row.iter().sum::<f64>() / count } else { 0.0 };
            let spread = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / (spread + f64::from(EPS)).sqrt();
            for (i, x) in row.iter().enumerate() {
                out.push(match self.which {
                    Which::Layer => (x - mean) * scale * weight[i] + bias[i],
                    _ => T::narrow(x * scale).wide() * weight[i],
                });
            }
        }
        (out, sum)
    }

    fn check(&self, emulator: Emulator, skip: usize) -> Result<(), String> {
        let (out, sum) = self.run(emulator, skip)?;
        let (expected, expected_sum) = self.expected();
        let what = format!("{:?} {}x{} {:?}", self.which, out.len() / self.width, self.width, T::ELEMENT);
        compare(&what, &sum, &expected_sum, 0.0)?;
        compare(
            &what,
            &out,
            &expected,
            if self.which == Which::Layer { T::EPSILON } else { T::EPSILON * 1.1 } + 4e-6,
        )
    }
}

const WHICH: [Which; 3] = [Which::Rms, Which::AddRms, Which::Layer];

fn grid<T: Real>() {
    for which in WHICH {
        for (rows, width) in [(1, 1), (3, 5), (33, 64), (3, 80), (2, 1000), (1, 4096), (2, 5120)] {
            for (seed, skip) in [(0, 0), (1, 0), (2, 1)] {
                Case::<T>::new(which, rows, width).check(Emulator { seed, fault: None }, skip).unwrap();
            }
        }
    }
}

#[test]
fn f32_matches_the_formulas() {
    grid::<f32>();
}

#[test]
fn bf16_matches_the_formulas() {
    grid::<bf16>();
}

#[test]
fn f16_matches_the_formulas() {
    grid::<f16>();
}

/// Rounds before the weight and after it, so that nearly every element is exactly that of the reference.
fn exact(emulator: Emulator) -> Result<(), String> {
    let case = Case::<bf16>::new(Which::Rms, 3, 1000);
    let (out, _) = case.run(emulator, 0)?;
    let (expected, _) = case.expected();
    let differ =
        out.iter().zip(&expected).filter(|(out, expected)| **out != bf16::narrow(**expected)).count();
    // A value between two numbers of bf16 may fall to either side with the order of the sum.
    if differ > out.len() / 500 { Err(format!("{differ} of {} elements differ", out.len())) } else { Ok(()) }
}

#[test]
fn rms_norm_rounds_before_the_weight() {
    exact(Emulator { seed: 1, fault: None }).unwrap();
}

#[test]
fn a_large_mean_costs_layer_norm_nothing() {
    let mut case = Case::<f32>::new(Which::Layer, 3, 1000);
    for x in &mut case.x {
        *x += 100.0;
    }
    let (out, _) = case.run(Emulator { seed: 1, fault: None }, 0).unwrap();
    compare("far from zero", &out, &case.expected().0, 2e-4).unwrap();
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for which in WHICH {
        let all = Case::<bf16>::new(which, 33, 1000);
        let (out, _) = all.run(Emulator { seed: 1, fault: None }, 0).unwrap();
        for row in [0, 17, 32] {
            let at = row * 1000..(row + 1) * 1000;
            let mut alone = Case::<bf16>::new(which, 1, 1000);
            alone.x = all.x[at.clone()].to_vec();
            alone.residual = all.residual[at.clone()].to_vec();
            assert_eq!(
                alone.run(Emulator { seed: 2, fault: None }, 0).unwrap().0,
                out[at],
                "{which:?} {row}"
            );
        }
    }
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "norm") {
        faults += 1;
        let caught = (0..4).any(|seed| {
            let emulator = Emulator { seed, fault: Some(fault.name) };
            let found =
                WHICH.iter().any(|&which| Case::<bf16>::new(which, 3, 1000).check(emulator, 0).is_err());
            found || exact(emulator).is_err()
        });
        assert!(caught, "{} was not noticed", fault.name);
    }
    assert!(faults >= 2);
}
