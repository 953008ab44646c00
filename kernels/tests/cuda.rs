//! Every operation on a GPU beside the same on the host, on shapes that are multiples of nothing. Skipped, and said so,
//! where no GPU answers.
#![cfg(feature = "cuda")]
#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used, reason = "tests")]

mod support;

use candle_core::{DType, Device, Shape, Tensor};
use percept_kernels::{
    Activation, Canvas, Downloads, Draw, Drawing, Filter, Forbidden, Kv, Mask, MelBank, Pages, Ragged,
    Region, Resize, Seen, activate, add_rms_norm, alignment, attention, device_name, gated, kv_write,
    layer_norm, linear, log_mel, normalise, open_cuda, peak_memory, probabilities, record, resize, rewrite,
    rms_norm, sample, uniform,
};

const HOST: &Device = &Device::Cpu;

fn gpu() -> Option<Device> {
    open_cuda(0).inspect_err(|error| eprintln!("skipped: no GPU answers: {error}")).ok()
}

/// Sizes, without those that are too large for a device that is emulated thread by thread.
fn sizes<const N: usize>(gpu: &Device, all: &[[usize; N]], most: usize) -> Vec<[usize; N]> {
    let emulated = device_name(gpu).unwrap().is_some_and(|name| name == "emulated device");
    all.iter().copied().filter(|size| !emulated || size.iter().product::<usize>() <= most).collect()
}

/// Numbers in -1..1 that look random and are the same every time.
fn noise(shape: impl Into<Shape>, seed: u64, dtype: DType) -> Tensor {
    let shape = shape.into();
    let numbers = support::noise(shape.elem_count(), seed);
    Tensor::from_vec(numbers, shape, HOST).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(HOST).unwrap();
    host.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Both round once, from sums in another order.
fn check(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((found.dims(), found.dtype()), (expected.dims(), expected.dtype()), "{what}");
    for (index, (found, expected)) in wide(found).into_iter().zip(wide(expected)).enumerate() {
        let most = tolerance * (1.0 + expected.abs());
        assert!((found - expected).abs() <= most, "{what} at {index}: {found}, not {expected}");
    }
}

fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 2e-3,
        _ => 1.6e-2,
    }
}

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn linear_layers() {
    let Some(gpu) = &gpu() else { return };
    let shapes = [
        [1, 8, 1],
        [3, 37, 33],
        [16, 1032, 64],
        [17, 72, 65],
        [65, 128, 130],
        [129, 72, 6017],
        [300, 4096, 4096],
    ];
    for dtype in TYPES {
        for [rows, input, output] in sizes(gpu, &shapes, 1_200_000) {
            let (x, weight) = (noise((rows, input), 1, dtype), noise((output, input), 2, dtype));
            let bias = noise(output, 3, dtype);
            let expected = linear(&x, &weight, Some(&bias)).unwrap();
            let [x, weight, bias] = [&x, &weight, &bias].map(|tensor| tensor.to_device(gpu).unwrap());
            let found = linear(&x, &weight, Some(&bias)).unwrap();
            let what = format!("{rows}x{input}x{output} {dtype:?}");
            check(&what, &found, &expected, unit(dtype) * (input as f64).sqrt() / 4.0);
            // To the bit, whatever the company.
            let first = linear(&x.narrow(0, 0, 1).unwrap(), &weight, Some(&bias)).unwrap();
            assert_eq!(wide(&first), wide(&found.narrow(0, 0, 1).unwrap()), "{what}");
        }
    }
}

#[test]
fn norms() {
    let Some(gpu) = &gpu() else { return };
    for dtype in TYPES {
        for (rows, width) in [(1, 1), (3, 5), (33, 64), (3, 80), (2, 1000), (7, 4096), (2, 5120)] {
            let (x, weight, bias) =
                (noise((rows, width), 1, dtype), noise(width, 2, dtype), noise(width, 3, dtype));
            let residual = noise((rows, width), 4, dtype);
            let run = |device: &Device| {
                let [x, residual, weight, bias] =
                    [&x, &residual, &weight, &bias].map(|tensor| tensor.to_device(device).unwrap());
                let (sum, normed) = add_rms_norm(&x, &residual, &weight, 1e-5).unwrap();
                let [rms, layer] =
                    [rms_norm(&x, &weight, 1e-5).unwrap(), layer_norm(&x, &weight, &bias, 1e-5).unwrap()];
                // To the bit what two operations give.
                let twice = rms_norm(&(x + residual).unwrap(), &weight, 1e-5).unwrap();
                assert_eq!(wide(&normed), wide(&twice), "{rows}x{width} {dtype:?}");
                (sum, [rms, layer, normed])
            };
            let ((sum, found), (expected_sum, expected)) = (run(gpu), run(HOST));
            assert_eq!(wide(&sum), wide(&expected_sum), "{rows}x{width} {dtype:?}");
            for (found, expected) in found.iter().zip(&expected) {
                check(&format!("{rows}x{width} {dtype:?}"), found, expected, unit(dtype));
            }
        }
    }
}

#[test]
fn activations() {
    let Some(gpu) = &gpu() else { return };
    for dtype in TYPES {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu] {
            let shapes = [[1, 1], [3, 5], [33, 64], [2, 1001], [7, 14_336], [70_000, 8]];
            for [rows, width] in sizes(gpu, &shapes, 3000) {
                let both = (noise((rows, 2 * width), 1, dtype) * 10.0).unwrap();
                let run = |device: &Device| {
                    let both = both.to_device(device).unwrap();
                    [gated(&both, activation).unwrap(), activate(&both, activation).unwrap()]
                };
                for (found, expected) in run(gpu).iter().zip(&run(HOST)) {
                    let what = format!("{activation:?} {rows}x{width} {dtype:?}");
                    check(&what, found, expected, unit(dtype));
                }
            }
        }
    }
}

/// Several sequences over pages, some with one new row and some with many, and over fresh rows.
#[test]
fn attention_and_the_cache() {
    const PAGE: usize = 16;
    let Some(gpu) = &gpu() else { return };
    let lengths: [(usize, usize); 5] = [(1, 300), (5, 5), (1, 1), (70, 90), (2, 17)];
    for dtype in TYPES {
        let shapes = [[4, 4, 64], [8, 2, 80], [6, 1, 96], [2, 2, 128], [3, 3, 5], [32, 4, 128]];
        for [heads, kv_heads, width] in sizes(gpu, &shapes, 1300) {
            for mask in [Mask::Causal, Mask::Window(20)] {
                let rows: usize = lengths.iter().map(|(rows, _)| rows).sum();
                let most = lengths.iter().map(|(_, seen)| seen.div_ceil(PAGE)).max().unwrap();
                let pages = lengths.len() * most;
                let q = noise((rows, heads, width), 1, dtype);
                let (k, v) =
                    (noise((rows, kv_heads, width), 2, dtype), noise((rows, kv_heads, width), 3, dtype));
                let caches = [4, 5].map(|seed| noise((pages, PAGE, kv_heads, width), seed, dtype));
                // Pages in no order.
                let table: Vec<u32> = (0..pages).map(|page| (page * 7 % pages) as u32).collect();
                let seen: Vec<u32> = lengths.iter().map(|(_, seen)| *seen as u32).collect();
                let slots: Vec<u32> = lengths
                    .iter()
                    .enumerate()
                    .flat_map(|(sequence, &(rows, seen))| {
                        let table = &table[sequence * most..];
                        (seen - rows..seen)
                            .map(|row| table[row / PAGE] * PAGE as u32 + (row % PAGE) as u32)
                            .collect::<Vec<_>>()
                    })
                    .collect();
                let counts: Vec<usize> = lengths.iter().map(|(rows, _)| *rows).collect();
                let run = |device: &Device| {
                    let on = |tensor: &Tensor| tensor.to_device(device).unwrap();
                    let upload = |list: &[u32]| Tensor::from_slice(list, list.len(), device).unwrap();
                    let [k_cache, v_cache] =
                        [on(&caches[0]), on(&caches[1])].map(|cache| cache.copy().unwrap());
                    kv_write(&k_cache, &on(&k), &upload(&slots)).unwrap();
                    kv_write(&v_cache, &on(&v), &upload(&slots)).unwrap();
                    let pages = Pages {
                        table: Tensor::from_slice(&table, (lengths.len(), most), device).unwrap(),
                        lengths: upload(&seen),
                    };
                    let ragged = Ragged::new(&counts, device).unwrap();
                    let paged = Kv::Paged { k: &k_cache, v: &v_cache, pages: &pages };
                    let over_pages = attention(&on(&q), paged, &ragged, mask, 0.2).unwrap();
                    let (k, v) = (on(&k), on(&v));
                    let fresh =
                        attention(&on(&q), Kv::Fresh { k: &k, v: &v }, &ragged, Mask::Full, 0.2).unwrap();
                    (k_cache, over_pages, fresh)
                };
                let (expected, found) = (run(HOST), run(gpu));
                let what = format!("{heads}/{kv_heads}x{width} {mask:?} {dtype:?}");
                assert_eq!(wide(&found.0), wide(&expected.0), "{what}: the cache");
                check(&format!("{what} over pages"), &found.1, &expected.1, unit(dtype));
                check(&format!("{what} fresh"), &found.2, &expected.2, unit(dtype));
            }
        }
    }
}

#[test]
fn pictures() {
    let Some(gpu) = &gpu() else { return };
    let (height, width) = (75, 133);
    let levels: Vec<u8> = (0..height * width * 3).map(|i| (i * i % 253) as u8).collect();
    let picture = Tensor::from_vec(levels, (height, width, 3), HOST).unwrap();
    let canvas = Canvas { width: 133, height: 133, left: 0, top: 29, fill: [122, 116, 104] };
    for (filter, [side, _]) in
        [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos].into_iter().flat_map(|filter| {
            sizes(gpu, &[[336, 336], [56, 56]], 4000).into_iter().map(move |size| (filter, size))
        })
    {
        let region = Region { left: 5, top: 3, width: side - 36, height: side - 5 };
        let how = Resize { canvas, width: side, height: side, region, filter };
        let expected = resize(&picture, how).unwrap();
        let found = resize(&picture.to_device(gpu).unwrap(), how).unwrap();
        assert_eq!(wide(&found), wide(&expected), "{filter:?}");
        let numbers =
            |picture: &Tensor| normalise(picture, 1.0 / 255.0, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]).unwrap();
        assert_eq!(wide(&numbers(&found)), wide(&numbers(&expected)), "{filter:?}");
    }
}

#[test]
fn sound() {
    let Some(gpu) = &gpu() else { return };
    let samples = noise(50_000, 9, DType::F32);
    for [mels, frames] in sizes(gpu, &[[80, 313], [128, 313], [80, 23]], 2000) {
        let bank = MelBank::new(mels);
        let expected = log_mel(&samples, 0..frames, &bank).unwrap();
        let found = log_mel(&samples.to_device(gpu).unwrap(), 0..frames, &bank).unwrap();
        check("log-mel", &found, &expected, 2e-3);
    }
    let (q, k) = (noise((30, 6, 64), 1, DType::F32), noise((9, 16, 6, 64), 2, DType::F32));
    let pages = Tensor::new(&[3u32, 8, 0, 5, 1, 7, 2, 6, 4], HOST).unwrap();
    let run = |device: &Device| {
        let [q, k, pages] = [&q, &k, &pages].map(|tensor| tensor.to_device(device).unwrap());
        alignment(&q, &k, &pages, &[1, 4], 140, 0.125).unwrap()
    };
    check("alignment", &run(gpu), &run(HOST), 1e-3);
}

#[test]
fn tokens() {
    let Some(gpu) = &gpu() else { return };
    let seen: Vec<Seen> = (0..700).map(|id| Seen { id: id * 3, generated: id % 4 }).collect();
    let mask: Vec<u32> = (0..1000u32).map(|word| 0x5a5a_0ff1u32.rotate_left(word)).collect();
    let timed = Forbidden {
        ids: vec![&[1, 5, 900]],
        ranges: vec![0..40, 20..99],
        rivals: Some(900..990),
        ..Forbidden::NONE
    };
    let masked = Forbidden { mask: Some(&mask), ..Forbidden::NONE };
    let hot = Draw { logprobs: Some(5), ..Draw::NEUTRAL };
    let ways = [
        Draw { temperature: 0.0, logprobs: None, ..hot },
        Draw { temperature: 0.0, forbidden: &timed, ..hot },
        Draw { temperature: 0.0, repetition: 1.3, frequency: 0.3, presence: 0.7, seen: &seen, ..hot },
        hot,
        Draw { temperature: 0.7, forbidden: &masked, ..hot },
        Draw { top_k: 40, ..hot },
        Draw { top_p: 0.9, ..hot },
        Draw { top_k: 300, top_p: 0.8, min_p: 0.01, logprobs: None, ..hot },
        Draw { bias: &[(3, 2.0), (8, -9.0), (3, 0.5)], vocabulary: 900, ..hot },
    ];
    for dtype in TYPES {
        for [width] in sizes(gpu, &[[1000], [1003], [32_064], [51_866], [151_936]], 1003) {
            let rows = 40;
            let logits = (noise((rows, width), 1, DType::F32) * 9.0).unwrap().to_dtype(dtype).unwrap();
            let on_gpu = logits.to_device(gpu).unwrap();
            let draws: Vec<Draw<'_>> = (0..rows)
                .map(|row| Draw { random: uniform(width as u64, row as u64), ..ways[row % ways.len()] })
                .collect();
            let (expected, found) = (sample(&logits, &draws).unwrap(), sample(&on_gpu, &draws).unwrap());
            let mut differ = 0;
            for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
                let what = format!("{width} {dtype:?} {row}");
                let greedy = draws[row].temperature == 0.0;
                assert!(!greedy || found.id == expected.id, "{what}");
                differ += usize::from(found.id != expected.id);
                assert_eq!(found.top.len(), expected.top.len(), "{what}");
                for (found, expected) in found.top.iter().zip(&expected.top) {
                    assert_eq!(found.0, expected.0, "{what}");
                    assert!((found.1 - expected.1).abs() < 1e-4, "{what}: {found:?}, not {expected:?}");
                }
            }
            // Those whose random number meets the edge between two tokens.
            assert!(differ <= 1, "{width} {dtype:?}: {differ} of {rows} rows differ");
            // To the bit, whatever the company.
            let alone = sample(&on_gpu.narrow(0, 7, 1).unwrap(), &draws[7..8]).unwrap();
            assert_eq!(alone[0], found[7]);
            let ids: Vec<u32> = (0..rows as u32).map(|row| row * 23 % width as u32).collect();
            let expected = probabilities(&logits, &ids, &vec![width; rows]).unwrap();
            let found = probabilities(&on_gpu, &ids, &vec![width; rows]).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-4 * expected + 1e-12, "{found}, not {expected}");
            }
        }
    }
}

/// A draw goes on while the host asks for the step behind it, whose tokens it is, and a recording reads them.
#[test]
fn tokens_of_the_step_behind() {
    let Some(gpu) = &gpu() else { return };
    let [rows, width] = sizes(gpu, &[[70, 32_064], [9, 1000]], 9000)[0];
    let mut downloads = Downloads::default();
    let words = Tensor::zeros(300, DType::U32, gpu).unwrap();
    let table = noise((width, 8), 4, DType::F32);
    let (on_gpu, read) = (table.to_device(gpu).unwrap(), Tensor::zeros((100, 8), DType::F32, gpu).unwrap());
    let first = words.narrow(0, 0, 100).unwrap();
    let step = record(gpu, || read.slice_set(&on_gpu.index_select(&first, 0)?, 0, 0)).unwrap();
    for round in 0..20u64 {
        let logits = noise((rows, width), round, DType::F32).to_device(gpu).unwrap();
        let draws: Vec<Draw<'_>> = (0..rows as u64)
            .map(|row| Draw { random: uniform(round, row), top_p: 0.9, ..Draw::NEUTRAL })
            .collect();
        let expected = sample(&logits, &draws).unwrap();
        let from: Vec<u32> = (0..100).map(|row| (row * 7 + round as u32) % rows as u32).collect();
        rewrite(&words, &[u32::MAX; 300]).unwrap();
        let drawing = Drawing::start(&logits, &draws, &mut downloads).unwrap();
        drawing.feed(&words, &from).unwrap();
        step.replay().unwrap();
        let drawn = drawing.wait(&mut downloads).unwrap();
        assert_eq!(drawn, expected, "round {round}");
        let ids: Vec<u32> = from.iter().map(|&row| drawn[row as usize].as_ref().unwrap().id).collect();
        let fed = words.to_vec1::<u32>().unwrap();
        assert_eq!(fed[..100], ids, "round {round}");
        assert_eq!(fed[100..], [u32::MAX; 200], "round {round}");
        let ids = Tensor::new(ids, HOST).unwrap();
        check("rows of the tokens", &read, &table.index_select(&ids, 0).unwrap(), 0.0);
        // One that nobody waits for is still done with its memory before that is used again.
        drop(Drawing::start(&logits, &draws, &mut downloads).unwrap());
    }
}

/// What is recorded is done again over whatever is in its memory then.
#[test]
fn recordings() {
    let Some(gpu) = &gpu() else { return };
    let weight = noise((24, 40), 1, DType::BF16).to_device(gpu).unwrap();
    let table = noise((10, 40), 2, DType::BF16).to_device(gpu).unwrap();
    let ids = Tensor::zeros(6, DType::U32, gpu).unwrap();
    let out = Tensor::zeros((8, 24), DType::BF16, gpu).unwrap();
    let work = |rows: &Tensor| linear(&table.index_select(rows, 0)?, &weight, None);
    let few = ids.narrow(0, 1, 5).unwrap();
    let recording = record(gpu, || out.slice_set(&work(&few)?, 0, 0)).unwrap();
    for words in [[0, 1, 2, 3, 4, 5], [9, 9, 8, 0, 7, 1], [3, 0, 0, 0, 0, 0]] {
        rewrite(&ids, &words).unwrap();
        recording.replay().unwrap();
        let plain = Tensor::new(&words[1..], gpu).unwrap();
        let found = out.narrow(0, 0, 5).unwrap();
        assert_eq!(wide(&found), wide(&work(&plain).unwrap()), "{words:?}");
    }
    // A failure ends the recording, and the stream is as before.
    assert!(record(gpu, || candle_core::bail!("on purpose")).is_err());
    let mut calls = 0;
    let late = record(gpu, || {
        calls += 1;
        if calls > 1 {
            candle_core::bail!("while it records")
        }
        Ok(())
    });
    assert!(late.is_err());
    recording.replay().unwrap();
}

/// Not what is in use now, nor what is freed and taken again.
#[test]
fn the_most_that_is_in_use_at_once() {
    let Some(gpu) = &gpu() else { return };
    const KIB: usize = 1 << 10;
    let zeros = |kib: usize| Tensor::zeros(kib * KIB, DType::U8, gpu).unwrap();
    let before = zeros(700);
    for round in 0..2 {
        let work = || {
            let two = (zeros(300), zeros(100));
            drop(two);
            drop(zeros(200));
            Ok(())
        };
        let peak = peak_memory(gpu, work).unwrap().unwrap();
        // In whole pieces of the pool's.
        assert!((400 * KIB..464 * KIB).contains(&(peak as usize)), "{round}: {peak}");
    }
    assert!(peak_memory(gpu, || candle_core::bail!("it fails")).is_err());
    assert_eq!(peak_memory(HOST, || Ok(())).unwrap(), None);
    drop(before);
}
