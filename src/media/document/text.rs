//! What is written on a page: characters in the order in which they are drawn, with the spaces and line breaks that are
//! between them on the page. Files need not have either, and most have no columns or paragraphs.

use hayro::{
    hayro_interpret::{
        BlendMode, ClipPath, Device, DrawMode, DrawProps, Image, ImageDrawProps, SoftMask,
        font::{Glyph, GlyphRun},
        hayro_cmap::BfString,
    },
    kurbo::{BezPath, Point, Vec2},
};

/// Sizes of which a gap between characters is a space.
const SPACE: f64 = 0.15;
/// Sizes by which what is on the same line goes up and down: indices, powers.
const LINE: f64 = 0.6;
/// Lines between which there is room for another are of two paragraphs.
const PARAGRAPH: f64 = 1.8;

/// Reads what is drawn.
pub(super) struct Writing {
    text: String,
    most: usize,
    /// Where the last character ended.
    pen: Option<Pen>,
    /// Where the last run of characters began, and what it said: bold letters are drawn twice.
    last: Option<(Point, String)>,
}

#[derive(Clone, Copy)]
struct Pen {
    end: Point,
    /// In which the text goes, of length 1.
    direction: Vec2,
    size: f64,
}

impl Writing {
    /// Nothing yet, and so many bytes at most.
    pub(super) fn new(most: usize) -> Self {
        Self { text: String::new(), most, pen: None, last: None }
    }

    /// All that was written; [`None`] where that was too much.
    pub(super) fn text(self) -> Option<String> {
        let lines: Vec<&str> = self.text.lines().map(str::trim_end).collect();
        let text = lines.join("\n");
        (self.text.len() <= self.most).then(|| text.trim().to_owned())
    }

    /// What is between the last character and one that begins at a point.
    fn go_to(&mut self, begin: Point, pen: Pen) {
        let Some(last) = self.pen else { return };
        let size = last.size.max(pen.size);
        let gap = begin - last.end;
        let (along, across) = (gap.dot(last.direction), gap.cross(last.direction).abs());
        if across > PARAGRAPH * size {
            self.text.push_str("\n\n");
        } else if across > LINE * size || along < -size {
            self.text.push('\n');
        } else if along > SPACE * size && !self.text.ends_with([' ', '\n']) {
            self.text.push(' ');
        }
    }

    fn write(&mut self, character: &BfString) {
        let mut one = [0; 4];
        let written: &str = match character {
            BfString::Char(character) => character.encode_utf8(&mut one),
            BfString::String(text) => text,
        };
        for character in written.chars() {
            match character {
                '\u{fb00}' => self.text.push_str("ff"),
                '\u{fb01}' => self.text.push_str("fi"),
                '\u{fb02}' => self.text.push_str("fl"),
                '\u{fb03}' => self.text.push_str("ffi"),
                '\u{fb04}' => self.text.push_str("ffl"),
                // Where a word may be broken, and is not.
                '\u{ad}' => {}
                '\u{a0}' => self.text.push(' '),
                other if other.is_control() => {}
                ' ' if self.text.ends_with([' ', '\n']) => {}
                other => self.text.push(other),
            }
        }
    }
}

impl<'a> Device<'a> for Writing {
    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, 'a>, props: DrawProps<'a>, _: &DrawMode) {
        let (before, pen) = (self.text.len(), self.pen);
        let mut first = None;
        let mut said = String::new();
        for glyph in run.glyphs() {
            if self.text.len() > self.most {
                return;
            }
            // A glyph is as high as 1000 of its units.
            let transform = props.transform * glyph.transform();
            let begin = transform * Point::ORIGIN;
            let along = (transform * Point::new(1000.0, 0.0)) - begin;
            let size = ((transform * Point::new(0.0, 1000.0)) - begin).hypot();
            let advance = match &**glyph {
                Glyph::Outline(glyph) => glyph.advance_width().map_or(0.5, |width| f64::from(width) / 1000.0),
                Glyph::Type3(_) => 0.5,
            };
            let is_drawn = size.is_finite() && along.hypot().is_finite() && along.hypot() > 0.0;
            let Some(character) = glyph.as_unicode().filter(|_| is_drawn) else { continue };
            let pen = Pen { end: begin + along * advance, direction: along / along.hypot(), size };
            first.get_or_insert((begin, size));
            self.go_to(begin, pen);
            let at = self.text.len();
            self.write(&character);
            said.push_str(&self.text[at..]);
            self.pen = Some(pen);
        }
        let Some((begin, size)) = first else { return };
        let again = self
            .last
            .as_ref()
            .is_some_and(|(last, text)| (*last - begin).hypot() < 0.1 * size && *text == said);
        if again {
            self.text.truncate(before);
            self.pen = pen;
        }
        self.last = Some((begin, said));
    }

    fn draw_path(&mut self, _: &BezPath, _: DrawProps<'a>, _: &DrawMode) {}

    fn draw_image(&mut self, _: Image<'a, '_>, _: ImageDrawProps<'a>) {}

    fn push_clip_path(&mut self, _: &ClipPath) {}

    fn push_transparency_group(&mut self, _: f32, _: Option<SoftMask<'a>>, _: BlendMode) {}

    fn pop_clip(&mut self) {}

    fn pop_transparency_group(&mut self) {}
}
