//! Sound files in every container and codec: what is heard in them, and that no file does harm.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    f64::consts::PI,
    fs,
    io::Cursor,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use percept::media::sound::{Channels, FORMATS, Progress, RATE, Recording, SoundError, SoundLimits, decode};
use rayon::prelude::*;
use serde::Deserialize;

/// Remembers the largest piece of memory that was asked for.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Watching = Watching;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: what holds for this function holds for that one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// No test here has a file of a MiB, so none needs this much.
fn assert_modest(name: &str) {
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < 32 << 20, "{largest} bytes were asked for at once, for {name} or what ran beside it");
}

const LIMITS: SoundLimits = SoundLimits { seconds: 60.0, memory_samples: 1 << 20, channels: 2 };

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sound")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap()
}

fn hear(bytes: Vec<u8>) -> Result<Recording, SoundError> {
    decode(Cursor::new(bytes), &LIMITS, Channels::Mixed, None, go_on)
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// All samples of a channel, as 16-bit numbers.
fn samples(recording: &Recording, channel: usize) -> Vec<f64> {
    let samples = recording.read(channel, 0..recording.samples()).unwrap();
    samples.into_iter().map(|sample| f64::from(sample) * 32768.0).collect()
}

/// The recording that all fixtures were made of.
fn speech() -> Vec<f64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/inputs/speechlike_3s.wav");
    let bytes = fs::read(path).unwrap();
    bytes[44..].chunks_exact(2).map(|pair| f64::from(i16::from_le_bytes([pair[0], pair[1]]))).collect()
}

/// What ffmpeg makes of a file.
#[derive(Deserialize)]
struct Expected {
    samples: usize,
    at: Vec<usize>,
    windows: Vec<Vec<f64>>,
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&read("expected.json")).unwrap()
}

/// Signal to noise of a result, in dB.
fn snr(found: &[f64], expected: &[f64]) -> f64 {
    let power: f64 = expected.iter().map(|sample| sample * sample).sum();
    let noise: f64 = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    10.0 * (power / noise.max(1e-9)).log10()
}

/// How alike two sounds are, of which the first may be late by a tenth of a second: the cosine of their angle.
fn likeness(late: &[f64], sound: &[f64]) -> f64 {
    const MOST: usize = 4000;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let at = |lag: usize| {
        let count = (late.len() - lag).min(sound.len()).min(MOST);
        let (a, b) = (&late[lag..lag + count], &sound[..count]);
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    (0..(RATE / 10).min(late.len() / 2)).map(at).fold(0.0, f64::max)
}

/// How a file is judged.
enum Check {
    /// Sample for sample what ffmpeg decodes.
    Equal,
    /// Signal to noise against what ffmpeg decodes, at least so many dB.
    Close(f64),
}

use Check::{Close, Equal};

const HEARD: [(&str, Check); 50] = [
    ("u8.wav", Equal),
    ("s16.wav", Equal),
    ("s24.wav", Equal),
    ("s32.wav", Equal),
    ("f32.wav", Equal),
    ("f64.wav", Equal),
    ("mulaw_8k.wav", Close(45.0)),
    ("alaw_8k.wav", Close(45.0)),
    ("stereo_48k.wav", Close(45.0)),
    ("six_channels.wav", Close(45.0)),
    ("11k.wav", Close(45.0)),
    ("ima_adpcm.wav", Equal),
    ("ms_adpcm.wav", Equal),
    ("mp3.wav", Close(45.0)),
    ("rf64.wav", Equal),
    ("streamed.wav", Equal),
    ("cover.mp3", Close(45.0)),
    ("vbr_44k_stereo.mp3", Close(45.0)),
    ("11k.mp3", Close(45.0)),
    ("layer2.mp2", Close(45.0)),
    ("16k.flac", Equal),
    ("44k_stereo_24.flac", Close(45.0)),
    ("vorbis.ogg", Close(45.0)),
    ("flac.ogg", Equal),
    ("speech.opus", Close(45.0)),
    ("wide.opus", Close(45.0)),
    ("music_stereo.opus", Close(45.0)),
    ("low_delay.opus", Close(45.0)),
    ("long_frames.opus", Close(45.0)),
    ("speech_8k.opus", Close(45.0)),
    ("browser.webm", Close(45.0)),
    ("opus.webm", Close(45.0)),
    ("vorbis.mka", Close(45.0)),
    ("pcm.mka", Equal),
    ("video.mkv", Close(45.0)),
    ("voice.m4a", Close(45.0)),
    ("fast_start.m4a", Close(45.0)),
    ("fragmented.mp4", Close(45.0)),
    ("video.mp4", Close(45.0)),
    ("alac.m4a", Equal),
    ("opus.mp4", Close(45.0)),
    ("flac.mp4", Equal),
    ("mp3.mp4", Close(45.0)),
    ("pcm.mov", Equal),
    ("24k.aac", Close(45.0)),
    ("s16.aiff", Equal),
    ("f32.aiff", Equal),
    ("s16.caf", Equal),
    ("mulaw_8k.caf", Close(45.0)),
    ("alac.caf", Equal),
];

#[test]
fn every_kind_of_file_is_heard() {
    let (speech, expected) = (speech(), expected());
    let mut wrong = Vec::new();
    for (name, check) in &HEARD {
        let recording = match hear(read(name)) {
            Ok(recording) => recording,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (found, expected) = (samples(&recording, 0), &expected[*name]);
        let off = found.len().abs_diff(expected.samples);
        let most = if matches!(check, Equal) { 0 } else { RATE / 50 };
        let windows = expected.at.iter().zip(&expected.windows);
        let worst = windows
            .map(|(at, window)| snr(found.get(*at..at + window.len()).unwrap_or_default(), window))
            .fold(f64::INFINITY, f64::min);
        let right = match check {
            Equal => worst > 120.0,
            Close(least) => worst >= *least,
        };
        let like = likeness(&found, &speech);
        if off > most || !right || like < 0.7 {
            wrong.push(format!("{name}: {off} samples off, {worst:.1} dB, likeness {like:.3}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const REFUSED: [(&str, &str); 10] = [
    ("he_aac.m4a", "HE-AAC"),
    ("ac3.mp4", "AC-3"),
    ("ac3.ac3", "AC-3"),
    ("eac3.mkv", "E-AC-3"),
    ("dts.mka", "DTS"),
    ("wma.wma", "WMA (ASF)"),
    ("speex.ogg", "Speex"),
    ("gsm.wav", "GSM 06.10"),
    ("wavpack.wv", "WavPack"),
    ("speech.amr", "AMR"),
];

#[test]
fn what_is_not_decoded_is_named() {
    for (name, expected) in REFUSED {
        let error = hear(read(name)).unwrap_err();
        let SoundError::Codec { codec } = &error else { panic!("{name}: {error}") };
        assert_eq!(codec, expected, "{name}");
        assert!(error.to_string().contains("webm"), "{error} does not say what to send");
    }
    assert!(matches!(hear(read("picture_only.mp4")), Err(SoundError::NoAudio)));
    assert!(matches!(hear(Vec::new()), Err(SoundError::Empty)));
    let texts: [&[u8]; 4] = [b"hello", &[0; 100_000], b"<html><body>not found</body></html>", b"%PDF-1.7"];
    for text in texts {
        let error = hear(text.to_vec()).unwrap_err();
        assert!(matches!(error, SoundError::NotSound), "{error}");
        assert!(FORMATS.iter().all(|format| error.to_string().contains(format)));
    }
    let picture = fs::read(folder().join("../inputs/land_90x60.png")).unwrap();
    assert!(matches!(hear(picture), Err(SoundError::NotSound)));
}

#[test]
fn every_fixture_is_in_a_table() {
    let named: Vec<&str> = HEARD.iter().map(|(name, _)| *name).chain(REFUSED.map(|(name, _)| name)).collect();
    for name in expected().keys().filter(|name| *name != "picture_only.mp4") {
        assert!(named.contains(&name.as_str()), "{name}");
    }
}

/// A WAV file of a format, of these bytes.
fn wav(tag: u16, channels: u16, rate: u32, bits: u16, size: u32, data: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0".to_vec();
    let frame = channels.wrapping_mul(bits / 8);
    file.extend([tag, channels].iter().flat_map(|value| value.to_le_bytes()));
    file.extend([rate, rate.wrapping_mul(u32::from(frame))].iter().flat_map(|value| value.to_le_bytes()));
    file.extend([frame, bits].iter().flat_map(|value| value.to_le_bytes()));
    file.extend(b"data");
    file.extend(size.to_le_bytes());
    file.extend(data);
    file
}

fn pcm(samples: impl IntoIterator<Item = i16>) -> Vec<u8> {
    samples.into_iter().flat_map(i16::to_le_bytes).collect()
}

#[test]
fn a_size_that_was_never_filled_in_is_no_size() {
    let data = pcm((0..1000).map(|n| n * 7));
    for size in [0, u32::MAX, 2000, 5000] {
        let recording = hear(wav(1, 1, 16_000, 16, size, &data)).unwrap();
        let expected: Vec<f64> = (0..1000).map(|n| f64::from(n * 7)).collect();
        assert_eq!(samples(&recording, 0), expected, "{size}");
    }
    // CAF says -1.
    let mut caf = read("s16.caf");
    caf[0x54..0x5c].fill(0xff);
    assert_eq!(hear(caf).unwrap().samples(), 4000);
    // What follows the sound is none of it.
    assert_eq!(hear(wav(1, 1, 16_000, 16, 500, &data)).unwrap().samples(), 250);
}

#[test]
fn absurd_headers_are_refused() {
    let data = [0x55; 4000];
    let broken = [(1, 1, 0, 16), (1, 1, 4_000_000_000, 16), (1, 1, 999, 16), (1, 0, 16_000, 16)];
    for (tag, channels, rate, bits) in broken {
        let error = hear(wav(tag, channels, rate, bits, 4000, &data)).unwrap_err();
        assert!(matches!(error, SoundError::Broken { .. }), "{error}");
    }
    for channels in [65, 1000, 65_535] {
        let error = hear(wav(1, channels, 16_000, 16, 4000, &data)).unwrap_err();
        assert!(matches!(error, SoundError::Channels { limit: 64, .. }), "{error}");
    }
    for (tag, bits) in [(1, 0), (1, 40), (1, 65_535), (3, 16), (3, 24), (0x1234, 16)] {
        let error = hear(wav(tag, 1, 16_000, bits, 4000, &data)).unwrap_err();
        assert!(matches!(error, SoundError::Codec { .. }), "{error}");
    }
    // Chunks, boxes, elements and tags that are larger than the file.
    let huge: [&[u8]; 8] = [
        b"RIFF\xff\xff\xff\xffWAVELIST\xff\xff\xff\xffINFOINAM\xff\xff\xff\xffhello",
        b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\xff\x01\0\x01\0",
        b"ID3\x04\0\0\x7f\x7f\x7f\x7fTIT2",
        b"\0\0\0\x10ftypM4A \0\0\0\0\0\0\0\x01moov\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\0\x10ftypM4A \0\0\0\0\xff\xff\xff\xffmoov\xff\xff\xff\xfftrak",
        b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xfe\x18\x53\x80\x67\xff",
        b"fLaC\x86\xff\xff\xff\0\0\0\x03",
        b"FORM\xff\xff\xff\xffAIFFCOMM\xff\xff\xff\xff",
    ];
    for file in huge {
        let error = hear(file.to_vec()).unwrap_err();
        assert!(matches!(error, SoundError::Broken { .. }), "{file:?}: {error}");
    }
    assert_modest("absurd headers");
}

/// Every number that a container may read as a count, a size or a rate, made as large as it gets.
#[test]
fn huge_numbers_anywhere_do_no_harm() {
    let files: Vec<_> = expected().into_keys().collect();
    files.par_iter().for_each(|name| {
        let file = read(name);
        for at in (0..file.len().min(1200)).step_by(4) {
            let mut file = file.clone();
            let end = file.len().min(at + 4);
            file[at..end].fill(0xff);
            fits(name, hear(file));
        }
    });
}

#[test]
fn a_file_that_breaks_off_gives_what_it_has() {
    let files: Vec<_> = expected().into_keys().collect();
    files.par_iter().for_each(|name| {
        let file = read(name);
        let cuts = (0..16).map(|part| file.len() * part / 16).chain([1, 4, 8, 12, 44, 100, file.len() - 1]);
        for cut in cuts {
            fits(name, hear(file[..cut.min(file.len())].to_vec()));
        }
    });
    // Three quarters of a file are about as much of a recording, where the container is written as it is recorded.
    let streams = [
        "browser.webm",
        "vbr_44k_stereo.mp3",
        "wide.opus",
        "vorbis.ogg",
        "16k.flac",
        "fragmented.mp4",
        "24k.aac",
    ];
    for name in streams.into_iter().chain(["s16.wav", "video.mkv", "fast_start.m4a", "s16.aiff", "s16.caf"]) {
        let file = read(name);
        let whole = hear(file.clone()).unwrap().samples();
        let part = hear(file[..file.len() / 4 * 3].to_vec()).map(|part| part.samples());
        assert!(matches!(part, Ok(part) if part > whole / 4 && part < whole), "{name}: {part:?} of {whole}");
    }
}

#[test]
fn flipped_bits_do_no_harm() {
    let files: Vec<_> = expected().into_keys().collect();
    files.par_iter().for_each(|name| {
        let file = read(name);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for round in 0..12 {
            let mut file = file.clone();
            for _ in 0..=round {
                let at = if round % 2 == 0 { draw() % file.len() } else { draw() % file.len().min(300) };
                file[at] ^= 1 << (draw() % 8);
            }
            fits(name, hear(file));
        }
    });
}

/// A damaged file is heard or refused for a reason that is its own.
fn fits(name: &str, heard: Result<Recording, SoundError>) {
    match heard {
        Ok(recording) => assert!(recording.seconds() <= LIMITS.seconds, "{name}"),
        Err(SoundError::Io(error)) => panic!("{name}: {error}"),
        Err(SoundError::Stopped) => panic!("{name}: nobody stopped it"),
        Err(_) => {}
    }
    assert_modest(name);
}

#[test]
fn recordings_longer_than_the_limit_are_refused() {
    let file = read("mulaw_8k.wav");
    let limits = SoundLimits { seconds: 2.5, ..LIMITS };
    let mut blocks = 0;
    let count = |_| {
        blocks += 1;
        ControlFlow::Continue(())
    };
    let error = decode(Cursor::new(file.clone()), &limits, Channels::Mixed, None, count).unwrap_err();
    assert!(matches!(error, SoundError::TooLong { limit: 2.5 }), "{error}");
    assert!((1..8).contains(&blocks), "{blocks}");
    let exactly = SoundLimits { seconds: 3.0, ..LIMITS };
    assert_eq!(decode(Cursor::new(file), &exactly, Channels::Mixed, None, go_on).unwrap().seconds(), 3.0);
}

#[test]
fn whoever_watches_sees_progress_and_can_stop() {
    let mut seen = Vec::new();
    let watch = |progress: Progress| {
        seen.push(progress);
        if progress.seconds > 1.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = decode(Cursor::new(read("cover.mp3")), &LIMITS, Channels::Mixed, None, watch).unwrap_err();
    assert!(matches!(error, SoundError::Stopped), "{error}");
    assert!(seen.is_sorted_by(|a, b| a.seconds <= b.seconds) && seen.len() > 5, "{seen:?}");
    assert!(seen.last().unwrap().seconds < 1.2);
    let total = seen[0].total.unwrap();
    assert!((2.9..3.2).contains(&total), "{total}");
}

#[test]
fn channels_are_mixed_or_kept_apart() {
    let data = pcm((0..2000).map(|n| if n % 2 == 0 { n } else { -3 * n }));
    let file = wav(1, 2, 16_000, 16, u32::MAX, &data);
    let apart = decode(Cursor::new(file.clone()), &LIMITS, Channels::Apart, None, go_on).unwrap();
    assert_eq!((apart.channels(), apart.samples()), (2, 1000));
    let sides = [samples(&apart, 0), samples(&apart, 1)];
    assert!((0..1000).all(|n| sides[0][n] == 2.0 * n as f64 && sides[1][n] == -3.0 * (2 * n + 1) as f64));
    let mixed = hear(file.clone()).unwrap();
    assert_eq!(mixed.channels(), 1);
    let mean = samples(&mixed, 0);
    // Halves go up, as ffmpeg's do.
    assert!((0..1000).all(|n| mean[n] == ((sides[0][n] + sides[1][n]) / 2.0 + 0.5).floor()));
    let one = SoundLimits { channels: 1, ..LIMITS };
    let error = decode(Cursor::new(file), &one, Channels::Apart, None, go_on).unwrap_err();
    assert!(matches!(error, SoundError::Channels { found: 2, limit: 1 }), "{error}");
    // The same through a file, as longer ones are.
    let spilled = SoundLimits { memory_samples: 100, ..LIMITS };
    let file = wav(1, 2, 16_000, 16, u32::MAX, &data);
    let apart = decode(Cursor::new(file), &spilled, Channels::Apart, None, go_on).unwrap();
    assert_eq!([samples(&apart, 0), samples(&apart, 1)], sides);
}

/// A sine at any rate comes out as the same sine at 16 kHz, where 16 kHz can hold it, and not at all where it cannot.
#[test]
fn resampling_keeps_what_fits_and_nothing_else() {
    for rate in [8000, 11_025, 22_050, 24_000, 32_000, 44_099, 44_100, 48_000, 96_000] {
        for hertz in [100.0, 1000.0, 3000.0, 5000.0, 7000.0, 9000.0, 10_500.0, 15_000.0, 20_000.0] {
            if hertz > f64::from(rate) * 0.45 {
                continue;
            }
            let tone = |n: usize, rate: f64| 0.5 * (2.0 * PI * hertz * n as f64 / rate).sin();
            let data: Vec<u8> =
                (0..rate as usize).flat_map(|n| (tone(n, f64::from(rate)) as f32).to_le_bytes()).collect();
            let recording = hear(wav(3, 1, rate, 32, u32::MAX, &data)).unwrap();
            assert_eq!(recording.samples(), RATE, "{rate} Hz");
            // The ends of a tone are no tone.
            let found = samples(&recording, 0)[4000..12_000].to_vec();
            let expected: Vec<f64> = (4000..12_000)
                .map(|n| if hertz < 8000.0 { 32768.0 * tone(n, RATE as f64) } else { 0.0 })
                .collect();
            let noise = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / 8000.0;
            // Rounding to 16 bits alone is 86 dB below a tone of half the range.
            let decibels = 10.0 * (noise / (0.125 * 32768.0 * 32768.0)).log10();
            assert!(decibels < -82.0, "{hertz} Hz at {rate} Hz: {decibels:.1} dB");
        }
    }
}

/// Where ffmpeg is installed, what is refused here goes through it.
#[test]
fn ffmpeg_decodes_the_rest() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(ffmpeg) =
        std::env::split_paths(&path).map(|folder| folder.join("ffmpeg")).find(|file| file.exists())
    else {
        eprintln!("skipped: ffmpeg is not installed");
        return;
    };
    let expected = expected();
    for name in ["ac3.ac3", "eac3.mkv", "wma.wma", "wavpack.wv", "speech.amr", "ac3.mp4"] {
        for file in [true, false] {
            let recording = if file {
                let file = fs::File::open(folder().join(name)).unwrap();
                decode(file, &LIMITS, Channels::Mixed, Some(&ffmpeg), go_on)
            } else {
                decode(Cursor::new(read(name)), &LIMITS, Channels::Mixed, Some(&ffmpeg), go_on)
            };
            let (recording, expected) = (recording.unwrap(), &expected[name]);
            let found = samples(&recording, 0);
            assert!(found.len().abs_diff(expected.samples) < 320, "{name}: {}", found.len());
            for (at, window) in expected.at.iter().zip(&expected.windows) {
                let noise = window.iter().zip(&found[*at..]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(noise <= 2.0, "{name}: {noise}");
            }
        }
    }
    let short = SoundLimits { seconds: 0.2, ..LIMITS };
    let error =
        decode(Cursor::new(read("wma.wma")), &short, Channels::Mixed, Some(&ffmpeg), go_on).unwrap_err();
    assert!(matches!(error, SoundError::TooLong { .. }), "{error}");
    // A playlist that names a file is no sound to it.
    let secret = folder().join("s16.wav");
    let playlist = format!("#EXTM3U\n#EXTINF:1,\nfile://{}\n#EXT-X-ENDLIST\n", secret.display());
    let concat = format!("ffconcat version 1.0\nfile '{}'\n", secret.display());
    for text in [playlist, concat] {
        let error = decode(Cursor::new(text), &LIMITS, Channels::Mixed, Some(&ffmpeg), go_on).unwrap_err();
        assert!(matches!(error, SoundError::NotSound), "{error}");
    }
    let missing =
        decode(Cursor::new(read("wma.wma")), &LIMITS, Channels::Mixed, Some(Path::new("/no/ffmpeg")), go_on);
    assert!(matches!(missing, Err(SoundError::Io(_))));
}
