//! JSON logs on stderr. No user data: ids appear as tags only.

use tracing_subscriber::EnvFilter;

/// Installs the subscriber; a second call (tests) does nothing. A wrong filter falls back to `info` and says so.
pub fn init(filter: &str) {
    let (filter, wrong) = match EnvFilter::try_new(filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let installed = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .try_init();
    if let (Ok(()), Some(error)) = (installed, wrong) {
        tracing::warn!(event = "log.filter", %error, "log.filter is not valid; using info");
    }
}
