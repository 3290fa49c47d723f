//! The server as a client meets it: bytes over a socket.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::*;

/// One call on a connection of its own; all that comes back, or why nothing more does.
fn call(bucket: &Bucket, request: &str, body: &[u8]) -> Result<(u16, String, Vec<u8>), io::Error> {
    let mut stream = TcpStream::connect(bucket.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let (first, further) = request.split_once('\n').unwrap_or((request, ""));
    let length = body.len();
    write!(stream, "{first} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{further}\r\n")?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = bytes[end + 4..].to_vec();
    let told = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if told.is_some_and(|told: usize| told > body.len()) && !first.starts_with("HEAD") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((status, head, body))
}

const CREATE: &str = "if-none-match: *\r\n";

fn put(bucket: &Bucket, name: &str, body: &[u8]) -> Result<u16, io::Error> {
    call(bucket, &format!("PUT /jepsen/{name}\n{CREATE}"), body).map(|(status, ..)| status)
}

async fn with_bucket(test: impl FnOnce(&Bucket, &Path) + Send + 'static) {
    let dir = tempfile::tempdir().expect("tempdir");
    let bucket = Bucket::start(dir.path(), Ipv4Addr::LOCALHOST.into(), 7).await.expect("started");
    tokio::task::spawn_blocking(move || test(&bucket, dir.path())).await.expect("the test");
}

/// Tries until the mode struck, and gives what that call was answered.
fn struck<T>(bucket: &Bucket, mode: Mode, mut one: impl FnMut(usize) -> T) -> T {
    bucket.set(Some(mode)).expect("set");
    for number in 0..200 {
        let answer = one(number);
        if bucket.struck() > 0 {
            bucket.set(None).expect("set");
            return answer;
        }
    }
    panic!("{mode:?} never struck");
}

#[tokio::test]
async fn objects_are_created_once_and_read_as_files() {
    with_bucket(|bucket, root| {
        assert_eq!(put(bucket, "offsite/a/b", b"one").expect("answered"), 200);
        assert_eq!(put(bucket, "offsite/a/b", b"two").expect("answered"), 412);
        assert_eq!(call(bucket, "PUT /jepsen/offsite/c", b"x").expect("answered").0, 403, "only what is created anew");
        assert_eq!(call(bucket, "DELETE /jepsen/offsite/a/b", b"").expect("answered").0, 403);
        for outside in ["other/a", "offsite/../../a", "offsite/%2e%2e/a"] {
            assert_eq!(put(bucket, outside, b"x").expect("answered"), 403, "{outside}");
        }
        assert_eq!(fs::read(root.join("offsite/a/b")).expect("a file"), b"one");
        let (status, head, body) = call(bucket, "GET /jepsen/offsite/a/b", b"").expect("answered");
        assert_eq!((status, body.as_slice()), (200, &b"one"[..]));
        assert!(head.contains("etag: \"") && head.contains("last-modified: ") && head.contains(" gmt"), "{head}");
        let (status, head, body) = call(bucket, "HEAD /jepsen/offsite/a/b", b"").expect("answered");
        assert_eq!((status, body.len()), (200, 0));
        assert!(head.contains("content-length: 3"), "{head}");
        assert_eq!(call(bucket, "GET /jepsen/offsite/none", b"").expect("answered").0, 404);
        assert!(fs::read_dir(root.join("unnamed-objects")).expect("a folder").next().is_none());
    })
    .await;
}

#[tokio::test]
async fn lists_have_pages_folders_and_beginnings() {
    with_bucket(|bucket, _| {
        for number in 0..250 {
            put(bucket, &format!("offsite/log/{number:03}"), b"x").expect("created");
        }
        put(bucket, "offsite/other/a%26b", b"x").expect("created");
        let list = |query: &str| {
            let (status, _, body) = call(bucket, &format!("GET /jepsen?list-type=2{query}"), b"").expect("answered");
            assert_eq!(status, 200);
            String::from_utf8(body).expect("text")
        };
        let mut seen = Vec::new();
        let mut next = String::new();
        loop {
            let page = list(&format!("&prefix=offsite%2Flog%2F{next}"));
            let keys = page.split("<Key>").skip(1).map(|rest| rest.split('<').next().unwrap_or("").to_owned());
            seen.extend(keys);
            let Some(token) = page.split("<NextContinuationToken>").nth(1) else { break };
            next = format!("&continuation-token={}", token.split('<').next().unwrap_or(""));
        }
        let all: Vec<String> = (0..250).map(|number| format!("offsite/log/{number:03}")).collect();
        assert_eq!(seen, all);
        let folders = list("&prefix=offsite/&delimiter=/");
        assert!(
            folders.contains("<Prefix>offsite/log/</Prefix>") && folders.contains("<Prefix>offsite/other/</Prefix>")
        );
        assert!(!folders.contains("<Key>"), "{folders}");
        let later = list("&prefix=offsite/log/&start-after=offsite/log/247");
        assert_eq!(later.matches("<Key>").count(), 2, "{later}");
        assert!(list("&prefix=offsite/other/").contains("a&amp;b"));
    })
    .await;
}

#[tokio::test]
async fn each_mode_does_what_it_says_and_no_more() {
    with_bucket(|bucket, root| {
        put(bucket, "offsite/a", &[7; 5000]).expect("created");
        let read = |_: usize| call(bucket, "GET /jepsen/offsite/a", b"");
        assert_eq!(struck(bucket, Mode::Unavailable, read).expect("answered").0, 503);
        assert!(struck(bucket, Mode::Reset, read).is_err());
        assert!(struck(bucket, Mode::Truncated, read).is_err());
        let flipped = struck(bucket, Mode::Flipped, read).expect("answered").2;
        let differing: u32 = flipped.iter().map(|byte| (byte ^ 7).count_ones()).sum();
        assert_eq!(differing, 1);
        assert_eq!(fs::read(root.join("offsite/a")).expect("a file"), [7; 5000], "what is stored is whole");
        let create = |mode: Mode, kind: &str| {
            let mut last = String::new();
            let answer = struck(bucket, mode, |number| {
                last = format!("offsite/{kind}{number}");
                put(bucket, &last, b"x")
            });
            (answer, root.join(last).exists())
        };
        let (lost, stored) = create(Mode::ReplyLost, "lost");
        assert!(lost.is_err() && stored, "done, and nobody is told");
        let (reset, stored) = create(Mode::Reset, "reset");
        assert!(reset.is_err() && !stored);
        let (swallowed, stored) = create(Mode::Swallowed, "swallowed");
        assert!(swallowed.expect("answered") == 200 && !stored);
        bucket.set(Some(Mode::StaleList)).expect("set");
        put(bucket, "offsite/later", b"x").expect("created");
        let list = |_: usize| call(bucket, "GET /jepsen?list-type=2&prefix=offsite/", b"").expect("answered").2;
        for _ in 0..200 {
            let page = String::from_utf8(list(0)).expect("text");
            assert!(page.contains("offsite/a<"), "{page}");
            if bucket.struck() > 0 {
                assert!(!page.contains("offsite/later<"), "{page}");
                return;
            }
        }
        panic!("no list was stale");
    })
    .await;
}
