//! Runs voice detectors over a folder of recordings (16 kHz, 16 bits, mono), one core.
//!
//! `candidates FOLDER [OPTION=VALUE...]`: beside each `x.wav`, writes probabilities to `x.DETECTOR.f32` and spans of
//! speech to `x.DETECTOR.json`; prints how fast each detector was, by the time that it had a CPU. Spans are made by percept's own code, which is
//! compiled in by its path, for all detectors. Where an `x.silero.f32` exists, spans are made from it, too.

use std::{error::Error, fs, path::Path};

#[path = "../../../../src/speech/vad/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the program uses all of it")]
mod vad;

/// What `vad` needs of the program.
mod media {
    pub mod sound {
        pub const RATE: usize = 16_000;
    }
}

use vad::{FRAME, Frame, Frames, Spans, VadOptions};

/// Probabilities of a recording, each of so many samples.
type Probabilities = (Vec<f32>, usize);
/// What hears a recording.
type Detect = fn(&[f32]) -> Probabilities;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: candidates FOLDER [OPTION=VALUE...]")?;
    let options = options(arguments)?;
    let mut recordings: Vec<_> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    recordings.retain(|path| path.extension().is_some_and(|extension| extension == "wav"));
    recordings.sort();
    let detectors: [(&str, Detect); 4] =
        [("rustvani", rustvani), ("earshot", earshot), ("webrtc", webrtc), ("rnnoise", rnnoise)];
    let mut times = [0.0; 4];
    let mut seconds = 0.0;
    for recording in &recordings {
        let sound = read(recording)?;
        seconds += sound.len() as f64 / 16_000.0;
        for ((name, detect), time) in detectors.iter().zip(&mut times) {
            let start = seconds_of_cpu()?;
            let (probabilities, every) = detect(&sound);
            *time += seconds_of_cpu()? - start;
            let bytes: Vec<u8> = probabilities.iter().flat_map(|value| value.to_le_bytes()).collect();
            fs::write(recording.with_extension(format!("{name}.f32")), bytes)?;
            spans(recording, name, &probabilities, every, &sound, &options)?;
        }
        if let Ok(bytes) = fs::read(recording.with_extension("silero.f32")) {
            let probabilities: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect();
            spans(recording, "silero", &probabilities, 512, &sound, &options)?;
        }
    }
    for ((name, _), time) in detectors.iter().zip(times) {
        println!("{name}: {:.0} x real time", seconds / time);
    }
    Ok(())
}

fn options(arguments: impl Iterator<Item = String>) -> Result<VadOptions, Box<dyn Error>> {
    let mut options = VadOptions::default();
    for argument in arguments {
        let (name, value) = argument.split_once('=').ok_or("an option is NAME=VALUE")?;
        match name {
            "threshold" => options.threshold = value.parse()?,
            "min_speech_ms" => options.min_speech_ms = value.parse()?,
            "min_silence_ms" => options.min_silence_ms = value.parse()?,
            "pad_ms" => options.pad_ms = value.parse()?,
            "longest_ms" => options.longest_ms = value.parse()?,
            _ => return Err(format!("there is no option {name}").into()),
        }
    }
    Ok(options)
}

/// Writes the spans of speech, from probabilities that belong to `every` samples each.
fn spans(
    recording: &Path,
    name: &str,
    probabilities: &[f32],
    every: usize,
    sound: &[f32],
    options: &VadOptions,
) -> Result<(), Box<dyn Error>> {
    let mut found = Spans::new(options);
    for (index, samples) in sound.chunks(FRAME).enumerate() {
        let at = (index * FRAME + FRAME / 2) / every;
        let probability = probabilities.get(at).or(probabilities.last()).copied().unwrap_or(0.0);
        let energy = samples.iter().map(|sample| sample * sample).sum::<f32>() / FRAME as f32;
        found.push(Frame { probability, energy });
    }
    let found: Vec<_> = found.finish(sound.len()).iter().map(|span| [span.start, span.end]).collect();
    Ok(fs::write(recording.with_extension(format!("{name}.json")), serde_json::to_string(&found)?)?)
}

/// As percept uses it.
fn earshot(sound: &[f32]) -> Probabilities {
    let mut found = Vec::new();
    let mut frames = Frames::default();
    frames.push(sound, |frame| found.push(frame.probability));
    frames.finish(|frame| found.push(frame.probability));
    (found, FRAME)
}

/// Silero's fifth version.
fn rustvani(sound: &[f32]) -> Probabilities {
    const EVERY: usize = rustvani_vad::SAMPLES_PER_WINDOW;
    let network = rustvani_vad::SileroVad::new().expect("its own weights");
    let found = sound.chunks_exact(EVERY).map(|samples| {
        let bytes: Vec<u8> = samples.iter().flat_map(|&sample| sixteen_bits(sample).to_le_bytes()).collect();
        network.infer(&bytes).expect("a whole window")
    });
    (found.collect(), EVERY)
}

/// Of its four degrees of severity, how many say speech.
fn webrtc(sound: &[f32]) -> Probabilities {
    use webrtc_vad::{SampleRate, Vad, VadMode};
    const EVERY: usize = 320;
    let modes = [VadMode::Quality, VadMode::LowBitrate, VadMode::Aggressive, VadMode::VeryAggressive];
    let mut detectors = modes.map(|mode| Vad::new_with_rate_and_mode(SampleRate::Rate16kHz, mode));
    let found = sound.chunks_exact(EVERY).map(|samples| {
        let samples: Vec<i16> = samples.iter().map(|&sample| sixteen_bits(sample)).collect();
        let votes = detectors.iter_mut().filter_map(|detector| detector.is_voice_segment(&samples).ok());
        votes.filter(|&speech| speech).count() as f32 / 4.0
    });
    (found.collect(), EVERY)
}

/// At its 48 kHz: each sample three times, smoothed by the triangle that interpolates linearly.
fn rnnoise(sound: &[f32]) -> Probabilities {
    use nnnoiseless::DenoiseState;
    const EVERY: usize = DenoiseState::FRAME_SIZE / 3;
    let mut network = DenoiseState::new();
    let mut before = 0.0;
    let mut denoised = [0.0; DenoiseState::FRAME_SIZE];
    let found = sound.chunks_exact(EVERY).map(|samples| {
        let mut fast = Vec::with_capacity(DenoiseState::FRAME_SIZE);
        for &sample in samples {
            let sample = sample * 32768.0;
            fast.extend([1.0, 2.0, 3.0].map(|third| before + (sample - before) * third / 3.0));
            before = sample;
        }
        network.process_frame(&mut denoised, &fast)
    });
    (found.collect(), EVERY)
}

fn sixteen_bits(sample: f32) -> i16 {
    (sample * 32768.0) as i16
}

/// Of this thread, which is the only one.
fn seconds_of_cpu() -> Result<f64, Box<dyn Error>> {
    let times = fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds: u64 = times.split(' ').next().unwrap_or_default().parse()?;
    Ok(nanoseconds as f64 / 1e9)
}

fn read(path: &Path) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let data = bytes.get(44..).ok_or("no wav")?;
    Ok(data.chunks_exact(2).map(|two| f32::from(i16::from_le_bytes([two[0], two[1]])) / 32768.0).collect())
}
