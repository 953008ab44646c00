//! PDF files, by hayro. Runs in a process with limits, see [`super`].

use std::io::{self, Cursor};

use ::image::{
    ExtendedColorType, ImageEncoder as _,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use hayro::hayro_interpret::TransformExt as _;
use hayro::{
    PixmapSettings, RenderCache, RenderSettings,
    hayro_interpret::{Context, InterpreterCache, InterpreterSettings, interpret_page},
    hayro_syntax::{DecryptionError, LoadPdfError, Pdf},
    kurbo::Rect,
    render,
    vello_cpu::color::palette::css::WHITE,
};

use super::{DocumentError, MOST_OBJECTS, MOST_TEXT, Page, text::Writing};

/// A file that is whole.
fn open(file: Vec<u8>) -> Result<Pdf, DocumentError> {
    /// Where its last lines are. Programs append things behind them.
    const END: usize = 4096;
    let end = &file[file.len().saturating_sub(END)..];
    // What is left of a file could be read; a model would describe that.
    if memchr::memmem::rfind(end, b"startxref").is_none() && memchr::memmem::rfind(end, b"%%EOF").is_none() {
        return Err(DocumentError::Cut);
    }
    let pdf = Pdf::new(file).map_err(|error| match error {
        LoadPdfError::Decryption(
            DecryptionError::PasswordProtected | DecryptionError::UnsupportedAlgorithm,
        ) => DocumentError::Encrypted,
        LoadPdfError::Decryption(_) | LoadPdfError::Invalid => DocumentError::Broken,
    })?;
    match pdf.len() {
        found if found > MOST_OBJECTS => Err(DocumentError::Objects { found, limit: MOST_OBJECTS }),
        _ => Ok(pdf),
    }
}

/// The pages of a file, of which there may be so many.
pub(super) fn contents(file: Vec<u8>, most: usize) -> Result<Vec<Page>, DocumentError> {
    let pdf = open(file)?;
    let pages = pdf.pages();
    match pages.len() {
        0 => return Err(DocumentError::NoPages),
        found if found > most => return Err(DocumentError::Pages { found, limit: most }),
        _ => {}
    }
    let cache = InterpreterCache::new();
    let mut found = Vec::with_capacity(pages.len());
    let mut left = MOST_TEXT;
    for page in pages.iter() {
        let (width, height) = page.render_dimensions();
        let transform = page.initial_transform(true).to_kurbo();
        let target = Rect::new(0.0, 0.0, f64::from(width), f64::from(height));
        let settings = InterpreterSettings::default();
        let mut context = Context::new(transform, target, &cache, page.xref(), settings);
        let mut writing = Writing::new(left);
        interpret_page(page, &mut context, &mut writing);
        let text = writing.text().ok_or(DocumentError::Text { limit: MOST_TEXT })?;
        left -= text.len();
        found.push(Page { width, height, text });
    }
    Ok(found)
}

/// Gives PNG files of the first pages, each of so many columns and rows.
pub(super) fn pictures(
    file: Vec<u8>,
    sizes: &[(u16, u16)],
    mut give: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let pdf = open(file).map_err(io::Error::other)?;
    let cache = RenderCache::new();
    for (page, &(columns, rows)) in pdf.pages().iter().zip(sizes) {
        let (width, height) = page.render_dimensions();
        // What is behind the point is cut off.
        let scale = |pixels: u16, points: f32| (f32::from(pixels) + 0.01) / points;
        let settings =
            PixmapSettings { x_scale: scale(columns, width), y_scale: scale(rows, height), bg_color: WHITE };
        let picture =
            render(page, &cache, &InterpreterSettings::default(), &RenderSettings::default(), &settings);
        // All of it is opaque, on white.
        let rgb: Vec<u8> = picture
            .data_as_u8_slice()
            .chunks_exact(4)
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect();
        let mut png = Cursor::new(Vec::new());
        PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Up)
            .write_image(&rgb, picture.width().into(), picture.height().into(), ExtendedColorType::Rgb8)
            .map_err(io::Error::other)?;
        give(png.get_ref())?;
    }
    Ok(())
}
