//! Who verifies archives: a key of their own, which no node has.

use std::path::PathBuf;

use holdfast_archive::VerifierKey;

use crate::exit::{Exit, failure};

/// Whose word it is.
#[derive(Debug, clap::Args)]
pub struct VerifierArgs {
    /// Key that signs what is found; made there where there is none. Keep it where no node can read it [default:
    /// ~/.config/holdfast/verifier.key].
    #[arg(long, env = "HOLDFAST_VERIFIER_KEY", value_name = "FILE", hide_env_values = true)]
    verifier_key: Option<PathBuf>,
}

impl VerifierArgs {
    /// Reads the key, or makes it.
    pub fn key(&self) -> anyhow::Result<VerifierKey> {
        let path = match &self.verifier_key {
            Some(path) => path.clone(),
            None => usual().ok_or_else(|| {
                failure(
                    Exit::Usage,
                    "there is no home directory to keep the verifier's key in: name a file with --verifier-key",
                )
            })?,
        };
        Ok(VerifierKey::read_or_create(&path)?)
    }
}

fn usual() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("holdfast/verifier.key"))
}
