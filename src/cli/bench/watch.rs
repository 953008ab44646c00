//! How far a measurement is, on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::{
    Watch,
    report::Level,
    schedule::{Load, Until},
};

/// A bar for each level.
#[derive(Debug, Default)]
pub(super) struct Bar {
    bar: Option<ProgressBar>,
    until: Option<Until>,
}

impl Watch for Bar {
    fn begin(&mut self, load: Load, until: Until) {
        let style =
            ProgressStyle::with_template("{prefix} [{wide_bar}] {msg}").expect("the template is well formed");
        let length = match until {
            Until::Requests(requests) => requests,
            Until::Elapsed(time) => time.as_millis() as u64,
        };
        let bar =
            ProgressBar::new(length).with_style(style.progress_chars("=> ")).with_prefix(load.to_string());
        bar.tick();
        self.bar = Some(bar);
        self.until = Some(until);
    }

    fn progress(&mut self, ended: u64, failed: u64, elapsed: Duration) {
        let (Some(bar), Some(until)) = (&self.bar, self.until) else { return };
        bar.set_position(match until {
            Until::Requests(_) => ended,
            Until::Elapsed(_) => elapsed.as_millis() as u64,
        });
        let speed = ended as f64 / elapsed.as_secs_f64().max(1e-9);
        let failed = if failed > 0 { format!(", {failed} without an answer") } else { String::new() };
        bar.set_message(format!("{ended} requests, {speed:.1} a second{failed}"));
    }

    fn end(&mut self, _: &Level) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
