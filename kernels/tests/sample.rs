//! Drawing against straight f64 formulas: which tokens may come, and how often they do.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use candle_core::{Device, Tensor};
use percept_kernels::{
    Downloads, Draw, Drawing, Drawn, Forbidden, NotFinite, Seen, probabilities, sample, uniform,
};

const NEUTRAL: Draw<'static> = Draw::NEUTRAL;

fn one(logits: &[f32], draw: Draw<'_>) -> Result<u32, NotFinite> {
    whole(logits, draw).map(|drawn| drawn.id)
}

fn whole(logits: &[f32], draw: Draw<'_>) -> Result<Drawn, NotFinite> {
    let logits = Tensor::from_slice(logits, (1, logits.len()), &Device::Cpu).unwrap();
    sample(&logits, &[draw]).unwrap().remove(0)
}

/// The probabilities that a draw should follow.
fn reference(logits: &[f32], draw: Draw<'_>) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    for seen in draw.seen {
        let logit = &mut logits[seen.id as usize];
        let repetition = f64::from(draw.repetition);
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        *logit -= f64::from(draw.frequency) * f64::from(seen.generated);
        *logit -= if seen.generated > 0 { f64::from(draw.presence) } else { 0.0 };
    }
    for &(id, bias) in draw.bias {
        logits[id as usize] += f64::from(bias);
    }
    logits.truncate(draw.vocabulary);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit / f64::from(draw.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    if draw.top_k > 0 {
        order.truncate(draw.top_k);
    }
    if draw.top_p < 1.0 {
        let total: f64 = order.iter().map(|&id| weights[id]).sum();
        let mut sum = 0.0;
        let enough = order.iter().position(|&id| {
            sum += weights[id];
            sum >= f64::from(draw.top_p) * total
        });
        order.truncate(enough.map_or(order.len(), |last| last + 1));
    }
    let most = weights[order[0]];
    order.retain(|&id| weights[id] >= f64::from(draw.min_p) * most);
    let total: f64 = order.iter().map(|&id| weights[id]).sum();
    let mut probabilities = vec![0.0; weights.len()];
    for id in order {
        probabilities[id] = weights[id] / total;
    }
    probabilities
}

fn logits(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.5) * 8.0).collect()
}

/// Walks evenly through `0..1`, so that counts must match probabilities closely, and every kept token comes.
fn check(logits: &[f32], draw: Draw<'_>, what: &str) {
    const DRAWS: usize = 4000;
    let expected = reference(logits, draw);
    let mut counts = vec![0usize; logits.len()];
    for step in 0..DRAWS {
        let random = (step as f64 + 0.5) / DRAWS as f64;
        counts[one(logits, Draw { random, ..draw }).unwrap() as usize] += 1;
    }
    for (id, &count) in counts.iter().enumerate() {
        let probability = expected.get(id).copied().unwrap_or(0.0);
        let difference = count as f64 - probability * DRAWS as f64;
        assert!(difference.abs() <= 1.5, "{what}: token {id} came {count} times, probability {probability}");
        assert!(count == 0 || probability > 0.0, "{what}: token {id} may not come");
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = logits(97);
    let seen = [Seen { id: 3, generated: 2 }, Seen { id: 50, generated: 0 }, Seen { id: 96, generated: 7 }];
    for (what, draw) in [
        ("plain", NEUTRAL),
        ("hot", Draw { temperature: 2.0, ..NEUTRAL }),
        ("cold", Draw { temperature: 0.3, ..NEUTRAL }),
        ("top-k 1", Draw { top_k: 1, ..NEUTRAL }),
        ("top-k 7", Draw { top_k: 7, ..NEUTRAL }),
        ("top-k beyond all", Draw { top_k: 1000, ..NEUTRAL }),
        ("top-p 0.5", Draw { top_p: 0.5, ..NEUTRAL }),
        ("top-p 0.9, hot", Draw { top_p: 0.9, temperature: 1.7, ..NEUTRAL }),
        ("top-p 0", Draw { top_p: 0.0, ..NEUTRAL }),
        ("top-p 0.999999", Draw { top_p: 0.999_999, ..NEUTRAL }),
        ("min-p 0.1", Draw { min_p: 0.1, ..NEUTRAL }),
        ("min-p 1", Draw { min_p: 1.0, ..NEUTRAL }),
        ("all three", Draw { top_k: 20, top_p: 0.8, min_p: 0.05, ..NEUTRAL }),
        ("penalties", Draw { repetition: 1.5, frequency: 0.4, presence: 0.9, seen: &seen, ..NEUTRAL }),
        ("rewards", Draw { repetition: 0.5, frequency: -0.4, presence: -0.9, seen: &seen, ..NEUTRAL }),
        ("bias", Draw { bias: &[(7, 5.0), (8, -100.0)], ..NEUTRAL }),
        ("padded", Draw { vocabulary: 40, ..NEUTRAL }),
    ] {
        check(&logits, draw, what);
    }
}

#[test]
fn a_large_vocabulary_needs_more_than_the_first_candidates() {
    let flat: Vec<f32> = (0..1000).map(|i| (i % 7) as f32 * 0.01).collect();
    check(&flat, Draw { top_p: 0.7, ..NEUTRAL }, "nearly flat");
    check(&flat, Draw { top_p: 0.7, top_k: 600, ..NEUTRAL }, "nearly flat, top-k");
}

#[test]
fn without_temperature_the_largest_comes_and_the_first_of_equals() {
    let greedy = Draw { temperature: 0.0, ..NEUTRAL };
    assert_eq!(one(&[0.0, 3.0, 1.0, 3.0], greedy), Ok(1));
    assert_eq!(one(&[0.0, 3.0, 1.0, 3.0], Draw { bias: &[(3, 0.1)], ..greedy }), Ok(3));
    assert_eq!(
        one(&[-1.0, -2.0, 0.0, 0.0], Draw { vocabulary: 2, ..greedy }),
        Ok(0),
        "padding is never drawn"
    );
    let seen = [Seen { id: 1, generated: 1 }];
    assert_eq!(one(&[2.9, 3.0], Draw { frequency: 0.2, seen: &seen, ..greedy }), Ok(0));
}

#[test]
fn extremes_do_no_harm() {
    for temperature in [1e-30, 1e-6, 1e30] {
        let drawn = one(&[0.0, 50.0, -50.0], Draw { temperature, random: 0.4, ..NEUTRAL }).unwrap();
        assert!(temperature > 1.0 || drawn == 1);
    }
    assert_eq!(one(&[0.0, 1.0], Draw { random: 0.999_999_999_999, ..NEUTRAL }), Ok(1));
    assert_eq!(one(&[f32::MIN, f32::MAX], Draw { random: 0.0, ..NEUTRAL }), Ok(1));
}

#[test]
fn a_row_of_broken_numbers_fails_alone() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let rows = Tensor::new(&[[1.0, 2.0], [broken, 0.0], [3.0, 0.0]], &Device::Cpu).unwrap();
        let drawn = sample(&rows, &[Draw { temperature: 0.0, ..NEUTRAL }; 3]).unwrap();
        let ids: Vec<_> = drawn.into_iter().map(|drawn| drawn.map(|drawn| drawn.id)).collect();
        assert_eq!(ids, [Ok(1), Err(NotFinite), Ok(0)]);
    }
    let rows = Tensor::new(&[[1.0f32, 2.0]], &Device::Cpu).unwrap();
    assert!(sample(&rows, &[NEUTRAL; 2]).is_err());
    assert_eq!(one(&[1.0, 2.0], Draw { vocabulary: 0, ..NEUTRAL }), Err(NotFinite));
}

#[test]
fn uniform_numbers_are_uniform_and_depend_on_seed_and_index_alone() {
    let mut buckets = [0usize; 16];
    for index in 0..16_000 {
        let number = uniform(42, index);
        assert!((0.0..1.0).contains(&number));
        assert_eq!(number, uniform(42, index));
        buckets[(number * 16.0) as usize] += 1;
    }
    // Five standard deviations of a thousand.
    assert!(buckets.iter().all(|&count| count.abs_diff(1000) < 155), "{buckets:?}");
    assert_ne!(uniform(42, 0), uniform(43, 0));
    assert_ne!(uniform(42, 0), uniform(42 + (1 << 32), 0));
    assert_ne!(uniform(42, 0), uniform(42, 1 << 32));
}

/// A mask applied to f64 logits, one id at a time.
fn masked(logits: &[f32], mask: &Forbidden<'_>) -> Vec<f64> {
    let out = |id: u32| {
        mask.ids.iter().any(|ids| ids.contains(&id))
            || mask.ranges.iter().any(|range| range.contains(&id))
            || mask.only.is_some_and(|only| !only.contains(&id))
    };
    let mut logits: Vec<f64> = logits
        .iter()
        .zip(0..)
        .map(|(&logit, id)| if out(id) { f64::NEG_INFINITY } else { f64::from(logit) })
        .collect();
    if let Some(rivals) = &mask.rivals {
        let (front, rest) = logits.split_at_mut(rivals.start as usize);
        let sum: f64 =
            rest[..(rivals.end - rivals.start) as usize].iter().map(|logit| logit.exp()).sum::<f64>().ln();
        if sum > front.iter().copied().fold(f64::NEG_INFINITY, f64::max) {
            front.fill(f64::NEG_INFINITY);
        }
    }
    logits
}

#[test]
fn masks_and_log_probabilities_follow_their_formula() {
    let mut state = 1u64;
    let mut random = move || {
        state += 1;
        uniform(5, state)
    };
    for width in [1u32, 7, 64, 1917] {
        for _ in 0..60 {
            let logits: Vec<f32> = (0..width).map(|_| (random() * 12.0 - 6.0) as f32).collect();
            let mut id = || (random() * f64::from(width)) as u32;
            let ids: Vec<u32> = (0..5).map(|_| id()).collect();
            let only: Vec<u32> = (0..9).map(|_| id()).collect();
            let [a, b] = [id(), id()];
            let beyond = [width + 3];
            let masks = [
                Forbidden { ids: vec![&ids, &beyond], ..Forbidden::NONE },
                Forbidden { ranges: vec![a.min(b)..a.max(b), width - 1..width + 9], ..Forbidden::NONE },
                Forbidden { only: Some(&only), ..Forbidden::NONE },
                Forbidden { rivals: Some(width * 3 / 4..width), ids: vec![&ids], ..Forbidden::NONE },
                Forbidden {
                    rivals: Some(width / 4..width),
                    ranges: std::iter::once(width / 4..width).collect(),
                    ..Forbidden::NONE
                },
            ];
            for mask in &masks {
                let expected = masked(&logits, mask);
                let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let found =
                    whole(&logits, Draw { temperature: 0.0, forbidden: mask, logprobs: Some(3), ..NEUTRAL });
                if best == f64::NEG_INFINITY {
                    assert_eq!(found, Err(NotFinite), "everything is masked");
                    continue;
                }
                let found = found.unwrap();
                assert_eq!(expected[found.id as usize], best);
                let total = expected.iter().map(|logit| logit.exp()).sum::<f64>().ln();
                assert!((f64::from(found.logprob) - (best - total)).abs() < 1e-5);
                let left = expected.iter().filter(|logit| logit.is_finite()).count();
                assert_eq!(found.top.len(), left.min(3));
                assert_eq!(found.top[0], (found.id, found.logprob));
                for pair in found.top.windows(2) {
                    assert!(pair[0].1 >= pair[1].1);
                }
                for &(id, logprob) in &found.top {
                    assert!((f64::from(logprob) - (expected[id as usize] - total)).abs() < 1e-5);
                }
                let drawn = one(&logits, Draw { forbidden: mask, random: 0.73, ..NEUTRAL }).unwrap();
                assert!(expected[drawn as usize].is_finite(), "a masked id was drawn");
            }
        }
    }
}

#[test]
fn probabilities_are_over_the_first_ids() {
    let logits = Tensor::from_slice(&[0.5f32, 1.5, -1.0, 0.0, 2.0, 9.0], (2, 3), &Device::Cpu).unwrap();
    let found = probabilities(&logits, &[1, 2], &[2, 3]).unwrap();
    let first = 1.5f64.exp() / (0.5f64.exp() + 1.5f64.exp());
    let second = 9f64.exp() / (1.0 + 2f64.exp() + 9f64.exp());
    assert!((f64::from(found[0]) - first).abs() < 1e-6 && (f64::from(found[1]) - second).abs() < 1e-6);
    assert_eq!(probabilities(&logits, &[2, 2], &[2, 3]).unwrap()[0], 0.0, "an id outside has none");
    assert!(probabilities(&logits, &[1], &[2]).is_err());
}

#[test]
fn the_next_step_gets_what_was_drawn() {
    let logits =
        Tensor::new(&[[0f32, 9.0, 1.0], [f32::NAN, 0.0, 0.0], [4.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    let greedy = Draw { temperature: 0.0, ..NEUTRAL };
    let mut downloads = Downloads::default();
    let drawing = Drawing::start(&logits, &[greedy; 3], &mut downloads).unwrap();
    let words = Tensor::new(&[7u32; 6], &Device::Cpu).unwrap();
    // A view is written where it lies; what nobody drew is some id.
    drawing.feed(&words.narrow(0, 1, 4).unwrap(), &[2, 0, 0, 1]).unwrap();
    assert_eq!(words.to_vec1::<u32>().unwrap(), [7, 0, 1, 1, 0, 7]);
    assert!(drawing.feed(&words, &[3]).is_err(), "there is no row 3");
    assert!(drawing.feed(&words.narrow(0, 0, 1).unwrap(), &[0, 0]).is_err(), "there is one word");
    let drawn = drawing.wait(&mut downloads).unwrap();
    let ids: Vec<_> = drawn.into_iter().map(|drawn| drawn.map(|drawn| drawn.id)).collect();
    assert_eq!(ids, [Ok(1), Err(NotFinite), Ok(0)]);
    assert!(Drawing::start(&logits, &[greedy; 2], &mut downloads).is_err(), "three rows and two draws");
}
