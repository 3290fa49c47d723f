//! How a client is set up.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::budget::RetryBudget;
use crate::client::Client;
use crate::error::Error;
use crate::nodes::Nodes;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A node that froze or lost its network is found out in the sum of these two, also between calls.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls that may be under way at once.
const CALLS_MAX: usize = 512;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// What calls may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the whole call, retries included.
    pub(crate) deadline: Duration,
    /// For the first attempt; each one that times out doubles it.
    pub(crate) attempt: Duration,
}

/// Sets up a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    limits: Limits,
    retry_budget: RetryBudget,
    calls_max: usize,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        let limits = Limits { deadline: Duration::from_secs(10), attempt: Duration::from_millis(1500) };
        Self { endpoints: Vec::new(), limits, retry_budget: RetryBudget::default(), calls_max: CALLS_MAX }
    }
}

impl ClientBuilder {
    /// Client addresses of the nodes, `host:port`. One suffices; all of them let calls survive any node.
    pub fn endpoints<S: Into<String>>(mut self, endpoints: impl IntoIterator<Item = S>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// How long a call may take with all its retries. Default 10 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.limits.deadline = deadline;
        self
    }

    /// How long one node may take to answer before another one is asked. Default 1.5 s.
    pub fn attempt_timeout(mut self, attempt: Duration) -> Self {
        self.limits.attempt = attempt;
        self
    }

    /// How many retries the client may make, all its clones together. Default: 10 for every 100 calls and 20 a second,
    /// of which up to 1000 are saved up. When they are spent, a call that fails ends at once with the error it met,
    /// although its deadline may be far off; first attempts are always made. Without such a limit, the retries of all
    /// clients together keep a cluster down that was overloaded for a moment.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.retry_budget = budget;
        self
    }

    /// How many calls may be under way at once, all clones of the client together. Default 512. As many more wait for a place, up
    /// to a quarter of their deadline; what is beyond that, or waits longer, ends as [`Error::Overloaded`] with nothing sent.
    /// Without such a limit, what a cluster cannot do in time waits in front of it until nobody wants it any more, and is done
    /// all the same (Little 1961: 512 calls at 5,000 a second take a tenth of a second each).
    pub fn calls_max(mut self, calls: usize) -> Self {
        self.calls_max = calls;
        self
    }

    /// Makes the client. Connects to nobody yet, but must be called inside a tokio runtime.
    ///
    /// # Errors
    /// `Invalid` when there is no endpoint or one is malformed.
    pub fn build(self) -> Result<Client, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid("no endpoint was given; name at least one node as host:port"));
        }
        let channels = self.endpoints.into_iter().map(|address| {
            let channel = lazy_channel(&address)?;
            Ok((address, channel))
        });
        let nodes = Nodes::new(channels.collect::<Result<_, Error>>()?, self.retry_budget, self.calls_max);
        Ok(Client { nodes: Arc::new(nodes), limits: self.limits, seen: None, lanes: None })
    }
}

/// A channel that connects when it is first used, and again whenever it must.
pub(crate) fn lazy_channel(address: &str) -> Result<Channel, Error> {
    let bad = |why: &dyn std::fmt::Display| Error::invalid(format!("endpoint {address:?} is not host:port: {why}"));
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad(&"it has no port"))?;
    if host.is_empty() || address.contains('/') {
        return Err(bad(&"write it without a scheme or path"));
    }
    port.parse::<u16>().map_err(|error| bad(&error))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| bad(&error))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true)
        .connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_host_and_port() {
        for good in ["127.0.0.1:7470", "node-1.example:7470", "[::1]:7470"] {
            assert!(ClientBuilder::default().endpoints([good]).build().is_ok(), "{good}");
        }
        for bad in ["", "localhost", ":7470", "h:port", "h:70000", "http://h:1", "h:1/x", "a b:1"] {
            let made = ClientBuilder::default().endpoints([bad]).build();
            assert!(matches!(made, Err(Error::Invalid { .. })), "{bad}");
        }
        assert!(ClientBuilder::default().build().is_err());
    }
}
