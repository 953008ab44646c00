//! Throughput against latency as a picture, without a library of anybody's.

use std::fmt::Write as _;

use super::{Level, Measured, Report, Served};
use crate::bench::statistics::Times;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Around the area of the curves: left, top, right, bottom.
const MARGIN: [f64; 4] = [72.0, 56.0, 24.0, 56.0];

/// A curve: its name, its class, and what of a level's times it shows.
type Curve = (&'static str, &'static str, fn(&Times) -> f64);
const CURVES: [Curve; 3] =
    [("p50", "a", |times| times.p50), ("p95", "b", |times| times.p95), ("p99", "c", |times| times.p99)];

const STYLE: &str = "\
.chart{font:13px system-ui,sans-serif;fill:#222;color:#222}.grid{stroke:#ddd}.axis{stroke:#888}\
.a{stroke:#0b6bcb}.b{stroke:#c05600}.c{stroke:#8a2be2}\
circle.a{fill:#0b6bcb}circle.b{fill:#c05600}circle.c{fill:#8a2be2}\
polyline{fill:none;stroke-width:2}.title{font-size:15px;font-weight:600}\
@media(prefers-color-scheme:dark){.chart{fill:#ddd}.grid{stroke:#444}.paper{fill:#1b1b1b}}";

/// A picture of a run with levels; nothing where there are none that were answered.
pub fn svg(report: &Report) -> Option<String> {
    let Measured::Served(served) = &report.measured else { return None };
    let charts: Vec<Chart> = [Chart::whole(served), Chart::first(served)].into_iter().flatten().collect();
    (!charts.is_empty()).then(|| {
        let height = HEIGHT * charts.len() as f64;
        let mut picture = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-label=\"throughput against latency\"><style>{STYLE}.paper{{fill:#fff}}\
             @media(prefers-color-scheme:dark){{.paper{{fill:#1b1b1b}}}}</style>\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>"
        );
        for (index, chart) in charts.iter().enumerate() {
            let _ = write!(picture, "<g transform=\"translate(0 {})\">{}</g>", HEIGHT * index as f64, chart.draw());
        }
        picture + "</svg>"
    })
}

/// Points of levels, in the order of their throughput.
struct Chart {
    title: String,
    across: String,
    /// Throughput and times, and what the level is called.
    points: Vec<(f64, Times, String)>,
}

impl Chart {
    fn new(served: &Served, title: &str, times: fn(&Level) -> Option<Times>) -> Option<Self> {
        let (across, throughput) = unit(served);
        let point = |level: &Level| Some((throughput(level), times(level)?, level.load.to_string()));
        let points: Vec<_> = served.levels.iter().filter_map(point).collect();
        (!points.is_empty()).then(|| Self { title: title.to_owned(), across: across.to_owned(), points })
    }

    fn whole(served: &Served) -> Option<Self> {
        Self::new(served, "whole answer", |level| level.latency.end_to_end)
    }

    fn first(served: &Served) -> Option<Self> {
        Self::new(served, "first token (TTFT)", |level| level.latency.first_token)
    }

    fn draw(&self) -> String {
        let most_x = self.points.iter().map(|point| point.0).fold(0.0, f64::max);
        let most_y = self.points.iter().map(|point| point.1.p99.max(point.1.p95)).fold(0.0, f64::max) * 1e3;
        let (ticks_x, ticks_y) = (ticks(most_x), ticks(most_y));
        let [left, top, right, bottom] = MARGIN;
        let end = |ticks: &[f64]| ticks.last().copied().filter(|end| *end > 0.0).unwrap_or(1.0);
        let x = |value: f64| left + value / end(&ticks_x) * (WIDTH - left - right);
        let y = |value: f64| HEIGHT - bottom - value / end(&ticks_y) * (HEIGHT - top - bottom);
        let (floor, side) = (HEIGHT - bottom, WIDTH - right);
        let mut out = format!("<text class=\"title\" x=\"{left}\" y=\"22\">{}, ms</text>", self.title);
        for value in &ticks_x {
            let (at, text) = (x(*value), plain(*value));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{floor}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                floor + 18.0
            );
        }
        for value in &ticks_y {
            let (at, text) = (y(*value), plain(*value));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left}\" y1=\"{at:.1}\" x2=\"{side}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                left - 8.0,
                at + 4.0
            );
        }
        let _ = write!(
            out,
            "<path class=\"axis\" fill=\"none\" d=\"M{left} {top}V{floor}H{side}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (left + side) / 2.0,
            HEIGHT - 14.0,
            self.across
        );
        for (index, (name, class, of)) in CURVES.iter().enumerate() {
            let place: Vec<String> = self
                .points
                .iter()
                .map(|(across, times, _)| format!("{:.1},{:.1}", x(*across), y(of(times) * 1e3)))
                .collect();
            let _ = write!(out, "<polyline class=\"{class}\" points=\"{}\"/>", place.join(" "));
            for ((across, times, load), place) in self.points.iter().zip(&place) {
                let (at_x, at_y) = place.split_once(',').unwrap_or_default();
                let _ = write!(
                    out,
                    "<circle class=\"{class}\" cx=\"{at_x}\" cy=\"{at_y}\" r=\"4\"><title>{load}: {} {}, {name} {} ms\
                     </title></circle>",
                    super::table::number(*across),
                    self.across,
                    super::table::number(of(times) * 1e3)
                );
            }
            let key = side - 180.0 + 60.0 * index as f64;
            let _ = write!(
                out,
                "<line class=\"{class}\" stroke-width=\"3\" x1=\"{key}\" y1=\"18\" x2=\"{:.1}\" y2=\"18\"/>\
                 <text x=\"{:.1}\" y=\"22\">{name}</text>",
                key + 18.0,
                key + 24.0
            );
        }
        for (across, times, load) in &self.points {
            let (at_x, at_y) = (x(*across), y(times.p50 * 1e3));
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{load}</text>",
                at_x + 6.0,
                at_y - 6.0
            );
        }
        out
    }
}

/// A unit, and how much of it there is at a level.
type Unit = (&'static str, fn(&Level) -> f64);

/// What is told of throughput: the most telling that there is.
fn unit(served: &Served) -> Unit {
    let any = |of: fn(&Level) -> f64| served.levels.iter().any(|level| of(level) > 0.0);
    let units: [Unit; 3] = [
        ("seconds of sound/s", |level| level.throughput.sound_seconds),
        ("pictures/s", |level| level.throughput.pictures),
        ("output tokens/s", |level| level.throughput.output_tokens),
    ];
    units.into_iter().find(|(_, of)| any(*of)).unwrap_or(("requests/s", |level| level.throughput.requests))
}

/// Round numbers from 0 up to no less than `most`.
fn ticks(most: f64) -> Vec<f64> {
    if most <= 0.0 || !most.is_finite() {
        return vec![0.0, 1.0];
    }
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let count = (most / step * 0.999).ceil() as u64;
    (0..=count).map(|index| index as f64 * step).collect()
}

/// A tick's number, without digits that it does not need.
fn plain(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || (text == "0" && value > 0.0) { format!("{value:.1e}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_largest_value() {
        for (most, expected) in [
            (10.0, vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
            (7.3, vec![0.0, 2.0, 4.0, 6.0, 8.0]),
            (0.0, vec![0.0, 1.0]),
            (1234.0, vec![0.0, 250.0, 500.0, 750.0, 1000.0, 1250.0]),
        ] {
            assert_eq!(ticks(most), expected, "{most}");
        }
        for most in [1e-6, 0.03, 0.99, 17.0, 5e9] {
            let ticks = ticks(most);
            assert!(
                (4..9).contains(&ticks.len()) && ticks[ticks.len() - 1] >= most * 0.999,
                "{most}: {ticks:?}"
            );
        }
        assert_eq!(plain(2.5), "2.5");
        assert_eq!(plain(300.0), "300");
        assert_eq!(plain(0.0), "0");
    }
}
