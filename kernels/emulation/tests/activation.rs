//! activation.cu against the formulas in f64.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use candle_core::cpu::erf::erfc_f64;
use half::{bf16, f16};
use percept_kernels::{Activation, launch};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, Real, noise};

const ALL: [Activation; 4] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu];
const RIGHT: Emulator = Emulator { seed: 1, fault: None };

/// The activation, and how far f32 may be from it: the exponent of the formula is rounded as well.
fn formula(activation: Activation, x: f64) -> (f64, f64) {
    let times_sigmoid = |y: f64| (x / (1.0 + (-y).exp()), y.abs());
    let (value, exponent) = match activation {
        Activation::Silu => times_sigmoid(x),
        Activation::Gelu => (x * 0.5 * erfc_f64(-x * std::f64::consts::FRAC_1_SQRT_2), 0.0),
        Activation::GeluTanh => {
            times_sigmoid((8.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3)))
        }
        Activation::QuickGelu => times_sigmoid(1.702 * x),
    };
    // Where the exponential has no number in f32, what is left is 0.
    (value, 2f64.powi(-24) * value.abs() * (12.0 + 4.0 * exponent) + 1e-36)
}

/// Numbers of both signs, from small ones to such whose exponentials vanish.
fn values<T: Real>(count: usize, seed: u64) -> Vec<T> {
    let scales = [0.02, 1.0, 4.0, 20.0, 150.0];
    let noise = noise::<f32>(count, seed).into_iter().enumerate();
    noise.map(|(i, x)| T::narrow(x.wide() * scales[i % scales.len()])).collect()
}

/// In a buffer whose other elements, `skip` in front, nobody may read.
fn shifted<T: Real>(values: &[T], skip: usize, name: &str) -> Buffer<T> {
    let padding = std::iter::repeat_n(T::narrow(f64::NAN), skip);
    Buffer::of(&padding.chain(values.iter().copied()).collect::<Vec<_>>(), name)
}

fn run_activate<T: Real>(
    activation: Activation,
    x: &[T],
    emulator: Emulator,
    skip: usize,
) -> Result<Vec<T>, String> {
    let from = shifted(x, skip, "x");
    let out = Buffer::<T>::new(x.len(), "out");
    let addresses = [out.address(), from.at(skip)];
    emulator.run(&launch::activate(activation, T::ELEMENT, addresses, x.len()).unwrap().unwrap())?;
    out.read()
}

fn run_gated<T: Real>(
    activation: Activation,
    both: &[T],
    width: usize,
    emulator: Emulator,
    skip: usize,
) -> Result<Vec<T>, String> {
    let from = shifted(both, skip, "both");
    let shape = [both.len() / (2 * width), width];
    let out = Buffer::<T>::new(shape[0] * width, "out");
    let addresses = [out.address(), from.at(skip)];
    emulator.run(&launch::gated(activation, T::ELEMENT, addresses, shape).unwrap().unwrap())?;
    out.read()
}

/// One rounding to T, in which f32 may fall to the other side of the middle.
fn rounding<T: Real>(value: f64) -> f64 {
    if T::EPSILON < 1e-6 { 0.0 } else { T::EPSILON * value.abs() + 1e-7 }
}

fn check_activate<T: Real>(
    activation: Activation,
    count: usize,
    emulator: Emulator,
    skip: usize,
) -> Result<(), String> {
    let x = values::<T>(count, 1);
    let found = run_activate(activation, &x, emulator, skip)?;
    for (index, (found, x)) in found.iter().zip(&x).enumerate() {
        let (expected, room) = formula(activation, x.wide());
        let error = (found.wide() - expected).abs();
        if error.is_nan() || error > room + rounding::<T>(expected) / 2.0 {
            let (found, x) = (found.wide(), x.wide());
            return Err(format!("{activation:?} of {x} at {index} of {count}: {found}, not {expected}"));
        }
    }
    Ok(())
}

fn check_gated<T: Real>(
    activation: Activation,
    (rows, width): (usize, usize),
    emulator: Emulator,
    skip: usize,
) -> Result<(), String> {
    let both = values::<T>(rows * 2 * width, 2);
    let found = run_gated(activation, &both, width, emulator, skip)?;
    let halves = both.chunks(2 * width).map(|row| row.split_at(width));
    let pairs = halves.flat_map(|(gate, up)| gate.iter().zip(up));
    for (index, (found, (gate, up))) in found.iter().zip(pairs).enumerate() {
        let (acted, room) = formula(activation, gate.wide());
        let expected = acted * up.wide();
        let room = room * up.wide().abs() + rounding::<T>(acted) / 2.0 * up.wide().abs();
        let error = (found.wide() - expected).abs();
        if error.is_nan() || error > room + rounding::<T>(expected) + f64::from(f32::EPSILON) * expected.abs()
        {
            let (found, gate) = (found.wide(), gate.wide());
            return Err(format!(
                "{activation:?} of {gate} at {index} of {rows}x{width}: {found}, not {expected}"
            ));
        }
    }
    Ok(())
}

fn grid<T: Real>() {
    for activation in ALL {
        for (seed, skip) in [(0, 0), (1, 0), (2, 1), (3, 8)] {
            let emulator = Emulator { seed, fault: None };
            for count in [1, 5, 8, 127, 1000, 2048, 2050] {
                check_activate::<T>(activation, count, emulator, skip).unwrap();
            }
            for shape in [(1, 1), (3, 5), (4, 8), (5, 80), (2, 1001), (3, 1032)] {
                check_gated::<T>(activation, shape, emulator, skip).unwrap();
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

fn special<T: Real>(most: f64) {
    let x = [0.0, -0.0, most, -most, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-7].map(T::narrow);
    for activation in ALL {
        let found = run_activate(activation, &x, RIGHT, 0).unwrap();
        let found: Vec<f64> = found.into_iter().map(Real::wide).collect();
        let what = format!("{activation:?} {:?}: {found:?}", T::ELEMENT);
        assert!(found[0].to_bits() == 0 && found[1].to_bits() == (-0f64).to_bits(), "{what}");
        assert!(found[2] == x[2].wide() && found[3] == 0.0 && found[4].is_infinite(), "{what}");
        // As PyTorch has it.
        assert!(found[5].is_nan() && found[6].is_nan(), "{what}");
        assert!((found[7] - x[7].wide() / 2.0).abs() <= 6e-8, "{what}");
        let both = [x[6], x[2], x[6], x[0], x[6], x[4]];
        let found = run_gated(activation, &both, 3, RIGHT, 0).unwrap();
        assert!(found[0].wide().is_nan() && found[1].wide().is_nan() && found[2].wide().is_nan(), "{what}");
    }
}

#[test]
fn special_numbers_stay_what_they_are() {
    special::<f32>(3e38);
    special::<bf16>(3e38);
    special::<f16>(65504.0);
}

/// Rounds before the product and after it: nearly every element is exactly that of the reference.
fn exact(emulator: Emulator) -> Result<(), String> {
    let (rows, width) = (3, 1000);
    let both = values::<bf16>(rows * 2 * width, 5);
    let found = run_gated(Activation::Silu, &both, width, emulator, 0)?;
    let halves = both.chunks(2 * width).map(|row| row.split_at(width));
    let pairs = halves.flat_map(|(gate, up)| gate.iter().zip(up));
    let expected = pairs.map(|(gate, up)| {
        let acted = bf16::narrow(formula(Activation::Silu, gate.wide()).0).wide();
        bf16::narrow(acted * up.wide())
    });
    // A value between two numbers of bf16 may fall to either side; below the normal ones of f32 nothing is left.
    let differ = |(found, expected): &(&bf16, bf16)| {
        *found != expected && (found.wide() - expected.wide()).abs() > 1e-35
    };
    let differ = found.iter().zip(expected).filter(differ).count();
    if differ > found.len() / 500 {
        Err(format!("{differ} of {} elements differ", found.len()))
    } else {
        Ok(())
    }
}

#[test]
fn gates_are_rounded_before_the_product() {
    exact(RIGHT).unwrap();
}

#[test]
fn the_hosts_numbers_are_the_same_but_for_the_last_bit() {
    use candle_core::{Device, Tensor};
    let both = values::<f32>(3 * 2 * 700, 7);
    for activation in ALL {
        let on_host = Tensor::from_slice(&both, (3, 1400), &Device::Cpu).unwrap();
        let on_host = percept_kernels::gated(&on_host, activation).unwrap().flatten_all().unwrap();
        let found = run_gated(activation, &both, 700, RIGHT, 0).unwrap();
        let halves = both.chunks(1400).flat_map(|row| row[..700].iter().zip(&row[700..]));
        for ((found, expected), (gate, up)) in
            found.into_iter().zip(on_host.to_vec1::<f32>().unwrap()).zip(halves)
        {
            let room = 2.0 * formula(activation, gate.wide()).1 * up.wide().abs();
            assert!((found - expected).abs().wide() <= room + f64::from(f32::EPSILON) * found.abs().wide());
        }
    }
}

#[test]
fn sizes_that_no_kernel_takes_are_errors() {
    let activation = Activation::Silu;
    assert_eq!(launch::activate(activation, f32::ELEMENT, [0; 2], 0).unwrap(), None);
    assert_eq!(launch::gated(activation, f32::ELEMENT, [0; 2], [0, 8]).unwrap(), None);
    assert_eq!(launch::gated(activation, f32::ELEMENT, [0; 2], [8, 0]).unwrap(), None);
    assert!(launch::activate(activation, f32::ELEMENT, [0; 2], 1 << 32).is_err());
    assert!(launch::gated(activation, f32::ELEMENT, [0; 2], [1 << 31, 8]).is_err());
    // More elements than fit an int, of which each block has a row.
    assert!(launch::gated(activation, f32::ELEMENT, [0; 2], [1 << 20, 1 << 14]).unwrap().is_some());
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "activation") {
        faults += 1;
        let of = |activation: &Activation| fault.kernels.contains(&launch_line(*activation));
        let caught = ALL.into_iter().filter(of).any(|activation| {
            let emulator = Emulator { seed: 1, fault: Some(fault.name) };
            let found = [(3, 1000), (3, 1001)].into_iter().any(|shape| {
                check_gated::<bf16>(activation, shape, emulator, 0).is_err()
                    || check_gated::<f32>(activation, shape, emulator, 0).is_err()
            });
            let alone = [1000, 1001].into_iter().any(|count| {
                check_activate::<bf16>(activation, count, emulator, 0).is_err()
                    || check_activate::<f32>(activation, count, emulator, 0).is_err()
            });
            found || alone || (activation == Activation::Silu && exact(emulator).is_err())
        });
        assert!(caught, "{} was not noticed", fault.name);
    }
    assert!(faults >= 5);
}

/// The line of activation.cu that a faulty copy keeps for this.
fn launch_line(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "(silu,",
        Activation::Gelu => "(gelu,",
        Activation::GeluTanh => "(gelu_tanh,",
        Activation::QuickGelu => "(quick_gelu,",
    }
}
