//! sample.cu against the definition, with sums in f64, and against the host's version.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

use std::{cell::Cell, ops::Range};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use percept_kernels::{
    Draw, Drawn, Forbidden, NotFinite, Seen,
    launch::{self, MOST_IDS, Sampling},
    sample,
};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, Real};

/// A [`Draw`] with its lists.
#[derive(Debug, Clone)]
struct Spec {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition: f32,
    frequency: f32,
    presence: f32,
    seen: Vec<Seen>,
    bias: Vec<(u32, f32)>,
    ids: Vec<Vec<u32>>,
    ranges: Vec<Range<u32>>,
    only: Option<Vec<u32>>,
    mask: Option<Vec<u32>>,
    rivals: Option<Range<u32>>,
    vocabulary: usize,
    random: f64,
    logprobs: Option<usize>,
}

const fn neutral(temperature: f32) -> Spec {
    Spec {
        temperature,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition: 1.0,
        frequency: 0.0,
        presence: 0.0,
        seen: Vec::new(),
        bias: Vec::new(),
        ids: Vec::new(),
        ranges: Vec::new(),
        only: None,
        mask: None,
        rivals: None,
        vocabulary: usize::MAX,
        random: 0.5,
        logprobs: None,
    }
}

const GREEDY: Spec = neutral(0.0);
const HOT: Spec = neutral(1.0);

type Outcome = Result<Drawn, NotFinite>;

/// Calls `with` with the draws of these.
fn with_draws<R>(specs: &[Spec], with: impl FnOnce(&[Draw<'_>]) -> R) -> R {
    let forbidden: Vec<Forbidden<'_>> = specs
        .iter()
        .map(|spec| Forbidden {
            ids: spec.ids.iter().map(Vec::as_slice).collect(),
            ranges: spec.ranges.clone(),
            only: spec.only.as_deref(),
            mask: spec.mask.as_deref(),
            rivals: spec.rivals.clone(),
        })
        .collect();
    let draw = |(spec, forbidden)| {
        let &Spec { temperature, top_k, top_p, min_p, repetition, frequency, presence, .. } = spec;
        let &Spec { ref seen, ref bias, vocabulary, random, logprobs, .. } = spec;
        Draw {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition,
            frequency,
            presence,
            seen,
            bias,
            forbidden,
            vocabulary,
            random,
            logprobs,
        }
    };
    let draws: Vec<Draw<'_>> = specs.iter().zip(&forbidden).map(draw).collect();
    with(&draws)
}

/// What the kernels draw. Logits start `skip` elements behind an aligned address.
fn run<T: Real>(
    logits: &[T],
    specs: &[Spec],
    emulator: Emulator,
    skip: usize,
) -> Result<Vec<Outcome>, String> {
    let width = logits.len() / specs.len();
    let sampling = with_draws(specs, |draws| Sampling::new(draws, width)).unwrap();
    let padded: Vec<T> =
        std::iter::repeat_n(T::narrow(f64::NAN), skip).chain(logits.iter().copied()).collect();
    let logits = Buffer::of(&padded, "logits");
    let words = Buffer::of(sampling.words(), "words");
    let workspace = Buffer::<f32>::new(sampling.workspace(), "workspace");
    let out = Buffer::of(&vec![0u32; sampling.output()], "out");
    let addresses = [out.address(), workspace.address(), logits.at(skip), words.address()];
    for launch in sampling.launches(T::ELEMENT, addresses).unwrap() {
        emulator.run(&launch)?;
    }
    Ok(sampling.drawn(&out.read()?).unwrap())
}

/// Nearer than this to an edge between two tokens, either may come.
const EDGE: f64 = 1e-6;

/// What the definition says of one row.
struct Expected {
    /// Behind penalties, bias and what is forbidden.
    logits: Vec<f32>,
    best: u32,
    /// Logarithm of the sum of all.
    total: f64,
    /// Ids that may come, in rising order, and their weights.
    kept: Vec<(u32, f64)>,
    /// The set of those hangs on the last bits of something.
    at_edge: bool,
}

fn logarithm_of_sum(logits: impl Iterator<Item = f32> + Clone) -> f64 {
    let most = logits.clone().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + logits.map(|logit| (f64::from(logit) - most).exp()).sum::<f64>().ln()
}

fn expected(row: &[f32], spec: &Spec) -> Option<Expected> {
    let count = spec.vocabulary.min(row.len());
    let mut logits = row[..count].to_vec();
    if count == 0 || logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    for seen in spec.seen.iter().filter(|seen| (seen.id as usize) < count) {
        let logit = &mut logits[seen.id as usize];
        *logit = if *logit > 0.0 { *logit / spec.repetition } else { *logit * spec.repetition };
        if seen.generated > 0 {
            *logit -= spec.frequency * seen.generated as f32 + spec.presence;
        }
    }
    for &(id, bias) in spec.bias.iter().filter(|(id, _)| (*id as usize) < count) {
        logits[id as usize] += bias;
    }
    let out = |id: u32| {
        spec.ids.iter().any(|ids| ids.contains(&id))
            || spec.ranges.iter().any(|range| range.contains(&id))
            || spec.only.as_ref().is_some_and(|only| !only.contains(&id))
            || spec
                .mask
                .as_ref()
                .is_some_and(|mask| mask.get(id as usize / 32).is_none_or(|word| word >> (id % 32) & 1 == 0))
    };
    for (logit, id) in logits.iter_mut().zip(0..) {
        *logit = if out(id) { f32::NEG_INFINITY } else { *logit };
    }
    let mut at_edge = false;
    if let Some(rivals) = &spec.rivals {
        let end = (rivals.end as usize).min(count);
        let start = (rivals.start as usize).min(end);
        let front = logits[..start].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum = logarithm_of_sum(logits[start..end].iter().copied());
        at_edge |= (sum - f64::from(front)).abs() < EDGE * (1.0 + sum.abs());
        if sum > f64::from(front) {
            logits[..start].fill(f32::NEG_INFINITY);
        }
    }
    let best = (0..count).rev().max_by(|&a, &b| logits[a].partial_cmp(&logits[b]).unwrap())?;
    let top = logits[best];
    if top == f32::NEG_INFINITY {
        return None;
    }
    let total = logarithm_of_sum(logits.iter().copied());
    let mut kept = Vec::new();
    if spec.temperature > 0.0 {
        // The quotient is part of the definition, and that equal weights are those that are equal in f32.
        let weight = |&logit: &f32| f64::from((logit - top) / spec.temperature).exp();
        kept = (0..).zip(logits.iter().map(weight)).collect();
        kept.sort_by(|a, b| (b.1 as f32).total_cmp(&(a.1 as f32)).then(a.0.cmp(&b.0)));
        let mut cut = |kept: &mut Vec<(u32, f64)>, keep: usize| {
            if let (Some(last), Some(next)) = (keep.checked_sub(1).map(|last| kept[last]), kept.get(keep)) {
                at_edge |= last.1 as f32 != next.1 as f32 && last.1 - next.1 < EDGE * last.1;
            }
            kept.truncate(keep);
        };
        if spec.top_k > 0 && spec.top_k < count {
            cut(&mut kept, spec.top_k);
        }
        if spec.top_p < 1.0 {
            let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let wanted = f64::from(spec.top_p) * sum;
            let (mut keep, mut reached) = (1, kept[0].1);
            let mut near = spec.top_p > 0.0 && (reached - wanted).abs() < EDGE * sum;
            while keep < kept.len() && reached < wanted {
                reached += kept[keep].1;
                keep += 1;
                near |= (reached - wanted).abs() < EDGE * sum;
            }
            cut(&mut kept, keep);
            at_edge |= near;
        }
        let min_p = f64::from(spec.min_p);
        at_edge |= kept.iter().any(|&(_, weight)| weight < 1.0 && (weight - min_p).abs() < EDGE * min_p);
        kept.retain(|&(_, weight)| weight >= min_p);
        kept.sort_by_key(|&(id, _)| id);
    }
    Some(Expected { logits, best: best as u32, total, kept, at_edge })
}

/// Rows that were checked, and those of them that lie at an edge.
#[derive(Default)]
struct Checked {
    rows: Cell<usize>,
    at_edges: Cell<usize>,
}

impl Checked {
    fn row(&self, row: &[f32], spec: &Spec, found: &Outcome) -> Result<(), String> {
        self.rows.set(self.rows.get() + 1);
        let Some(expected) = expected(row, spec) else {
            return if *found == Err(NotFinite) { Ok(()) } else { Err(format!("{found:?} of a broken row")) };
        };
        let Ok(found) = found else { return Err("not finite".into()) };
        let at_edge = expected.at_edge || self.draw(&expected, spec, found.id)?;
        self.at_edges.set(self.at_edges.get() + usize::from(at_edge));
        let Some(top) = spec.logprobs else {
            return if found.logprob == 0.0 && found.top.is_empty() {
                Ok(())
            } else {
                Err("logprobs".into())
            };
        };
        if expected.at_edge && spec.rivals.is_some() {
            return Ok(());
        }
        let mut order: Vec<u32> = (0..expected.logits.len() as u32)
            .filter(|&id| expected.logits[id as usize] > f32::NEG_INFINITY)
            .collect();
        let logit = |id: u32| expected.logits[id as usize];
        order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        order.truncate(top);
        let ids: Vec<u32> = found.top.iter().map(|&(id, _)| id).collect();
        if ids != order {
            return Err(format!("the most probable are {ids:?}, not {order:?}"));
        }
        for (id, logprob) in found.top.iter().copied().chain([(found.id, found.logprob)]) {
            let expected = f64::from(logit(id)) - expected.total;
            // Both of the difference are rounded to f32, and so is it.
            let most = 3e-7 * (1.0 + f64::from(logit(id).abs()) + expected.abs());
            if (f64::from(logprob) - expected).abs() > most {
                return Err(format!("logprob of {id} is {logprob}, not {expected}"));
            }
        }
        Ok(())
    }

    /// Whether the draw lies at an edge.
    fn draw(&self, expected: &Expected, spec: &Spec, found: u32) -> Result<bool, String> {
        if spec.temperature == 0.0 {
            let best = expected.best;
            return if found == best {
                Ok(false)
            } else {
                Err(format!("{found} is not the best, {best} is"))
            };
        }
        let sum: f64 = expected.kept.iter().map(|(_, weight)| weight).sum();
        let target = spec.random * sum;
        let (mut before, mut wanted) = (0.0, None);
        let mut allowed = Vec::new();
        for &(id, weight) in expected.kept.iter().filter(|(_, weight)| *weight > 0.0) {
            let upto = before + weight;
            if (before - EDGE * sum..=upto + EDGE * sum).contains(&target) {
                allowed.push(id);
            }
            if wanted.is_none() && target < upto {
                wanted = Some(id);
            }
            before = upto;
        }
        if Some(found) == wanted {
            return Ok(false);
        }
        if allowed.contains(&found) { Ok(true) } else { Err(format!("{found} was drawn, not {wanted:?}")) }
    }

    fn all<T: Real>(
        &self,
        what: &str,
        logits: &[T],
        specs: &[Spec],
        emulator: Emulator,
        skip: usize,
    ) -> Result<(), String> {
        let width = logits.len() / specs.len();
        let found = run(logits, specs, emulator, skip)?;
        let wide: Vec<f32> = logits.iter().map(|logit| logit.wide() as f32).collect();
        let on_host = Tensor::from_slice(&wide, (specs.len(), width), &Device::Cpu).unwrap();
        let host = with_draws(specs, |draws| sample(&on_host, draws)).unwrap();
        for (index, spec) in specs.iter().enumerate() {
            let edges = self.at_edges.get();
            let at = |error| format!("{what}, row {index} of {width} {:?}: {error}\n{spec:?}", T::ELEMENT);
            self.row(&wide[index * width..][..width], spec, &found[index]).map_err(at)?;
            if self.at_edges.get() == edges {
                same(&found[index], &host[index]).map_err(at)?;
            }
        }
        Ok(())
    }

    /// Most rows say something.
    fn finish(&self, what: &str) {
        let (rows, at_edges) = (self.rows.get(), self.at_edges.get());
        println!("{what}: {rows} rows, {at_edges} of them at an edge");
        assert!(at_edges * 20 <= rows, "{what}: {at_edges} of {rows} rows lie at an edge");
    }
}

/// Whether the host draws the same.
fn same(found: &Outcome, host: &Outcome) -> Result<(), String> {
    let close = |found: f32, host: f32| (found - host).abs() <= 2e-6 * (1.0 + host.abs());
    let equal = match (found, host) {
        (Ok(found), Ok(host)) => {
            let mut pairs = found.top.iter().zip(&host.top);
            found.id == host.id
                && close(found.logprob, host.logprob)
                && found.top.len() == host.top.len()
                && pairs.all(|(found, host)| found.0 == host.0 && close(found.1, host.1))
        }
        (found, host) => found == host,
    };
    if equal { Ok(()) } else { Err(format!("{found:?}, but {host:?} on the host")) }
}

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    fn id(&mut self, width: usize) -> u32 {
        self.below(width) as u32
    }

    fn coin(&mut self) -> bool {
        self.unit() < 0.5
    }

    fn of<const N: usize>(&mut self, values: [f32; N]) -> f32 {
        values[self.below(N)]
    }

    /// As a network has them, with many equal ones, all equal, or of large spread.
    fn logits<T: Real>(&mut self, width: usize) -> Vec<T> {
        let kind = self.below(6);
        let one = |_| {
            let bell = (0..6).map(|_| self.unit()).sum::<f64>() - 3.0;
            T::narrow(match kind {
                0 => (bell * 4.0).round() / 2.0,
                1 => 1.25,
                2 => bell * 40.0,
                // Zeros of both signs.
                3 => (bell * 0.6).trunc(),
                _ => bell * 5.0 - 3.0,
            })
        };
        (0..width).map(one).collect()
    }

    fn range(&mut self, width: usize) -> Range<u32> {
        let [a, b] = [self.id(width + 3), self.id(width + 40)];
        a.min(b)..a.max(b)
    }

    /// Any of the parts, together.
    fn spec(&mut self, width: usize) -> Spec {
        let mut spec = Spec { random: self.unit(), ..GREEDY };
        if self.unit() < 0.8 {
            spec.temperature = self.of([0.3, 0.7, 1.0, 1.0, 1.7]);
        }
        if self.coin() {
            spec.top_k = [1, 2, 7, 40, width / 2, width][self.below(6)];
        }
        if self.coin() {
            spec.top_p = self.of([0.0, 0.103, 0.517, 0.811, 0.907, 0.953, 0.999]);
        }
        if self.unit() < 0.3 {
            spec.min_p = self.of([0.01, 0.1, 0.6, 1.0]);
        }
        if self.coin() {
            spec.repetition = self.of([1.0, 0.8, 1.3]);
            spec.frequency = self.of([0.0, -0.3, 0.4]);
            spec.presence = self.of([0.0, -0.5, 0.7]);
            // Each once, some behind the row.
            let first = self.below(width);
            let step = 1 + self.below(width.div_ceil(50));
            let seen = |id: usize| Seen { id: id as u32, generated: (id % 4) as u32 };
            spec.seen = (first..width + 2).step_by(step).take(60).map(seen).collect();
        }
        if self.coin() {
            spec.bias = (0..20).map(|_| (self.id(width + 2), self.of([0.1, 0.7, -1.3, 4.0]))).collect();
            let again = spec.bias[3].0;
            spec.bias.extend([(again, 1e-3), (again, -2.5)]);
        }
        if self.coin() {
            spec.ids = (0..2).map(|_| (0..self.below(30)).map(|_| self.id(width + 2)).collect()).collect();
        }
        if self.unit() < 0.3 {
            spec.ranges = (0..3)
                .map(|_| self.range(width))
                .filter(|range| range.len() < width / 2 + 1)
                .take(2)
                .collect();
        }
        if self.unit() < 0.15 {
            spec.only = Some((0..40).map(|_| self.id(width + 2)).collect());
        }
        if self.unit() < 0.3 {
            let words = [width / 32 + 2, width.div_ceil(32), width.div_ceil(64)][self.below(3)];
            spec.mask = Some((0..words).map(|_| (self.unit() * 2f64.powi(32)) as u32).collect());
        }
        if self.unit() < 0.3 {
            spec.rivals = Some(self.range(width));
        }
        if self.coin() {
            spec.vocabulary = [width, width - width / 5, width.max(2) - 1][self.below(3)];
        }
        if self.coin() {
            spec.logprobs = Some([0, 1, 5, 20][self.below(4)]);
        }
        spec
    }
}

/// Each part alone.
fn parts(width: usize) -> Vec<(&'static str, Spec)> {
    let end = width as u32;
    let seen: Vec<Seen> = (0..end).step_by(3).take(90).map(|id| Seen { id, generated: id % 3 }).collect();
    let mask: Vec<u32> = (0..end.div_ceil(32)).map(|word| 0x5a5a_0ff1u32.rotate_left(word)).collect();
    let penalties = Spec { repetition: 1.5, frequency: 0.4, presence: 0.9, seen: seen.clone(), ..HOT };
    let rewards = Spec { repetition: 0.6, frequency: -0.4, presence: -0.9, seen, ..HOT };
    vec![
        ("greedy", GREEDY),
        ("probabilities", Spec { logprobs: Some(5), ..GREEDY }),
        ("probability", Spec { logprobs: Some(0), ..HOT }),
        ("all probabilities", Spec { logprobs: Some(width.min(1500)), ..GREEDY }),
        ("plain", HOT),
        ("hot", Spec { temperature: 2.0, random: 0.9, ..HOT }),
        ("cold", Spec { temperature: 0.3, random: 0.2, ..HOT }),
        ("first", Spec { random: 0.0, ..HOT }),
        ("last", Spec { random: 1.0 - f64::EPSILON / 2.0, ..HOT }),
        ("top-k 1", Spec { top_k: 1, ..HOT }),
        ("top-k 7", Spec { top_k: 7, random: 0.8, ..HOT }),
        ("top-k half", Spec { top_k: width / 2, random: 0.95, ..HOT }),
        ("top-p 0", Spec { top_p: 0.0, ..HOT }),
        ("top-p 0.52", Spec { top_p: 0.52, random: 0.999, ..HOT }),
        ("top-p 0.95", Spec { top_p: 0.95, random: 0.7, ..HOT }),
        ("min-p 0.1", Spec { min_p: 0.1, random: 0.9703, ..HOT }),
        ("min-p 1", Spec { min_p: 1.0, random: 0.9703, ..HOT }),
        ("all three", Spec { top_k: 20, top_p: 0.81, min_p: 0.05, random: 0.963, ..HOT }),
        ("penalties and bias", Spec { bias: vec![(0, 2.0), (6, 2.0), (30, -1.5)], ..penalties.clone() }),
        ("greedy penalties", Spec { temperature: 0.0, ..penalties.clone() }),
        ("penalties", penalties),
        ("rewards", rewards),
        ("bias", Spec { bias: vec![(0, 5.0), (end / 2, -100.0), (0, 1e-3), (end, 9.0)], ..HOT }),
        ("ids", Spec { ids: vec![vec![0, 0, end / 3], vec![end / 3, end]], random: 0.01, ..HOT }),
        ("ranges", Spec { ranges: vec![0..end / 3, end / 4..end / 2, end..end + 4], ..HOT }),
        ("only", Spec { only: Some(vec![end / 2, end, 0, end / 2]), ..HOT }),
        ("mask", Spec { mask: Some(mask.clone()), logprobs: Some(9), ..HOT }),
        ("short mask", Spec { mask: Some(mask[..mask.len().div_ceil(2)].to_vec()), random: 0.99, ..HOT }),
        ("only and mask", Spec { only: Some((0..end / 2 + 1).collect()), mask: Some(mask), ..HOT }),
        ("rivals", Spec { rivals: Some(end * 3 / 4..end), logprobs: Some(2), ..GREEDY }),
        ("padded", Spec { vocabulary: width.div_ceil(2) | 1, logprobs: Some(3), ..HOT }),
        ("greedy, padded", Spec { vocabulary: width.div_ceil(2) | 1, ..GREEDY }),
    ]
}

fn each_part<T: Real>(checked: &Checked, width: usize) {
    let mut random = Random(width as u64);
    for (index, (what, spec)) in parts(width).into_iter().enumerate() {
        let emulator = Emulator { seed: index as u64 % 3, fault: None };
        checked.all(what, &random.logits::<T>(width), &[spec], emulator, index % 2).unwrap();
    }
}

#[test]
fn each_part_follows_the_definition() {
    let checked = Checked::default();
    each_part::<bf16>(&checked, 1);
    each_part::<f16>(&checked, 31);
    each_part::<f32>(&checked, 32);
    each_part::<bf16>(&checked, 33);
    checked.finish("narrow");
}

#[test]
fn each_part_follows_the_definition_of_a_thousand() {
    let checked = Checked::default();
    each_part::<f32>(&checked, 1000);
    each_part::<bf16>(&checked, 1000);
    each_part::<f16>(&checked, 1000);
    checked.finish("a thousand");
}

fn any<T: Real>(checked: &Checked, width: usize, steps: u64) {
    for step in 0..steps {
        let mut random = Random(step * 7919 + width as u64 + T::ELEMENT as u64 * 31);
        let rows = 1 + random.below(5);
        let specs: Vec<Spec> = (0..rows).map(|_| random.spec(width)).collect();
        let logits: Vec<T> = (0..rows).flat_map(|_| random.logits(width)).collect();
        let emulator = Emulator { seed: step % 3, fault: None };
        checked.all(&format!("step {step}"), &logits, &specs, emulator, 0).unwrap();
    }
}

#[test]
fn any_parts_together_follow_the_definition() {
    let checked = Checked::default();
    for width in [31, 33, 1000] {
        any::<f32>(&checked, width, 15);
        any::<bf16>(&checked, width, 15);
        any::<f16>(&checked, width, 15);
    }
    checked.finish("any");
}

#[test]
fn whole_vocabularies_follow_the_definition() {
    let checked = Checked::default();
    any::<bf16>(&checked, 32_064, 4);
    any::<f32>(&checked, 51_866, 3);
    any::<f16>(&checked, 51_866, 3);
    checked.finish("whole vocabularies");
}

#[test]
fn ties_go_to_the_lowest_ids() {
    let emulator = Emulator { seed: 1, fault: None };
    let width = 3000;
    let id = |logits: &[f32], spec: Spec| run(logits, &[spec], emulator, 0).unwrap().remove(0).unwrap().id;
    let flat = vec![2.5f32; width];
    assert_eq!(id(&flat, GREEDY), 0);
    let last = Spec { random: 1.0 - f64::EPSILON / 2.0, ..HOT };
    assert_eq!(id(&flat, last.clone()), 2999);
    for keep in [1, 2, 129, 2999] {
        assert_eq!(id(&flat, Spec { top_k: keep, ..last.clone() }), keep as u32 - 1);
    }
    assert_eq!(id(&flat, Spec { top_p: 0.3331, ..last.clone() }), 999);
    // What top-k leaves is what top-p shares.
    assert_eq!(id(&flat, Spec { top_k: 1000, top_p: 0.2501, ..last.clone() }), 250);
    let mut stairs: Vec<f32> = (0..width).map(|id| (id % 3) as f32).collect();
    assert_eq!(id(&stairs, Spec { top_k: 1001, ..last.clone() }), 2999);
    assert_eq!(id(&stairs, Spec { top_k: 1001, random: 0.0, ..HOT }), 1);
    assert_eq!(id(&stairs, Spec { top_k: 999, ..last }), 2996);
    // Zeros are equal whatever their sign, though the list of the most probable has the positive one first.
    stairs.fill(-1.0);
    [stairs[7], stairs[9]] = [-0.0, 0.0];
    let both = run(&stairs, &[Spec { logprobs: Some(2), ..GREEDY }], emulator, 0).unwrap().remove(0).unwrap();
    assert_eq!((both.id, both.top[0].0, both.top[1].0), (7, 9, 7));
    stairs.fill(-0.0);
    let few = run(&stairs, &[Spec { logprobs: Some(3), ..GREEDY }], emulator, 0).unwrap().remove(0).unwrap();
    assert_eq!(few.top.iter().map(|pair| pair.0).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn broken_rows_fail_alone() {
    let emulator = Emulator { seed: 1, fault: None };
    let width = 70;
    for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for spec in [GREEDY, Spec { logprobs: Some(2), ..HOT }] {
            let mut random = Random(5);
            let mut logits: Vec<f16> = (0..4).flat_map(|_| random.logits(width)).collect();
            logits[width + 69] = f16::narrow(broken);
            // Padding may be anything.
            logits[2 * width + 60] = f16::narrow(broken);
            let mut specs = vec![spec; 4];
            specs[2].vocabulary = 60;
            specs[3].ranges = vec![3..99, 0..3];
            let found = run(&logits, &specs, emulator, 0).unwrap();
            let ids: Vec<_> = found.iter().map(Result::is_ok).collect();
            assert_eq!(ids, [true, false, true, false], "{broken}");
            Checked::default().all("broken", &logits, &specs, emulator, 0).unwrap();
        }
    }
    let nothing = run(&[1f32, 2.0], &[Spec { vocabulary: 0, ..HOT }], emulator, 0).unwrap();
    assert_eq!(nothing, [Err(NotFinite)]);
    let masked = Spec { mask: Some(Vec::new()), ..GREEDY };
    assert_eq!(run(&[1f32, 2.0], &[masked], emulator, 0).unwrap(), [Err(NotFinite)]);
}

#[test]
fn extremes_do_no_harm() {
    let emulator = Emulator { seed: 1, fault: None };
    let id = |logits: &[f32], spec: Spec| run(logits, &[spec], emulator, 0).unwrap().remove(0).unwrap().id;
    for temperature in [1e-30, 1e-6, 1e30] {
        let drawn = id(&[0.0, 50.0, -50.0], Spec { temperature, random: 0.4, ..HOT });
        assert!(temperature > 1.0 || drawn == 1);
    }
    assert_eq!(id(&[f32::MIN, f32::MAX], Spec { random: 0.0, ..HOT }), 1);
    assert_eq!(id(&[f32::MIN, f32::MAX], Spec { logprobs: Some(2), ..GREEDY }), 1);
    // Penalties that leave the numbers: the best of what is left, as on the host.
    let overflow = Spec { bias: vec![(1, f32::MAX)], ..HOT };
    assert_eq!(id(&[0.0, f32::MAX, 1.0], overflow), 1);
}

/// To the bit, whatever the order of threads and the other rows of the step.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let (width, rows) = (5000, 4);
    let mut random = Random(77);
    let mut specs: Vec<Spec> = (0..rows).map(|_| random.spec(width)).collect();
    for spec in &mut specs {
        spec.logprobs = Some(20);
    }
    let logits: Vec<bf16> = (0..rows).flat_map(|_| random.logits(width)).collect();
    let all = run(&logits, &specs, Emulator { seed: 0, fault: None }, 0).unwrap();
    for seed in 1..4 {
        assert_eq!(run(&logits, &specs, Emulator { seed, fault: None }, seed as usize % 2).unwrap(), all);
    }
    for row in 0..rows {
        let (own, spec) = (&logits[row * width..][..width], &specs[row..=row]);
        assert_eq!(run(own, spec, Emulator { seed: 9, fault: None }, 0).unwrap(), all[row..=row]);
    }
}

#[test]
fn a_step_has_no_more_launches_than_it_needs() {
    let kernels = |specs: &[Spec], width| {
        let sampling = with_draws(specs, |draws| Sampling::new(draws, width)).unwrap();
        let launches = sampling.launches(bf16::ELEMENT, [0; 4]).unwrap();
        let names: Vec<String> = launches.into_iter().map(|launch| launch.kernel).collect();
        (names.join(" "), sampling.workspace())
    };
    assert_eq!(kernels(&[], 9), (String::new(), 0));
    assert_eq!(kernels(&[GREEDY, Spec { top_k: 5, ..GREEDY }], 9), ("sample_read_bf16".into(), 0));
    let both = "sample_read_bf16 sample_draw".to_owned();
    assert_eq!(kernels(&[GREEDY, HOT], 9), (both.clone(), 16));
    assert_eq!(kernels(&[GREEDY, Spec { logprobs: Some(0), ..HOT }], 16), (both.clone(), 32));
    assert_eq!(kernels(&[Spec { rivals: Some(3..4), ..GREEDY }], 16), (both, 16));
    with_draws(&[HOT], |draws| {
        assert!(Sampling::new(draws, MOST_IDS).is_ok());
        assert!(Sampling::new(draws, MOST_IDS + 1).is_err());
        assert!(Sampling::new(draws, 9).unwrap().drawn(&[0; 4]).is_err());
    });
}

/// What the next step finds as its tokens, where row `i` goes on from row `from[i]` of a draw of `rows` rows.
fn check_feed(rows: usize, from: &[u32], emulator: Emulator) -> Result<(), String> {
    const UNTOUCHED: u32 = 7_654_321;
    let width = 40;
    let mut random = Random(rows as u64);
    let mut logits: Vec<f32> = (0..rows).flat_map(|_| random.logits(width)).collect();
    // A row of which nothing is drawn goes on with something, which nobody looks at.
    logits[0] = f32::NAN;
    let specs = vec![Spec { logprobs: Some(1), ..HOT }; rows];
    let sampling = with_draws(&specs, |draws| Sampling::new(draws, width)).unwrap();
    let [words, wanted] = [sampling.words(), from].map(|list| Buffer::of(list, "list"));
    let (logits, workspace) = (Buffer::of(&logits, "logits"), Buffer::new(sampling.workspace(), "workspace"));
    let workspace: Buffer<f32> = workspace;
    let out = Buffer::of(&vec![0u32; sampling.output()], "out");
    let next = Buffer::of(&vec![UNTOUCHED; from.len() + 3], "next");
    let addresses = [out.address(), workspace.address(), logits.address(), words.address()];
    let sampled = Emulator { fault: None, ..emulator };
    for launch in sampling.launches(f32::ELEMENT, addresses).unwrap() {
        sampled.run(&launch)?;
    }
    let feed = sampling.feed([next.address(), out.address(), wanted.address()], from).unwrap().unwrap();
    emulator.run(&feed)?;
    let drawn = sampling.drawn(&out.read()?).unwrap();
    let next = next.read()?;
    for (&token, &row) in next.iter().zip(from) {
        let right = match &drawn[row as usize] {
            Ok(drawn) => token == drawn.id,
            Err(NotFinite) => (token as usize) < width,
        };
        if !right {
            return Err(format!("{token} is not what row {row} drew: {:?}", drawn[row as usize]));
        }
    }
    if next[from.len()..] == [UNTOUCHED; 3] { Ok(()) } else { Err("more was written".into()) }
}

#[test]
fn the_next_step_gets_what_was_drawn() {
    let emulator = Emulator { seed: 1, fault: None };
    check_feed(1, &[0], emulator).unwrap();
    check_feed(3, &[2, 0, 2], emulator).unwrap();
    check_feed(40, &(1..40).collect::<Vec<_>>(), emulator).unwrap();
    // More than a block has threads.
    check_feed(5, &(0..2500).map(|row| row * 3 % 5).collect::<Vec<_>>(), emulator).unwrap();
    let sampling = with_draws(&[HOT, HOT], |draws| Sampling::new(draws, 9)).unwrap();
    assert!(sampling.feed([0; 3], &[1, 2]).is_err(), "there is no row 2");
    assert_eq!(sampling.feed([0; 3], &[]).unwrap(), None);
}

fn probabilities<T: Real>(
    logits: &[T],
    wanted: &[(u32, usize)],
    emulator: Emulator,
) -> Result<Vec<f32>, String> {
    let (rows, width) = (wanted.len(), logits.len() / wanted.len());
    let (ids, widths): (Vec<_>, Vec<_>) = wanted.iter().copied().unzip();
    let words = Buffer::of(&launch::wanted_probabilities(&ids, &widths, width), "wanted");
    let (logits, out) = (Buffer::of(logits, "logits"), Buffer::<f32>::new(rows, "out"));
    let addresses = [out.address(), logits.address(), words.address()];
    emulator.run(&launch::probabilities(T::ELEMENT, addresses, [rows, width]).unwrap().unwrap())?;
    out.read()
}

fn check_probabilities<T: Real>(width: usize, emulator: Emulator) -> Result<(), String> {
    let mut random = Random(width as u64);
    let logits: Vec<T> = (0..4).flat_map(|_| random.logits(width)).collect();
    let wanted: Vec<(u32, usize)> =
        [width, width.div_ceil(2), width + 9, 1].map(|count| (random.id(count.min(width)), count)).to_vec();
    let found = probabilities(&logits, &wanted, emulator)?;
    for (row, (&(id, count), found)) in wanted.iter().zip(found).enumerate() {
        let logits: Vec<f32> =
            logits[row * width..][..count.min(width)].iter().map(|logit| logit.wide() as f32).collect();
        let expected = (f64::from(logits[id as usize]) - logarithm_of_sum(logits.into_iter())).exp();
        if (f64::from(found) - expected).abs() > 1e-5 * expected + 1e-12 {
            return Err(format!("row {row} of {width}: {found}, not {expected}"));
        }
    }
    Ok(())
}

#[test]
fn probabilities_equal_the_formula() {
    let emulator = Emulator { seed: 1, fault: None };
    for width in [1, 31, 1000, 32_064] {
        check_probabilities::<f32>(width, emulator).unwrap();
        check_probabilities::<bf16>(width, emulator).unwrap();
        check_probabilities::<f16>(width, emulator).unwrap();
    }
    let logits = [0.5f32, f32::NAN, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let found = probabilities(&logits, &[(0, 2), (1, 2), (0, 2)], emulator).unwrap();
    assert!(found[0].is_nan() && found[1] == 0.0 && found[2].is_nan(), "{found:?}");
    let outside = probabilities(&[0f32, 1.0], &[(1, 1)], emulator).unwrap();
    assert_eq!(outside, [0.0]);
    assert_eq!(launch::probabilities(f32::ELEMENT, [0; 3], [0, 5]).unwrap(), None);
    assert!(launch::probabilities(f32::ELEMENT, [0; 3], [1, MOST_IDS + 1]).is_err());
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "sample") {
        faults += 1;
        let caught = (1..4).any(|seed| {
            let emulator = Emulator { seed, fault: Some(fault.name) };
            let width = 1000;
            let wrong = |(what, spec): (&str, Spec)| {
                let mut random = Random(seed);
                // Equal logits too.
                let logits: Vec<f32> =
                    random.logits::<f32>(width).iter().map(|logit| (logit * 2.0).round() / 2.0).collect();
                Checked::default().all(what, &logits, &[spec], emulator, 1).is_err()
            };
            let feeds = || check_feed(5, &(0..1100).map(|row| row * 3 % 5).collect::<Vec<_>>(), emulator);
            match fault.name.contains("feed") {
                true => feeds().is_err(),
                false => {
                    parts(width).into_iter().any(wrong) || check_probabilities::<f32>(33, emulator).is_err()
                }
            }
        });
        assert!(caught, "{} was not noticed", fault.name);
    }
    assert!(faults >= 5);
}
