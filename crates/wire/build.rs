//! Compiles `proto/` with protox, so that no protoc is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files: Vec<PathBuf> = ["holdfast/v1", "holdfast/internal/v1"]
        .iter()
        .map(|dir| root.join(dir))
        .map(|dir| {
            println!("cargo:rerun-if-changed={}", dir.display());
            std::fs::read_dir(&dir)
        })
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "proto"))
        .collect();
    let set = protox::compile(&files, [&root])?;
    let public = prost_descriptor(&set, "holdfast.v1");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("public_descriptor.bin"), public)?;
    tonic_prost_build::configure().bytes(".").compile_fds(set)?;
    Ok(())
}

/// Only the public package and what it imports is served by reflection.
fn prost_descriptor(set: &prost_types_set::FileDescriptorSet, package: &str) -> Vec<u8> {
    let mut public = set.clone();
    public.file.retain(|file| file.package() == package || file.package().starts_with("google."));
    public.encode_to_vec()
}

use protox::prost_reflect::prost_types as prost_types_set;
