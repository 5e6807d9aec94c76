//! Hashes the sources, so that a kept failure says which code it was seen with.

use std::fs;
use std::path::Path;

fn main() {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for sources in ["../src", "src"] {
        println!("cargo::rerun-if-changed={sources}");
        add(Path::new(sources), &mut hash);
    }
    println!("cargo::rustc-env=COLLECTIVE_SIM_CODE={hash:016x}");
}

/// Adds a file, or everything in a directory in the order of the names (FNV-1a).
fn add(path: &Path, hash: &mut u64) {
    if let Ok(entries) = fs::read_dir(path) {
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths.iter().for_each(|path| add(path, hash));
    } else {
        for byte in fs::read(path).unwrap_or_default() {
            *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
