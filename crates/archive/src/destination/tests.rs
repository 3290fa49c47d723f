use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as StoreResult,
};

use super::*;
use crate::fixture::{Folder, run};

/// What the store does to the next writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None = 0,
    /// Written, and the answer is lost.
    ReplyLost = 1,
    /// Not written, and the answer says yes.
    Swallowed = 2,
    /// Never answers.
    Hangs = 3,
    /// Not written, and says so.
    Refused = 4,
    /// Other bytes of the same length are written, and the answer says yes.
    Mangled = 5,
}

/// A store in memory that can be made to fail.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: InMemory,
    fault: AtomicU8,
    /// Lists that were asked for: prefix, and what they begin after.
    lists: Mutex<Vec<(String, Option<String>)>>,
}

impl Faulty {
    pub(crate) fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    /// Lists asked for since the last call.
    pub(crate) fn lists(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut self.lists.lock().expect("lock"))
    }

    fn note_list(&self, prefix: Option<&Path>, after: Option<&Path>) {
        let text = |path: &Path| path.to_string();
        self.lists.lock().expect("lock").push((prefix.map(text).unwrap_or_default(), after.map(text)));
    }
}

pub(crate) fn faulty() -> (Arc<Faulty>, Destination) {
    let store = Arc::new(Faulty { inner: InMemory::new(), fault: AtomicU8::new(0), lists: Mutex::default() });
    let config = DestinationConfig::from_url("memory:///");
    let destination = Destination::with_store(config, Arc::clone(&store) as _, None, Duration::from_millis(200));
    (store, destination)
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = StoreResult<T>> + Send + 'a>>;

fn lost() -> Error {
    Error::Generic { store: "Faulty", source: "connection reset".into() }
}

impl ObjectStore for Faulty {
    fn put_opts<'a, 'b, 'c>(&'a self, at: &'b Path, payload: PutPayload, options: PutOptions) -> Boxed<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let fault = self.fault.load(Ordering::SeqCst);
            let said_yes = || PutResult { e_tag: None, version: None, extensions: Default::default() };
            match fault {
                1 => self.inner.put_opts(at, payload, options).await.and(Err(lost())),
                2 => Ok(said_yes()),
                3 => std::future::pending().await,
                4 => Err(lost()),
                5 => {
                    let mut bytes = Bytes::from(payload).to_vec();
                    bytes.iter_mut().for_each(|byte| *byte ^= 1);
                    self.inner.put_opts(at, bytes.into(), options).await
                }
                _ => self.inner.put_opts(at, payload, options).await,
            }
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        _: &'b Path,
        _: PutMultipartOptions,
    ) -> Boxed<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async { Err(lost()) })
    }

    fn get_opts<'a, 'b, 'c>(&'a self, at: &'b Path, options: GetOptions) -> Boxed<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.get_opts(at, options)
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.note_list(prefix, None);
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.note_list(prefix, Some(offset));
        self.inner.list_with_offset(prefix, offset)
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Boxed<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, _: &'b Path, _: &'d Path, _: CopyOptions) -> Boxed<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        Box::pin(async { Err(lost()) })
    }
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// What every kind of destination does.
pub(crate) async fn an_object_comes_once(destination: &Destination) {
    assert_eq!(destination.put_new("a/b/c", &bytes("one")).await.expect("puts"), Put::Created);
    assert_eq!(destination.put_new("a/b/c", &bytes("one")).await.expect("puts"), Put::Same);
    assert_eq!(destination.put_new("a/b/c", &bytes("two")).await.expect("puts"), Put::Lost(bytes("one")));
    assert_eq!(destination.get("a/b/c").await.expect("gets"), bytes("one"));
    assert_eq!(destination.length("a/b/c").await.expect("looks"), Some(3));
    assert_eq!(destination.length("a/b/d").await.expect("looks"), None);
    let missing = destination.get("a/b/d").await.expect_err("missing");
    assert!(matches!(&missing, ArchiveError::Missing { object, .. } if object == "a/b/d"));
}

#[test]
fn an_object_is_created_once() {
    let folder = Folder::new();
    run(an_object_comes_once(&folder.destination()));
    assert_eq!(std::fs::read(folder.file("a/b/c")).expect("reads"), b"one");
}

#[test]
fn a_directory_is_settled_once_per_process() {
    let folder = Folder::new();
    let destination = folder.destination();
    run(async {
        destination.put_new("a/b/c", &bytes("one")).await.expect("puts");
        destination.put_new("a/b/d", &bytes("one")).await.expect("puts");
    });
    let known = destination.inner.folder.as_ref().expect("a folder");
    let parent = folder.root().canonicalize().expect("path").join("a/b");
    assert_eq!(*known.durable(), HashSet::from([parent]));
}

#[test]
fn what_root_makes_in_a_folder_of_others_is_theirs_to_read() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown};
    const OTHER: u32 = 12_345;
    let folder = Folder::new();
    let destination = folder.destination();
    std::fs::create_dir(folder.file("theirs")).expect("made");
    if chown(folder.file("theirs"), Some(OTHER), Some(OTHER)).is_err() {
        eprintln!("skipped: only root can give a folder to somebody else");
        return;
    }
    let seen = |object: &str| {
        let found = std::fs::metadata(folder.file(object)).expect("looks");
        (found.uid(), found.gid(), found.permissions().mode() & 0o777)
    };
    std::fs::set_permissions(folder.file("theirs"), PermissionsExt::from_mode(0o750)).expect("set");
    run(async {
        destination.put_new("theirs/a/first", &bytes("x")).await.expect("puts");
        destination.put_new("theirs/a/second", &bytes("x")).await.expect("puts");
        destination.put_new("ours/a/first", &bytes("x")).await.expect("puts");
    });
    for object in ["theirs/a/first", "theirs/a/second"] {
        assert_eq!((seen(object).0, seen(object).1), (OTHER, OTHER), "{object}");
        assert_eq!(seen(object).2 & 0o440, 0o440, "{object}: {:o}", seen(object).2);
    }
    assert_eq!((seen("theirs/a").0, seen("theirs/a").2 & 0o750), (OTHER, 0o750));
    assert_eq!(seen("ours/a/first").0, 0);
    assert_eq!(seen("ours/a").0, 0);
}

/// As above.
pub(crate) async fn lists_are_whole(destination: &Destination) {
    for object in ["p/2", "p/10", "p/1/x", "p/3", "p/1.x", "q/1"] {
        destination.put_new(object, &bytes("x")).await.expect("puts");
    }
    let names = |listed: Vec<Listed>| listed.into_iter().map(|found| found.path).collect::<Vec<_>>();
    assert_eq!(names(destination.list("p").await.expect("lists")), ["p/1.x", "p/1/x", "p/10", "p/2", "p/3"]);
    assert_eq!(names(destination.list("nothing").await.expect("lists")), Vec::<String>::new());
    assert_eq!(names(destination.list_after("p", "p/10").await.expect("lists")), ["p/2", "p/3"]);
    let (objects, folders) = destination.list_here("").await.expect("lists");
    assert_eq!((names(objects), folders), (vec![], vec!["p".to_owned(), "q".to_owned()]));
    let (objects, folders) = destination.list_here("p").await.expect("lists");
    let directly = ["p/1.x", "p/10", "p/2", "p/3"].map(str::to_owned).to_vec();
    assert_eq!((names(objects), folders), (directly, vec!["1".to_owned()]));
    assert_eq!(destination.list_here("nothing").await.expect("lists"), (vec![], vec![]));
}

#[test]
fn lists_are_sorted_and_hide_unfinished_uploads() {
    let folder = Folder::new();
    let destination = folder.destination();
    std::fs::create_dir(folder.file("p")).expect("makes");
    std::fs::write(folder.file("p/3#1"), "unfinished").expect("writes");
    run(lists_are_whole(&destination));
}

#[test]
fn a_url_that_cannot_be_used_says_what_to_do() {
    let cases = [
        ("s3://bucket?endpiont=x", "unknown ?endpiont="),
        ("az://bucket", "?account=NAME"),
        ("ftp://host/x", "unknown kind"),
        ("/tmp/x", "file:///absolute/path"),
        ("file://host/x", "file:///absolute/path"),
        ("file:///tmp?x=1", "no ?query"),
        ("file:///no/such/folder/here", "mount the disk"),
    ];
    for (url, expected) in cases {
        let error = Destination::open(&DestinationConfig::from_url(url)).expect_err(url).to_string();
        assert!(error.contains(expected) && error.contains(url), "{error}");
    }
}

#[test]
fn a_lost_reply_is_settled_by_reading() {
    let (store, destination) = faulty();
    run(async {
        store.set(Fault::ReplyLost);
        assert_eq!(destination.put_new("o", &bytes("one")).await.expect("settled"), Put::Same);
        assert_eq!(destination.put_new("o", &bytes("two")).await.expect("settled"), Put::Lost(bytes("one")));
        store.set(Fault::Refused);
        let error = destination.put_new("other", &bytes("one")).await.expect_err("refused");
        assert!(matches!(&error, ArchiveError::Destination { object, .. } if object == "other"), "{error}");
        assert!(error.is_transient() && !error.is_integrity());
    });
}

#[test]
fn what_was_created_is_read_back() {
    let (store, destination) = faulty();
    run(async {
        assert_eq!(destination.put_checked("o", &bytes("one")).await.expect("puts"), Put::Created);
        assert_eq!(destination.put_checked("o", &bytes("two")).await.expect("puts"), Put::Lost(bytes("one")));
        store.set(Fault::Swallowed);
        let error = destination.put_checked("swallowed", &bytes("one")).await.expect_err("nothing is there");
        assert!(matches!(&error, ArchiveError::Missing { object, .. } if object == "swallowed"), "{error}");
        store.set(Fault::Mangled);
        let error = destination.put_checked("mangled", &bytes("one")).await.expect_err("other bytes are there");
        assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object == "mangled"), "{error}");
    });
}

/// What lies below a mount is another disk.
#[test]
fn a_folder_that_goes_away_is_never_made_anew() {
    let folder = Folder::new();
    let destination = folder.destination();
    let away = folder.dir.path().join("away");
    run(async {
        destination.put_checked("a/one", &bytes("one")).await.expect("puts");
        std::fs::rename(folder.root(), &away).expect("goes away");
        for below in ["is gone", "another folder"] {
            let put = destination.put_checked("a/two", &bytes("two")).await.expect_err("nowhere to put it");
            let list = destination.list("").await.expect_err("nothing to list");
            let get = destination.get("a/one").await.expect_err("nothing to read");
            for error in [put, list, get] {
                assert!(matches!(error, ArchiveError::BadDestination { .. }), "{error}");
                assert!(error.to_string().contains(below) && error.to_string().contains("mount the disk"), "{error}");
            }
            if below == "is gone" {
                assert!(!folder.root().exists(), "it was made anew");
                std::fs::create_dir(folder.root()).expect("what lies below the mount");
            }
        }
        assert_eq!(std::fs::read_dir(folder.root()).expect("reads").count(), 0, "nothing was written there");
        std::fs::remove_dir(folder.root()).expect("removes");
        std::fs::rename(&away, folder.root()).expect("comes back");
        assert_eq!(destination.put_checked("a/two", &bytes("two")).await.expect("puts"), Put::Created);
    });
}

#[test]
fn a_store_that_hangs_is_given_up() {
    let (store, destination) = faulty();
    run(async {
        store.set(Fault::Hangs);
        let error = destination.put_new("o", &bytes("one")).await.expect_err("gives up");
        assert!(matches!(&error, ArchiveError::Timeout { object, .. } if object == "o"), "{error}");
        store.set(Fault::None);
        assert_eq!(destination.put_new("o", &bytes("one")).await.expect("works again"), Put::Created);
    });
}

#[test]
fn an_object_larger_than_any_of_ours_is_not_read() {
    let folder = Folder::new();
    let destination = folder.destination();
    let file = std::fs::File::create(folder.file("huge")).expect("creates");
    file.set_len(OBJECT_BYTES_MAX + 1).expect("grows");
    let error = run(destination.get("huge")).expect_err("too large");
    assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object == "huge"), "{error}");
}
