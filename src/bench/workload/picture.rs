//! JPEGs of a size that differ from each other, at the price of a copy.

use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use super::{Size, WorkloadError};

/// About what cameras and browsers use.
const QUALITY: u8 = 85;
/// Numbers of a quantisation table, in zigzag order: low frequencies first.
const TABLE: usize = 64;
/// The numbers that a picture's own number changes: coefficients that a picture with detail has, and whose change is
/// hardly seen.
const CHANGED: std::ops::Range<usize> = 4..36;

/// A picture whose variants have other pixels everywhere, but whose compression is done once. A JPEG's coefficients
/// are multiples of the numbers in its tables: with other numbers they are another picture, as large, and as much work
/// to decode.
#[derive(Debug)]
pub(super) struct Template {
    file: Vec<u8>,
    /// Where the first table's numbers are.
    table: usize,
}

impl Template {
    pub(super) fn new(size: Size, seed: u64) -> Result<Self, WorkloadError> {
        let failure = |reason: &dyn ToString| WorkloadError::Make { size, reason: reason.to_string() };
        let mut file = Vec::new();
        let pixels = pixels(size, seed);
        let mut encoder = JpegEncoder::new_with_quality(&mut file, QUALITY);
        encoder
            .encode(&pixels, size.width, size.height, ExtendedColorType::Rgb8)
            .map_err(|error| failure(&error))?;
        let table = table(&file).ok_or_else(|| failure(&"it has no table of 8 bits"))?;
        Ok(Self { file, table })
    }

    /// The file of a variant. Different numbers have different pixels.
    pub(super) fn file(&self, number: u64) -> Vec<u8> {
        let mut file = self.file.clone();
        let numbers = &mut file[self.table..self.table + TABLE][CHANGED];
        for (place, value) in numbers.iter_mut().enumerate() {
            // Two bits each; all 64 are used.
            let change = (number >> (2 * place)) & 3;
            *value = value.saturating_add(change as u8);
        }
        file
    }
}

/// Where the numbers of the first quantisation table are: behind a marker, a length, and its precision and number.
fn table(file: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        let [0xff, marker, high, low] = *file.get(at..at + 4)? else { return None };
        if marker == 0xdb {
            let eight_bits = file.get(at + 4)? >> 4 == 0;
            return (eight_bits && file.len() >= at + 5 + TABLE).then_some(at + 5);
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
}

/// Slopes, edges and grain, so that the file is about as large as a photograph's.
fn pixels(size: Size, seed: u64) -> Vec<u8> {
    let (width, height) = (size.width as usize, size.height as usize);
    let mut draws = Pcg64::seed_from_u64(seed ^ (u64::from(size.width) << 32 | u64::from(size.height)));
    let shapes: Vec<[usize; 4]> = (0..24)
        .map(|_| {
            let (x, y) = (draws.random_range(0..width), draws.random_range(0..height));
            [x, y, draws.random_range(1..=width), draws.random_range(1..=height)]
        })
        .collect();
    let colors: Vec<[u8; 3]> = shapes.iter().map(|_| draws.random()).collect();
    let mut pixels = Vec::with_capacity(width * height * 3);
    let mut grain = vec![0u8; width];
    for y in 0..height {
        draws.fill_bytes(&mut grain);
        for x in 0..width {
            let inside = |[left, top, wide, high]: &[usize; 4]| {
                (*left..left + wide / 3).contains(&x) && (*top..top + high / 3).contains(&y)
            };
            let color = shapes.iter().rposition(inside).map_or([90, 120, 150], |shape| colors[shape]);
            let slope = (x * 60 / width + y * 60 / height) as i32 - 60;
            let change = slope + i32::from(grain[x] % 32) - 16;
            pixels.extend(color.map(|channel| (i32::from(channel) + change).clamp(0, 255) as u8));
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::media::{Header, decode};

    fn decoded(file: &[u8]) -> (usize, usize, Vec<u8>) {
        let header = Header::read(file, usize::MAX, usize::MAX).unwrap();
        let picture = decode(file, header).unwrap();
        (picture.width, picture.height, picture.rgb)
    }

    #[test]
    fn variants_have_the_size_and_pixels_of_their_own() {
        for (width, height) in [(64, 48), (201, 77), (8, 8), (1, 1)] {
            let template = Template::new(Size { width, height }, 3).unwrap();
            let mut seen = HashSet::new();
            let numbers = [0, 1, 2, 3, 4, 255, 1 << 20, 1 << 40, u64::MAX];
            for number in numbers {
                let (columns, rows, rgb) = decoded(&template.file(number));
                assert_eq!((columns, rows), (width as usize, height as usize));
                seen.insert(rgb);
            }
            // A picture of few pixels may have no detail that could change.
            let least = if width < 64 { 1 } else { numbers.len() };
            assert!(seen.len() >= least, "{width}x{height}: {}", seen.len());
            let files: HashSet<_> = (0..500).map(|number| template.file(number)).collect();
            assert_eq!(files.len(), 500);
        }
    }

    #[test]
    fn a_picture_is_about_as_large_as_a_photograph() {
        let template = Template::new(Size { width: 640, height: 480 }, 3).unwrap();
        let bits = template.file.len() as f64 * 8.0 / (640.0 * 480.0);
        assert!((1.0..5.0).contains(&bits), "{bits} bits a pixel");
    }
}
