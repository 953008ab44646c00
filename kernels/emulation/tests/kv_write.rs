//! kv_write.cu against a plain copy.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use half::bf16;
use percept_kernels::launch::{self, Rows};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, Real, noise};

/// Rows that lie `apart` elements further apart than they are wide, from an address `skip` elements off, to slots in no order.
fn check<T: Real + PartialEq>(
    emulator: Emulator,
    slots: &[u32],
    width: usize,
    apart: usize,
    skip: usize,
) -> Result<(), String> {
    let (count, cache_slots, stride) = (slots.len(), 40, width + apart);
    let before: Vec<T> = noise(cache_slots * width, 1);
    let rows: Vec<T> = noise(skip + count * stride, 2);
    let (cache, source) = (Buffer::of(&before, "cache"), Buffer::of(&rows, "rows"));
    let places = Buffer::of(slots, "slots");
    let from = Rows { address: source.at(skip), stride };
    let launch =
        launch::kv_write(T::ELEMENT, cache.address(), from, places.address(), [count, width, cache_slots]);
    emulator.run(&launch.unwrap().unwrap())?;
    let mut expected = before;
    for (row, &slot) in slots.iter().enumerate() {
        expected[slot as usize * width..][..width].copy_from_slice(&rows[skip + row * stride..][..width]);
    }
    let what = format!("{count} rows of {width}, {apart} apart, {skip} off, {:?}", T::ELEMENT);
    if cache.read()? == expected { Ok(()) } else { Err(format!("{what}: not a copy")) }
}

#[test]
fn rows_are_copied_and_nothing_else() {
    let slots: Vec<u32> = (0..33).map(|i| i * 7 % 40).collect();
    for seed in 0..2 {
        let emulator = Emulator { seed, fault: None };
        for width in [1, 5, 64, 80, 1024] {
            for (apart, skip) in [(0, 0), (8, 0), (3, 0), (0, 1), (2, 2)] {
                for count in [1, 3, 33] {
                    check::<bf16>(emulator, &slots[..count], width, apart, skip).unwrap();
                    check::<f32>(emulator, &slots[..count], width, apart, skip).unwrap();
                }
            }
        }
    }
}

/// As those are that fill a recorded step up.
#[test]
fn rows_that_repeat_the_one_before_are_written_once() {
    let (slots, width) = ([3, 8, 8, 8, 1, 1], 24);
    let once: Vec<f32> = noise(3 * width, 2);
    let rows: Vec<f32> =
        [0, 1, 1, 1, 2, 2].iter().flat_map(|&row| &once[row * width..][..width]).copied().collect();
    let (cache, rows) = (Buffer::of(&vec![0f32; 9 * width], "cache"), Buffer::of(&rows, "rows"));
    let places = Buffer::of(&slots, "slots");
    let from = Rows { address: rows.address(), stride: width };
    let sizes = [slots.len(), width, 9];
    let launch = launch::kv_write(f32::ELEMENT, cache.address(), from, places.address(), sizes);
    // Two that write the same place would be a race, whatever they write.
    Emulator { seed: 1, fault: None }.run(&launch.unwrap().unwrap()).unwrap();
    let cache = cache.read().unwrap();
    for (slot, row) in [(3, 0), (8, 1), (1, 2)] {
        assert_eq!(cache[slot * width..][..width], once[row * width..][..width]);
    }
}

#[test]
fn as_much_is_copied_at_once_as_addresses_allow() {
    let kernel = |width, stride, address| {
        let rows = Rows { address, stride };
        launch::kv_write(bf16::ELEMENT, 256, rows, 0, [1, width, 1]).unwrap().unwrap().kernel
    };
    assert_eq!(kernel(64, 64, 256), "kv_write_16");
    assert_eq!(kernel(64, 66, 256), "kv_write_4");
    assert_eq!(kernel(64, 64, 260), "kv_write_4");
    assert_eq!(kernel(64, 65, 256), "kv_write_2");
    assert_eq!(kernel(5, 8, 256), "kv_write_2");
    assert!(
        launch::kv_write(bf16::ELEMENT, 256, Rows { address: 0, stride: 1 }, 0, [0, 1, 1]).unwrap().is_none()
    );
}

#[test]
fn a_slot_outside_the_cache_ends_the_launch() {
    let emulator = Emulator { seed: 1, fault: None };
    let launch = |slot: u32| {
        let (cache, rows) =
            (Buffer::of(&noise::<bf16>(64, 1), "cache"), Buffer::of(&noise::<bf16>(8, 2), "rows"));
        let slots = Buffer::of(&[slot], "slots");
        let from = Rows { address: rows.address(), stride: 8 };
        emulator.run(
            &launch::kv_write(bf16::ELEMENT, cache.address(), from, slots.address(), [1, 8, 8])
                .unwrap()
                .unwrap(),
        )
    };
    launch(7).unwrap();
    for slot in [8, u32::MAX] {
        let error = launch(slot).unwrap_err();
        assert!(error.contains("trap"), "{error}");
    }
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "kv_write") {
        faults += 1;
        let emulator = Emulator { seed: 1, fault: Some(fault.name) };
        // The copies have the kernel for units of two bytes only.
        let inside = check::<bf16>(emulator, &[3, 2, 9], 5, 2, 0);
        let outside = {
            let (cache, rows) =
                (Buffer::of(&noise::<bf16>(40, 1), "cache"), Buffer::of(&noise::<bf16>(5, 2), "rows"));
            let (slots, from) = (Buffer::of(&[8], "slots"), Rows { address: rows.address(), stride: 5 });
            let launch = launch::kv_write(bf16::ELEMENT, cache.address(), from, slots.address(), [1, 5, 8]);
            emulator.run(&launch.unwrap().unwrap())
        };
        let trapped = outside.as_ref().is_err_and(|error| error.contains("trap"));
        assert!(inside.is_err() || !trapped, "{} was not noticed", fault.name);
    }
    assert!(faults >= 2);
}
