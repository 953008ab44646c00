//! Compiles every kernel file as C++ against `emulation.h`, and the faulty copies of them that the tests must catch.
#![allow(clippy::print_stdout, reason = "how a build script speaks")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::faults::{FAULTS, Fault};

#[path = "faults.rs"]
mod faults;

const KERNELS: [&str; 9] =
    ["activation", "alignment", "attention", "kv_write", "linear", "log_mel", "norm", "resize", "sample"];

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let kernels = here.parent().expect("the crate lies in the folder of the kernels").to_owned();
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for file in ["build.rs", "faults.rs", "emulation.h", "emulation.cpp", "self_test.cu", "../device.cuh"] {
        println!("cargo:rerun-if-changed={file}");
    }

    let mut emulated = cpp();
    emulated.opt_level(1).include(&here).include(&kernels);
    emulated.flag("-Wno-unknown-pragmas").flag("-Wno-unused-parameter").flag("-fno-extern-tls-init");
    // The hooks of this sanitizer are the emulation's own; its runtime is not linked.
    emulated.flag("-fsanitize=thread").flag("--param=tsan-instrument-func-entry-exit=0");
    emulated.flag("-fsanitize=bounds,alignment,signed-integer-overflow,shift,integer-divide-by-zero");
    emulated.file(translated(&out, "self_test", &here.join("self_test.cu"), None));
    for kernel in KERNELS {
        let source = kernels.join(format!("{kernel}.cu"));
        println!("cargo:rerun-if-changed={}", source.display());
        emulated.file(translated(&out, kernel, &source, None));
        for fault in FAULTS.iter().filter(|fault| fault.file == kernel) {
            emulated.file(translated(&out, fault.name, &source, Some(fault)));
        }
    }
    // Kernels register themselves in constructors, so the linker must keep every object file.
    emulated.link_lib_modifier("+whole-archive").compile("percept_emulated_kernels");
    cpp().opt_level(2).include(&here).file(here.join("emulation.cpp")).compile("percept_emulation");
    driver(&here, &out);
}

/// A folder with the libraries that a program for GPUs looks for, all of them the emulated driver.
fn driver(here: &Path, out: &Path) {
    println!("cargo:rerun-if-changed=driver.cpp");
    let folder = out.join("driver");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("cargo's folder can be written to");
    println!("cargo:rustc-env=PERCEPT_EMULATED_DRIVER={}", folder.display());
    cpp().opt_level(2).cargo_metadata(false).file(here.join("driver.cpp")).compile("percept_emulated_driver");
    let library = folder.join("libcuda.so.1");
    let mut linker = cpp().get_compiler().to_command();
    linker.arg("-shared").arg("-o").arg(&library).args(["-Wl,--no-undefined", "-Wl,--whole-archive"]);
    for part in ["percept_emulated_driver", "percept_emulated_kernels", "percept_emulation"] {
        linker.arg(out.join(format!("lib{part}.a")));
    }
    let linked = linker.args(["-Wl,--no-whole-archive", "-ldl", "-lpthread"]).status();
    assert!(linked.is_ok_and(|status| status.success()), "{linker:?} failed");
    // Of whichever version of CUDA the program was built for.
    for other in
        ["libcublas.so.12", "libcublas.so.13", "libcublasLt.so.12", "libcublasLt.so.13", "libcurand.so.10"]
    {
        std::os::unix::fs::symlink("libcuda.so.1", folder.join(other))
            .expect("cargo's folder can be written to");
    }
}

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(true).debug(true);
    build
}

/// Writes the C++ file of a kernel file, with a fault in it if one is wanted.
fn translated(out: &Path, name: &str, source: &Path, fault: Option<&Fault>) -> PathBuf {
    let text = fs::read_to_string(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let path = out.join(format!("{name}.cpp"));
    let mut file = String::new();
    let text = match fault {
        None => text,
        Some(fault) => {
            file += &format!("#define EMU_PREFIX \"{}:\"\n", fault.name);
            faulty(&text, fault)
        }
    };
    // The namespace keeps the templates of a faulty copy apart from the right ones.
    file += &format!(
        "#include \"device.cuh\"\nnamespace of_{name} {{\n#line 1 \"{}\"\n{text}\n}}\n",
        source.display()
    );
    fs::write(&path, file).expect("cargo's folder can be written to");
    path
}

/// The file with the fault, and only the kernels that its test needs: compiling all of them takes long.
fn faulty(text: &str, fault: &Fault) -> String {
    assert_eq!(text.matches(fault.right).count(), 1, "{} must be in {}.cu once", fault.right, fault.file);
    let text = text.replace(fault.right, fault.wrong);
    let kept =
        |line: &&str| !line.starts_with("EACH_") || fault.kernels.iter().any(|kernel| line.contains(kernel));
    text.lines().map(|line| if kept(&line) { line } else { "" }).collect::<Vec<_>>().join("\n")
}
