//! Progress bars for long work. They show on a terminal only.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use indicatif::{ProgressBar, ProgressStyle};
use percept_models::Progress;

/// A bar that counts bytes.
pub(super) fn bar() -> ProgressBar {
    let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    ProgressBar::new(0).with_style(style.progress_chars("=> "))
}

/// A bar for reading the weights of a model.
pub(super) fn loading(model: &str) -> Box<Progress> {
    let bar = bar().with_message(format!("loading {model}"));
    let seen = AtomicU64::new(0);
    Box::new(move |read, total| {
        // Several threads report; a late one must not turn the bar back.
        let most = seen.fetch_max(read, Relaxed).max(read);
        bar.set_length(total);
        bar.set_position(most);
        if most == total {
            bar.finish_and_clear();
        }
    })
}
