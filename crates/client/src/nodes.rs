//! The nodes as this client knows them: a channel each, who leads, who failed just now.
//!
//! Invariants: nothing here is authority. A wrong hint costs one attempt, never a wrong answer, so that relaxed atomics
//! are enough and no lock is needed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use holdfast_wire::{reply, v1};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::transport::Channel;

use crate::budget::{Budget, RetryBudget};

/// A server time older than this, as the local clock counts, says too little about now.
const SERVER_TIME_USABLE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Node {
    address: String,
    channel: Channel,
    /// From the header of its answers; 0 = not known yet.
    node_id: AtomicU64,
    /// Not before this, in milliseconds since `started`, if another node is there.
    avoid_until_ms: AtomicU64,
}

/// All nodes of a client.
#[derive(Debug)]
pub(crate) struct Nodes {
    list: Vec<Node>,
    /// 0 = not known.
    leader_id: AtomicU64,
    /// Where calls go that no hint directs: the last node that answered.
    current: AtomicUsize,
    started: Instant,
    budget: Budget,
    /// Of calls that may be under way at once.
    places: Semaphore,
    /// Of calls that may wait for one.
    waiting: Semaphore,
    server_time_ms: AtomicU64,
    server_time_seen_ms: AtomicU64,
}

impl Nodes {
    pub(crate) fn new(channels: Vec<(String, Channel)>, budget: RetryBudget, calls_max: usize) -> Self {
        let list = channels
            .into_iter()
            .map(|(address, channel)| Node {
                address,
                channel,
                node_id: AtomicU64::new(0),
                avoid_until_ms: AtomicU64::new(0),
            })
            .collect();
        Self {
            list,
            leader_id: AtomicU64::new(0),
            current: AtomicUsize::new(0),
            started: Instant::now(),
            budget: Budget::new(budget),
            places: Semaphore::new(calls_max.clamp(1, Semaphore::MAX_PERMITS)),
            waiting: Semaphore::new(calls_max.min(Semaphore::MAX_PERMITS)),
            server_time_ms: AtomicU64::new(0),
            server_time_seen_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn channel(&self, index: usize) -> Channel {
        self.list[index].channel.clone()
    }

    pub(crate) fn address(&self, index: usize) -> &str {
        &self.list[index].address
    }

    /// All addresses, for people.
    pub(crate) fn addresses(&self) -> String {
        self.list.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Where the next attempt goes; `previous` is where this call failed last.
    pub(crate) fn pick(&self, previous: Option<usize>) -> usize {
        let leader_id = self.leader_id.load(Relaxed);
        if leader_id != 0 {
            let leader = self.list.iter().position(|node| node.node_id.load(Relaxed) == leader_id);
            // An unknown leader is one of those that have not answered yet.
            let leader = leader.or_else(|| self.list.iter().position(|node| node.node_id.load(Relaxed) == 0));
            if let Some(leader) = leader.filter(|leader| self.usable(*leader) && Some(*leader) != previous) {
                return leader;
            }
        }
        self.pick_any(previous, self.current.load(Relaxed))
    }

    fn usable(&self, index: usize) -> bool {
        self.list[index].avoid_until_ms.load(Relaxed) <= self.now_ms()
    }

    /// The same for calls that the leader serves no better than others; the first one goes to `start`.
    pub(crate) fn pick_any(&self, previous: Option<usize>, start: usize) -> usize {
        let len = self.list.len();
        let start = previous.map_or(start % len, |previous| previous + 1);
        let others = (start..start + len).map(|index| index % len);
        let mut others = others.filter(|index| Some(*index) != previous || len == 1);
        let least_bad = others.clone().min_by_key(|index| self.list[*index].avoid_until_ms.load(Relaxed));
        others.find(|index| self.usable(*index)).or(least_bad).unwrap_or(0)
    }

    /// A node answered.
    pub(crate) fn answered(&self, index: usize, header: Option<&v1::ResponseHeader>) {
        let node = &self.list[index];
        if node.avoid_until_ms.load(Relaxed) != 0 {
            node.avoid_until_ms.store(0, Relaxed);
        }
        self.current.store(index, Relaxed);
        let Some(header) = header else { return };
        if header.node_id != 0 && node.node_id.load(Relaxed) != header.node_id {
            node.node_id.store(header.node_id, Relaxed);
        }
        if self.leader_id.load(Relaxed) != header.leader_id {
            self.leader_id.store(header.leader_id, Relaxed);
        }
        if let Some(time) = &header.server_time {
            self.server_time_ms.fetch_max(reply::millis(time), Relaxed);
            self.server_time_seen_ms.store(self.now_ms(), Relaxed);
        }
    }

    /// A node did not answer, or said that it cannot: ask others for a while. If it led, it may lead no more.
    pub(crate) fn failed(&self, index: usize, avoid: Duration) {
        let node = &self.list[index];
        node.avoid_until_ms.store(self.now_ms() + avoid.as_millis() as u64, Relaxed);
        let node_id = node.node_id.load(Relaxed);
        if node_id != 0 {
            let _ = self.leader_id.compare_exchange(node_id, 0, Relaxed, Relaxed);
        }
    }

    /// A place for a call, held until it ends; `None` = none became free in time, or as many wait as have one.
    pub(crate) async fn enter(&self, wait: Duration) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        let _waiting = self.waiting.try_acquire().ok()?;
        tokio::time::timeout(wait, self.places.acquire()).await.ok()?.ok()
    }

    /// A call begins: its first attempt is free, and earns a part of a retry.
    pub(crate) fn called(&self) {
        self.budget.called();
    }

    /// Pays for one more attempt; false = the budget is spent.
    pub(crate) fn may_retry(&self) -> bool {
        self.budget.retry(self.now_ms())
    }

    /// Time of the log when it was last heard of; `None` = not lately enough to judge a request's age by.
    pub(crate) fn server_time_ms(&self) -> Option<u64> {
        let age_ms = self.now_ms().saturating_sub(self.server_time_seen_ms.load(Relaxed));
        let time_ms = self.server_time_ms.load(Relaxed);
        (time_ms != 0 && u128::from(age_ms) < SERVER_TIME_USABLE.as_millis()).then_some(time_ms)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight have places and eight wait; the next one is told at once, and whoever gives up makes room for another.
    #[tokio::test]
    async fn as_many_wait_for_a_place_as_have_one() {
        let nodes = nodes(1);
        let mut places = Vec::new();
        for _ in 0..8 {
            places.push(nodes.enter(LONG).await.expect("a place"));
        }
        let mut waiting: Vec<_> = (0..8).map(|_| Box::pin(nodes.enter(LONG))).collect();
        for one in &mut waiting {
            assert!(tokio::time::timeout(Duration::ZERO, one.as_mut()).await.is_err());
        }
        assert!(nodes.enter(LONG).await.is_none(), "without any wait");
        waiting.pop();
        let mut next = Box::pin(nodes.enter(LONG));
        assert!(tokio::time::timeout(Duration::ZERO, next.as_mut()).await.is_err());
        places.clear();
        assert!(next.await.is_some() && waiting.remove(0).await.is_some());
    }

    const LONG: Duration = Duration::from_secs(60);

    fn nodes(count: usize) -> Nodes {
        let channel = || tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Nodes::new((0..count).map(|index| (format!("node{index}"), channel())).collect(), RetryBudget::default(), 8)
    }

    fn header(node_id: u64, leader_id: u64) -> v1::ResponseHeader {
        v1::ResponseHeader { node_id, leader_id, ..Default::default() }
    }

    #[tokio::test]
    async fn a_failing_node_is_left_for_each_other_one_in_turn() {
        let nodes = nodes(3);
        assert_eq!(nodes.pick(None), 0);
        nodes.failed(0, LONG);
        assert_eq!(nodes.pick(Some(0)), 1);
        nodes.failed(1, LONG);
        assert_eq!(nodes.pick(Some(1)), 2);
        nodes.failed(2, LONG);
        assert_ne!(nodes.pick(Some(2)), 2, "all failed: another than the last");
        nodes.answered(1, None);
        assert_eq!(nodes.pick(None), 1);
    }

    #[tokio::test]
    async fn the_leader_is_asked_first_once_it_is_known() {
        let nodes = nodes(3);
        nodes.answered(0, Some(&header(11, 13)));
        assert_eq!(nodes.pick(None), 1, "the leader is one of those not heard of");
        nodes.answered(1, Some(&header(12, 13)));
        assert_eq!(nodes.pick(None), 2);
        nodes.answered(2, Some(&header(13, 13)));
        assert_eq!(nodes.pick(None), 2);
        nodes.failed(2, LONG);
        assert_ne!(nodes.pick(Some(2)), 2, "a dead leader is no leader");
        nodes.answered(0, Some(&header(11, 12)));
        assert_eq!(nodes.pick(None), 1);
    }

    #[tokio::test]
    async fn other_calls_know_who_failed_and_who_answered() {
        let nodes = nodes(3);
        nodes.failed(0, LONG);
        assert_eq!(nodes.pick(None), 1);
        nodes.answered(2, None);
        assert_eq!(nodes.pick(None), 2, "who answered last");
        nodes.failed(1, LONG);
        nodes.answered(1, None);
        assert_eq!(nodes.pick(None), 1, "an answer makes up for a failure");
    }

    #[tokio::test]
    async fn when_all_failed_the_one_to_be_left_alone_shortest_is_asked() {
        let nodes = nodes(3);
        nodes.failed(0, LONG * 2);
        nodes.failed(1, LONG * 3);
        nodes.failed(2, LONG);
        assert_eq!(nodes.pick(None), 2);
        assert_eq!(nodes.pick(Some(2)), 0);
    }

    #[tokio::test]
    async fn a_leader_that_leads_no_more_is_forgotten() {
        let nodes = nodes(3);
        nodes.answered(2, Some(&header(13, 13)));
        assert_eq!(nodes.pick(Some(0)), 2);
        assert_eq!(nodes.pick(Some(2)), 0, "not the one that failed just now");
        // It said that it does not lead; it may be asked again at any time, but not first.
        nodes.failed(2, Duration::ZERO);
        assert_eq!(nodes.pick(Some(0)), 1);
    }

    #[tokio::test]
    async fn one_node_is_asked_again_and_again() {
        let nodes = nodes(1);
        nodes.failed(0, LONG);
        assert_eq!(nodes.pick(Some(0)), 0);
    }

    #[tokio::test]
    async fn server_time_never_goes_back() {
        let nodes = nodes(1);
        assert_eq!(nodes.server_time_ms(), None);
        let at = |ms| v1::ResponseHeader {
            server_time: Some(reply::timestamp(holdfast_model::id::Millis(ms))),
            ..header(1, 1)
        };
        nodes.answered(0, Some(&at(5_000)));
        nodes.answered(0, Some(&at(4_000)));
        assert_eq!(nodes.server_time_ms(), Some(5_000));
    }
    #[tokio::test]
    async fn an_old_server_time_says_nothing_about_now() {
        let mut nodes = nodes(1);
        let server_time = Some(reply::timestamp(holdfast_model::id::Millis(5_000)));
        nodes.answered(0, Some(&v1::ResponseHeader { server_time, ..header(1, 1) }));
        nodes.started -= SERVER_TIME_USABLE - LONG;
        assert_eq!(nodes.server_time_ms(), Some(5_000));
        nodes.started -= LONG;
        assert_eq!(nodes.server_time_ms(), None);
    }
}
