use super::http_fake::{Fault, SECRET, at, fake, fake_within};
use super::tests::{an_object_comes_once, lists_are_whole};
use super::*;
use crate::fixture::{GROUP, History, run};
use crate::log::read_segment;
use crate::ship::{SegmentShipper, ShipOutcome};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn a_bucket_is_a_destination_like_any_other() {
    let (_fake, destination) = fake();
    run(an_object_comes_once(&destination));
    let (_fake, destination) = fake();
    run(lists_are_whole(&destination));
}

#[test]
fn what_a_busy_service_did_or_did_not_do_is_found_out() {
    let (fake, destination) = fake();
    run(async {
        fake.set(Fault::Busy(2));
        assert_eq!(destination.put_checked("busy", &bytes("one")).await.expect("puts"), Put::Created);
        fake.set(Fault::DoneAndBusy(1));
        assert_eq!(destination.put_checked("done", &bytes("one")).await.expect("puts"), Put::Same);
        fake.set(Fault::ReplyLost);
        assert_eq!(destination.put_checked("lost", &bytes("one")).await.expect("puts"), Put::Same);
        assert_eq!(destination.put_checked("lost", &bytes("two")).await.expect("puts"), Put::Lost(bytes("one")));
        for fault in [Fault::Busy(u32::MAX), Fault::Reset] {
            fake.set(fault);
            let error = destination.put_checked("never", &bytes("one")).await.expect_err("fails");
            assert!(error.is_transient(), "{fault:?}: {error}");
            let error = destination.list("some").await.expect_err("fails");
            assert!(error.is_transient(), "{fault:?}: {error}");
            fake.set(Fault::None);
            assert_eq!(destination.length("never").await.expect("looks"), None, "{fault:?}");
        }
    });
}

#[test]
fn what_a_service_loses_or_mangles_is_not_believed() {
    let (fake, destination) = fake();
    run(async {
        fake.set(Fault::Swallowed);
        let error = destination.put_checked("swallowed", &bytes("one")).await.expect_err("nothing is there");
        assert!(matches!(&error, ArchiveError::Missing { object, .. } if object == "swallowed"), "{error}");
        fake.set(Fault::Mangled);
        let error = destination.put_checked("mangled", &bytes("one")).await.expect_err("other bytes are there");
        assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object == "mangled"), "{error}");
        fake.set(Fault::None);
        destination.put_checked("cut", &bytes("a few bytes")).await.expect("puts");
        fake.set(Fault::Truncated);
        destination.get("cut").await.expect_err("half of it");
        assert_eq!(
            destination.put_new("cut", &bytes("a few bytes")).await.map_err(|error| error.is_transient()),
            Err(true)
        );
    });
}

#[test]
fn a_bit_that_flips_on_the_way_is_found_and_a_stale_list_does_no_harm() {
    let mut history = History::found(5);
    history.live(20);
    let (fake, destination) = fake();
    run(async {
        let lineage = history.open(&destination).await;
        history.ship(&lineage, 0, 5).await;
        fake.set(Fault::Flipped);
        let error = read_segment(&destination, lineage.id(), GROUP, 5).await.expect_err("another bit");
        assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object.ends_with("00000005")), "{error}");
        // The list says that the log ends earlier than it does: the next position is taken, by the same entries.
        fake.set(Fault::Stale(2));
        let mut late = SegmentShipper::new(lineage.clone(), GROUP);
        let tail = late.tail().await.expect("a tail").expect("an end");
        let next = tail.last.index + 1;
        assert!(next + 5 < history.last().index, "the list is stale");
        let entries = history.range(next, u64::MAX);
        let outcome = late.ship(&entries, history.chain_before(next)).await.expect("adopts");
        assert!(matches!(outcome, ShipOutcome::Adopted { tail } if tail.last.index == next + 4), "{outcome:?}");
    });
}

#[test]
fn a_refusal_says_so_and_tells_no_secret() {
    let (fake, destination) = fake();
    run(async {
        fake.set(Fault::Forbidden);
        let refused = [
            destination.put_checked("o", &bytes("one")).await.expect_err("refused"),
            destination.get("o").await.expect_err("refused"),
            destination.list("o").await.expect_err("refused"),
            destination.list_here("").await.expect_err("refused"),
        ];
        for error in refused {
            assert!(matches!(error, ArchiveError::Forbidden { .. }), "{error}");
            let text = format!("{error} {error:?}");
            assert!(text.contains("HTTP 403 AccessDenied") && text.contains("s3://vault"), "{text}");
            assert!(!text.contains(SECRET) && !text.contains("Signature"), "{text}");
        }
        assert!(!format!("{destination:?}").contains(SECRET));
        fake.set(Fault::NoBucket);
        let gone = [
            destination.put_checked("o", &bytes("one")).await.expect_err("no bucket"),
            destination.get("o").await.expect_err("no bucket"),
            destination.list("o").await.expect_err("no bucket"),
        ];
        for error in gone {
            assert!(matches!(&error, ArchiveError::NoBucket { url, .. } if url.contains("vault")), "{error}");
            assert!(!error.is_integrity() && !error.is_transient(), "an absent bucket is no damaged archive");
        }
    });
}

#[test]
fn a_service_that_is_not_there_or_hangs_is_given_up() {
    let dir = tempfile::tempdir().expect("directory");
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let nobody = at(&format!("http://{free}"), dir.path(), DEADLINE);
    let (fake, destination) = fake_within(Duration::from_millis(300));
    run(async {
        let error = nobody.get("o").await.expect_err("nobody is there");
        assert!(error.is_transient() && error.to_string().contains("cannot be reached"), "{error}");
        fake.set(Fault::Hangs);
        let error = destination.put_checked("o", &bytes("one")).await.expect_err("gives up");
        assert!(matches!(&error, ArchiveError::Timeout { object, .. } if object == "o"), "{error}");
    });
}
