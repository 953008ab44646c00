//! With the feature `cuda`: compiles the CUDA kernels to PTX, which the driver compiles for the GPU that it finds, and
//! writes what [`late`](late.rs) stands in for CUDA's libraries with. Without it: does nothing.
#![allow(clippy::print_stdout, reason = "how a build script speaks")]

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let nvcc = env::var_os("CUDA_HOME")
        .map_or_else(|| PathBuf::from("nvcc"), |home| Path::new(&home).join("bin/nvcc"));
    kernels(&nvcc, &out);
    stand_ins(&out);
    runtime(&nvcc, &out);
}

fn kernels(nvcc: &Path, out: &Path) {
    println!("cargo:rerun-if-changed=device.cuh");
    for kernel in
        ["activation", "alignment", "attention", "kv_write", "linear", "log_mel", "norm", "resize", "sample"]
    {
        let source = format!("{kernel}.cu");
        println!("cargo:rerun-if-changed={source}");
        // The oldest GPU that has what the kernels use: asynchronous copies, and bf16 on its tensor cores.
        run(nvcc, |nvcc| {
            nvcc.args(["-std=c++17", "-arch=compute_80", "-ptx", "-o"])
                .args([out.join(kernel).with_extension("ptx"), source.into()])
        });
    }
}

/// Runs nvcc; what it wrote to its standard output.
fn run(nvcc: &Path, arguments: impl FnOnce(&mut Command) -> &mut Command) -> String {
    let mut command = Command::new(nvcc);
    match arguments(&mut command).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?} failed: {said}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Err(error) => panic!("{} cannot be run: {error}; see scripts/cuda-toolkit.sh", nvcc.display()),
    }
}

/// What a function of a library answers while it is not there.
enum Missing {
    /// A status, all of which are numbers of 32 bits.
    Status(u32),
    /// A text: what functions answer that name a status.
    Text,
}

/// How a processor does what the stand-ins do, in the syntax that Rust's assembler expects of it.
struct Machine {
    /// Goes on where the table says at so many bytes.
    jump: fn(usize) -> String,
    /// Answers with a status.
    status: fn(u32) -> String,
    /// Answers with the text.
    text: &'static str,
}

const X86_64: Machine = Machine {
    jump: |bytes| format!("jmp qword ptr [rip + percept_late_table + {bytes}]"),
    status: |status| format!("mov eax, {status}\nret"),
    text: "lea rax, [rip + percept_late_said]\nret",
};

/// x16 is free to use between a call and what it calls.
const AARCH64: Machine = Machine {
    jump: |bytes| {
        format!(
            "adrp x16, percept_late_table + {bytes}\nldr x16, [x16, :lo12:percept_late_table + {bytes}]\nbr x16"
        )
    },
    status: |status| format!("mov w0, #{status}\nret"),
    text: "adrp x0, percept_late_said\nadd x0, x0, :lo12:percept_late_said\nret",
};

/// A function of each name, which goes on where `late_table` says; a table that [`late`](late.rs) fills.
fn stand_ins(out: &Path) {
    println!("cargo:rerun-if-changed=late/symbols.txt");
    let machine = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => X86_64,
        Ok("aarch64") => AARCH64,
        other => panic!("the feature cuda is for x86-64 and AArch64, and this is {other:?}"),
    };
    let list = fs::read_to_string("late/symbols.txt").expect("late/symbols.txt is in the sources");
    let (mut code, mut table, mut functions) = (String::new(), String::new(), String::new());
    let mut statuses = BTreeSet::new();
    for (index, line) in list.lines().filter(|line| !line.starts_with('#')).enumerate() {
        let (library, function) = line.split_once(' ').expect("a library and a function in each line");
        let missing = match (library, function) {
            (_, function) if function.ends_with("StatusName") || function.ends_with("StatusString") => {
                Missing::Text
            }
            (_, "nvrtcGetErrorString") => Missing::Text,
            // CUDA_ERROR_NOT_FOUND
            ("cuda", _) => Missing::Status(500),
            // CUBLAS_STATUS_NOT_SUPPORTED, of both libraries
            ("cublas" | "cublasLt", _) => Missing::Status(15),
            // CURAND_STATUS_INTERNAL_ERROR
            ("curand", _) => Missing::Status(999),
            // NVRTC_ERROR_INTERNAL_ERROR
            ("nvrtc", _) => Missing::Status(11),
            (library, _) => panic!("{library} is no library of CUDA"),
        };
        let missing = match missing {
            Missing::Status(status) => {
                statuses.insert(status);
                format!("percept_late_{status}")
            }
            Missing::Text => "percept_late_text".to_owned(),
        };
        // Hidden, so that no library that is loaded later takes them for its own.
        writeln!(
            code,
            ".globl {function}\n.hidden {function}\n.type {function}, %function\n{function}:\n{}",
            (machine.jump)(8 * index)
        )
        .expect("a string takes what is written to it");
        writeln!(table, ".quad {missing}").expect("so does this");
        writeln!(functions, "({library:?}, c{function:?}),").expect("and this");
    }
    let status = |status| format!("percept_late_{status}:\n{}\n", (machine.status)(status));
    let answers: String = statuses.into_iter().map(status).collect();
    let text = machine.text;
    let assembly = format!(
        ".text\n.balign 16\n{code}{answers}percept_late_text:\n{text}\n\
         .section .rodata\npercept_late_said: .asciz \"the CUDA library that says what this means is not loaded\"\n\
         .section .data.rel,\"aw\"\n.balign 8\n\
         .globl percept_late_table\n.hidden percept_late_table\npercept_late_table:\n{table}.text\n"
    );
    fs::write(out.join("late.s"), assembly).expect("OUT_DIR can be written");
    fs::write(out.join("late_functions.rs"), format!("&[{functions}]")).expect("OUT_DIR can be written");
}

/// Links the part of CUDA's runtime that candle's kernels need from its static form, which looks for the driver when it is
/// first used. For the libraries that stand-ins are for, cargo is told of empty ones: candle asks the linker for them all.
fn runtime(nvcc: &Path, out: &Path) {
    let version = run(nvcc, |nvcc| nvcc.arg("--version"));
    let major = version.split("release ").nth(1).and_then(|rest| rest.split('.').next());
    let major = major.unwrap_or_else(|| panic!("{} does not say its version: {version}", nvcc.display()));
    println!("cargo:rustc-env=PERCEPT_CUDA_MAJOR={major}");

    // The whole of it, since what needs it comes in front of it or behind it, as linkers please. cudarc tells the linker
    // where toolkits have it.
    println!("cargo:rustc-link-lib=static:-bundle,+whole-archive=cudart_static");
    let empty = out.join("empty");
    fs::create_dir_all(&empty).expect("OUT_DIR can be written");
    for library in ["cuda", "nvrtc", "curand", "cublas", "cublasLt", "cudart"] {
        fs::write(empty.join(format!("lib{library}.a")), "!<arch>\n").expect("OUT_DIR can be written");
    }
    println!("cargo:rustc-link-search=native={}", empty.display());
}
