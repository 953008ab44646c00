//! Spans of speech from the probabilities of frames, as Silero's `get_speech_timestamps` makes them. Knows no sound.

use super::{Frame, Span, VadOptions, frames::FRAME, samples};

/// Silence is less probable speech than this below the threshold: what is between keeps things as they are.
const HYSTERESIS: f32 = 0.15;
/// Speech has a frame as probable as this. Hum, rush and tones may stay above a threshold of 0.5 for minutes, and do not
/// reach it; speech does within a word, even in loud noise: `benches/results/vad.md`.
const SURE: f32 = 0.9;
/// Where speech is too long, the shortest silence in it that is a pause, in frames: 98 ms.
const PAUSE: usize = 6;
/// Speech that is too long is cut in these last frames where they have a pause, else in the others: 5 s and 15 s.
const LAST: [usize; 2] = [313, 938];

/// Makes spans, frame by frame.
pub struct Spans {
    threshold: f32,
    sure: f32,
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
    /// What is in front of it was cut off, and is speech.
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
            // Whoever sets a low threshold wants to hear what is doubtful.
            sure: (options.threshold * (SURE / 0.5)).min(SURE).max(options.threshold),
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
                self.end(spoken);
                return;
            }
        }
        if current.frames.len() >= self.longest {
            self.cut();
        }
    }

    /// Where the current span begins, once it is sure to become one.
    pub fn speaking(&self) -> Option<usize> {
        let current = self.current.as_ref()?;
        let spoken = current.spoken.unwrap_or(current.frames.len());
        self.is_speech(current, spoken).then(|| (self.frames - current.frames.len()) * FRAME)
    }

    /// Whether there is a span that has not ended.
    pub fn is_open(&self) -> bool {
        self.current.is_some()
    }

    /// Spans that were done since this was asked last.
    pub fn take(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.done)
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

    /// Ends the current span, of whose frames that many may be speech; tells whether they are.
    fn end(&mut self, spoken: usize) -> bool {
        let Some(current) = self.current.take() else { return false };
        let speech = self.is_speech(&current, spoken);
        if speech {
            let start = self.frames - current.frames.len();
            self.done.push(Span { start: start * FRAME, end: (start + spoken) * FRAME });
        }
        speech
    }

    /// Whether the first frames of a span are speech.
    fn is_speech(&self, current: &Current, spoken: usize) -> bool {
        let sure = || current.frames[..spoken].iter().any(|frame| frame.probability >= self.sure);
        // The last words of what was cut, however short.
        let rest = current.continues && spoken < self.longest / 2;
        spoken > 0 && (rest || (spoken >= self.min_speech && sure()))
    }

    /// Cuts speech that is too long, and goes on with what is behind the cut.
    fn cut(&mut self) {
        let Some(current) = &self.current else { return };
        let (spoken, next) = place(&current.frames, self.threshold - HYSTERESIS);
        let rest = current.frames[next..].to_vec();
        let spoken_of_rest = current.spoken.and_then(|spoken| spoken.checked_sub(next));
        let continues = self.end(spoken);
        self.current =
            (!rest.is_empty()).then_some(Current { frames: rest, continues, spoken: spoken_of_rest });
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

/// The middle of the quietest 100 ms that begin at `from` or later, and of the latest of those.
fn quietest(frames: &[Frame], from: usize) -> usize {
    let loudness = |window: &[Frame]| window.iter().map(|frame| frame.energy).sum::<f32>();
    let windows = frames[from..].windows(PAUSE).map(loudness).enumerate();
    let least = windows.rev().min_by(|(_, a), (_, b)| a.total_cmp(b));
    least.map_or(frames.len(), |(index, _)| from + index + PAUSE / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Spans, in frames, of probabilities given as runs.
    fn check(options: &VadOptions, runs: &[(usize, f32)], expected: &[(usize, usize)]) {
        let mut spans = Spans::new(options);
        let mut frames = 0;
        for &(length, probability) in runs {
            frames += length;
            (0..length).for_each(|_| spans.push(Frame { probability, energy: 1.0 }));
        }
        let found: Vec<_> =
            spans.finish(frames * FRAME).iter().map(|span| (span.start / FRAME, span.end / FRAME)).collect();
        assert_eq!(found, expected, "{runs:?}");
    }

    #[test]
    fn short_silence_does_not_end_speech() {
        let options = VadOptions::default();
        check(&options, &[(10, 0.1), (50, 0.95), (20, 0.1), (50, 0.95)], &[(10, 60), (80, 130)]);
        check(&options, &[(10, 0.1), (50, 0.95), (9, 0.1), (50, 0.95)], &[(10, 119)]);
        check(&options, &[(10, 0.1), (50, 0.95), (9, 0.1)], &[(10, 60)]);
        // Neither speech nor silence: goes on.
        check(&options, &[(50, 0.95), (40, 0.4), (50, 0.95)], &[(0, 140)]);
    }

    #[test]
    fn what_is_never_sure_is_no_speech() {
        let options = VadOptions::default();
        check(&options, &[(5000, 0.8)], &[]);
        check(&options, &[(50, 0.8), (1, 0.95), (50, 0.8)], &[(0, 101)]);
        // Hum after speech does not count as its end for ever.
        let long = Spans::new(&options).longest;
        check(&options, &[(10, 0.95), (4 * long, 0.8)], &[(0, long - PAUSE / 2)]);
        let low = VadOptions { threshold: 0.3, ..options };
        check(&low, &[(50, 0.6)], &[(0, 50)]);
    }

    #[test]
    fn long_speech_is_cut_at_its_longest_late_pause() {
        let options = VadOptions::default();
        let long = Spans::new(&options).longest;
        assert_eq!(long, 29_200 * 16 / FRAME);
        // Two pauses within the last five seconds, one that is longer before.
        let runs = [(1200, 0.95), (9, 0.1), (400, 0.95), (8, 0.1), (50, 0.95), (6, 0.1), (500, 0.95)];
        check(&options, &runs, &[(0, 1609), (1617, 2173)]);
        // Only one that is further back.
        check(&options, &[(1200, 0.95), (9, 0.1), (1000, 0.95)], &[(0, 1200), (1209, 2209)]);
        // The end of what is cut is kept, however short.
        check(&options, &[(long - 20, 0.95), (7, 0.1), (14, 0.95)], &[(0, long - 20), (long - 13, long + 1)]);
    }

    #[test]
    fn long_speech_without_a_pause_is_cut_where_it_is_quiet() {
        let options = VadOptions::default();
        let mut spans = Spans::new(&options);
        for index in 0..2500 {
            let energy = if (1700..1706).contains(&index) { 0.1 } else { 1.0 };
            spans.push(Frame { probability: 0.95, energy });
        }
        let found = spans.finish(2500 * FRAME);
        assert_eq!(
            found,
            [Span { start: 0, end: 1703 * FRAME }, Span { start: 1703 * FRAME, end: 2500 * FRAME }]
        );
    }

    proptest! {
        #[test]
        fn spans_are_in_order_not_too_long_and_miss_no_speech(
            runs in prop::collection::vec((1_usize..400, 0.0_f32..1.0), 0..60),
            pad_ms in 0_u32..10_000,
        ) {
            let options = VadOptions { min_speech_ms: 0, pad_ms, ..VadOptions::default() };
            let mut spans = Spans::new(&options);
            let longest = spans.longest;
            let probabilities: Vec<f32> =
                runs.iter().flat_map(|&(length, probability)| vec![probability; length]).collect();
            probabilities.iter().for_each(|&probability| spans.push(Frame { probability, energy: probability }));
            let found = spans.finish(probabilities.len() * FRAME);
            let mut end = 0;
            for span in &found {
                prop_assert!(end <= span.start && span.start < span.end && span.end - span.start <= longest * FRAME);
                end = span.end;
            }
            prop_assert!(end <= probabilities.len() * FRAME);
            for (index, probability) in probabilities.iter().enumerate() {
                let at = index * FRAME;
                prop_assert!(*probability < SURE || found.iter().any(|span| (span.start..span.end).contains(&at)));
            }
        }
    }
}
