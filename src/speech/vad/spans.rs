//! Spans of speech from the probabilities of frames, as Silero's `get_speech_timestamps` makes them. Knows no sound.

use super::{Frame, Span, VadOptions, frames::FRAME, samples};

/// Silence is less probable speech than this below the threshold: what is between keeps things as they are.
const HYSTERESIS: f32 = 0.15;
/// Where speech is too long, the shortest silence in it that is a pause, in frames: 98 ms.
const PAUSE: usize = 6;
/// Speech that is too long is cut in these last frames where they have a pause, else in the others: 5 s and 15 s.
const LAST: [usize; 2] = [313, 938];

/// Makes spans, frame by frame.
pub struct Spans {
    threshold: f32,
    min_speech: usize,
    min_silence: usize,
    longest: usize,
    /// Frames that came.
    frames: usize,
    current: Option<Current>,
    done: Vec<Span>,
}

/// Speech that has not ended.
struct Current {
    /// Its frames, until now.
    frames: Vec<Frame>,
    /// What is said in front of it was cut off.
    continues: bool,
    /// How many of `frames` are before the silence in which it seems to end.
    spoken: Option<usize>,
}

impl Spans {
    /// At the beginning of a recording.
    pub fn new(options: &VadOptions) -> Self {
        let frames = |milliseconds| samples(milliseconds).div_ceil(FRAME);
        let longest = (options.longest() - 2 * options.pad()) / FRAME;
        Self {
            threshold: options.threshold,
            // The half of it is what a cut leaves at least.
            min_speech: frames(options.min_speech_ms).min(longest / 2),
            min_silence: frames(options.min_silence_ms).max(1),
            longest,
            frames: 0,
            current: None,
            done: Vec::new(),
        }
    }

    /// Takes the next frame.
    pub fn push(&mut self, frame: Frame) {
        self.frames += 1;
        let speech = frame.probability >= self.threshold;
        let Some(current) = &mut self.current else {
            if speech {
                self.current = Some(Current { frames: vec![frame], continues: false, spoken: None });
            }
            return;
        };
        current.frames.push(frame);
        if speech {
            current.spoken = None;
        } else if frame.probability < self.threshold - HYSTERESIS {
            let spoken = *current.spoken.get_or_insert(current.frames.len() - 1);
            if current.frames.len() - spoken >= self.min_silence {
                return self.end(spoken);
            }
        }
        if current.frames.len() >= self.longest {
            self.cut();
        }
    }

    /// All spans, of a recording of that many samples.
    pub fn finish(mut self, samples: usize) -> Vec<Span> {
        if let Some(current) = &self.current {
            self.end(current.spoken.unwrap_or(current.frames.len()));
        }
        if let Some(last) = self.done.last_mut() {
            last.end = last.end.min(samples);
        }
        self.done
    }

    /// Ends the current span, of whose frames that many are speech.
    fn end(&mut self, spoken: usize) {
        let Some(current) = self.current.take() else { return };
        // What continues is the end of a sentence, however short.
        if spoken > 0 && (spoken >= self.min_speech || current.continues) {
            let start = self.frames - current.frames.len();
            self.done.push(Span { start: start * FRAME, end: (start + spoken) * FRAME });
        }
    }

    /// Cuts speech that is too long, and goes on with what is behind the cut.
    fn cut(&mut self) {
        let Some(current) = &self.current else { return };
        let (spoken, next) = place(&current.frames, self.threshold - HYSTERESIS);
        let rest = current.frames[next..].to_vec();
        let spoken_of_rest = current.spoken.and_then(|spoken| spoken.checked_sub(next));
        self.end(spoken);
        self.current =
            (!rest.is_empty()).then_some(Current { frames: rest, continues: true, spoken: spoken_of_rest });
    }
}

/// Where to cut: how many frames are before, and the first one behind. The longest pause, else the quietest place.
fn place(frames: &[Frame], silence: f32) -> (usize, usize) {
    let from = |last: usize| frames.len() - last.min(frames.len() / 2);
    let pause = LAST.iter().find_map(|&last| longest_pause(frames, from(last), silence));
    pause.unwrap_or_else(|| {
        let cut = quietest(frames, from(LAST[0]));
        (cut, cut)
    })
}

/// The longest pause that begins at `from` or later, and the latest of those.
fn longest_pause(frames: &[Frame], from: usize, silence: f32) -> Option<(usize, usize)> {
    let mut longest = None;
    let mut at = from;
    while at < frames.len() {
        let length = frames[at..].iter().take_while(|frame| frame.probability < silence).count();
        if length >= PAUSE && longest.is_none_or(|(start, end)| length >= end - start) {
            longest = Some((at, at + length));
        }
        at += length.max(1);
    }
    longest
}

/// The middle of the quietest 100 ms that begin at `from` or later.
fn quietest(frames: &[Frame], from: usize) -> usize {
    let loudness = |window: &[Frame]| window.iter().map(|frame| frame.energy).sum::<f32>();
    let windows = frames[from..].windows(PAUSE).map(loudness).enumerate();
    let least = windows.min_by(|(_, a), (_, b)| a.total_cmp(b));
    least.map_or(frames.len(), |(index, _)| from + index + PAUSE / 2)
}
