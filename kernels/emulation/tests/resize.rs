//! resize.cu against the host's version, which is compared with Pillow: every bit.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use candle_core::{Device, Tensor};
use percept_kernels::{Canvas, Filter, Region, Resize, launch, launch::Resampling};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS};

/// A picture with hard edges, so that sums overshoot.
fn picture(height: usize, width: usize) -> Vec<u8> {
    let level =
        |i: usize| if i * i % 7 < 3 { 255 } else { (i * 37 % 251) as u8 * u8::from(!i.is_multiple_of(5)) };
    (0..height * width * 3).map(level).collect()
}

/// A picture of 9 rows and 13 columns, larger and smaller, alone, on a canvas, and parts of it.
fn cases() -> Vec<Resize> {
    let whole = |width, height| Region { left: 0, top: 0, width, height };
    let alone = Canvas { width: 13, height: 9, left: 0, top: 0, fill: [0; 3] };
    let square = Canvas { width: 13, height: 13, left: 0, top: 2, fill: [122, 116, 104] };
    let wide = Canvas { width: 200, height: 9, left: 150, top: 0, fill: [255, 0, 7] };
    let resize = |canvas, width, height, region, filter| Resize { canvas, width, height, region, filter };
    let part = Region { left: 3, top: 1, width: 2, height: 3 };
    vec![
        resize(alone, 5, 4, whole(5, 4), Filter::Bicubic),
        resize(alone, 140, 30, whole(140, 30), Filter::Bicubic),
        resize(alone, 13, 20, whole(13, 20), Filter::Bilinear),
        resize(alone, 13, 9, part, Filter::Bilinear),
        resize(alone, 7, 5, part, Filter::Lanczos),
        resize(square, 8, 8, whole(8, 8), Filter::Bicubic),
        // Of this part nothing but the canvas is seen.
        resize(wide, 20, 3, whole(3, 3), Filter::Bilinear),
        resize(wide, 20, 3, whole(20, 3), Filter::Bicubic),
    ]
}

fn check(resize: Resize, emulator: Emulator) -> Result<(), String> {
    let (height, width) = (9, 13);
    let image = picture(height, width);
    let on_host = Tensor::from_slice(&image, (height, width, 3), &Device::Cpu).unwrap();
    let expected = percept_kernels::resize(&on_host, resize).unwrap();
    let expected = expected.flatten_all().unwrap().to_vec1::<u8>().unwrap();

    let passes = Resampling::new(&resize, [height, width]).unwrap();
    let image = Buffer::of(&image, "image");
    let [across, down] = [&passes.across, &passes.down]
        .map(|pass| (Buffer::of(&pass.taps, "taps"), Buffer::of(&pass.weights, "weights")));
    let narrow = Buffer::<u8>::new(passes.rows.len() * resize.region.width * 3, "narrow");
    let out = Buffer::<u8>::new(expected.len(), "out");
    let from = image.at(passes.rows.start * width * 3);
    let tables = |(taps, weights): &(Buffer<i32>, Buffer<i32>)| [taps.address(), weights.address()];
    let first = passes.first([narrow.address(), from], tables(&across), width).unwrap();
    let second = passes.second([out.address(), narrow.address()], tables(&down)).unwrap();
    for launch in [first, second].into_iter().flatten() {
        emulator.run(&launch)?;
    }
    narrow.read()?;
    if out.read()? == expected { Ok(()) } else { Err(format!("{resize:?} differs")) }
}

fn check_normalise(pixels: usize, emulator: Emulator) -> Result<(), String> {
    let image: Vec<u8> = (0..pixels * 3).map(|i| (i * 41 % 256) as u8).collect();
    let table: Vec<f32> = (0..768).map(|i| i as f32 / 7.0).collect();
    let (on_device, numbers) = (Buffer::of(&image, "image"), Buffer::of(&table, "table"));
    let out = Buffer::<f32>::new(pixels * 3, "out");
    let launch = launch::normalise([out.address(), on_device.address(), numbers.address()], pixels).unwrap();
    emulator.run(&launch.unwrap())?;
    let expected = (0..3).flat_map(|c| (0..pixels).map(move |pixel| (c, pixel)));
    let expected: Vec<f32> =
        expected.map(|(c, pixel)| table[c * 256 + usize::from(image[pixel * 3 + c])]).collect();
    if out.read()? == expected { Ok(()) } else { Err("numbers differ".into()) }
}

#[test]
fn pictures_equal_the_hosts() {
    for resize in cases() {
        for seed in 0..2 {
            check(resize, Emulator { seed, fault: None }).unwrap();
        }
    }
}

#[test]
fn numbers_equal_the_table() {
    for pixels in [1, 255, 256, 700] {
        check_normalise(pixels, Emulator { seed: 1, fault: None }).unwrap();
    }
    assert_eq!(launch::normalise([0; 3], 0).unwrap(), None);
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "resize") {
        faults += 1;
        let emulator = Emulator { seed: 1, fault: Some(fault.name) };
        let caught = cases().into_iter().any(|resize| check(resize, emulator).is_err());
        assert!(caught || check_normalise(700, emulator).is_err(), "{} was not noticed", fault.name);
    }
    assert!(faults >= 2);
}
