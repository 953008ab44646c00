//! What the kernels need of a GPU, as `scripts/kernels.sh` has measured it: kernels/registers.tsv.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use percept_kernels_emulation::kernels;
use sha2::{Digest as _, Sha256};

const ARCHITECTURES: [&str; 4] = ["80", "86", "89", "90"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn table() -> String {
    fs::read_to_string(folder().join("registers.tsv")).unwrap()
}

/// Kernel, architecture, registers, static shared memory and spilled bytes of each row.
fn rows(table: &str) -> Vec<(&str, &str, [u32; 3])> {
    let lines = table.lines().skip(2).map(|line| line.split('\t').collect::<Vec<_>>());
    lines.map(|row| (row[0], row[1], [2, 3, 4].map(|column| row[column].parse().unwrap()))).collect()
}

#[test]
fn the_table_has_every_kernel_on_every_architecture() {
    let table = table();
    let found: BTreeSet<_> =
        rows(&table).into_iter().map(|(kernel, sm, _)| (kernel.to_owned(), sm.to_owned())).collect();
    let kernels = kernels();
    assert!(kernels.len() > 40, "{kernels:?}");
    let expected: BTreeSet<_> =
        kernels.iter().flat_map(|kernel| ARCHITECTURES.map(|sm| (kernel.clone(), sm.to_owned()))).collect();
    let differ: Vec<_> = found.symmetric_difference(&expected).collect();
    assert!(differ.is_empty(), "run scripts/kernels.sh: {differ:?}");
}

#[test]
fn the_table_is_that_of_these_sources() {
    let mut files: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "cu"));
    files.sort();
    files.insert(0, folder().join("device.cuh"));
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).unwrap());
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(
        table().lines().next().unwrap().ends_with(&hash),
        "run scripts/kernels.sh: the sources have changed"
    );
}

#[test]
fn no_kernel_spills_registers() {
    let table = table();
    for (kernel, sm, [registers, shared, spilled]) in rows(&table) {
        assert_eq!(spilled, 0, "{kernel} spills on sm_{sm}");
        // What one thread can have, and a block without asking.
        assert!(
            registers <= 255 && shared <= 48 << 10,
            "{kernel} on sm_{sm}: {registers} registers, {shared} bytes"
        );
    }
}
