//! Time and memory of reading a large cluster for an audit.
//!
//! `cargo bench --bench audit` generates the snapshot and reads it. `-- write FILE` writes it, and `-- FILE` reads it
//! from there, as a user would; `/usr/bin/time -v` then tells the memory.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // only the pure tiers deny these lints

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::time::Instant;

use vramguard::capacity::audit::scene::Scene;
use vramguard::capacity::policy::{Documents, Policies};
use vramguard::capacity::verdict::finding::Place;
use vramguard::k8s::audit::Reader;
use vramguard::k8s::manifests;

#[path = "snapshot/mod.rs"]
mod snapshot;

use snapshot::printed::Cluster;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => report("generated", Cluster::LARGE.text()),
        ["write", file] => {
            let mut out = BufWriter::new(File::create(file)?);
            let bytes = io::copy(&mut Cluster::LARGE.text(), &mut out)?;
            out.flush()?;
            println!("{file}: {} MiB", bytes >> 20);
        }
        [file] => report(file, File::open(file)?),
        _ => println!("usage: cargo bench --bench audit [-- write FILE | -- FILE]"),
    }
    Ok(())
}

fn report(file: &str, input: impl Read) {
    let start = Instant::now();
    let scene = read(file, input);
    let (subjects, nodes) = (scene.subjects.len(), scene.cluster.node_names().count());
    println!("{file}: {nodes} nodes and {subjects} subjects read in {:.2} s", start.elapsed().as_secs_f64());
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let memory = status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"));
        memory.for_each(|line| println!("{line}"));
    }
}

fn read(file: &str, input: impl Read) -> Scene {
    let mut reader = Reader::new();
    let mut add = |line, object| reader.add(Some(Place { file: file.into(), line }), &object);
    manifests::read_reduced(file, input, &mut add).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let read = Instant::now();
    let scene = reader.finish(Policies::new(&Documents::default(), "vramguard-system"), &[]);
    println!("{file}: finished in {:.2} s", read.elapsed().as_secs_f64());
    scene
}
