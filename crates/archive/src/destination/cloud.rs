//! Buckets: S3 and what speaks its protocol, Google Cloud Storage, Azure containers.
//!
//! Invariants:
//! - What the URL says is what is used: the environment gives credentials and a region, and nothing that changes where
//!   or how objects are written.
//! - Plain HTTP only to an endpoint that was written so.
//! - No answer of a server and no URL of a request gets into an error's text: either may hold a credential.

use std::collections::BTreeMap;
use std::path::Path as FsPath;
use std::str::FromStr;
use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::DestinationConfig;
use super::versions::Versions;

/// One request, within the deadline of the whole call.
const REQUEST: Duration = Duration::from_secs(45);
const CONNECT: Duration = Duration::from_secs(5);

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    S3,
    Google,
    Azure,
}

impl Service {
    pub(super) fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self::S3),
            "gs" => Some(Self::Google),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::S3 => &["endpoint", "region"],
            Self::Google => &["endpoint"],
            Self::Azure => &["endpoint", "account"],
        }
    }
}

/// A bucket as the URL names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    service: Service,
    name: String,
    prefix: Path,
    settings: BTreeMap<String, String>,
}

impl Bucket {
    /// Reads `s3://bucket/prefix?endpoint=…`.
    pub(super) fn parse(service: Service, url: &Url) -> Result<Self, String> {
        let name = url.host_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("no bucket; write {}://bucket/prefix", url.scheme()))?;
        if !url.username().is_empty() || url.password().is_some() || url.port().is_some() || url.fragment().is_some() {
            return Err(format!(
                "write {}://bucket/prefix: no user, no port and no #fragment; credentials go into a file",
                url.scheme()
            ));
        }
        let mut settings = BTreeMap::new();
        for (key, value) in url.query_pairs() {
            if !service.keys().contains(&key.as_ref()) {
                return Err(format!("unknown ?{key}=; known: {}", service.keys().join(", ")));
            }
            if value.is_empty() || settings.insert(key.to_string(), value.into_owned()).is_some() {
                return Err(format!("?{key}= needs one value"));
            }
        }
        if let Some(endpoint) = settings.get("endpoint") {
            let parsed = Url::parse(endpoint).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
            let plain = |url: &Url| url.username().is_empty() && url.password().is_none() && url.query().is_none();
            if !parsed.is_some_and(|url| plain(&url)) {
                return Err(format!("?endpoint={endpoint} is none; write https://host:port"));
            }
        }
        if service == Service::Azure && !settings.contains_key("account") {
            return Err("no storage account; write az://container/prefix?account=NAME".to_owned());
        }
        let prefix = Path::from_url_path(url.path()).map_err(|error| format!("its prefix is none: {error}"))?;
        Ok(Self { service, name: name.to_owned(), prefix, settings })
    }

    /// A client for it; nothing is asked yet.
    pub(super) fn open(&self, config: &DestinationConfig) -> Result<Arc<dyn ObjectStore>, String> {
        install_tls();
        let file = config.credentials_file.as_deref();
        Ok(match self.service {
            Service::S3 => self.under_prefix(self.s3(file)?),
            Service::Google => self.under_prefix(self.google(file)?),
            Service::Azure => self.under_prefix(self.azure(file)?),
        })
    }

    fn under_prefix(&self, store: impl ObjectStore) -> Arc<dyn ObjectStore> {
        if self.prefix.as_ref().is_empty() {
            Arc::new(store)
        } else {
            Arc::new(PrefixStore::new(store, self.prefix.clone()))
        }
    }

    fn endpoint(&self) -> Option<&str> {
        self.settings.get("endpoint").map(String::as_str)
    }

    fn client(&self) -> ClientOptions {
        let plain = self.endpoint().is_some_and(|endpoint| endpoint.starts_with("http:"));
        ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT).with_allow_http(plain)
    }

    /// Calls of S3 that know versions and locks; `None`: it is of another service.
    pub(super) async fn versions(&self, config: &DestinationConfig) -> Option<Result<Versions, String>> {
        if self.service != Service::S3 {
            return None;
        }
        install_tls();
        let store = match self.s3(config.credentials_file.as_deref()) {
            Ok(store) => store,
            Err(reason) => return Some(Err(reason)),
        };
        let of_environment = || {
            let regions = from_environment("AWS_", |key: &AmazonS3ConfigKey| {
                matches!(key, AmazonS3ConfigKey::Region | AmazonS3ConfigKey::DefaultRegion)
            });
            regions.into_iter().next_back().map(|(_, region)| region)
        };
        let region = self.settings.get("region").cloned().or_else(of_environment);
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        Some(Versions::of(&store, &self.name, &self.prefix, self.endpoint(), region).await)
    }

    fn s3(&self, file: Option<&FsPath>) -> Result<AmazonS3, String> {
        use AmazonS3ConfigKey as Key;
        let mut builder = AmazonS3Builder::new();
        match file {
            Some(file) => {
                let values = Values::read(file)?;
                builder = builder
                    .with_access_key_id(values.take("aws_access_key_id")?)
                    .with_secret_access_key(values.take("aws_secret_access_key")?);
                if let Some(token) = values.get("aws_session_token") {
                    builder = builder.with_token(token);
                }
            }
            None => {
                let credentials = from_environment("AWS_", |key: &Key| {
                    matches!(
                        key,
                        Key::AccessKeyId
                            | Key::SecretAccessKey
                            | Key::Token
                            | Key::Region
                            | Key::DefaultRegion
                            | Key::WebIdentityTokenFile
                            | Key::RoleArn
                            | Key::RoleSessionName
                            | Key::StsEndpoint
                            | Key::ContainerCredentialsRelativeUri
                            | Key::ContainerCredentialsFullUri
                            | Key::ContainerAuthorizationTokenFile
                    )
                });
                builder =
                    credentials.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
            }
        }
        if let Some(region) = self.settings.get("region") {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = self.endpoint() {
            builder = builder.with_endpoint(endpoint);
        }
        let built = builder
            .with_bucket_name(&self.name)
            // A bucket that locks its objects takes none without.
            .with_checksum_algorithm(Checksum::SHA256)
            .with_client_options(self.client())
            .with_retry(retry())
            .build();
        built.map_err(|error| error.to_string())
    }

    fn google(&self, file: Option<&FsPath>) -> Result<impl ObjectStore, String> {
        use GoogleConfigKey as Key;
        let mut builder = GoogleCloudStorageBuilder::new();
        match file {
            Some(file) => builder = builder.with_service_account_path(file.display().to_string()),
            None => {
                let credentials = from_environment("GOOGLE_", |key: &Key| {
                    matches!(key, Key::ServiceAccount | Key::ServiceAccountKey | Key::ApplicationCredentials)
                });
                builder =
                    credentials.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
            }
        }
        if let Some(endpoint) = self.endpoint() {
            builder = builder.with_base_url(endpoint);
        }
        let built = builder.with_bucket_name(&self.name).with_client_options(self.client()).with_retry(retry()).build();
        // It may quote the file.
        built.map_err(|_| "its credentials are not those of a service account".to_owned())
    }

    fn azure(&self, file: Option<&FsPath>) -> Result<impl ObjectStore, String> {
        use AzureConfigKey as Key;
        let mut builder = MicrosoftAzureBuilder::new();
        match file {
            Some(file) => {
                let values = Values::read(file)?;
                builder = match values.get("azure_storage_sas_token") {
                    Some(token) => builder.with_config(Key::SasKey, token),
                    None => builder.with_access_key(values.take("azure_storage_account_key")?),
                };
            }
            None => {
                let credentials = from_environment("AZURE_", |key: &Key| {
                    matches!(
                        key,
                        Key::AccessKey
                            | Key::SasKey
                            | Key::ClientId
                            | Key::ClientSecret
                            | Key::AuthorityId
                            | Key::FederatedTokenFile
                    )
                });
                builder =
                    credentials.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
            }
        }
        if let Some(endpoint) = self.endpoint() {
            builder = builder.with_endpoint(endpoint.to_owned());
        }
        let built = builder
            .with_account(self.settings.get("account").cloned().unwrap_or_default())
            .with_container_name(&self.name)
            .with_client_options(self.client())
            .with_retry(retry())
            .build();
        built.map_err(|_| "its credentials are none of Azure Storage".to_owned())
    }
}

/// Short: the caller tries again by itself, and knows better when to give up.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(20),
    }
}

/// The process's TLS, once: rustls is built with `ring` alone.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // One that somebody else installed serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Variables that give credentials, in the order of their names.
fn from_environment<K: FromStr>(prefix: &str, is_wanted: impl Fn(&K) -> bool) -> Vec<(K, String)> {
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let named = variables.into_iter().filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
    let keys = named.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse::<K>().ok()?, value)));
    keys.filter(|(key, _)| is_wanted(key)).collect()
}

/// `key = value` lines, as in `~/.aws/credentials`; of its sections only the first.
struct Values(BTreeMap<String, String>, String);

impl Values {
    fn read(file: &FsPath) -> Result<Self, String> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {name}: {error}"))?;
        let mut values = BTreeMap::new();
        let mut sections = 0;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                sections += 1;
            } else if let (true, Some((key, value))) = (sections <= 1 && !line.starts_with('#'), line.split_once('=')) {
                values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        Ok(Self(values, name))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn take(&self, key: &str) -> Result<&str, String> {
        self.get(key).ok_or_else(|| format!("{} has no {key} = …", self.1))
    }
}

/// Why a request failed, without what the server wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is not allowed.
    Forbidden(String),
    /// There is no such bucket.
    NoBucket(String),
    /// There is no such object.
    Missing,
    /// Anything else; it may work later.
    Failed(String),
}

/// Codes of a bucket or container that is not there.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "InvalidBucketName"];

pub(super) fn failure(error: &object_store::Error) -> Failure {
    let text = error.to_string();
    let status = status_in(&text);
    let code = code_in(&text);
    let said = match (status, &code) {
        (Some(status), Some(code)) => format!("HTTP {status} {code}"),
        (Some(status), None) => format!("HTTP {status}"),
        (None, _) => transport(error),
    };
    let is_missing = matches!(error, object_store::Error::NotFound { .. });
    match (status, code.as_deref()) {
        (_, Some(code)) if NO_BUCKET.contains(&code) => Failure::NoBucket(said),
        _ if is_missing => Failure::Missing,
        // Lists, and nothing else, of a bucket that is not there.
        (Some(404), _) => Failure::NoBucket(said),
        (Some(401 | 403), _) => Failure::Forbidden(said),
        _ => Failure::Failed(said),
    }
}

/// `… status code: 403 Forbidden: …`.
fn status_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// `<Code>AccessDenied</Code>`, as S3, Google and Azure all answer; a word and nothing else.
fn code_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = !code.is_empty() && code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}

/// A request that got no answer: its innermost cause, which names no URL.
fn transport(error: &object_store::Error) -> String {
    let causes = std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |cause| cause.source());
    let mut kind = "the request failed";
    let mut inner = String::new();
    for cause in causes {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            kind = match http.kind() {
                HttpErrorKind::Connect => "it cannot be reached",
                HttpErrorKind::Timeout => "it did not answer in time",
                HttpErrorKind::Interrupted => "the connection was lost",
                HttpErrorKind::Decode => "its answer cannot be read",
                _ => "the request failed",
            };
        }
        inner = cause.to_string();
    }
    if inner.is_empty() || inner.contains("://") || inner.contains('<') {
        kind.to_owned()
    } else {
        format!("{kind}: {inner}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Bucket, String> {
        let url = Url::parse(url).expect("a URL");
        Bucket::parse(Service::of(url.scheme()).expect("a service"), &url)
    }

    #[test]
    fn a_url_names_bucket_prefix_and_endpoint() {
        let bucket =
            parse("s3://vault/holdfast/prod?endpoint=http://127.0.0.1:9000&region=eu-north-1").expect("parses");
        assert_eq!((bucket.name.as_str(), bucket.prefix.as_ref()), ("vault", "holdfast/prod"));
        assert_eq!(bucket.endpoint(), Some("http://127.0.0.1:9000"));
        assert_eq!(bucket.settings["region"], "eu-north-1");
        assert_eq!(parse("gs://vault").expect("parses").prefix.as_ref(), "");
        assert_eq!(parse("az://vault/x/?account=me").expect("parses").prefix.as_ref(), "x");
        let cases = [
            ("s3:///x", "no bucket"),
            ("s3://vault?endpiont=http://h", "unknown ?endpiont="),
            ("s3://vault?endpoint=h:9000", "write https://host:port"),
            ("s3://vault?endpoint=http://me:secret@h", "write https://host:port"),
            ("s3://vault?region=", "needs one value"),
            ("s3://vault?region=a&region=b", "needs one value"),
            ("s3://key:secret@vault/x", "credentials go into a file"),
            ("s3://vault/x#y", "no #fragment"),
            ("gs://vault?region=x", "known: endpoint"),
            ("az://vault", "?account=NAME"),
        ];
        for (url, expected) in cases {
            let error = parse(url).expect_err(url);
            assert!(error.contains(expected), "{url}: {error}");
        }
    }

    #[test]
    fn credentials_come_from_a_file() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("credentials");
        std::fs::write(
            &file,
            "# mine\n[default]\naws_access_key_id = AK\naws_secret_access_key=s=k\n[other]\naws_access_key_id = no\n",
        )
        .expect("writes");
        let values = Values::read(&file).expect("reads");
        assert_eq!((values.take("aws_access_key_id"), values.take("aws_secret_access_key")), (Ok("AK"), Ok("s=k")));
        assert!(values.take("aws_session_token").expect_err("none").contains("credentials has no aws_session_token"));
        assert!(Values::read(&dir.path().join("none")).map(|_| ()).expect_err("none").contains("cannot read"));
        for url in ["s3://vault/x", "az://vault?account=me", "gs://vault"] {
            let url = Url::parse(url).expect("a URL");
            let bucket = Bucket::parse(Service::of(url.scheme()).expect("known"), &url).expect("parses");
            let mut config = DestinationConfig::from_url(url.as_str());
            config.credentials_file = Some(dir.path().join("none"));
            let error = bucket.open(&config).map(|_| ()).expect_err("no file");
            assert!(!error.is_empty());
        }
        let bucket = parse("s3://vault/x").expect("parses");
        let config = DestinationConfig { credentials_file: Some(file), ..DestinationConfig::from_url("s3://vault/x") };
        bucket.open(&config).expect("opens");
    }

    #[test]
    fn an_error_tells_the_status_and_no_secret() {
        let secret = "x-amz-security-token:SECRET";
        let answer = |status: &str, body: &str| object_store::Error::Generic {
            store: "S3",
            source: format!("Server returned non-2xx status code: {status}: {body}").into(),
        };
        let body =
            |code: &str| format!("<Error><Code>{code}</Code><CanonicalRequest>{secret}</CanonicalRequest></Error>");
        let cases = [
            (answer("403 Forbidden", &body("AccessDenied")), Failure::Forbidden("HTTP 403 AccessDenied".into())),
            (answer("401 Unauthorized", secret), Failure::Forbidden("HTTP 401".into())),
            (answer("404 Not Found", &body("NoSuchBucket")), Failure::NoBucket("HTTP 404 NoSuchBucket".into())),
            (answer("503 Service Unavailable", &body("SlowDown")), Failure::Failed("HTTP 503 SlowDown".into())),
            (answer("500 Internal", &body(secret)), Failure::Failed("HTTP 500".into())),
        ];
        for (error, expected) in cases {
            assert_eq!(failure(&error), expected);
        }
        let sent =
            object_store::Error::Generic { store: "S3", source: "sending to https://h/?sig=SECRET failed".into() };
        assert_eq!(failure(&sent), Failure::Failed("the request failed".into()));
    }
}
