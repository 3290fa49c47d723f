//! PostgreSQL as a peer: a primary and two standbys, one of which has to have each commit on its disk.
//!
//! Settings are its own but for addresses, connections and the quorum. A client has a connection of its own, and so a
//! process of its own at the primary, as PostgreSQL is used.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use jepsen_tests::cluster::{Orphan, Ports, spawn};
use tokio_postgres::{Client, NoTls, Statement};

const CONNECTIONS: usize = 400;
const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Sends each commit to both, and waits for one.
const QUORUM: &str = "synchronous_standby_names=ANY 1 (s1,s2)";
/// Where Debian has programs that it does not put into everybody's path.
const DEBIAN: &str = "/usr/lib/postgresql/15/bin";
const TABLE: &str = "CREATE TABLE records (user_id text, collection text, id text, payload bytea NOT NULL, \
     PRIMARY KEY (user_id, collection, id))";

/// A primary and two standbys.
pub struct Postgres {
    servers: Vec<Child>,
    ports: Ports,
    // Behind the servers: they end first.
    dir: tempfile::TempDir,
}

/// User and group that servers run as: it refuses to run as root.
fn account() -> anyhow::Result<Option<(u32, u32)>> {
    // SAFETY: asks the kernel who this is.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).context("there is no user `postgres`")?;
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, user, group, ..] = fields[..] else { bail!("a short line in /etc/passwd") };
    Ok(Some((user.parse()?, group.parse()?)))
}

fn command(program: &str, dir: &Path) -> anyhow::Result<Command> {
    let debian = Path::new(DEBIAN).join(program);
    let mut command = Command::new(if debian.exists() { debian } else { program.into() });
    if let Some((user, group)) = account()? {
        command.uid(user).gid(group);
    }
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
        command.env_remove(name);
    }
    // A directory that it may be in.
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// Runs a program to its end.
fn run(mut command: Command, what: &str) -> anyhow::Result<()> {
    let done = command.stderr(Stdio::piped()).output().with_context(|| format!("start {what}"))?;
    ensure!(done.status.success(), "{what}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

impl Postgres {
    /// Makes the three, and the table.
    pub async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700))?;
        if let Some((user, group)) = account()? {
            std::os::unix::fs::chown(dir.path(), Some(user), Some(group))?;
        }
        let ports = Ports::claim().context("no thirty free ports in a row")?;
        let mut postgres = Self { servers: Vec::new(), ports, dir };
        let mut initdb = command("initdb", postgres.dir.path())?;
        initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "-D"]).arg(postgres.data(0));
        run(initdb, "initdb")?;
        postgres.serve(0)?;
        let primary = postgres.connect_when_ready(0).await?;
        for standby in [1, 2] {
            let mut copy = command("pg_basebackup", postgres.dir.path())?;
            copy.args(["-h", "127.0.0.1", "-p", &postgres.port(0).to_string(), "-U", "postgres", "-X", "stream"]);
            copy.args(["-c", "fast", "-D"]).arg(postgres.data(standby));
            run(copy, "pg_basebackup")?;
            std::fs::write(postgres.data(standby).join("standby.signal"), "")?;
            postgres.serve(standby)?;
        }
        let end = Instant::now() + READY_WITHIN;
        loop {
            let asked = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'";
            if primary.query_one(asked, &[]).await?.get::<_, i64>(0) == 2 {
                break;
            }
            ensure!(Instant::now() < end, "the standbys do not stream; see {}", postgres.said());
            tokio::time::sleep(POLL).await;
        }
        primary.batch_execute(TABLE).await?;
        Ok(postgres)
    }

    fn port(&self, place: u16) -> u16 {
        self.ports.base + place
    }

    fn data(&self, place: u16) -> PathBuf {
        self.dir.path().join(format!("s{place}"))
    }

    fn serve(&mut self, place: u16) -> anyhow::Result<()> {
        let mut server = command("postgres", self.dir.path())?;
        let sockets = format!("unix_socket_directories={}", self.dir.path().display());
        let connections = format!("max_connections={CONNECTIONS}");
        server.arg("-D").arg(self.data(place)).args(["-p", &self.port(place).to_string()]);
        for setting in ["listen_addresses=127.0.0.1", &sockets, &connections, "fsync=on", "synchronous_commit=on"] {
            server.args(["-c", setting]);
        }
        if place == 0 {
            server.args(["-c", QUORUM]);
        } else {
            let primary = self.port(0);
            let told = format!("host=127.0.0.1 port={primary} user=postgres application_name=s{place}");
            server.args(["-c", &format!("primary_conninfo={told}")]);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(place))?;
        server.stderr(log);
        self.servers.push(spawn(server, Orphan::Killed).context("start postgres")?);
        Ok(())
    }

    fn log(&self, place: u16) -> PathBuf {
        self.dir.path().join(format!("s{place}.log"))
    }

    /// The end of what its servers said last.
    fn said(&self) -> String {
        let texts = (0..3).map(|place| std::fs::read_to_string(self.log(place)).unwrap_or_default());
        texts.filter_map(|text| text.lines().last().map(str::to_owned)).collect::<Vec<_>>().join(" | ")
    }

    /// First processes of its servers.
    pub fn pids(&self) -> Vec<i32> {
        self.servers.iter().filter_map(|child| i32::try_from(child.id()).ok()).collect()
    }

    async fn connect(&self, place: u16) -> anyhow::Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port(place)).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            // How it ended is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(client)
    }

    async fn connect_when_ready(&self, place: u16) -> anyhow::Result<Client> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            match self.connect(place).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() >= end => {
                    return Err(error.context(format!("postgres is not ready: {}", self.said())));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// One connection to the primary for each client.
    pub async fn links(&self, clients: usize) -> anyhow::Result<Vec<Session>> {
        let mut sessions = Vec::with_capacity(clients);
        for _ in 0..clients {
            sessions.push(Session::new(self.connect(0).await?).await?);
        }
        Ok(sessions)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        for pid in self.pids() {
            // SAFETY: a plain system call on a child that is not reaped yet: ends at once, with all its processes.
            unsafe { libc::kill(pid, libc::SIGQUIT) };
        }
        let end = Instant::now() + Duration::from_secs(10);
        for server in &mut self.servers {
            while matches!(server.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(POLL);
            }
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A connection with its prepared statements.
#[derive(Clone)]
pub struct Session(Arc<Prepared>);

struct Prepared {
    client: Client,
    put: Statement,
    batch: Statement,
    get: Statement,
    list: Statement,
}

impl Session {
    async fn new(client: Client) -> anyhow::Result<Self> {
        let upsert = "ON CONFLICT (user_id, collection, id) DO UPDATE SET payload = excluded.payload";
        let put = format!("INSERT INTO records VALUES ($1, 'notes', $2, $3) {upsert}");
        let batch = format!("INSERT INTO records SELECT $1, 'notes', unnest($2::text[]), unnest($3::bytea[]) {upsert}");
        let get = "SELECT payload FROM records WHERE user_id = $1 AND collection = 'notes' AND id = $2";
        let list = "SELECT id, payload FROM records WHERE user_id = $1 AND collection = 'notes' ORDER BY id";
        Ok(Self(Arc::new(Prepared {
            put: client.prepare(&put).await?,
            batch: client.prepare(&batch).await?,
            get: client.prepare(get).await?,
            list: client.prepare(list).await?,
            client,
        })))
    }

    /// Stores a record.
    pub async fn put(&self, user: &str, id: &str, value: &[u8]) -> anyhow::Result<()> {
        self.0.client.execute(&self.0.put, &[&user, &id, &value]).await?;
        Ok(())
    }

    /// Stores several records of a user together.
    pub async fn batch(&self, user: &str, records: &[(String, Bytes)]) -> anyhow::Result<()> {
        let ids: Vec<&str> = records.iter().map(|(id, _)| id.as_str()).collect();
        let values: Vec<&[u8]> = records.iter().map(|(_, value)| value.as_ref()).collect();
        self.0.client.execute(&self.0.batch, &[&user, &ids, &values]).await?;
        Ok(())
    }

    /// Bytes of a record. It is read at the primary, which asks nobody whether it still is one.
    pub async fn get(&self, user: &str, id: &str) -> anyhow::Result<usize> {
        let row = self.0.client.query_one(&self.0.get, &[&user, &id]).await?;
        Ok(row.get::<_, &[u8]>(0).len())
    }

    /// Number of records of a user.
    pub async fn list(&self, user: &str) -> anyhow::Result<usize> {
        Ok(self.0.client.query(&self.0.list, &[&user]).await?.len())
    }
}
