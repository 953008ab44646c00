//! Every form of picture that clients send shows what it should.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{collections::BTreeMap, fs};

use percept::media::{Header, decode};
use serde::Deserialize;
use support::fixtures;

#[derive(Deserialize)]
struct Expected {
    expected: String,
    size: (usize, usize),
    tolerance: u8,
}

fn check(file: &[u8], expected: &str, size: (usize, usize), tolerance: u8, name: &str) {
    let expected = image::open(fixtures().join(expected)).unwrap().to_rgb8();
    let header = Header::read(file, usize::MAX, usize::MAX).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(header.size(), size, "{name}: the header must know how the picture is turned");
    assert_eq!(header.pixels(), size.0 * size.1, "{name}");
    let picture = decode(file, header).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!((picture.width, picture.height), size, "{name}");
    let worst = picture.rgb.iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst.unwrap() <= tolerance, "{name}: off by {worst:?}, {tolerance} is allowed");
}

#[test]
fn all_formats_and_variants() {
    let manifest = fs::read_to_string(fixtures().join("pictures/manifest.json")).unwrap();
    let manifest: BTreeMap<String, Expected> = serde_json::from_str(&manifest).unwrap();
    assert!(manifest.len() >= 35);
    for (name, Expected { expected, size, tolerance }) in manifest {
        let file = fs::read(fixtures().join("pictures").join(&name)).unwrap();
        check(&file, &format!("pictures/{expected}"), size, tolerance, &name);
    }
}

/// The pictures of the numerical reference, with the decoded pixels that it was computed from.
#[test]
fn pictures_of_the_reference() {
    for (name, expected, size, tolerance) in [
        ("photo_160x120.jpg", "photo_160x120.decoded.png", (160, 120), 8),
        ("exif6_80x50.jpg", "exif6_80x50.decoded.png", (50, 80), 4),
        ("rgba_64x48.png", "rgba_64x48.white.png", (64, 48), 0),
        ("palette_40x40.png", "palette_40x40.decoded.png", (40, 40), 0),
        ("gray_50x70.png", "gray_50x70.png", (50, 70), 0),
    ] {
        let file = fs::read(fixtures().join("inputs").join(name)).unwrap();
        check(&file, &format!("inputs/{expected}"), size, tolerance, name);
    }
}

/// A header may hold a profile that is compressed a thousandfold. It is not unpacked.
#[test]
fn a_header_takes_little_memory() {
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    };
    let file = fs::read(fixtures().join("pictures/bomb.png")).unwrap();
    let before = resident();
    let header = Header::read(&file, usize::MAX, usize::MAX).unwrap();
    decode(&file, header).unwrap();
    let growth = resident().saturating_sub(before);
    assert!(growth < 32 << 10, "{growth} KiB for a picture of {:?}", header.size());
}

/// Phones append films to their pictures.
#[test]
fn what_follows_a_picture_does_not_matter() {
    for name in ["baseline_420.jpg", "progressive.jpg", "cmyk.jpg", "orientation_6.jpg"] {
        let file = fs::read(fixtures().join("pictures").join(name)).unwrap();
        let header = Header::read(&file, usize::MAX, usize::MAX).unwrap();
        let whole = decode(&file, header).unwrap();
        for tail in [&b"\xff\xda\x11\x22"[..], &file[..file.len() / 2], &[0xff; 9], b"MotionPhoto_Data"] {
            let with_tail = decode(&[&file, tail].concat(), header).unwrap();
            assert!(with_tail.rgb == whole.rgb, "{name}");
        }
        assert!(decode(&file[..file.len() - 2], header).is_err(), "{name} without its end");
        assert!(decode(&file[..file.len() / 2], header).is_err(), "{name} cut in half");
    }
}

/// Cut anywhere, a file is an error or a picture of the size that its header claims. It never panics.
#[test]
fn cut_files_do_no_harm() {
    for name in [
        "rgb.png",
        "rgb16.png",
        "baseline_420.jpg",
        "progressive.jpg",
        "lossy.webp",
        "alpha.webp",
        "still.gif",
        "palette.bmp",
        "lzw.tiff",
    ] {
        let file = fs::read(fixtures().join("pictures").join(name)).unwrap();
        let mut refused = 0;
        for length in 0..file.len() {
            let cut = &file[..length];
            let picture = Header::read(cut, usize::MAX, 1_000_000)
                .and_then(|header| Ok((header, decode(cut, header)?)));
            match picture {
                Ok((header, picture)) => {
                    assert_eq!((picture.width, picture.height), header.size(), "{name} {length}");
                }
                Err(_) => refused += 1,
            }
        }
        let unnoticed = file.len() - refused;
        assert!(unnoticed <= 16, "{name}: {unnoticed} of {} cuts are not noticed", file.len());
    }
}

/// One byte changed anywhere: an error or a picture, never a panic, never more memory than the limit on pixels allows.
#[test]
fn broken_files_do_no_harm() {
    for name in [
        "rgb.png",
        "baseline_420.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "lossy.webp",
        "animated.webp",
        "animated.gif",
        "palette.bmp",
        "deflate.tiff",
    ] {
        let file = fs::read(fixtures().join("pictures").join(name)).unwrap();
        for at in 0..file.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut broken = file.clone();
                broken[at] ^= flip;
                if let Ok(header) = Header::read(&broken, usize::MAX, 100_000) {
                    let _ = decode(&broken, header);
                }
            }
        }
    }
}
