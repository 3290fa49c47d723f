//! Progress bars: only on a terminal's stderr, so that logs and pipes never see one.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of `total` units; 0 = not known. Draws nothing unless stderr is a terminal.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    // The templates are constants; a wrong one shows in any run on a terminal.
    if let Ok(style) = ProgressStyle::with_template("  {msg:<44} [{bar:32}] {human_pos}/{human_len}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}
