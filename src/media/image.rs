//! Pictures: what format, how large, and their pixels.

use std::io::Cursor;

use ::image::{
    DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbaImage,
    error::{ImageError as DecodeError, LimitErrorKind},
    metadata::Orientation,
};

use super::Picture;

/// Bytes that reading a header may take.
const MOST_HEADER: u64 = 4 << 20;

/// Formats that are read.
const FORMATS: [(ImageFormat, &str); 6] = [
    (ImageFormat::Png, "png"),
    (ImageFormat::Jpeg, "jpeg"),
    (ImageFormat::Gif, "gif"),
    (ImageFormat::WebP, "webp"),
    (ImageFormat::Bmp, "bmp"),
    (ImageFormat::Tiff, "tiff"),
];

/// Why a picture is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It is in another format, or no picture.
    #[error("the file is no picture in one of these formats: {}", FORMATS.map(|(_, name)| name).join(", "))]
    Format,
    /// It is broken.
    #[error("the picture cannot be decoded: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// It is too long.
    #[error("the picture is {width}x{height}; the limit for either edge is {limit}")]
    TooLong {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Most of either.
        limit: usize,
    },
    /// It is too large.
    #[error("the picture is {width}x{height}, which is {} pixels; the limit is {limit}", *width as u64 * *height as u64)]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Most pixels.
        limit: usize,
    },
}

/// What the header of a picture says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    format: ImageFormat,
    width: u32,
    height: u32,
    orientation: Orientation,
}

impl Header {
    /// Reads the header of a file. The format is told by its content.
    ///
    /// # Errors
    /// When it is no picture, or one with an edge of more than `edge` pixels or more than `pixels` in all.
    pub fn read(file: &[u8], edge: usize, pixels: usize) -> Result<Self, ImageError> {
        let format = ::image::guess_format(file).map_err(|_| ImageError::Format)?;
        if !FORMATS.iter().any(|(known, _)| *known == format) {
            return Err(ImageError::Format);
        }
        let mut reader = ImageReader::with_format(Cursor::new(file), format);
        let mut limits = Limits::default();
        // Colour profiles and texts in a header can be compressed a thousandfold. What is not compressed is as long as
        // the file at most, and some readers keep it more than once.
        limits.max_alloc = Some(MOST_HEADER + 4 * file.len() as u64);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(broken)?;
        let (width, height) = decoder.dimensions();
        if width.max(height) as usize > edge {
            return Err(ImageError::TooLong { width, height, limit: edge });
        }
        if u64::from(width) * u64::from(height) > pixels as u64 {
            return Err(ImageError::TooLarge { width, height, limit: pixels });
        }
        if width == 0 || height == 0 {
            return Err(ImageError::Broken { reason: format!("its size is {width}x{height}") });
        }
        // A picture with a broken note about its orientation is still a picture.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        Ok(Self { format, width, height, orientation })
    }

    /// Columns and rows, once the picture is turned as it should be seen.
    pub fn size(&self) -> (usize, usize) {
        let (width, height) = (self.width as usize, self.height as usize);
        match self.orientation {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => (height, width),
            _ => (width, height),
        }
    }

    /// Pixels.
    pub fn pixels(&self) -> usize {
        self.width as usize * self.height as usize
    }
}

/// Decodes a file whose header was read: its first frame, turned as its orientation says, on white where it is
/// transparent, in 8 bits. Takes milliseconds; see [`super::Decoders`] for doing it on a pool.
///
/// # Errors
/// When the file is broken.
pub fn decode(file: &[u8], header: Header) -> Result<Picture, ImageError> {
    if header.format == ImageFormat::Jpeg && jpeg_is_cut(file) {
        return Err(ImageError::Broken { reason: "its end is missing".into() });
    }
    let mut reader = ImageReader::with_format(Cursor::new(file), header.format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(header.width);
    limits.max_image_height = Some(header.height);
    // Sixteen bits, four channels, and as much again to work with.
    limits.max_alloc = Some(16 * header.pixels() as u64 + MOST_HEADER + 4 * file.len() as u64);
    reader.limits(limits);
    let mut image = reader.decode().map_err(broken)?;
    image.apply_orientation(header.orientation);
    let image = match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        other if other.color().has_alpha() => on_white(&other.into_rgba8()),
        other => other.into_rgb8(),
    };
    let (width, height) = image.dimensions();
    Ok(Picture::new(width as usize, height as usize, image.into_raw()))
}

/// Whether a JPEG ends before its end-of-image marker. The decoder would make the rest grey and say nothing; a model
/// would describe that. What follows the picture, as in a phone's motion photo, does not matter.
///
/// Walks the segments: ITU T.81, annex B.
fn jpeg_is_cut(file: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    // Restart markers and stuffed bytes are part of a scan, further 0xff are filling.
    let marker = |at: &usize| !matches!(file.get(at + 1), Some(0 | 0x01 | 0xd0..=0xd8 | 0xff));
    let mut at = 0;
    loop {
        let Some(next) = memchr::memchr_iter(0xff, &file[at..]).map(|next| at + next).find(marker) else {
            return true;
        };
        at = next + 2;
        let Some(&kind) = file.get(next + 1) else { return true };
        if kind == END_OF_IMAGE {
            return false;
        }
        // Also of a scan: its data follow its header, and have no marker in them.
        let Some(length) = file[at..].first_chunk() else { return true };
        at += usize::from(u16::from_be_bytes(*length)).max(2);
        if at > file.len() {
            return true;
        }
    }
}

/// Composites with Pillow's 8-bit rounding (`Image.alpha_composite` on opaque white), as transformers 5 does.
fn on_white(image: &RgbaImage) -> ::image::RgbImage {
    const BITS: u32 = 7;
    let by_255 = |value: u32| ((value >> 8) + value) >> 8;
    let mut out = ::image::RgbImage::new(image.width(), image.height());
    for (out, pixel) in out.pixels_mut().zip(image.pixels()) {
        let [red, green, blue, alpha] = pixel.0;
        let share = u32::from(alpha) * (1 << BITS);
        out.0 = [red, green, blue].map(|level| {
            let sum = u32::from(level) * share + 255 * (255 * (1 << BITS) - share);
            (by_255(sum + (0x80 << BITS)) >> BITS) as u8
        });
    }
    out
}

fn broken(error: DecodeError) -> ImageError {
    let reason = match error {
        DecodeError::Limits(limit) if limit.kind() == LimitErrorKind::InsufficientMemory => {
            "it needs more memory than its size explains".to_owned()
        }
        // The cause alone: the wrapper repeats the format.
        DecodeError::Decoding(error) => {
            std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
        }
        other => other.to_string(),
    };
    ImageError::Broken { reason }
}
