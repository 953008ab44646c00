//! linear.cu against the formula in f64.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use percept_kernels::launch;
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, Real, compare, noise};

struct Case<T> {
    rows: usize,
    input: usize,
    output: usize,
    x: Vec<T>,
    weight: Vec<T>,
    bias: Option<Vec<T>>,
    /// Elements by which x starts behind an aligned address.
    skip: usize,
}

impl<T: Real> Case<T> {
    fn new([rows, input, output]: [usize; 3]) -> Self {
        Self {
            rows,
            input,
            output,
            x: noise(rows * input, 1),
            weight: noise(output * input, 2),
            bias: (!output.is_multiple_of(3)).then(|| noise(output, 3)),
            skip: 0,
        }
    }

    fn run(&self, emulator: Emulator) -> Result<Vec<T>, String> {
        let padded: Vec<T> = vec![T::narrow(f64::NAN); self.skip].into_iter().chain(self.x.clone()).collect();
        let (x, weight) = (Buffer::of(&padded, "x"), Buffer::of(&self.weight, "weight"));
        let bias = self.bias.as_ref().map(|bias| Buffer::of(bias, "bias"));
        let y = Buffer::<T>::new(self.rows * self.output, "y");
        let bias_at = bias.as_ref().map_or(0, Buffer::address);
        let addresses = [y.address(), x.at(self.skip), weight.address(), bias_at];
        let launch = launch::linear(T::ELEMENT, addresses, [self.rows, self.input, self.output]).unwrap();
        emulator.run(&launch.unwrap())?;
        y.read()
    }

    fn expected(&self) -> Vec<f64> {
        let dot = |row: usize, output: usize| {
            let x = &self.x[row * self.input..(row + 1) * self.input];
            let weight = &self.weight[output * self.input..(output + 1) * self.input];
            let bias = self.bias.as_ref().map_or(0.0, |bias| bias[output].wide());
            x.iter().zip(weight).map(|(x, weight)| x.wide() * weight.wide()).sum::<f64>() + bias
        };
        (0..self.rows).flat_map(|row| (0..self.output).map(move |output| dot(row, output))).collect()
    }

    fn check(&self, emulator: Emulator) -> Result<(), String> {
        let what = format!("{}x{}x{} {:?}", self.rows, self.input, self.output, T::ELEMENT);
        compare(&what, &self.run(emulator)?, &self.expected(), T::EPSILON + 2e-5)
    }
}

/// One row, a tile less one, a tile, one more; inputs of less than a step of 16, of a stage less, of several stages and a
/// part; outputs that fill no tile. The last has enough blocks for the largest tiles.
const SHAPES: [[usize; 3]; 12] = [
    [1, 8, 1],
    [1, 64, 32],
    [3, 16, 33],
    [15, 200, 7],
    [16, 1032, 64],
    [17, 72, 65],
    [33, 64, 63],
    [64, 136, 130],
    [65, 8, 64],
    [130, 328, 40],
    [5, 8, 0],
    [129, 72, 6017],
];

fn grid<T: Real>() {
    for shape in SHAPES {
        let case = Case::<T>::new(shape);
        if shape[2] == 0 {
            assert_eq!(launch::linear(T::ELEMENT, [0; 4], shape).unwrap(), None);
            continue;
        }
        // The form that needs so many is not for f32.
        if shape[2] > 1000 && T::ELEMENT == launch::Element::F32 {
            continue;
        }
        let seeds = if shape[2] > 1000 { 1..2 } else { 0..2 };
        for seed in seeds {
            case.check(Emulator { seed, fault: None }).unwrap();
        }
    }
    // Neither aligned, nor a multiple of what is loaded at once.
    let unaligned = Case::<T> { skip: 1, ..Case::new([5, 64, 9]) };
    unaligned.check(Emulator { seed: 1, fault: None }).unwrap();
    Case::<T>::new([66, 37, 65]).check(Emulator { seed: 1, fault: None }).unwrap();
}

#[test]
fn f32_matches_the_formula() {
    grid::<f32>();
}

#[test]
fn bf16_matches_the_formula() {
    grid::<bf16>();
}

#[test]
fn f16_matches_the_formula() {
    grid::<f16>();
}

#[test]
fn forms_are_chosen_by_rows_and_blocks() {
    let kernel = |shape, element| launch::linear(element, [0; 4], shape).unwrap().unwrap().kernel;
    use launch::Element::{BF16, F32};
    assert_eq!(kernel([1, 4096, 4096], BF16), "linear_few_bf16");
    assert_eq!(kernel([16, 4096, 4096], BF16), "linear_few_bf16");
    assert_eq!(kernel([17, 4096, 4096], BF16), "linear_some_bf16");
    assert_eq!(kernel([256, 4096, 4096], BF16), "linear_some_bf16");
    assert_eq!(kernel([512, 4096, 4096], BF16), "linear_many_bf16");
    assert_eq!(kernel([512, 4090, 4096], BF16), "linear_plain_bf16");
    assert_eq!(kernel([1, 4096, 4096], F32), "linear_plain_f32");
}

/// To the bit, whatever the form: that is what answers in company rest on.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let (input, output) = (200, 6017);
    let all = Case::<bf16>::new([129, input, output]);
    let emulator = Emulator { seed: 1, fault: None };
    let found = all.run(emulator).unwrap();
    for (rows, at) in [(1, 128), (16, 5), (17, 40)] {
        let mut few = Case::<bf16>::new([rows, input, output]);
        few.x = all.x[at * input..(at + rows) * input].to_vec();
        assert_eq!(few.run(emulator).unwrap(), found[at * output..(at + rows) * output], "{rows} rows");
    }
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "linear") {
        faults += 1;
        let plain = fault.name.contains("plain");
        let caught = (0..4).any(|seed| {
            let emulator = Emulator { seed, fault: Some(fault.name) };
            let shapes = [[16, 1032, 64], [33, 72, 65], [3, 72, 40]];
            shapes.iter().any(|&shape| match plain {
                true => Case::<f32>::new(shape).check(emulator).is_err(),
                false => Case::<bf16>::new(shape).check(emulator).is_err(),
            })
        });
        assert!(caught, "{} was not noticed", fault.name);
    }
    assert!(faults >= 2);
}
