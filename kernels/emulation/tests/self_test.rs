//! The emulation itself: what its intrinsics compute, and wrong kernels that it must report.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use percept_kernels::launch::{Argument, Launch};
use percept_kernels_emulation::{Buffer, Emulator, Real};

fn run(
    kernel: &str,
    [blocks, threads, shared]: [u32; 3],
    arguments: &[Argument],
    seed: u64,
) -> Result<(), String> {
    Emulator { seed, fault: None }.run(&Launch {
        kernel: kernel.to_owned(),
        grid: [blocks, 1, 1],
        block: [threads, 1, 1],
        shared,
        arguments: arguments.to_vec(),
    })
}

fn address<T: percept_kernels_emulation::Value>(buffer: &Buffer<T>) -> Argument {
    Argument::Address(buffer.address())
}

fn matrices<T: Real>(kernel: &str) {
    let left: Vec<i32> = (0..256).map(|i| (i * 37 % 11) - 5).collect();
    let right: Vec<i32> = (0..128).map(|i| (i * 53 % 13) - 6).collect();
    let turned: Vec<i32> = (0..128).map(|i| right[i % 16 * 8 + i / 16]).collect();
    let product = |i: usize| (0..16).map(|k| left[i / 8 * 16 + k] * right[k * 8 + i % 8]).sum::<i32>() as f32;
    let expected: Vec<f32> = (0..128).map(product).collect();
    let narrow = |values: &[i32]| values.iter().map(|&value| T::narrow(f64::from(value))).collect::<Vec<T>>();
    for seed in 0..4 {
        let out = Buffer::<f32>::new(384, "out");
        let left = Buffer::of(&narrow(&left), "left");
        let right = Buffer::of(&narrow(&right), "right");
        let turned = Buffer::of(&narrow(&turned), "turned");
        let arguments = [address(&out), address(&left), address(&right), address(&turned)];
        run(kernel, [1, 32, 1536], &arguments, seed).unwrap();
        let found = out.read().unwrap();
        for way in 0..3 {
            assert_eq!(found[way * 128..][..128], expected[..], "{kernel}, way {way}");
        }
    }
}

#[test]
fn tensor_cores_multiply() {
    matrices::<bf16>("st_mma_bf16");
    matrices::<f16>("st_mma_f16");
}

#[test]
fn warps_exchange_values() {
    let value = |lane: i32| lane * lane + 3;
    let all: Vec<i32> = (0..32).map(value).collect();
    for seed in 0..8 {
        let out = Buffer::<i32>::new(522, "out");
        run("st_warp", [1, 32, 0], &[address(&out)], seed).unwrap();
        let found = out.read().unwrap();
        for lane in 0..32i32 {
            let or_own = |from: i32, fits: bool| value(if fits { from } else { lane });
            let expected = [
                value(5),
                value(lane / 8 * 8 + 3),
                value(lane ^ 9),
                value(lane ^ 5),
                or_own(lane - 3, lane >= 3),
                or_own(lane - 2, lane % 8 >= 2),
                or_own(lane + 7, lane + 7 < 32),
                or_own(lane + 3, lane % 16 + 3 < 16),
                all.iter().enumerate().map(|(i, x)| i32::from(x % 3 == 0) << i).sum(),
                1,
                0,
                all.iter().sum(),
                value(31),
                value(0),
                all.iter().fold(0, |a, b| a | b),
                (value(lane).count_ones() + value(lane).leading_zeros() + value(lane).trailing_zeros() + 1)
                    as i32,
            ];
            for (row, expected) in expected.iter().enumerate() {
                assert_eq!(found[row * 32 + lane as usize], *expected, "row {row} lane {lane}");
            }
        }
        assert_eq!(found[512..], (0..10).map(|lane| value(lane ^ 1)).collect::<Vec<_>>());
    }
}

#[test]
fn copies_arrive_late_and_blocks_hand_over() {
    for seed in 0..8 {
        let input: Vec<i32> = (1..=128).collect();
        for cut in [0, 4, 20, 512] {
            let (input, out) = (Buffer::of(&input, "in"), Buffer::<i32>::new(128, "out"));
            run("st_async", [1, 32, 512], &[address(&out), address(&input), Argument::I32(cut)], seed)
                .unwrap();
            let expected: Vec<i32> = (0..128).map(|i| if i * 4 < 512 - cut { i + 1 } else { 0 }).collect();
            assert_eq!(out.read().unwrap(), expected);
        }
        let (out, parts) = (Buffer::<i32>::new(1, "out"), Buffer::<i32>::new(50, "parts"));
        let counter = Buffer::of(&[0], "counter");
        run("st_last_block", [50, 32, 0], &[address(&out), address(&parts), address(&counter)], seed)
            .unwrap();
        assert_eq!(out.read().unwrap(), [50 * 51 / 2]);
        let (out, lock) = (Buffer::of(&[0], "out"), Buffer::of(&[0], "lock"));
        run("st_lock", [3, 256, 0], &[address(&out), address(&lock)], seed).unwrap();
        assert_eq!(out.read().unwrap(), [24]);
        run("st_tree", [1, 32, 0], &[address(&out)], seed).unwrap();
        assert_eq!(out.read().unwrap(), [496]);
    }
}

#[test]
fn wrong_kernels_are_reported() {
    for (kernel, blocks, threads, message) in [
        ("bad_tree", 1, 32, "race on shared memory"),
        ("bad_exit", 1, 64, "deadlock"),
        ("bad_diverge", 1, 64, "divergent barriers"),
        ("bad_lane", 1, 32, "not in the mask"),
        ("bad_mask", 1, 32, "deadlock"),
        ("bad_align", 1, 2, "misaligned"),
        ("bad_blocks", 4, 32, "race on out"),
        ("bad_spin", 1, 32, "no progress"),
        ("bad_local", 1, 32, "out-of-bounds"),
        ("bad_read", 1, 64, "out-of-bounds"),
        ("bad_ldg", 1, 64, "__ldg of out"),
        ("bad_shift", 1, 64, "shift"),
        ("bad_uninitialised", 1, 32, "read of uninitialised out"),
    ] {
        let reads = ["bad_read", "bad_spin"].contains(&kernel);
        let out = if reads { Buffer::of(&[0; 64], "out") } else { Buffer::<i32>::new(64, "out") };
        let error = run(kernel, [blocks, threads, 0], &[address(&out)], 0).unwrap_err();
        assert!(error.contains(message), "{kernel}: {error}");
    }
}

#[test]
fn a_wrong_launch_is_reported() {
    let out = Buffer::<i32>::new(522, "out");
    for (kernel, sizes, arguments, message) in [
        ("st_nothing", [1, 32, 0], vec![address(&out)], "no such kernel"),
        ("st_warp", [1, 32, 0], vec![], "takes 1 arguments"),
        ("st_warp", [1, 32, 0], vec![Argument::I32(0)], "has 8 bytes"),
        ("st_warp", [1, 1025, 0], vec![address(&out)], "not allowed"),
        ("st_warp", [1, 32, 1 << 20], vec![address(&out)], "shared memory"),
    ] {
        let error = run(kernel, sizes, &arguments, 0).unwrap_err();
        assert!(error.contains(message), "{kernel}: {error}");
    }
    assert!(out.read().unwrap_err().contains("never written"));
}
