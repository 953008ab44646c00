//! With the feature `cuda`: compiles the CUDA kernels to PTX, which the driver compiles for the GPU that it finds.
//! Without it: does nothing.
#![allow(clippy::print_stdout, reason = "how a build script speaks")]

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-changed=device.cuh");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let nvcc = env::var_os("CUDA_HOME")
        .map_or_else(|| PathBuf::from("nvcc"), |home| Path::new(&home).join("bin/nvcc"));
    for kernel in ["activation", "attention", "kv_write", "linear", "log_mel", "norm", "resize", "sample"] {
        let source = format!("{kernel}.cu");
        println!("cargo:rerun-if-changed={source}");
        // The oldest GPU that has what the kernels use: asynchronous copies, and bf16 on its tensor cores.
        let status = Command::new(&nvcc)
            .args(["-std=c++17", "-arch=compute_80", "-ptx", "-o"])
            .args([out.join(kernel).with_extension("ptx"), source.into()])
            .status();
        match status {
            Ok(status) => assert!(status.success(), "nvcc could not compile kernels/{kernel}.cu"),
            Err(error) => panic!("{} cannot be run: {error}; see scripts/cuda-toolkit.sh", nvcc.display()),
        }
    }
}
